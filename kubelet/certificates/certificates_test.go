package certificates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
)

func TestCheck(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	id := Config{NodeName: "n"}.kubelet()
	for _, c := range []struct {
		name   string
		cn     string
		begins time.Duration
		ends   time.Duration
		want   string // empty: it is good
	}{
		{"good", "system:node:n", -time.Hour, time.Hour, ""},
		{"of another node", "system:node:m", -time.Hour, time.Hour, "the one that is there is of system:node:m"},
		{"expired", "system:node:n", -time.Hour, -time.Second, "expired"},
		{"of the future", "system:node:n", time.Second, time.Hour, "set the clock"},
	} {
		leaf := &x509.Certificate{Subject: pkix.Name{CommonName: c.cn}, NotBefore: now.Add(c.begins), NotAfter: now.Add(c.ends)}
		err := check(&tls.Certificate{Leaf: leaf}, id, now)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("abcdef.0123456789abcdef")
	f.Add("abcdef.0123456789abcdef\n")
	f.Add("ABCDEF.0123456789abcdef")
	f.Fuzz(func(t *testing.T, token string) {
		id, secret, err := ParseToken(token)
		if err == nil && (id+"."+secret != token || len(id) != 6 || len(secret) != 16) {
			t.Errorf("%q became %q and %q", token, id, secret)
		}
		if err != nil && len(token) > 40 && strings.Contains(err.Error(), token) {
			t.Error("the error shows what was given")
		}
	})
}

// FuzzClusterInfo feeds what a server that nobody knows yet may answer.
func FuzzClusterInfo(f *testing.F) {
	f.Add([]byte(`{"data":{"kubeconfig":"clusters:\n- cluster:\n    certificate-authority-data: LS0t\n  name: x\n"}}`))
	f.Add([]byte(`{"data":{"kubeconfig":"clusters: 7"}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if certs, err := parseInfo(data); err == nil && len(certs) == 0 {
			t.Error("no error, and no CA")
		}
	})
}

// TestSign has the certificates made by a CA at hand, and made anew only where they are not good any more.
func TestSign(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(tmpl, parent *x509.Certificate, pub any) []byte {
		tmpl.SerialNumber, tmpl.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Minute)
		if tmpl.NotAfter.IsZero() {
			tmpl.NotAfter = time.Now().Add(time.Hour)
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	addr := netip.MustParseAddr("192.0.2.7")
	signed := map[string]int{}
	end := time.Time{}
	cfg := Config{
		Dir: dir, NodeName: "n", Addrs: func() []netip.Addr { return []netip.Addr{addr} }, Server: "https://192.0.2.7:6443", CAFile: filepath.Join(dir, "ca.crt"),
		KubeletKubeconfig: filepath.Join(dir, "kubelet.kubeconfig"), NetworkKubeconfig: filepath.Join(dir, "network.kubeconfig"),
		Sign: func(r *x509.CertificateRequest, usages []certificatesv1.KeyUsage) ([]byte, error) {
			signed[r.Subject.CommonName+" "+string(usages[1])]++
			return sign(&x509.Certificate{Subject: r.Subject, DNSNames: r.DNSNames, IPAddresses: r.IPAddresses, NotAfter: end}, ca, r.PublicKey), nil
		},
	}
	newCA := func() {
		t.Helper()
		if err := os.WriteFile(cfg.CAFile, sign(ca, ca, key.Public()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	newCA()
	all := map[string]int{"system:node:n client auth": 1, "system:strake-agent:n client auth": 1, "system:node:n server auth": 1}
	step := func(what string, want map[string]int) {
		t.Helper()
		clear(signed)
		if err := Bootstrap(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(signed, want) {
			t.Errorf("%s: signed %v, want %v", what, signed, want)
		}
		if _, err := Open(cfg); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	step("first", all)
	step("again", map[string]int{})
	addr = netip.MustParseAddr("192.0.2.8")
	step("another address", map[string]int{"system:node:n server auth": 1})
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	newCA()
	step("another CA", all)
	end, cfg.NodeName = time.Now().Add(-time.Second), "m"
	if err := Bootstrap(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
	end = time.Time{}
	step("expired", map[string]int{"system:node:m client auth": 1, "system:strake-agent:m client auth": 1, "system:node:m server auth": 1})
}
