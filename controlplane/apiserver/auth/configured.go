package auth

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/install"
	"k8s.io/apiserver/pkg/apis/apiserver/load"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"
	tokencache "k8s.io/apiserver/pkg/authentication/token/cache"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	authorizationcel "k8s.io/apiserver/pkg/authorization/cel"
	authorizationmetrics "k8s.io/apiserver/pkg/authorization/metrics"
	unionauthz "k8s.io/apiserver/pkg/authorization/union"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/pkg/server/options"
	webhookutil "k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"
	tokenwebhook "k8s.io/apiserver/plugin/pkg/authenticator/token/webhook"
	authzwebhook "k8s.io/apiserver/plugin/pkg/authorizer/webhook"
	"k8s.io/apiserver/plugin/pkg/authorizer/webhook/metrics"
)

// ReadAuthentication reads an AuthenticationConfiguration. Its issuers must be others than our own.
func ReadAuthentication(content []byte, ownIssuer string) (*apiserver.AuthenticationConfiguration, error) {
	scheme := runtime.NewScheme()
	install.Install(scheme)
	obj, err := runtime.Decode(serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDecoder(), content)
	if err != nil {
		return nil, fmt.Errorf("authentication configuration: %w", err)
	}
	c, ok := obj.(*apiserver.AuthenticationConfiguration)
	if !ok {
		return nil, fmt.Errorf("authentication configuration: it is a %T", obj)
	}
	if errs := validation.ValidateAuthenticationConfiguration(authenticationcel.NewDefaultCompiler(), c, []string{ownIssuer}); len(errs) > 0 {
		return nil, fmt.Errorf("authentication configuration: %w", errs.ToAggregate())
	}
	return c, nil
}

// OIDC returns the authenticators of tokens of other issuers, and what tells whether they have the issuers' keys. They fetch
// these as long as ctx lives; until they have them such tokens are not known.
func OIDC(ctx context.Context, c *apiserver.AuthenticationConfiguration, ownIssuer string, audiences authenticator.Audiences) (all []authenticator.Token, ready func() error, err error) {
	var known []oidc.AuthenticatorTokenWithHealthCheck
	for i, jwt := range c.JWT {
		var ca oidc.CAContentProvider
		if pem := jwt.Issuer.CertificateAuthority; pem != "" {
			provider, err := dynamiccertificates.NewStaticCAContent(fmt.Sprintf("oidc-%d", i), []byte(pem))
			if err != nil {
				return nil, nil, fmt.Errorf("issuer %s: certificateAuthority: %w", jwt.Issuer.URL, err)
			}
			ca = provider
		}
		one, err := oidc.New(ctx, oidc.Options{JWTAuthenticator: jwt, CAContentProvider: ca, SupportedSigningAlgs: oidc.AllValidSigningAlgorithms(), DisallowedIssuers: []string{ownIssuer}})
		if err != nil {
			return nil, nil, fmt.Errorf("issuer %s: %w", jwt.Issuer.URL, err)
		}
		known, all = append(known, one), append(all, authenticator.WrapAudienceAgnosticToken(audiences, one))
	}
	return all, func() error {
		var errs []error
		for _, one := range known {
			errs = append(errs, one.HealthCheck())
		}
		return errors.Join(errs...)
	}, nil
}

// TokenWebhook returns the authenticator that asks the service of a kubeconfig, whose answers hold for a while.
func TokenWebhook(kubeconfig string, ttl time.Duration, audiences authenticator.Audiences) (authenticator.Token, error) {
	rc, err := webhookutil.LoadKubeconfig(kubeconfig, nil)
	if err != nil {
		return nil, fmt.Errorf("token webhook: %w", err)
	}
	w, err := tokenwebhook.New(rc, "v1", audiences, *options.DefaultAuthWebhookRetryBackoff())
	if err != nil {
		return nil, fmt.Errorf("token webhook %s: %w", kubeconfig, err)
	}
	return tokencache.New(w, false, ttl, ttl), nil
}

// Modes are the authorizers that need no configuration of their own, by the names that --authorization-mode and an
// AuthorizationConfiguration know.
type Modes map[string]authorizer.Authorizer

// NewModes adds those that always say the same.
func NewModes(ours map[string]authorizer.Authorizer) Modes {
	m := Modes{"AlwaysAllow": authorizerfactory.NewAlwaysAllowAuthorizer(), "AlwaysDeny": authorizerfactory.NewAlwaysDenyAuthorizer()}
	maps.Copy(m, ours)
	return m
}

// Ordered returns who decides by a list of names.
func (m Modes) Ordered(names []string) (authorizer.Authorizer, error) {
	var all []unionauthz.NamedAuthorizer
	for i, name := range names {
		one, ok := m[name]
		if !ok || slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("authorization mode %q: each of %s may be named once; webhooks are named by a configuration file", name, strings.Join(slices.Sorted(maps.Keys(m)), ", "))
		}
		id := strings.ToLower(name)
		all = append(all, unionauthz.NamedAuthorizer{AuthorizerName: id, Authorizer: authorizationmetrics.InstrumentedAuthorizer(name, id, one)})
	}
	return unionauthz.New(all...)
}

// Configured reads an AuthorizationConfiguration and returns who decides, in its order.
func (m Modes) Configured(content []byte) (authorizer.Authorizer, error) {
	c, err := load.LoadFromData(content)
	if err != nil {
		return nil, fmt.Errorf("authorization configuration: %w", err)
	}
	compiler := authorizationcel.NewDefaultCompiler()
	known := sets.KeySet(m).Insert(string(apiserver.TypeWebhook))
	if errs := validation.ValidateAuthorizationConfiguration(compiler, nil, c, known, sets.New(string(apiserver.TypeWebhook))); len(errs) > 0 {
		return nil, fmt.Errorf("authorization configuration: %w", errs.ToAggregate())
	}
	var all []unionauthz.NamedAuthorizer
	for _, a := range c.Authorizers {
		one := m[string(a.Type)]
		if a.Type == apiserver.TypeWebhook {
			if one, err = authorizationWebhook(a, compiler); err != nil {
				return nil, fmt.Errorf("authorization configuration: authorizer %s: %w", a.Name, err)
			}
		}
		all = append(all, unionauthz.NamedAuthorizer{AuthorizerName: a.Name, Authorizer: authorizationmetrics.InstrumentedAuthorizer(string(a.Type), a.Name, one)})
	}
	return unionauthz.New(all...)
}

// webhookMetrics counts and times what authorization webhooks are asked.
var webhookMetrics = struct {
	metrics.RequestMetrics
	metrics.WebhookMetrics
	authorizationcel.MatcherMetrics
}{metrics.NoopRequestMetrics{}, metrics.NewWebhookMetrics(), authorizationcel.NewMatcherMetrics()}

func authorizationWebhook(a apiserver.AuthorizerConfiguration, compiler authorizationcel.Compiler) (authorizer.Authorizer, error) {
	w := a.Webhook
	if w.ConnectionInfo.KubeConfigFile == nil {
		return nil, errors.New("connectionInfo must name a kubeConfigFile: this server is not in a cluster of somebody else's")
	}
	rc, err := webhookutil.LoadKubeconfig(*w.ConnectionInfo.KubeConfigFile, nil)
	if err != nil {
		return nil, err
	}
	rc.Timeout = w.Timeout.Duration
	onError := authorizer.DecisionNoOpinion
	if w.FailurePolicy == apiserver.FailurePolicyDeny {
		onError = authorizer.DecisionDeny
	}
	yes, no := w.AuthorizedTTL.Duration, w.UnauthorizedTTL.Duration
	if !w.CacheAuthorizedRequests {
		yes = 0
	}
	if !w.CacheUnauthorizedRequests {
		no = 0
	}
	return authzwebhook.New(rc, w.SubjectAccessReviewVersion, yes, no, *options.DefaultAuthWebhookRetryBackoff(), onError, w.MatchConditions, a.Name, webhookMetrics, compiler)
}
