package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/client-go/util/keyutil"

	"github.com/strake-io/strake/controlplane/pki"
)

// A node takes another URL of its API server only from the API server: a kubelet's serving certificate is of the same CA and fits its address.
func TestServedAt(t *testing.T) {
	l := at(t)
	files, err := pki.Ensure(pki.Config{
		Dir: t.TempDir(), ServerAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, ServiceIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Zone: "cluster.local", Hostname: "cp", Server: "https://192.0.2.1:6443",
		Kubeconfigs: []pki.Kubeconfig{{Path: l.Kubeconfig("node-network"), Identity: pki.Identity{User: "system:node:a", Groups: []string{"system:nodes"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	own, err := tls.LoadX509KeyPair(files.APIServer().Cert, files.APIServer().Key)
	if err != nil {
		t.Fatal(err)
	}
	serveConfigMap := func(cert tls.Certificate) string {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			m, err := Shared{}.ConfigMap()
			if err != nil {
				t.Error(err)
			}
			m.APIVersion, m.Kind = "v1", "ConfigMap"
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(m); err != nil {
				t.Error(err)
			}
		}))
		s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.URL
	}
	if err := servedAt(t.Context(), l, serveConfigMap(own)); err != nil {
		t.Errorf("the API server: %v", err)
	}
	if err := servedAt(t.Context(), l, serveConfigMap(kubeletCertificate(t, files))); err == nil || !strings.Contains(err.Error(), "system:node:b") {
		t.Errorf("another node's kubelet: %v", err)
	}
}

// kubeletCertificate is what the kubelet of node b serves with.
func kubeletCertificate(t *testing.T, files pki.Files) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "system:node:b", Organization: []string{"system:nodes"}}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := pki.Sign(files, req, true)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(chain, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}
