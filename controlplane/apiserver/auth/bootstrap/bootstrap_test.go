package bootstrap

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

var now = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func secret(change func(*corev1.Secret)) *corev1.Secret {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "bootstrap-token-abcdef"}, Type: corev1.SecretTypeBootstrapToken,
		Data: map[string][]byte{"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true")},
	}
	if change != nil {
		change(s)
	}
	return s
}

func over(t testing.TB, s *corev1.Secret) *Authenticator {
	t.Helper()
	store := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	if err := store.Add(s); err != nil {
		t.Fatal(err)
	}
	a := New(corelisters.NewSecretLister(store).Secrets(metav1.NamespaceSystem))
	a.now = func() time.Time { return now }
	return a
}

func TestTokens(t *testing.T) {
	const good = "abcdef.0123456789abcdef"
	data := func(k, v string) func(*corev1.Secret) { return func(s *corev1.Secret) { s.Data[k] = []byte(v) } }
	for _, c := range []struct {
		name   string
		token  string
		change func(*corev1.Secret)
		groups []string // nil: not accepted
	}{
		{"good", good, nil, []string{group}},
		{"groups", good, data("auth-extra-groups", "system:bootstrappers:w,system:bootstrappers:a"), []string{group, "system:bootstrappers:a", "system:bootstrappers:w"}},
		{"a group of others", good, data("auth-extra-groups", "system:masters"), nil},
		{"a group of others behind one that is fine", good, data("auth-extra-groups", "system:bootstrappers:w,system:masters"), nil},
		{"a group with a line break", good, data("auth-extra-groups", "system:bootstrappers:w\nsystem:masters"), nil},
		{"alive", good, data("expiration", now.Add(time.Second).Format(time.RFC3339)), []string{group}},
		{"expires now", good, data("expiration", now.Format(time.RFC3339)), nil},
		{"expired", good, data("expiration", now.Add(-time.Second).Format(time.RFC3339)), nil},
		{"no time", good, data("expiration", "tomorrow"), nil},
		{"being deleted", good, func(s *corev1.Secret) { s.DeletionTimestamp = &metav1.Time{Time: now} }, nil},
		{"another type", good, func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque }, nil},
		{"another use", good, data("usage-bootstrap-authentication", "false"), nil},
		{"no use", good, func(s *corev1.Secret) { delete(s.Data, "usage-bootstrap-authentication") }, nil},
		{"another id", good, data("token-id", "abcdee"), nil},
		{"no secret", good, func(s *corev1.Secret) { delete(s.Data, "token-secret") }, nil},
		{"wrong secret", "abcdef.0123456789abcdee", nil, nil},
		{"prefix of the secret", "abcdef.0123456789abcde", nil, nil},
		{"unknown", "abcdee.0123456789abcdef", nil, nil},
		{"of another form", "ABCDEF.0123456789ABCDEF", nil, nil},
		{"with a line break", good + "\n", nil, nil},
		{"empty", "", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, ok, err := over(t, secret(c.change)).AuthenticateToken(t.Context(), c.token)
			if err != nil || ok != (c.groups != nil) {
				t.Fatalf("accepted %v, error %v", ok, err)
			}
			if ok && (resp.User.GetName() != "system:bootstrap:abcdef" || !slices.Equal(resp.User.GetGroups(), c.groups)) {
				t.Errorf("user %q of %q", resp.User.GetName(), resp.User.GetGroups())
			}
		})
	}
}

func FuzzToken(f *testing.F) {
	f.Add("abcdef.0123456789abcdee")
	f.Add("abcdef.")
	f.Add("../abcdef.0123456789abcdef")
	a := over(f, secret(nil))
	f.Fuzz(func(t *testing.T, token string) {
		if _, ok, err := a.AuthenticateToken(t.Context(), token); err != nil || ok != (token == "abcdef.0123456789abcdef") {
			t.Errorf("%q: accepted %v, error %v", token, ok, err)
		}
	})
}
