package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

const issuerURL = "https://kubernetes.default.svc.cluster.local"

func keyFile(t testing.TB, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "sa.key")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// world is an issuer and the caches that it looks at.
type world struct {
	*Issuer
	store map[string]cache.Indexer
}

func newWorld(t testing.TB, objects ...runtime.Object) *world {
	t.Helper()
	w := &world{store: map[string]cache.Indexer{}}
	for _, kind := range []string{"sa", "pod", "secret", "node"} {
		w.store[kind] = cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	}
	for _, o := range objects {
		w.put(t, o)
	}
	var err error
	w.Issuer, err = NewIssuer(keyFile(t, ecKey(t, elliptic.P256())), issuerURL, []string{"api"}, Objects{
		ServiceAccounts: corelisters.NewServiceAccountLister(w.store["sa"]), Pods: corelisters.NewPodLister(w.store["pod"]),
		Secrets: corelisters.NewSecretLister(w.store["secret"]), Nodes: corelisters.NewNodeLister(w.store["node"]),
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) in(o runtime.Object) cache.Indexer {
	switch o.(type) {
	case *corev1.ServiceAccount:
		return w.store["sa"]
	case *corev1.Pod:
		return w.store["pod"]
	case *corev1.Secret:
		return w.store["secret"]
	}
	return w.store["node"]
}

func (w *world) put(t testing.TB, o runtime.Object) {
	t.Helper()
	if err := w.in(o).Add(o); err != nil {
		t.Fatal(err)
	}
}

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-of-" + name)}
}

var (
	sa     = &corev1.ServiceAccount{ObjectMeta: meta("sa")}
	thePod = &corev1.Pod{ObjectMeta: meta("pod"), Spec: corev1.PodSpec{ServiceAccountName: "sa", NodeName: "node"}}
	secret = &corev1.Secret{ObjectMeta: meta("secret")}
	node   = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "uid-of-node"}}
)

func (w *world) issue(t testing.TB, b *Bound, seconds int64, audiences ...string) string {
	t.Helper()
	if audiences == nil {
		audiences = []string{"api"}
	}
	tok, _, err := w.Issue(sa, authenticationv1.TokenRequestSpec{Audiences: audiences, ExpirationSeconds: &seconds}, b)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func toPod() *Bound {
	return &Bound{Pod: &ref{"pod", "uid-of-pod"}, Node: &ref{"node", "uid-of-node"}}
}

func TestGoodToken(t *testing.T) {
	w := newWorld(t, sa, thePod, node)
	resp, ok, err := w.AuthenticateToken(t.Context(), w.issue(t, toPod(), 600))
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	u := resp.User
	if u.GetName() != "system:serviceaccount:ns:sa" || u.GetUID() != "uid-of-sa" || !slices.Equal(u.GetGroups(), []string{"system:serviceaccounts", "system:serviceaccounts:ns"}) {
		t.Errorf("user %+v", u)
	}
	for k, want := range map[string]string{
		"authentication.kubernetes.io/pod-name": "pod", "authentication.kubernetes.io/pod-uid": "uid-of-pod",
		"authentication.kubernetes.io/node-name": "node", "authentication.kubernetes.io/node-uid": "uid-of-node",
	} {
		if got := u.GetExtra()[k]; len(got) != 1 || got[0] != want {
			t.Errorf("extra %s = %q, want %q", k, got, want)
		}
	}
	if id := u.GetExtra()["authentication.kubernetes.io/credential-id"]; len(id) != 1 || !strings.HasPrefix(id[0], "JTI=") || len(id[0]) < 20 {
		t.Errorf("credential id %q", id)
	}
	if !slices.Equal(resp.Audiences, authenticator.Audiences{"api"}) {
		t.Errorf("audiences %q", resp.Audiences)
	}
}

// Each case takes one thing from a good token.
func TestRejected(t *testing.T) {
	for _, tc := range []struct {
		name  string
		bound *Bound
		spoil func(t *testing.T, w *world)
		says  string
	}{
		{"expired", nil, func(_ *testing.T, w *world) { w.now = func() time.Time { return time.Now().Add(601 * time.Second) } }, "expired"},
		{"not yet valid", nil, func(_ *testing.T, w *world) { w.now = func() time.Time { return time.Now().Add(-time.Hour) } }, "not valid yet"},
		{"account gone", nil, func(_ *testing.T, w *world) { w.store["sa"].Delete(sa) }, "not found"},
		{"account made anew", nil, func(t *testing.T, w *world) { anew(t, w, sa.DeepCopy()) }, "made anew"},
		{"pod gone", toPod(), func(_ *testing.T, w *world) { w.store["pod"].Delete(thePod) }, "not found"},
		{"pod made anew", toPod(), func(t *testing.T, w *world) { anew(t, w, thePod.DeepCopy()) }, "made anew"},
		{"pod deleted long ago", toPod(), func(t *testing.T, w *world) { w.put(t, deleted(thePod, 2*time.Minute)) }, "has been deleted"},
		{"secret gone", &Bound{Secret: &ref{"secret", "uid-of-secret"}}, func(_ *testing.T, w *world) { w.store["secret"].Delete(secret) }, "not found"},
		{"secret made anew", &Bound{Secret: &ref{"secret", "uid-of-secret"}}, func(t *testing.T, w *world) { anew(t, w, secret.DeepCopy()) }, "made anew"},
		{"node gone", &Bound{Node: &ref{"node", "uid-of-node"}}, func(_ *testing.T, w *world) { w.store["node"].Delete(node) }, "not found"},
		{"node made anew", &Bound{Node: &ref{"node", "uid-of-node"}}, func(t *testing.T, w *world) { anew(t, w, node.DeepCopy()) }, "made anew"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, sa, thePod, secret, node)
			tok := w.issue(t, tc.bound, 600)
			if _, ok, err := w.AuthenticateToken(t.Context(), tok); !ok {
				t.Fatalf("not good to begin with: %v", err)
			}
			tc.spoil(t, w)
			resp, ok, err := w.AuthenticateToken(t.Context(), tok)
			if ok || resp != nil || err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v %v %v, want an error with %q", resp, ok, err, tc.says)
			}
		})
	}
}

func anew[T interface {
	runtime.Object
	metav1.Object
}](t *testing.T, w *world, o T) {
	t.Helper()
	o.SetUID("another")
	w.put(t, o)
}

func deleted(p *corev1.Pod, ago time.Duration) *corev1.Pod {
	p = p.DeepCopy()
	p.DeletionTimestamp = &metav1.Time{Time: time.Now().Add(-ago)}
	return p
}

func TestTerminatingPodStillMayCall(t *testing.T) {
	w := newWorld(t, sa, deleted(thePod, -30*time.Second), node)
	if _, ok, err := w.AuthenticateToken(t.Context(), w.issue(t, toPod(), 600)); !ok {
		t.Error(err)
	}
}

func TestNodeOfAPodMayGo(t *testing.T) {
	w := newWorld(t, sa, thePod) // no node
	if _, ok, err := w.AuthenticateToken(t.Context(), w.issue(t, toPod(), 600)); !ok {
		t.Error(err)
	}
}

func TestAudience(t *testing.T) {
	w := newWorld(t, sa)
	for _, tc := range []struct {
		name        string
		token, asks []string // asks nil: the API server's own
		want        []string // nil: refused
	}{
		{"own", []string{"api"}, nil, []string{"api"}},
		{"one of several", []string{"vault", "api"}, nil, []string{"api"}},
		{"for somebody else", []string{"vault"}, nil, nil},
		{"for the one who asks", []string{"vault"}, []string{"vault"}, []string{"vault"}},
		{"for us, asked by another", []string{"api"}, []string{"vault"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := t.Context()
			if tc.asks != nil {
				ctx = authenticator.WithAudiences(ctx, tc.asks)
			}
			resp, ok, err := w.AuthenticateToken(ctx, w.issue(t, nil, 600, tc.token...))
			if ok != (tc.want != nil) || (err != nil) != (tc.want == nil) {
				t.Fatal(ok, err)
			}
			if ok && !slices.Equal(resp.Audiences, tc.want) {
				t.Errorf("audiences %q, want %q", resp.Audiences, tc.want)
			}
		})
	}
}

// forge signs claims that are good in all but what change does to them.
func forge(t *testing.T, w *world, method jwt.SigningMethod, key any, change func(jwt.MapClaims)) string {
	t.Helper()
	now := time.Now()
	c := jwt.MapClaims{
		"iss": issuerURL, "sub": "system:serviceaccount:ns:sa", "aud": []string{"api"}, "exp": now.Add(time.Hour).Unix(), "nbf": now.Add(-time.Second).Unix(), "iat": now.Unix(),
		"kubernetes.io": map[string]any{"namespace": "ns", "serviceaccount": map[string]any{"name": "sa", "uid": "uid-of-sa"}},
	}
	if change != nil {
		change(c)
	}
	tok := jwt.NewWithClaims(method, c)
	tok.Header["kid"] = w.keyID
	s, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestForged(t *testing.T) {
	w := newWorld(t, sa)
	pub, err := w.key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := w.AuthenticateToken(t.Context(), forge(t, w, jwt.SigningMethodES256, w.key, nil)); !ok {
		t.Fatalf("the model itself is refused: %v", err)
	}
	good := w.issue(t, nil, 600)
	parts := strings.Split(good, ".")
	swapped := base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(decode(t, parts[1]), `"name":"sa"`, `"name":"root"`, 1)))
	for _, tc := range []struct {
		name, token string
		ours        bool // recognised as meant for us, so an error rather than no opinion
	}{
		{"another key", forge(t, w, jwt.SigningMethodES256, ecKey(t, elliptic.P256()), nil), true},
		{"no signature", forge(t, w, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil), true},
		{"public key as HMAC secret", forge(t, w, jwt.SigningMethodHS256, pub, nil), true},
		{"RSA", forge(t, w, jwt.SigningMethodRS256, rsaKey, nil), true},
		{"another issuer", forge(t, w, jwt.SigningMethodES256, w.key, func(c jwt.MapClaims) { c["iss"] = "https://example.com" }), false},
		{"no issuer", forge(t, w, jwt.SigningMethodES256, w.key, func(c jwt.MapClaims) { delete(c, "iss") }), false},
		{"no expiry", forge(t, w, jwt.SigningMethodES256, w.key, func(c jwt.MapClaims) { delete(c, "exp") }), true},
		{"no audience", forge(t, w, jwt.SigningMethodES256, w.key, func(c jwt.MapClaims) { delete(c, "aud") }), true},
		{"no kubernetes.io claims", forge(t, w, jwt.SigningMethodES256, w.key, func(c jwt.MapClaims) { delete(c, "kubernetes.io") }), true},
		{"changed claims", parts[0] + "." + swapped + "." + parts[2], true},
		{"cut", good[:len(good)-6], true},
		{"empty signature", parts[0] + "." + parts[1] + ".", true},
		{"empty", "", false},
		{"dots", "..", false},
		{"null claims", parts[0] + ".bnVsbA." + parts[2], false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, ok, err := w.AuthenticateToken(t.Context(), tc.token)
			if ok || resp != nil {
				t.Fatalf("accepted as %+v", resp)
			}
			if (err != nil) != tc.ours {
				t.Errorf("error %v, want one: %v", err, tc.ours)
			}
		})
	}
}

func decode(t *testing.T, s string) string {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A token may arrive before the cache knows its pod, or still holds an earlier one of the name.
func TestLagOfTheCache(t *testing.T) {
	old := thePod.DeepCopy()
	old.UID = "earlier"
	for name, cached := range map[string][]runtime.Object{"nothing": {sa}, "an earlier pod": {sa, old}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, cached...)
			tok := w.issue(t, toPod(), 600)
			if _, ok, _ := w.AuthenticateToken(t.Context(), tok); ok {
				t.Fatal("accepted without looking")
			}
			w.objects.Live = fake.NewClientset(thePod).CoreV1()
			if _, ok, err := w.AuthenticateToken(t.Context(), tok); !ok {
				t.Error(err)
			}
			w.objects.Live = fake.NewClientset().CoreV1()
			if _, ok, _ := w.AuthenticateToken(t.Context(), tok); ok {
				t.Error("accepted although the pod is gone from the store")
			}
		})
	}
}

func TestNewIssuerRefusesOtherKeys(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "none")
	for name, path := range map[string]string{"RSA": keyFile(t, rsaKey), "P-384": keyFile(t, ecKey(t, elliptic.P384())), "missing": missing} {
		if _, err := NewIssuer(path, issuerURL, nil, Objects{}); err == nil || !strings.Contains(err.Error(), "ServiceAccount key") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What discovery publishes is enough to verify a token.
func TestDiscovery(t *testing.T) {
	w := newWorld(t, sa)
	handlers, err := w.Handlers()
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string, into any) {
		t.Helper()
		rec := httptest.NewRecorder()
		handlers[path].ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		if err := json.Unmarshal(rec.Body.Bytes(), into); err != nil {
			t.Fatal(path, err)
		}
	}
	var config struct {
		Issuer string
		JWKS   string `json:"jwks_uri"`
	}
	get("/.well-known/openid-configuration", &config)
	if config.Issuer != issuerURL || config.JWKS != issuerURL+"/openid/v1/jwks" {
		t.Errorf("configuration %+v", config)
	}
	var set struct{ Keys []struct{ Kid, X, Y string } }
	get("/openid/v1/jwks", &set)
	if len(set.Keys) != 1 {
		t.Fatalf("keys %+v", set)
	}
	num := func(s string) *big.Int { return new(big.Int).SetBytes([]byte(decode(t, s))) }
	key := &ecdsa.PublicKey{Curve: elliptic.P256(), X: num(set.Keys[0].X), Y: num(set.Keys[0].Y)}
	tok, err := jwt.Parse(w.issue(t, nil, 600), func(tok *jwt.Token) (any, error) {
		if tok.Header["kid"] != set.Keys[0].Kid {
			t.Errorf("kid %v, published %s", tok.Header["kid"], set.Keys[0].Kid)
		}
		return key, nil
	})
	if err != nil || !tok.Valid {
		t.Error(err)
	}
}

func FuzzAuthenticateToken(f *testing.F) {
	w := newWorld(f, sa, thePod, node)
	good := w.issue(f, toPod(), 600)
	f.Add(good)
	f.Add("")
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJFUzI1NiJ9.bnVsbA.AA")
	f.Add(good[:40] + "\x00" + good[41:])
	f.Fuzz(func(t *testing.T, s string) {
		if resp, ok, _ := w.AuthenticateToken(context.Background(), s); ok && s != good {
			t.Errorf("accepted %q as %+v", s, resp.User)
		}
	})
}
