package certificates

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"
	"time"
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
