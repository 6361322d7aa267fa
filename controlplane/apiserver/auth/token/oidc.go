package token

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
)

// Handlers serve OIDC discovery (OpenID Connect Discovery 1.0), with which others verify our tokens.
func (i *Issuer) Handlers() (map[string]http.Handler, error) {
	config, err := json.Marshal(map[string]any{
		"issuer": i.url, "jwks_uri": i.url + "/openid/v1/jwks", "response_types_supported": []string{"id_token"},
		"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
	})
	if err != nil {
		return nil, err
	}
	point, err := i.key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	// An uncompressed point is 4, X, Y (SEC 1, 2.3.3); RFC 7518 6.2.1 wants X and Y apart.
	half := (len(point) - 1) / 2
	b64 := base64.RawURLEncoding.EncodeToString
	keys, err := json.Marshal(map[string]any{"keys": []map[string]string{{
		"use": "sig", "kty": "EC", "kid": i.keyID, "crv": "P-256", "alg": "ES256", "x": b64(point[1 : 1+half]), "y": b64(point[1+half:]),
	}}})
	if err != nil {
		return nil, err
	}
	serve := func(contentType string, body []byte) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			w.Write(body)
		})
	}
	return map[string]http.Handler{
		"/.well-known/openid-configuration": serve("application/json", config),
		"/openid/v1/jwks":                   serve("application/jwk-set+json", keys),
	}, nil
}
