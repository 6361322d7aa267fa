package certificates

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	certutil "k8s.io/client-go/util/cert"
)

func TestJoin(t *testing.T) {
	c := startCluster(t)
	for name, test := range map[string]func(*cluster){
		"joins": testJoins, "resumes": testResumes, "refusals": testRefusals, "twins": testTwins, "serving": testServing, "rotation": testRotation, "strangers": testStrangers, "tokens": testTokens,
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(c.in(t)) })
	}
}

// testJoins goes from a token to two identities, which then need it no longer.
func testJoins(c *cluster) {
	cfg := c.config("worker", c.token("join00"))
	begin := time.Now()
	c.mustBootstrap(cfg)
	c.Logf("joined in %s", time.Since(begin))
	for path, want := range map[string]struct{ user, group string }{
		cfg.KubeletKubeconfig: {"system:node:worker", "system:nodes"}, cfg.NetworkKubeconfig: {"system:strake-agent:worker", "system:strake-agents"},
	} {
		rc, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil {
			c.Fatal(err)
		}
		u, err := c.who(rc)
		if err != nil || u.Username != want.user || !slices.Contains(u.Groups, want.group) {
			c.Errorf("%s: %q of %q, %v", path, u.Username, u.Groups, err)
		}
	}
	for _, path := range []string{currentPath(cfg.Dir, kubeletClient), cfg.KubeletKubeconfig, cfg.NetworkKubeconfig} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			c.Errorf("%s: %v, %v", path, info, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(cfg.Dir, "*.new"))
	if err != nil || len(left) > 0 {
		c.Errorf("left behind: %q, %v", left, err)
	}
	// A reboot: without the token, and without the API server.
	before := must[*Node](c)(Open(cfg)).kubelet.current.Load().Leaf
	cfg.Token, cfg.CAHashes, cfg.Server = "", nil, "https://192.0.2.1:1"
	c.mustBootstrap(cfg)
	if after := must[*Node](c)(Open(cfg)).kubelet.current.Load().Leaf; !after.Equal(before) {
		c.Error("a Bootstrap with all there made another certificate")
	}
	// What it got is a node's: its own Node, and nothing of others.
	cfg.Server = c.server.Admin.Host
	n := must[*Node](c)(Open(cfg))
	kubelet := kubernetes.NewForConfigOrDie(n.Kubelet())
	if _, err := kubelet.CoreV1().Nodes().Create(c.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "worker"}}, metav1.CreateOptions{}); err != nil {
		c.Error(err)
	}
	network := kubernetes.NewForConfigOrDie(n.Network())
	if _, err := network.CoreV1().Services("").List(c.Context(), metav1.ListOptions{}); err != nil {
		c.Error(err)
	}
	for what, err := range map[string]error{
		"another Node": func() error {
			_, err := kubelet.CoreV1().Nodes().Create(c.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other"}}, metav1.CreateOptions{})
			return err
		}(),
		"Secrets": func() error {
			_, err := kubelet.CoreV1().Secrets("kube-system").List(c.Context(), metav1.ListOptions{})
			return err
		}(),
		"Secrets, the network": func() error {
			_, err := network.CoreV1().Secrets("kube-system").List(c.Context(), metav1.ListOptions{})
			return err
		}(),
		"its own Node, the network": network.CoreV1().Nodes().Delete(c.Context(), "worker", metav1.DeleteOptions{}),
	} {
		if !apierrors.IsForbidden(err) {
			c.Errorf("%s: %v, want forbidden", what, err)
		}
	}
}

// testResumes ends a Bootstrap between any two of its steps.
func testResumes(c *cluster) {
	cfg := c.config("resumed", c.token("resume"))
	if err := cfg.ensureCA(c.Context()); err != nil {
		c.Fatal(err)
	}
	// Killed after asking: the key is there, and the request.
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		c.Fatal(err)
	}
	key, _, err := ensureKey(filepath.Join(cfg.Dir, kubeletClient+".key.new"))
	if err != nil {
		c.Fatal(err)
	}
	client := must[*rest.Config](c)(cfg.withToken())
	api := kubernetes.NewForConfigOrDie(client)
	id := cfg.kubelet()
	request := must[[]byte](c)(certutil.MakeCSR(key, &id.subject, nil, nil))
	c.eventually("first request", func(ctx context.Context) error {
		_, err := api.CertificatesV1().CertificateSigningRequests().Create(ctx, &certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Name: requestName(key, id)}, Spec: certificatesv1.CertificateSigningRequestSpec{Request: request, SignerName: id.signer, Usages: id.usages},
		}, metav1.CreateOptions{})
		return err
	})
	c.mustBootstrap(cfg)
	if pub := must[*Node](c)(Open(cfg)).kubelet.current.Load().Leaf.PublicKey; !key.Public().(*ecdsa.PublicKey).Equal(pub) {
		c.Error("the request under way was not used")
	}
	list, err := c.admin.CertificatesV1().CertificateSigningRequests().List(c.Context(), metav1.ListOptions{})
	if err != nil {
		c.Fatal(err)
	}
	mine := 0
	for _, r := range list.Items {
		if r.Spec.Username == "system:bootstrap:resume" {
			mine++
		}
	}
	if mine != 1 {
		c.Errorf("%d requests with the token, want 1", mine)
	}
	// Killed before the network's certificate, with the token gone: the kubelet's is enough.
	for _, path := range must[[]string](c)(filepath.Glob(filepath.Join(cfg.Dir, networkClient+"-*"))) {
		if err := os.Remove(path); err != nil {
			c.Fatal(err)
		}
	}
	cfg.Token = ""
	c.mustBootstrap(cfg)
	// A torn key of a request.
	if err := os.WriteFile(filepath.Join(cfg.Dir, networkClient+".key.new"), []byte("-----BEGIN"), 0o600); err != nil {
		c.Fatal(err)
	}
	if _, _, err := ensureKey(filepath.Join(cfg.Dir, networkClient+".key.new")); err != nil {
		c.Error(err)
	}
	// Without the kubelet's there is no way but a token.
	for _, path := range must[[]string](c)(filepath.Glob(filepath.Join(cfg.Dir, kubeletClient+"-*"))) {
		if err := os.Remove(path); err != nil {
			c.Fatal(err)
		}
	}
	if err := Bootstrap(c.Context(), cfg); err == nil || !strings.Contains(err.Error(), "strake token create") {
		c.Errorf("without token and certificate: %v", err)
	}
}

// testRefusals joins with what is wrong: the error names it, and comes soon.
func testRefusals(c *cluster) {
	good := c.token("refuse")
	expired := c.token("expire", func(d map[string]string) { d["expiration"] = time.Now().Add(-time.Minute).UTC().Format(time.RFC3339) })
	unfit := c.token("unfit0", func(d map[string]string) { d["usage-bootstrap-authentication"] = "false" })
	other := "sha256:" + strings.Repeat("0", 64)
	var wg sync.WaitGroup
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"wrong hash", func(cfg *Config) { cfg.CAHashes = []string{other} }, "not the one that the hash says"},
		{"a hash that is none", func(cfg *Config) { cfg.CAHashes = []string{"abc"} }, "64 hex digits"},
		{"no hash", func(cfg *Config) { cfg.CAHashes = nil }, "no hash"},
		{"a token that is none", func(cfg *Config) { cfg.Token = "secret" }, "not of the form"},
		{"unknown token", func(cfg *Config) { cfg.Token = "nobody." + secret }, "does not know the token"},
		{"wrong secret", func(cfg *Config) { cfg.Token = good[:len(good)-1] + "0" }, "does not know the token"},
		{"expired token", func(cfg *Config) { cfg.Token = expired }, "does not know the token"},
		{"a token for something else", func(cfg *Config) { cfg.Token = unfit }, "does not know the token"},
		{"no URL", func(cfg *Config) { cfg.Server = "192.0.2.1:6443" }, "not a URL"},
		{"a CA of another cluster", func(cfg *Config) {
			if err := errors.Join(os.MkdirAll(filepath.Dir(cfg.CAFile), 0o700), os.WriteFile(cfg.CAFile, c.server.Admin.CertData, 0o600)); err != nil {
				c.Fatal(err)
			}
		}, "another cluster"},
	} {
		cfg := c.config("refused", good)
		tc.change(&cfg)
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
			defer cancel()
			err := Bootstrap(ctx, cfg)
			if err == nil || !strings.Contains(err.Error(), tc.want) || ctx.Err() != nil {
				c.Errorf("%s: %v", tc.name, err)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				c.Errorf("%s: the error shows the token: %v", tc.name, err)
			}
		})
	}
	wg.Wait()
	// The API server is away: that may pass.
	cfg := c.config("refused", good)
	cfg.Server = "https://127.0.0.1:1"
	ctx, cancel := context.WithTimeout(c.Context(), time.Second)
	defer cancel()
	if err := Bootstrap(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "refused") {
		c.Errorf("away: %v", err)
	}
}

// testTwins joins by the name of a node that is alive.
func testTwins(c *cluster) {
	if _, err := c.admin.CoreV1().Nodes().Create(c.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "twin"}}, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	c.patchStatus(c.admin, "twin", `{"conditions":[{"type":"Ready","status":"True"}]}`)
	token := c.token("twins0")
	// The controller may not have seen the node yet: then the first joins.
	c.eventually("the second twin is told", func(ctx context.Context) error {
		err := Bootstrap(ctx, c.config("twin", token))
		if err == nil || !strings.Contains(err.Error(), "is in the cluster and Ready") {
			return fmt.Errorf("joined: %w", err)
		}
		return nil
	})
	if err := c.admin.CoreV1().Nodes().Delete(c.Context(), "twin", metav1.DeleteOptions{}); err != nil {
		c.Fatal(err)
	}
	c.eventually("a new machine of the name", func(ctx context.Context) error { return Bootstrap(ctx, c.config("twin", token)) })
}

// testServing gets a certificate to serve with once the Node says what its addresses are.
func testServing(c *cluster) {
	cfg := c.config("server", c.token("server"))
	addrs := make(chan []netip.Addr, 1)
	addrs <- []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	cfg.Addrs = func() []netip.Addr { a := <-addrs; addrs <- a; return a }
	c.mustBootstrap(cfg)
	n := must[*Node](c)(Open(cfg))
	if _, err := n.ServingCertificate(nil); err == nil {
		c.Error("a certificate before anybody asked for one")
	}
	stop := run(c, n)
	defer stop()
	kubelet := kubernetes.NewForConfigOrDie(n.Kubelet())
	c.eventually("request", func(ctx context.Context) error {
		list, err := c.admin.CertificatesV1().CertificateSigningRequests().List(ctx, metav1.ListOptions{FieldSelector: "spec.signerName=" + certificatesv1.KubeletServingSignerName})
		if err != nil {
			return err
		}
		for _, r := range list.Items {
			if r.Spec.Username == "system:node:server" {
				if len(r.Status.Conditions) > 0 {
					c.Errorf("decided without a Node: %+v", r.Status.Conditions)
				}
				return nil
			}
		}
		return errors.New("there is none")
	})
	if _, err := kubelet.CoreV1().Nodes().Create(c.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "server"}}, metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	address := func(addrs ...string) {
		c.Helper()
		var list []string
		for _, a := range addrs {
			list = append(list, fmt.Sprintf(`{"type":"InternalIP","address":%q}`, a))
		}
		c.patchStatus(kubelet, "server", `{"addresses":[`+strings.Join(list, ",")+`]}`)
	}
	address("192.0.2.7")
	names := func(want ...string) func(context.Context) error {
		return func(context.Context) error {
			cert, err := n.ServingCertificate(nil)
			if err != nil {
				return err
			}
			for _, name := range want {
				if err := cert.Leaf.VerifyHostname(name); err != nil {
					return err
				}
			}
			return nil
		}
	}
	c.eventually("certificate to serve with", names("192.0.2.7", "server"))
	// The node gets another address.
	<-addrs
	addrs <- []netip.Addr{netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("2001:db8::8")}
	address("192.0.2.8", "2001:db8::8")
	c.eventually("certificate for the new address", names("192.0.2.8", "2001:db8::8", "server"))
}

// run runs a node until the returned function is called.
func run(c *cluster, n *Node) func() {
	ctx, cancel := context.WithCancel(c.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			c.Error(err)
		}
	}
}

// testRotation has certificates that are near their end replaced while connections are open.
func testRotation(c *cluster) {
	cfg := c.config("rotated", c.token("rotate"))
	c.mustBootstrap(cfg)
	now := time.Now()
	for _, id := range []identity{cfg.kubelet(), cfg.network()} {
		// Nine tenths of it are over.
		cert, key := c.server.Sign(c, &x509.Certificate{Subject: id.subject, NotBefore: now.Add(-55 * time.Minute), NotAfter: now.Add(5 * time.Minute), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if _, err := must[*store](c)(openStore(cfg.Dir, id.name)).Update(cert, key); err != nil {
			c.Fatal(err)
		}
	}
	n := must[*Node](c)(Open(cfg))
	credential := func(config *rest.Config) string {
		u, err := c.who(config)
		if err != nil {
			return err.Error()
		}
		return strings.Join(u.Extra["authentication.kubernetes.io/credential-id"], ",")
	}
	// Clients that live through it, with a watch that is cut and comes back.
	kubelet, network := n.Kubelet(), n.Network()
	before := map[*rest.Config]string{kubelet: credential(kubelet), network: credential(network)}
	w, err := kubernetes.NewForConfigOrDie(network).CoreV1().Services("").Watch(c.Context(), metav1.ListOptions{})
	if err != nil {
		c.Fatal(err)
	}
	defer w.Stop()
	stop := run(c, n)
	defer stop()
	for config, old := range before {
		c.eventually("another credential", func(context.Context) error {
			if now := credential(config); now == old || !strings.HasPrefix(now, "X509SHA256=") {
				return fmt.Errorf("still %s", now)
			}
			return nil
		})
	}
	c.eventually("the watch of before is cut", func(context.Context) error {
		select {
		case _, open := <-w.ResultChan():
			if !open {
				return nil
			}
		default:
		}
		return errors.New("it goes on")
	})
	for _, id := range []identity{cfg.kubelet(), cfg.network()} {
		if left := len(must[[]string](c)(filepath.Glob(filepath.Join(cfg.Dir, id.name+"-2*")))); left != 1 {
			c.Errorf("%d files of %s", left, id.name)
		}
		rotated := must[*tls.Certificate](c)(must[*store](c)(openStore(cfg.Dir, id.name)).Current())
		if !rotated.Leaf.NotAfter.After(now.Add(10 * time.Minute)) {
			c.Errorf("%s on disk ends %s", id.name, rotated.Leaf.NotAfter)
		}
	}
}
