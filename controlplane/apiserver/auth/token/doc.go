// Package token issues and verifies ServiceAccount tokens: JWTs that are bound
// to a ServiceAccount and, if asked for, to a Pod, Secret or Node (KEP-1205).
//
// Its one idea: a token proves nothing for ever. It says which objects, by UID, it
// was made for, and every use looks whether they are still there; so deleting the
// pod ends its token, without a list of revoked ones.
//
// REST (serviceaccounts/NAME/token) checks a TokenRequest against the store and
// has the Issuer sign it with ES256. The Issuer, as an authenticator, takes only
// tokens of its own issuer URL, checks signature, time and audience, then the
// objects, and returns the ServiceAccount as the user with the pod and node in its
// extras. Handlers publishes the key for others (OpenID Connect Discovery 1.0).
package token
