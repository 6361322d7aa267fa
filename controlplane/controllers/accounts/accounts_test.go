package accounts

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// TestTokens: an account is made when its token is first needed, one token serves until it nears its end or is refused, and nobody's own credentials are used.
func TestTokens(t *testing.T) {
	made, given, lifetime := false, 0, int64(3600)
	var asked []string // by whom something was asked for
	refused := map[string]bool{}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, code int, obj any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(obj); err != nil {
			t.Error(err)
		}
	}
	issuing := func(f http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer manager" {
				t.Errorf("%s asks for tokens", r.Header.Get("Authorization"))
			}
			f(w, r)
		}
	}
	mux.HandleFunc("POST /api/v1/namespaces/kube-system/serviceaccounts", issuing(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var sa corev1.ServiceAccount
		if _, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, &sa); err != nil || sa.Name != "some-controller" {
			t.Errorf("ServiceAccount %q: %v", sa.Name, err)
		}
		made = true
		answer(w, 201, &sa)
	}))
	mux.HandleFunc("POST /api/v1/namespaces/kube-system/serviceaccounts/some-controller/token", issuing(func(w http.ResponseWriter, _ *http.Request) {
		if !made {
			answer(w, 404, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: 404})
			return
		}
		given++
		answer(w, 201, &authenticationv1.TokenRequest{
			TypeMeta: metav1.TypeMeta{Kind: "TokenRequest", APIVersion: "authentication.k8s.io/v1"}, Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &lifetime},
			Status: authenticationv1.TokenRequestStatus{Token: fmt.Sprint("token-", given)},
		})
	}))
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		asked = append(asked, token+" of "+r.UserAgent())
		if refused[token] {
			answer(w, 401, &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonUnauthorized, Code: 401})
			return
		}
		answer(w, 200, map[string]string{"gitVersion": "v1"})
	})
	s := httptest.NewServer(mux)
	defer s.Close()

	a, err := New(t.Context(), &rest.Config{Host: s.URL, BearerToken: "manager", UserAgent: "managers"})
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(a.Config("some-controller"))
	if err != nil {
		t.Fatal(err)
	}
	if given > 0 {
		t.Error("a token was asked for before it is needed")
	}
	ask := func(wantErr bool, want string) {
		t.Helper()
		if _, err := client.Discovery().ServerVersion(); (err != nil) != wantErr {
			t.Errorf("error %v", err)
		}
		if got := asked[len(asked)-1]; got != want+" of managers/some-controller" {
			t.Errorf("asked by %s, want %s", got, want)
		}
	}
	ask(false, "token-1")
	ask(false, "token-1")
	// Somebody deleted the account.
	refused["token-1"], made = true, false
	ask(true, "token-1")
	ask(false, "token-2")
	// Tokens that end at once.
	refused["token-2"], lifetime = true, 0
	ask(true, "token-2")
	ask(false, "token-3")
	ask(false, "token-4")
}
