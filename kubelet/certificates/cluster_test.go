package certificates

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"

	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
	"github.com/strake-io/strake/controlplane/apiserver/quota"
	"github.com/strake-io/strake/controlplane/controllers"
)

// cluster is an API server with its controllers, to join.
type cluster struct {
	*testing.T
	server *apiservertest.Server
	admin  kubernetes.Interface
	hash   string
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	s := apiservertest.Start(t)
	c := &cluster{T: t, server: s}
	var err error
	if c.admin, err = kubernetes.NewForConfig(s.Admin); err != nil {
		t.Fatal(err)
	}
	ca, err := certutil.CertsFromFile(s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	c.hash = CAHash(ca[0])
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- controllers.Run(ctx, controllers.Config{
			API: s.As(t, user.KubeControllerManager), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, CAFile: s.CAFile, CAKeyFile: s.CAKeyFile, Server: s.Admin.Host, Quota: quota.Evaluators,
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("controllers: %v", err)
		}
	})
	return c
}

func (c *cluster) in(t *testing.T) *cluster {
	sub := *c
	sub.T = t
	return &sub
}

const secret = "5ecre75ecre75ecr"

// token makes a token and returns it.
func (c *cluster) token(id string, change ...func(map[string]string)) string {
	c.Helper()
	data := map[string]string{"token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true", "expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}
	for _, f := range change {
		f(data)
	}
	_, err := c.admin.CoreV1().Secrets(metav1.NamespaceSystem).Create(c.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-" + id}, Type: corev1.SecretTypeBootstrapToken, StringData: data,
	}, metav1.CreateOptions{})
	if err != nil {
		c.Fatal(err)
	}
	return id + "." + secret
}

func (c *cluster) config(node, token string) Config {
	dir := filepath.Join(c.TempDir(), "pki")
	return Config{
		Dir: filepath.Join(dir, "node"), NodeName: node, Addrs: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.7")} }, Server: c.server.Admin.Host,
		CAFile: filepath.Join(dir, "ca.crt"), KubeletKubeconfig: filepath.Join(dir, "kubelet.kubeconfig"), NetworkKubeconfig: filepath.Join(dir, "node-network.kubeconfig"),
		Token: token, CAHashes: []string{c.hash},
	}
}

func (c *cluster) patchStatus(client kubernetes.Interface, node, status string) {
	c.Helper()
	if _, err := client.CoreV1().Nodes().Patch(c.Context(), node, types.MergePatchType, []byte(`{"status":`+status+`}`), metav1.PatchOptions{}, "status"); err != nil {
		c.Fatal(err)
	}
}

const eventuallyTimeout = 5 * time.Minute

func (c *cluster) eventually(what string, f func(ctx context.Context) error) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), eventuallyTimeout)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			c.Fatalf("%s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// who tells whom the API server takes a client for, and by which certificate.
func (c *cluster) who(config *rest.Config) (authenticationv1.UserInfo, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return authenticationv1.UserInfo{}, err
	}
	r, err := client.AuthenticationV1().SelfSubjectReviews().Create(c.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.UserInfo{}, err
	}
	return r.Status.UserInfo, nil
}

func (c *cluster) mustBootstrap(cfg Config) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
	defer cancel()
	if err := Bootstrap(ctx, cfg); err != nil {
		c.Fatal(err)
	}
}

func must[T any](c *cluster) func(T, error) T {
	return func(v T, err error) T {
		c.Helper()
		if err != nil {
			c.Fatal(err)
		}
		return v
	}
}
