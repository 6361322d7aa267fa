package auth

import (
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apiserver/pkg/authentication/authenticator"
)

// maxCertificates bounds how many certificates are remembered.
const maxCertificates = 4096

// rememberedCertificates asks about each certificate once in a while only: to verify one costs a third of a small request. A connection shows the same one
// with every request, and Go's TLS gives equal ones the same address.
type rememberedCertificates struct {
	authenticator.Request
	ttl   time.Duration
	known *cache.LRUExpireCache // *x509.Certificate → authenticator.Response
}

func rememberCertificates(ask authenticator.Request, ttl time.Duration) authenticator.Request {
	return &rememberedCertificates{ask, ttl, cache.NewLRUExpireCache(maxCertificates)}
}

// AuthenticateRequest implements authenticator.Request. What is refused is not remembered.
func (c *rememberedCertificates) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, false, nil
	}
	cert := r.TLS.PeerCertificates[0]
	if known, ok := c.known.Get(cert); ok {
		response := known.(authenticator.Response) // a copy: who asked adds to it
		return &response, true, nil
	}
	response, ok, err := c.Request.AuthenticateRequest(r)
	if err == nil && ok {
		c.known.Add(cert, *response, min(c.ttl, time.Until(cert.NotAfter)))
	}
	return response, ok, err
}
