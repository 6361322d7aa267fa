package clients

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/chart/loader"
	"helm.sh/helm/v4/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/cmd/strake/ociimage"
	"github.com/strake-io/strake/tests/lab/labtest"
)

const certManager = "github.com/cert-manager/cert-manager"

// TestCertManager installs cert-manager by its own chart: definitions, a webhook whose CA it keeps itself, three deployments. Then people ask for
// certificates: of an issuer that signs itself, and of the CA that it has made.
func TestCertManager(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "certmanager")
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	module := filepath.Join(wd, "certmanager")
	goIn(t, module, "build", "-trimpath", "-ldflags=-s -w", "-o", binary, ".")
	chart, err := loader.Load(filepath.Join(goIn(t, module, "list", "-m", "-f", "{{.Dir}}", certManager), "deploy", "charts", "cert-manager"))
	if err != nil {
		t.Fatal(err)
	}
	c := startCluster(t, "strake-certs")
	kubectl := func(args ...string) (string, error) { return c.Strake(append([]string{"kubectl"}, args...)...) }
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, args := range [][]string{
			{"describe", "pods", "-n", "cert-manager"}, {"logs", "-n", "cert-manager", "-l", "app.kubernetes.io/instance=cert-manager", "--prefix", "--tail=50"},
			{"describe", "validatingwebhookconfigurations,issuers,certificates,certificaterequests"},
		} {
			out, err := kubectl(args...)
			t.Logf("kubectl %v: %v\n%s", args, err, out)
		}
	})
	image := func(part string) map[string]any {
		name := "strake.io/cert-manager-" + part
		labtest.LoadImage(t, c, ociimage.Image{Name: name + ":1", Files: map[string]string{"certmanager": binary}, Entrypoint: []string{"/certmanager", part}, User: "1000"})
		return map[string]any{"repository": name, "tag": "1"}
	}
	install := action.NewInstall(helmFor(t, c, "cert-manager"))
	install.ReleaseName, install.Namespace, install.CreateNamespace = "cert-manager", "cert-manager", true
	install.WaitStrategy, install.Timeout = kube.StatusWatcherStrategy, patience
	values := map[string]any{
		"crds": map[string]any{"enabled": true}, "startupapicheck": map[string]any{"enabled": false}, "prometheus": map[string]any{"enabled": false},
		"image": image("controller"), "webhook": map[string]any{"image": image("webhook")}, "cainjector": map[string]any{"image": image("cainjector")},
	}
	if _, err := install.Run(chart, values); err != nil {
		t.Fatalf("install: %v", err)
	}
	file := filepath.Join(t.TempDir(), "certificates.yaml")
	apply := func(yaml string) (string, error) {
		if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		return kubectl("apply", "-f", file)
	}
	// The webhook answers once its CA has been put where the API server reads it.
	eventually(t, "the webhook answers", func() error {
		out, err := apply(issuers)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
	if out, err := apply(strings.Replace(leaf, "renewBefore: 1h", "renewBefore: 3h", 1)); err == nil || !strings.Contains(out+err.Error(), "spec.renewBefore") {
		t.Errorf("a certificate that is renewed before it is made: %v\n%s", err, out)
	}
	if out, err := apply(leaf); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := kubectl("wait", "--for=condition=Ready", "certificate", "--all", "--timeout=120s"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := kubectl("get", "certificates", "-o", "wide", "--no-headers"); err != nil || !strings.Contains(out, "Certificate is up to date and has not expired") {
		t.Errorf("kubectl get certificates: %v\n%s", err, out)
	}

	rc, err := c.REST()
	if err != nil {
		t.Fatal(err)
	}
	secrets := kubernetes.NewForConfigOrDie(rc).CoreV1().Secrets("default")
	serial := func() (string, error) {
		s, err := secrets.Get(t.Context(), "web-tls", metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		pair, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey])
		if err != nil {
			return "", err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(s.Data["ca.crt"]) {
			return "", fmt.Errorf("no CA in Secret web-tls: %q", s.Data["ca.crt"])
		}
		_, err = pair.Leaf.Verify(x509.VerifyOptions{DNSName: "web.default.svc", Roots: roots})
		return pair.Leaf.SerialNumber.String(), err
	}
	first, err := serial()
	if err != nil {
		t.Fatal(err)
	}
	if err := secrets.Delete(t.Context(), "web-tls", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a certificate that was lost is made anew", func() error {
		again, err := serial()
		if err == nil && again == first {
			err = fmt.Errorf("it is the old one, %s", first)
		}
		return err
	})
	if out, err := kubectl("delete", "certificate", "web"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	eventually(t, "its Secret goes with a certificate", func() error {
		return expectGone(get(secrets.Get(t.Context(), "web-tls", metav1.GetOptions{})))
	})
}

const issuers = `apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: self, namespace: default}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: ca, namespace: default}
spec: {isCA: true, commonName: harbour, secretName: ca, privateKey: {algorithm: ECDSA}, issuerRef: {name: self}}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: ca, namespace: default}
spec: {ca: {secretName: ca}}
`

const leaf = `apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: web, namespace: default}
spec:
  secretName: web-tls
  duration: 2h
  renewBefore: 1h
  dnsNames: [web, web.default.svc]
  issuerRef: {name: ca}
`
