package jointoken

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"

	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
	"github.com/strake-io/strake/kubelet/certificates"
)

func TestTokens(t *testing.T) {
	s := apiservertest.Start(t)
	c := &Cluster{client: kubernetes.NewForConfigOrDie(s.Admin), config: s.Admin}
	now := time.Now().Truncate(time.Second).Add(time.Second / 2)
	made, err := c.Create(t.Context(), Request{TTL: time.Hour, Usages: Usages, Groups: []string{"system:bootstrappers:rack-7"}, Description: "for rack 7"}, now)
	if err != nil {
		t.Fatal(err)
	}
	id, secret, err := certificates.ParseToken(made.Token)
	if err != nil || id != made.ID {
		t.Fatalf("%+v: %v", made, err)
	}
	ca, err := certutil.ParseCertsPEM(s.Admin.CAData)
	if err != nil {
		t.Fatal(err)
	}
	if want := "strake join " + s.Admin.Host + " --token " + made.Token + " --ca-cert-hash " + certificates.CAHash(ca[0]); made.JoinCommand != want {
		t.Errorf("join command %q, want %q", made.JoinCommand, want)
	}
	// It is one that the API server takes.
	with := rest.AnonymousClientConfig(s.Admin)
	with.BearerToken = made.Token
	joining := kubernetes.NewForConfigOrDie(with)
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := joining.CertificatesV1().CertificateSigningRequests().List(t.Context(), metav1.ListOptions{})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, err := c.Create(t.Context(), Request{}, now); err != nil {
		t.Fatal(err)
	}
	for _, r := range []Request{{TTL: -time.Second}, {Usages: []string{"flying"}}, {Groups: []string{"system:masters"}}} {
		if _, err := c.Create(t.Context(), r, now); err == nil {
			t.Errorf("%+v was made", r)
		}
	}
	list, err := c.List(t.Context(), false)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	var out bytes.Buffer
	Print(&out, list, now)
	for _, want := range []string{id, "59m", "authentication,signing", "system:bootstrappers:rack-7", "for rack 7", "never"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the list has no %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), secret) {
		t.Errorf("the list shows a secret:\n%s", out.String())
	}
	if whole, err := c.List(t.Context(), true); err != nil || whole[0].Token == "" {
		t.Errorf("%+v, %v", whole, err)
	}
	if err := c.Delete(t.Context(), id); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{id, "x", "../abc", ""} {
		if err := c.Delete(t.Context(), bad); err == nil {
			t.Errorf("%q was deleted", bad)
		}
	}
	left, err := c.client.CoreV1().Secrets(metav1.NamespaceSystem).List(t.Context(), metav1.ListOptions{FieldSelector: "type=" + string(corev1.SecretTypeBootstrapToken)})
	if err != nil || len(left.Items) != 1 {
		t.Errorf("%d tokens are left, %v", len(left.Items), err)
	}
}

func TestConnectWithoutACluster(t *testing.T) {
	if _, err := Connect(filepath.Join(t.TempDir(), "admin.kubeconfig")); err == nil || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("no cluster: %v", err)
	}
	path := filepath.Join(t.TempDir(), "admin.kubeconfig")
	if err := os.WriteFile(path, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(path); err == nil {
		t.Error("rubbish was taken")
	}
}
