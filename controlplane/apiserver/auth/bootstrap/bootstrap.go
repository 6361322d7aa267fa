// Package bootstrap knows machines that join the cluster by their bootstrap
// token: a Secret of type bootstrap.kubernetes.io/token in kube-system
// (https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/).
package bootstrap

import (
	"context"
	"crypto/subtle"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/klog/v2"
)

// group is of all who come with a bootstrap token.
const group = "system:bootstrappers"

var (
	tokenForm = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)
	// extraGroup is what a token may add: never a group outside of those of bootstrappers.
	extraGroup = regexp.MustCompile(`^system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]$`)
)

// Authenticator knows bootstrap tokens.
type Authenticator struct {
	secrets corelisters.SecretNamespaceLister
	now     func() time.Time
}

var _ authenticator.Token = (*Authenticator)(nil)

// New returns an authenticator that looks Secrets up in kube-system's.
func New(secrets corelisters.SecretNamespaceLister) *Authenticator {
	return &Authenticator{secrets: secrets, now: time.Now}
}

// AuthenticateToken answers for who has a token that is known, alive and made for this. Whatever is wrong with another, its
// bearer learns only that it is not good.
func (a *Authenticator) AuthenticateToken(_ context.Context, token string) (*authenticator.Response, bool, error) {
	m := tokenForm.FindStringSubmatch(token)
	if m == nil {
		return nil, false, nil
	}
	id, secret := m[1], m[2]
	s, err := a.secrets.Get("bootstrap-token-" + id)
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	groups, why := check(s, id, secret, a.now())
	if why != "" {
		klog.V(2).InfoS("A bootstrap token was not accepted", "secret", klog.KObj(s), "why", why)
		return nil, false, nil
	}
	return &authenticator.Response{User: &user.DefaultInfo{Name: "system:bootstrap:" + id, Groups: groups}}, true, nil
}

// check returns the groups of a token's bearer, or why it is not good.
func check(s *corev1.Secret, id, secret string, now time.Time) (groups []string, why string) {
	switch {
	case s.DeletionTimestamp != nil:
		return nil, "the Secret is being deleted"
	case s.Type != corev1.SecretTypeBootstrapToken:
		return nil, "the Secret's type is not " + string(corev1.SecretTypeBootstrapToken)
	case subtle.ConstantTimeCompare(s.Data["token-secret"], []byte(secret)) != 1:
		return nil, "wrong secret"
	case string(s.Data["token-id"]) != id:
		return nil, "token-id is not that of the Secret's name"
	case string(s.Data["usage-bootstrap-authentication"]) != "true":
		return nil, "not made for authentication"
	}
	if at := string(s.Data["expiration"]); at != "" {
		until, err := time.Parse(time.RFC3339, at)
		if err != nil {
			return nil, "expiration is no time of RFC 3339"
		}
		if !now.Before(until) {
			return nil, "expired"
		}
	}
	groups = []string{group}
	if extra := string(s.Data["auth-extra-groups"]); extra != "" {
		for _, g := range strings.Split(extra, ",") {
			if !extraGroup.MatchString(g) {
				return nil, "auth-extra-groups names a group that is not of bootstrappers"
			}
			groups = append(groups, g)
		}
	}
	slices.Sort(groups)
	return slices.Compact(groups), ""
}
