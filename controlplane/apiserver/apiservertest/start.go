// Package apiservertest starts a whole API server, etcd included, for tests:
// on loopback, on free ports, in a folder that goes with the test.
package apiservertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/controlplane/apiserver"
	"github.com/strake-io/strake/tests/freeport"
)

// Server is a running API server of a test.
type Server struct {
	Admin   *rest.Config // member of system:masters
	EtcdURL string       // without TLS

	CAFile, CAKeyFile string // of the CA of all certificates

	cfg apiserver.Config
	ca  *x509.Certificate
	key *ecdsa.PrivateKey
	pem []byte

	cancel context.CancelFunc
	done   chan error
}

// Start serves until the test ends. The test may change the configuration first.
func Start(t testing.TB, change ...func(*apiserver.Config)) *Server {
	t.Helper()
	dir := t.TempDir()
	s := &Server{}
	s.makeCA(t)
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca := write("ca.crt", s.pem)
	s.CAFile, s.CAKeyFile = ca, write("ca.key", encodeKey(t, s.key))
	cert, key := s.issue(t, "kube-apiserver", nil)
	certFile, keyFile := write("server.crt", cert), write("server.key", key)
	saKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	etcd := startEtcd(t, filepath.Join(dir, "etcd"))
	s.EtcdURL = etcd.Config().AdvertiseClientUrls[0].String()
	s.cfg = apiserver.Config{
		// A Service can't lead to a loopback address; nobody follows this one (RFC 5737).
		BindAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, AdvertiseAddress: net.IPv4(192, 0, 2, 1), Port: freeport.Find(t), ServingCertFile: certFile, ServingKeyFile: keyFile, ClientCAFile: ca,
		EtcdServers: []string{s.EtcdURL}, EtcdClient: func() *clientv3.Client { return v3client.New(etcd.Server) }, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}, NodePortMin: 30000, NodePortMax: 32767,
		ServiceAccountKeyFile: write("sa.key", encodeKey(t, saKey)), ServiceAccountIssuer: "https://kubernetes.default.svc.cluster.local",
		FrontProxyCAFile: ca, ProxyClientCertFile: certFile, ProxyClientKeyFile: keyFile,
		KubeletCAFile: ca, KubeletClientCertFile: certFile, KubeletClientKeyFile: keyFile,
	}
	for _, f := range change {
		f(&s.cfg)
	}
	s.Admin = &rest.Config{Host: "https://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(s.cfg.Port)), QPS: -1}
	s.Admin.TLSClientConfig = s.client(t, "admin", "system:masters")
	s.Run(t)
	t.Cleanup(func() { s.Stop(t) })
	return s
}

// Run serves on after a Stop, with the same store.
func (s *Server) Run(t testing.TB) {
	t.Helper()
	api, err := apiserver.New(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.done = make(chan error, 1)
	go func() { s.done <- api.Run(ctx) }()
	s.waitReady(t)
}

// Config is what the server is run with, for a test that runs others on its store.
func (s *Server) Config() apiserver.Config { return s.cfg }

// Stop ends the API server, but not its store.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.cancel = nil
	select {
	case err := <-s.done:
		if err != nil {
			t.Errorf("API server: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("the API server did not end")
	}
}

// ServerTLS is the configuration of another server on 127.0.0.1, which the API server trusts as a kubelet.
func (s *Server) ServerTLS(t testing.TB) *tls.Config {
	t.Helper()
	cert, key := s.issue(t, "server", nil)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

// As returns a client configuration of another user.
func (s *Server) As(t testing.TB, user string, groups ...string) *rest.Config {
	t.Helper()
	c := rest.CopyConfig(s.Admin)
	c.TLSClientConfig = s.client(t, user, groups...)
	return c
}

func (s *Server) client(t testing.TB, user string, groups ...string) rest.TLSClientConfig {
	cert, key := s.issue(t, user, groups)
	return rest.TLSClientConfig{CAData: s.pem, CertData: cert, KeyData: key}
}

func (s *Server) waitReady(t testing.TB) {
	t.Helper()
	clients, err := kubernetes.NewForConfig(s.Admin)
	if err != nil {
		t.Fatal(err)
	}
	client := clients.Discovery().RESTClient()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		body, err := client.Get().AbsPath("/readyz").Param("verbose", "").DoRaw(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the API server is not ready: %v\n%s", err, body)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Server) makeCA(t testing.TB) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test-ca"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if s.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	s.key, s.pem = key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (s *Server) issue(t testing.TB, user string, groups []string) (cert, key []byte) {
	return s.Sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: user, Organization: groups}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
}

// Sign makes a key and a certificate of the server's CA for it, both PEM. Serial number and key usage of tmpl are set.
func (s *Server) Sign(t testing.TB, tmpl *x509.Certificate) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber, tmpl.KeyUsage = big.NewInt(time.Now().UnixNano()), x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, tmpl, s.ca, k.Public(), s.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), encodeKey(t, k)
}

func encodeKey(t testing.TB, k *ecdsa.PrivateKey) []byte {
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

func startEtcd(t testing.TB, dir string) *embed.Etcd {
	cfg := embed.NewConfig()
	cfg.Dir = dir
	client, peer := url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(freeport.Find(t)))}, url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(freeport.Find(t)))}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.UnsafeNoFsync = true
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return e
}

// Refused tries to assemble another server with the same store, and returns the error; one that could be assembled is
// left to the process.
func (s *Server) Refused(t testing.TB, set *apiserver.Settings) error {
	t.Helper()
	cfg := s.cfg
	cfg.Port, cfg.Settings = freeport.Find(t), set
	_, err := apiserver.New(cfg)
	return err
}
