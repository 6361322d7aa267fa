// Package accounts gives each controller an identity of its own: a ServiceAccount of kube-system, as
// kube-controller-manager does with --use-service-account-credentials. A controller has the rights of its own role then, and no
// more, and the audit log tells which of them did something.
//
// Its one idea: the tokens are asked for when a request needs one, by somebody who may make ServiceAccounts and their tokens and
// little else, and asked for again before they end. A ServiceAccount that is missing, or was deleted, is made on the way.
package accounts

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/oauth2"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
)

const (
	// lifetime is what tokens are asked for; a new one is asked for when a fifth of it is left.
	lifetime = time.Hour
	// patience is how long a request waits for its token.
	patience = 10 * time.Second
)

// Accounts are the ServiceAccounts of controllers.
type Accounts struct {
	ctx    context.Context
	issuer corev1client.ServiceAccountInterface
	base   *rest.Config // without credentials
}

// New returns accounts whose tokens are asked for through cfg until ctx ends: its user must be allowed to create ServiceAccounts
// of kube-system, and tokens for them.
func New(ctx context.Context, cfg *rest.Config) (*Accounts, error) {
	client, err := corev1client.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("accounts of controllers: %w", err)
	}
	return &Accounts{ctx: ctx, issuer: client.ServiceAccounts(metav1.NamespaceSystem), base: rest.AnonymousClientConfig(cfg)}, nil
}

// Config is how the API server is reached as a ServiceAccount of kube-system. All of them share connections: they differ in what a
// request says only.
func (a *Accounts) Config(name string) *rest.Config {
	cfg := rest.CopyConfig(a.base)
	cfg.UserAgent += "/" + name
	cfg.Wrap(transport.ResettableTokenSourceWrapTransport(transport.NewCachedTokenSource(&tokens{a, name})))
	return cfg
}

// tokens are those of one ServiceAccount.
type tokens struct {
	*Accounts
	name string
}

// Token asks for a new one.
func (t *tokens) Token() (*oauth2.Token, error) {
	ctx, cancel := context.WithTimeout(t.ctx, patience)
	defer cancel()
	asked, seconds := time.Now(), int64(lifetime/time.Second)
	request := func() (*authenticationv1.TokenRequest, error) {
		return t.issuer.CreateToken(ctx, t.name, &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	}
	got, err := request()
	if apierrors.IsNotFound(err) {
		_, err = t.issuer.Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: t.name}}, metav1.CreateOptions{})
		if err == nil || apierrors.IsAlreadyExists(err) {
			got, err = request()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("token of ServiceAccount %s/%s: %w", metav1.NamespaceSystem, t.name, err)
	}
	// By how long it lives rather than by when it ends: the API server's clock may be another one. It may also have given less than was asked for.
	if s := got.Spec.ExpirationSeconds; s != nil {
		seconds = *s
	}
	return &oauth2.Token{AccessToken: got.Status.Token, TokenType: "Bearer", Expiry: asked.Add(time.Duration(seconds) * time.Second * 4 / 5)}, nil
}
