package bootstraptoken

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSign holds the signature against another implementation.
func TestSign(t *testing.T) {
	const content = "apiVersion: v1\nkind: Config\n"
	jws := Sign(content, "abcdef", "0123456789abcdef")
	parts := strings.Split(jws, ".")
	if len(parts) != 3 || parts[1] != "" {
		t.Fatalf("not detached: %s", jws)
	}
	var header struct{ Alg, Kid string }
	data, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err == nil {
		err = json.Unmarshal(data, &header)
	}
	if err != nil || header.Alg != "HS256" || header.Kid != "abcdef" {
		t.Errorf("header %s, %v", data, err)
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		t.Fatal(err)
	}
	signed := func(content string) string {
		return parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(content))
	}
	if err := jwt.SigningMethodHS256.Verify(signed(content), sig, []byte("0123456789abcdef")); err != nil {
		t.Error(err)
	}
	if jwt.SigningMethodHS256.Verify(signed(content+" "), sig, []byte("0123456789abcdef")) == nil {
		t.Error("the signature is good for other content")
	}
}

func TestSignsAndLifetime(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name       string
		expiration string
		signing    string
		change     func(*corev1.Secret)
		signs      bool
		left       time.Duration
		ends       bool
	}{
		{name: "for ever", signing: "true", signs: true},
		{name: "not for signing", signing: "false"},
		{name: "an hour", signing: "true", expiration: now.Add(time.Hour).Format(time.RFC3339), signs: true, left: time.Hour, ends: true},
		{name: "over", signing: "true", expiration: now.Format(time.RFC3339), ends: true},
		{name: "no time", signing: "true", expiration: "soon", ends: true},
		{name: "of another name", signing: "true", change: func(s *corev1.Secret) { s.Name = "bootstrap-token-abcdee" }},
		{name: "being deleted", signing: "true", change: func(s *corev1.Secret) { s.DeletionTimestamp = &metav1.Time{Time: now} }},
		{name: "without a secret", signing: "true", change: func(s *corev1.Secret) { delete(s.Data, "token-secret") }},
	} {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-abcdef"}, Data: map[string][]byte{
			"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-signing": []byte(c.signing), "expiration": []byte(c.expiration),
		}}
		if c.change != nil {
			c.change(s)
		}
		if _, _, ok := signs(s, now); ok != c.signs {
			t.Errorf("%s: signs %v", c.name, ok)
		}
		if left, ends := lifetime(s, now); left != c.left || ends != c.ends {
			t.Errorf("%s: %s left, ends %v", c.name, left, ends)
		}
	}
}
