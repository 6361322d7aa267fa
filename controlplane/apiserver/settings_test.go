package apiserver_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"gopkg.in/go-jose/go-jose.v2"
	"gopkg.in/go-jose/go-jose.v2/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/strake-io/strake/controlplane/apiserver"
	"github.com/strake-io/strake/controlplane/apiserver/apiservertest"
)

// folder writes files for a server's settings.
type folder struct {
	testing.TB
	dir string
}

func (f folder) write(name, format string, args ...any) string {
	f.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path, fmt.Appendf(nil, format, args...), 0o600); err != nil {
		f.Fatal(err)
	}
	return path
}

// TestEncryption stores Secrets by each provider in turn, as a rotation does, and looks at what etcd has.
func TestEncryption(t *testing.T) {
	f := folder{t, t.TempDir()}
	key := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("k"), 32))
	provider := func(kind, name string) string {
		return fmt.Sprintf("  - %s: {keys: [{name: %s, secret: %s}]}\n", kind, name, key)
	}
	configure := func(providers ...string) string {
		return f.write("encryption.yaml", "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n%s  - identity: {}\n", strings.Join(providers, ""))
	}
	configure()
	s := apiservertest.Start(t, func(c *apiserver.Config) {
		c.Settings = apiserver.NewSettings()
		c.Settings.EncryptionConfig = filepath.Join(f.dir, "encryption.yaml")
	})
	client := must(kubernetes.NewForConfig(s.Admin))(t)
	etcd := must(clientv3.New(clientv3.Config{Endpoints: []string{s.EtcdURL}}))(t)
	defer etcd.Close()
	stored := func(name string) string {
		got := must(etcd.Get(t.Context(), "/registry/secrets/default/"+name))(t)
		if len(got.Kvs) != 1 {
			t.Fatalf("%d values of %s", len(got.Kvs), name)
		}
		return string(got.Kvs[0].Value)
	}
	var names []string
	var providers []string
	for _, kind := range []string{"", "aescbc", "aesgcm", "secretbox"} {
		if kind != "" {
			// The new key first, the old ones behind it: they are still needed to read.
			providers = append([]string{provider(kind, kind+"-key")}, providers...)
			configure(providers...)
			s.Stop(t)
			s.Run(t)
		}
		name := "s" + kind
		must(client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"a": "the plain text"}}, metav1.CreateOptions{}))(t)
		names = append(names, name)
		raw := stored(name)
		if plain := strings.Contains(raw, "the plain text"); plain != (kind == "") {
			t.Errorf("%s: plain text in the store: %v", kind, plain)
		}
		if kind != "" && !strings.HasPrefix(raw, "k8s:enc:"+kind+":v1:"+kind+"-key:") {
			t.Errorf("%s: stored as %.40q", kind, raw)
		}
		for _, n := range names {
			if got := must(client.CoreV1().Secrets("default").Get(t.Context(), n, metav1.GetOptions{}))(t); string(got.Data["a"]) != "the plain text" {
				t.Errorf("%s after %s: %q", n, kind, got.Data["a"])
			}
		}
	}
	// A write of each brings all to the new key; then the old ones may go.
	for _, n := range names {
		got := must(client.CoreV1().Secrets("default").Get(t.Context(), n, metav1.GetOptions{}))(t)
		must(client.CoreV1().Secrets("default").Update(t.Context(), got, metav1.UpdateOptions{}))(t)
		if raw := stored(n); !strings.HasPrefix(raw, "k8s:enc:secretbox:") {
			t.Errorf("%s rewritten: %.40q", n, raw)
		}
	}
	configure(providers[0])
	s.Stop(t)
	s.Run(t)
	if list := must(client.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{}))(t); len(list.Items) != len(names) {
		t.Errorf("%d Secrets with the last key alone", len(list.Items))
	}
}

// TestSettings runs a server with all that its flags can change, but for encryption.
func TestSettings(t *testing.T) {
	f := folder{t, t.TempDir()}
	audit := filepath.Join(f.dir, "audit.log")
	events := make(chan string, 1000)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var list struct {
			Items []struct{ RequestURI, Verb string }
		}
		if json.NewDecoder(r.Body).Decode(&list) == nil {
			for _, e := range list.Items {
				select {
				case events <- e.Verb + " " + e.RequestURI:
				default:
				}
			}
		}
	}))
	t.Cleanup(hook.Close)
	kubeconfig := func(name, url string) string {
		return f.write(name, "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\nusers: [{name: u}]\n", url)
	}
	asks := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review authenticationv1.TokenReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if review.Spec.Token == "of-the-webhook" {
			review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: "hook:ann", Groups: []string{"hooked"}}}
		}
		json.NewEncoder(w).Encode(review)
	}))
	t.Cleanup(asks.Close)
	decides := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review authorizationv1.SubjectAccessReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a := review.Spec.ResourceAttributes
		review.Status.Allowed = a != nil && a.Resource == "configmaps" && a.Verb == "list"
		json.NewEncoder(w).Encode(review)
	}))
	t.Cleanup(decides.Close)

	// An issuer of OpenID Connect: its discovery document, its keys.
	private := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	var issuer *httptest.Server
	issuer = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			json.NewEncoder(w).Encode(map[string]any{"issuer": issuer.URL, "jwks_uri": issuer.URL + "/keys"})
		case "/keys":
			json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: private.Public(), KeyID: "1", Algorithm: "RS256", Use: "sig"}}})
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(issuer.Close)
	signer := must(jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: private, KeyID: "1"}}, nil))(t)
	token := func(aud string, expiry time.Time) string {
		return must(jwt.Signed(signer).Claims(jwt.Claims{Issuer: issuer.URL, Subject: "bob@example.org", Audience: jwt.Audience{aud}, Expiry: jwt.NewNumericDate(expiry)}).Claims(map[string]any{"email": "bob@example.org", "email_verified": true, "roles": []string{"dev"}}).CompactSerialize())(t)
	}
	ca := pemOf(issuer)

	s := apiservertest.Start(t, func(c *apiserver.Config) {
		c.Settings = apiserver.NewSettings()
		set := c.Settings
		set.Audit.PolicyFile = f.write("policy.yaml", "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n- {level: RequestResponse, resources: [{group: '', resources: [configmaps]}]}\n- {level: None}\n")
		set.Audit.LogOptions.Path = audit
		set.Audit.WebhookOptions.ConfigFile = kubeconfig("audit-hook", hook.URL)
		set.Audit.WebhookOptions.BatchOptions.BatchConfig.MaxBatchWait = 50 * time.Millisecond
		set.TokenWebhookConfig = kubeconfig("token-hook", asks.URL)
		set.AuthorizationConfig = f.write("authz.yaml", "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n- {type: Node, name: node}\n- {type: RBAC, name: rbac}\n- {type: ABAC, name: abac}\n- type: Webhook\n  name: hook\n  webhook: {timeout: 3s, subjectAccessReviewVersion: v1, matchConditionSubjectAccessReviewVersion: v1, failurePolicy: NoOpinion, authorizedTTL: 1m, unauthorizedTTL: 1m, connectionInfo: {type: KubeConfigFile, kubeConfigFile: %q}, matchConditions: [{expression: \"request.user.startsWith('hook:')\"}]}\n", kubeconfig("authz-hook", decides.URL))
		set.AuthorizationPolicy = f.write("policy.jsonl", `{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"oidc:bob@example.org","namespace":"*","resource":"podtemplates","readonly":true}}`)
		set.AuthenticationConfig = f.write("authn.yaml", "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: true, conditions: [{path: /livez}, {path: /readyz}]}\njwt:\n- issuer: {url: %q, audiences: [strake], certificateAuthority: %q}\n  claimMappings: {username: {claim: sub, prefix: 'oidc:'}, groups: {claim: roles, prefix: ''}}\n  claimValidationRules: [{expression: 'claims.email_verified == true', message: not verified}]\n", issuer.URL, ca)
		set.EnableAdmission, set.DisableAdmission = []string{"AlwaysPullImages", "OwnerReferencesPermissionEnforcement"}, []string{"DefaultTolerationSeconds"}
	})
	a := newAPI(t, s)
	as := func(token string) kubernetes.Interface {
		c := &rest.Config{Host: s.Admin.Host, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: s.Admin.CAData}}
		return must(kubernetes.NewForConfig(c))(t)
	}
	whoami := func(client kubernetes.Interface) (authenticationv1.UserInfo, error) {
		r, err := client.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil {
			return authenticationv1.UserInfo{}, err
		}
		return r.Status.UserInfo, nil
	}
	t.Run("audit", func(t *testing.T) {
		a := a.in(t)
		must(a.client.CoreV1().ConfigMaps(a.ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "audited"}, Data: map[string]string{"k": "v"}}, metav1.CreateOptions{}))(t)
		a.eventually("the line in the log", func(context.Context) error {
			data, err := os.ReadFile(audit)
			if err != nil || !bytes.Contains(data, []byte(`"name":"audited"`)) || bytes.Contains(data, []byte(`"resource":"pods"`)) {
				return fmt.Errorf("%d bytes, %w", len(data), err)
			}
			return nil
		})
		a.eventually("the event at the webhook", func(context.Context) error {
			for {
				select {
				case e := <-events:
					if strings.HasPrefix(e, "create /api/v1/namespaces/"+a.ns+"/configmaps") {
						return nil
					}
				default:
					return fmt.Errorf("not yet")
				}
			}
		})
	})
	t.Run("tokens", func(t *testing.T) {
		a := a.in(t)
		a.eventually("a token of the issuer", func(context.Context) error {
			u, err := whoami(as(token("strake", time.Now().Add(time.Hour))))
			if err == nil && (u.Username != "oidc:bob@example.org" || !strings.Contains(fmt.Sprint(u.Groups), "dev")) {
				err = fmt.Errorf("%+v", u)
			}
			return err
		})
		for name, bad := range map[string]string{"other audience": token("other", time.Now().Add(time.Hour)), "expired": token("strake", time.Now().Add(-time.Hour)), "unknown": "nobody's"} {
			if _, err := whoami(as(bad)); !apierrors.IsUnauthorized(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		hooked := as("of-the-webhook")
		if u := must(whoami(hooked))(t); u.Username != "hook:ann" {
			t.Errorf("%+v", u)
		}
		must(hooked.CoreV1().ConfigMaps(a.ns).List(t.Context(), metav1.ListOptions{}))(t)
		if _, err := hooked.CoreV1().Secrets(a.ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("Secrets: %v", err)
		}
		// The match condition keeps others from the webhook.
		if _, err := as(token("strake", time.Now().Add(time.Hour))).CoreV1().ConfigMaps(a.ns).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("ConfigMaps for who is not of the webhook: %v", err)
		}
		// A line of the policy file allows him something else.
		must(as(token("strake", time.Now().Add(time.Hour))).CoreV1().PodTemplates(a.ns).List(t.Context(), metav1.ListOptions{}))(t)
	})
	t.Run("anonymous", func(t *testing.T) {
		client := as("").Discovery().RESTClient()
		if _, err := client.Get().AbsPath("/readyz").DoRaw(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := client.Get().AbsPath("/version").DoRaw(t.Context()); !apierrors.IsUnauthorized(err) {
			t.Errorf("/version: %v", err)
		}
	})
	t.Run("admission", func(t *testing.T) {
		a := a.in(t)
		p := a.makePod("p")
		if p.Spec.Containers[0].ImagePullPolicy != corev1.PullAlways || len(p.Spec.Tolerations) != 0 {
			t.Errorf("%+v", p.Spec)
		}
	})
	for _, bad := range []func(*apiserver.Settings){
		func(s *apiserver.Settings) { s.EnableAdmission = []string{"Nonsense"} },
		func(s *apiserver.Settings) { s.EncryptionReload = true },
		func(s *apiserver.Settings) { s.AuthorizationConfig = f.write("bad", "kind: Nothing") },
		func(s *apiserver.Settings) { s.AuthorizationModes = []string{"RBAC", "Nonsense"} },
		func(s *apiserver.Settings) { s.AuthorizationModes = []string{"ABAC"} },
		func(s *apiserver.Settings) { s.AuthorizationPolicy = f.write("bad", "{}") },
		func(s *apiserver.Settings) {
			s.AuthorizationModes, s.AuthorizationPolicy = []string{"ABAC"}, f.write("bad", "{}")
		},
		func(s *apiserver.Settings) { s.AuthenticationConfig = filepath.Join(f.dir, "absent") },
		func(s *apiserver.Settings) { s.Audit.PolicyFile = f.write("bad", "kind: Nothing") },
		func(s *apiserver.Settings) { s.EncryptionConfig = f.write("bad", "kind: Nothing") },
	} {
		set := apiserver.NewSettings()
		bad(set)
		if err := s.Refused(t, set); err == nil {
			t.Errorf("a server began with %+v", set)
		}
	}
}

func pemOf(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}
