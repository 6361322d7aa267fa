package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"slices"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// authority is a CA that a test signs with.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) content(t *testing.T, name string) dynamiccertificates.CAContentProvider {
	t.Helper()
	c, err := dynamiccertificates.NewStaticCAContent(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sign returns a client certificate, valid until an hour from now plus later.
func (a authority) sign(t *testing.T, usage x509.ExtKeyUsage, later time.Duration, cn string, groups ...string) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: cn, Organization: groups}, NotBefore: time.Now().Add(-3 * time.Hour), NotAfter: time.Now().Add(time.Hour + later), ExtKeyUsage: []x509.ExtKeyUsage{usage}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// knownToken answers with the audiences that it found, as the token issuer does.
func knownToken(ctx context.Context, tok string) (*authenticator.Response, bool, error) {
	asked, _ := authenticator.AudiencesFrom(ctx)
	switch tok {
	case "robot":
		if auds := asked.Intersect(authenticator.Audiences{"api"}); len(auds) > 0 {
			return &authenticator.Response{User: &user.DefaultInfo{Name: "robot", Groups: []string{"robots"}}, Audiences: auds}, true, nil
		}
		return nil, false, errors.New("not for this audience")
	case "expired":
		return nil, false, errors.New("expired")
	}
	return nil, false, nil
}

func TestNew(t *testing.T) {
	clients, proxies, strangers := newAuthority(t, "clients"), newAuthority(t, "proxies"), newAuthority(t, "strangers")
	config := Config{
		ClientCA: clients.content(t, "clients"), Tokens: authenticator.TokenFunc(knownToken), TokenTTL: time.Second, Audiences: authenticator.Audiences{"api"}, AnonymousPaths: []string{"/healthz"},
		FrontProxy: &authenticatorfactory.RequestHeaderConfig{
			UsernameHeaders: headerrequest.StaticStringSlice{"X-Remote-User"}, UIDHeaders: headerrequest.StaticStringSlice{"X-Remote-Uid"}, GroupHeaders: headerrequest.StaticStringSlice{"X-Remote-Group"},
			ExtraHeaderPrefixes: headerrequest.StaticStringSlice{"X-Remote-Extra-"}, CAContentProvider: proxies.content(t, "proxies"), AllowedClientNames: headerrequest.StaticStringSlice{"front-proxy-client"},
		},
	}
	a := New(config)
	const client, server = x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	remote := http.Header{"X-Remote-User": {"ann"}, "X-Remote-Group": {"staff"}}
	bearer := func(tok string) http.Header { return http.Header{"Authorization": {"Bearer " + tok}} }
	for _, tc := range []struct {
		name   string
		cert   *x509.Certificate
		header http.Header
		path   string   // default /api
		asks   []string // default api
		want   string   // user; empty: refused
		groups []string
	}{
		{name: "certificate", cert: clients.sign(t, client, 0, "bob", "dev"), want: "bob", groups: []string{"dev", user.AllAuthenticated}},
		{name: "certificate of another CA", cert: strangers.sign(t, client, 0, "bob", "system:masters")},
		{name: "expired certificate", cert: clients.sign(t, client, -2*time.Hour, "bob")},
		{name: "a server's certificate", cert: clients.sign(t, server, 0, "bob")},
		{name: "certificate, for another audience", cert: clients.sign(t, client, 0, "bob"), asks: []string{"vault"}},
		{name: "token", header: bearer("robot"), want: "robot", groups: []string{"robots", user.AllAuthenticated}},
		{name: "token by websocket", header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {"base64url.bearer.authorization.k8s.io.cm9ib3Q,v4.channel.k8s.io"}}, want: "robot", groups: []string{"robots", user.AllAuthenticated}},
		{name: "token, for another audience", header: bearer("robot"), asks: []string{"vault"}},
		{name: "expired token", header: bearer("expired")},
		{name: "unknown token", header: bearer("x")},
		{name: "front proxy", cert: proxies.sign(t, client, 0, "front-proxy-client"), header: remote, want: "ann", groups: []string{"staff", user.AllAuthenticated}},
		{name: "another client of the proxy CA", cert: proxies.sign(t, client, 0, "someone"), header: remote},
		{name: "a user's certificate and headers", cert: clients.sign(t, client, 0, "bob"), header: remote, want: "bob", groups: []string{user.AllAuthenticated}},
		{name: "headers alone", header: remote},
		{name: "nothing"},
		{name: "nothing, an open path", path: "/healthz", want: user.Anonymous, groups: []string{user.AllUnauthenticated}},
		{name: "nothing, below an open path", path: "/healthz/etcd"},
		{name: "wrong token, an open path", path: "/healthz", header: bearer("expired")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.path == "" {
				tc.path = "/api"
			}
			if tc.asks == nil {
				tc.asks = []string{"api"}
			}
			req, err := http.NewRequestWithContext(authenticator.WithAudiences(t.Context(), tc.asks), "GET", "https://x"+tc.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tc.header != nil {
				req.Header = tc.header.Clone()
			}
			req.TLS = &tls.ConnectionState{}
			if tc.cert != nil {
				req.TLS.PeerCertificates = []*x509.Certificate{tc.cert}
			}
			if _, ok, _ := a.AuthenticateRequest(req.Clone(req.Context())); ok != (tc.want != "") {
				t.Errorf("when it is not known yet: accepted %v", ok)
			}
			resp, ok, err := a.AuthenticateRequest(req) // as it is remembered
			if tc.want == "" {
				if ok {
					t.Errorf("accepted as %+v", resp.User)
				}
				return
			}
			if !ok {
				t.Fatal(err)
			}
			if resp.User.GetName() != tc.want || !slices.Equal(resp.User.GetGroups(), tc.groups) {
				t.Errorf("user %q of %q, want %q of %q", resp.User.GetName(), resp.User.GetGroups(), tc.want, tc.groups)
			}
			if !slices.Equal(resp.Audiences, authenticator.Audiences{"api"}) {
				t.Errorf("audiences %q", resp.Audiences)
			}
		})
	}
	config.AnonymousPaths = nil
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://x/healthz", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, ok, _ := New(config).AuthenticateRequest(req); ok {
		t.Errorf("without open paths: accepted as %+v", resp.User)
	}
}

// TestRememberedCertificates counts who is asked.
func TestRememberedCertificates(t *testing.T) {
	clients := newAuthority(t, "clients")
	asked := 0
	ask := authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		asked++
		cn := r.TLS.PeerCertificates[0].Subject.CommonName
		return &authenticator.Response{User: &user.DefaultInfo{Name: cn}}, cn != "mallory", nil
	})
	for name, tc := range map[string]struct {
		ttl   time.Duration
		later time.Duration // when it expires, in an hour and so much
		cn    string
		want  int
	}{
		"remembered":              {time.Hour, 0, "bob", 1},
		"refused":                 {time.Hour, 0, "mallory", 3},
		"forgotten":               {-time.Second, 0, "bob", 3},
		"expired since, or about": {time.Hour, -time.Hour, "bob", 3},
	} {
		t.Run(name, func(t *testing.T) {
			asked = 0
			a := rememberCertificates(ask, tc.ttl)
			req := &http.Request{TLS: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{clients.sign(t, x509.ExtKeyUsageClientAuth, tc.later, tc.cn)}}}
			for range 3 {
				resp, ok, err := a.AuthenticateRequest(req)
				if err != nil || ok == (tc.cn == "mallory") || resp.User.GetName() != tc.cn || resp.Audiences != nil {
					t.Errorf("%+v, %v, %v", resp, ok, err)
				}
				resp.Audiences = authenticator.Audiences{"x"} // as the wrapper does
			}
			if asked != tc.want {
				t.Errorf("asked %d times, want %d", asked, tc.want)
			}
			if _, ok, _ := a.AuthenticateRequest(&http.Request{}); ok {
				t.Error("a request without a certificate is accepted")
			}
		})
	}
}
