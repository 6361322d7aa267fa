package auth

import (
	"time"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/request/websocket"
	"k8s.io/apiserver/pkg/authentication/request/x509"
	tokencache "k8s.io/apiserver/pkg/authentication/token/cache"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// Config says whose credentials count.
type Config struct {
	// ClientCA signs the certificates of users, nodes and components: CN is the user, O the groups.
	ClientCA dynamiccertificates.CAContentProvider
	// FrontProxy says which certificates may vouch for users in which headers.
	FrontProxy *authenticatorfactory.RequestHeaderConfig
	// Tokens knows bearer tokens. It must answer with the audiences that it found, as token.Issuer does.
	Tokens authenticator.Token
	// TokenTTL bounds how long a token works on after what it is bound to is gone, and a certificate after its CA is.
	TokenTTL time.Duration
	// Audiences are the API server's own names.
	Audiences authenticator.Audiences
	// AnonymousPaths are open to everybody: load balancers and probes have no credentials.
	AnonymousPaths []string
	// Anonymous says more exactly who may come without credentials; nil: everybody, to AnonymousPaths.
	Anonymous *apiserver.AnonymousAuthConfig
}

// New returns the authenticator of all requests. A credential that is there and wrong is an error: it never
// makes its bearer anonymous.
func New(c Config) authenticator.Request {
	p := c.FrontProxy
	proxy := headerrequest.NewDynamicVerifyOptionsSecure(p.CAContentProvider.VerifyOptions, p.AllowedClientNames, p.UsernameHeaders, p.UIDHeaders, p.GroupHeaders, p.ExtraHeaderPrefixes)
	certificate := rememberCertificates(x509.NewDynamic(c.ClientCA.VerifyOptions, x509.CommonNameUserConversion), c.TokenTTL)
	// A token that is unknown now may be made in a moment: machines join with new ones.
	tokens := tokencache.New(c.Tokens, false, c.TokenTTL, 0)
	known := group.NewAuthenticatedGroupAdder(union.New(
		// Around these two only: the wrapper refuses whoever answers for itself.
		authenticator.WrapAudienceAgnosticRequest(c.Audiences, union.New(proxy, certificate)),
		bearertoken.New(tokens), websocket.NewProtocolAuthenticator(tokens),
	))
	if a := c.Anonymous; a != nil {
		if !a.Enabled {
			return known
		}
		return union.NewFailOnError(known, anonymous.NewAuthenticator(a.Conditions))
	}
	// Without paths the library's anonymous authenticator would open everything.
	if len(c.AnonymousPaths) == 0 {
		return known
	}
	var open []apiserver.AnonymousAuthCondition
	for _, path := range c.AnonymousPaths {
		open = append(open, apiserver.AnonymousAuthCondition{Path: path})
	}
	return union.NewFailOnError(known, anonymous.NewAuthenticator(open))
}
