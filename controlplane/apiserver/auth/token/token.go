// Package token issues and verifies ServiceAccount tokens: JWTs that are bound
// to a ServiceAccount and, if asked for, to a Pod, Secret or Node (KEP-1205).
package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/util/keyutil"
)

// Issuer signs and verifies tokens with one ECDSA key.
type Issuer struct {
	key       *ecdsa.PrivateKey
	keyID     string
	url       string
	audiences authenticator.Audiences
	objects   Objects
}

// Objects finds what tokens are bound to; a token whose object is gone is dead.
type Objects struct {
	ServiceAccounts corelisters.ServiceAccountLister
	Pods            corelisters.PodLister
	Secrets         corelisters.SecretLister
	Nodes           corelisters.NodeLister
}

// claims are a token's content, laid out as clients of the reference expect them.
type claims struct {
	jwt.RegisteredClaims
	Kubernetes private `json:"kubernetes.io"`
}

type private struct {
	Namespace      string `json:"namespace"`
	ServiceAccount ref    `json:"serviceaccount"`
	Pod            *ref   `json:"pod,omitempty"`
	Secret         *ref   `json:"secret,omitempty"`
	Node           *ref   `json:"node,omitempty"`
}

type ref struct {
	Name string    `json:"name"`
	UID  types.UID `json:"uid"`
}

// NewIssuer reads the signing key. url is the issuer; audiences are the API server's own.
func NewIssuer(keyFile, url string, audiences []string, objects Objects) (*Issuer, error) {
	k, err := keyutil.PrivateKeyFromFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("ServiceAccount key: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("ServiceAccount key %s: want ECDSA P-256, have %T", keyFile, k)
	}
	id, err := keyID(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("ServiceAccount key %s: %w", keyFile, err)
	}
	return &Issuer{key: key, keyID: id, url: url, audiences: audiences, objects: objects}, nil
}

// keyID names a public key by its hash, so that a rotated key gets another name.
func keyID(pub *ecdsa.PublicKey) (string, error) {
	der, err := pub.Bytes()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// Issue signs a token for a request that was validated before.
func (i *Issuer) Issue(sa *corev1.ServiceAccount, spec authenticationv1.TokenRequestSpec, bound *Bound) (string, time.Time, error) {
	now := time.Now()
	expires := now.Add(time.Duration(*spec.ExpirationSeconds) * time.Second)
	c := claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: i.url, Subject: serviceaccount.MakeUsername(sa.Namespace, sa.Name), Audience: jwt.ClaimStrings(spec.Audiences),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(expires), ID: uuid.NewString(),
		},
		Kubernetes: private{Namespace: sa.Namespace, ServiceAccount: ref{sa.Name, sa.UID}},
	}
	if bound != nil {
		c.Kubernetes.Pod, c.Kubernetes.Secret, c.Kubernetes.Node = bound.Pod, bound.Secret, bound.Node
	}
	t := jwt.NewWithClaims(jwt.SigningMethodES256, c)
	t.Header["kid"] = i.keyID
	signed, err := t.SignedString(i.key)
	if err != nil {
		return "", time.Time{}, fmt.Errorf("token of ServiceAccount %s/%s: %w", sa.Namespace, sa.Name, err)
	}
	return signed, expires, nil
}

// Bound is what a token dies with, beside its ServiceAccount.
type Bound struct{ Pod, Secret, Node *ref }

// AuthenticateToken implements authenticator.Token. Strings that are no token of this issuer are not ours (false, no
// error), so that another authenticator may know them.
func (i *Issuer) AuthenticateToken(ctx context.Context, raw string) (*authenticator.Response, bool, error) {
	var c claims
	parser := jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodES256.Alg()}), jwt.WithExpirationRequired(), jwt.WithIssuedAt())
	unverified := &claims{}
	if _, _, err := parser.ParseUnverified(raw, unverified); err != nil || unverified.Issuer != i.url {
		return nil, false, nil
	}
	if _, err := parser.ParseWithClaims(raw, &c, func(*jwt.Token) (any, error) { return &i.key.PublicKey, nil }); err != nil {
		return nil, false, fmt.Errorf("ServiceAccount token: %w", err)
	}
	asked, ok := authenticator.AudiencesFrom(ctx)
	if !ok {
		asked = i.audiences
	}
	audiences := asked.Intersect(authenticator.Audiences(c.Audience))
	if len(audiences) == 0 {
		return nil, false, fmt.Errorf("ServiceAccount token: its audience %q is none of %q", c.Audience, asked)
	}
	info, err := i.live(c.Kubernetes)
	if err != nil {
		return nil, false, fmt.Errorf("ServiceAccount token: %w", err)
	}
	info.CredentialID = "JTI=" + c.ID
	return &authenticator.Response{User: info.UserInfo(), Audiences: audiences}, true, nil
}

// live checks that everything that the token is bound to is still there, by UID.
func (i *Issuer) live(p private) (*serviceaccount.ServiceAccountInfo, error) {
	sa, err := i.objects.ServiceAccounts.ServiceAccounts(p.Namespace).Get(p.ServiceAccount.Name)
	if err != nil {
		return nil, err
	}
	if sa.UID != p.ServiceAccount.UID {
		return nil, fmt.Errorf("ServiceAccount %s/%s was made anew", p.Namespace, sa.Name)
	}
	info := &serviceaccount.ServiceAccountInfo{Namespace: p.Namespace, Name: sa.Name, UID: string(sa.UID)}
	if p.Pod != nil {
		pod, err := i.objects.Pods.Pods(p.Namespace).Get(p.Pod.Name)
		if err != nil {
			return nil, err
		}
		if pod.UID != p.Pod.UID {
			return nil, fmt.Errorf("Pod %s/%s was made anew", p.Namespace, pod.Name)
		}
		info.PodName, info.PodUID = pod.Name, string(pod.UID)
	}
	if p.Secret != nil {
		s, err := i.objects.Secrets.Secrets(p.Namespace).Get(p.Secret.Name)
		if err != nil {
			return nil, err
		}
		if s.UID != p.Secret.UID {
			return nil, fmt.Errorf("Secret %s/%s was made anew", p.Namespace, s.Name)
		}
	}
	if p.Node != nil {
		info.NodeName, info.NodeUID = p.Node.Name, string(p.Node.UID)
		if p.Pod == nil {
			n, err := i.objects.Nodes.Get(p.Node.Name)
			if err != nil {
				return nil, err
			}
			if n.UID != p.Node.UID {
				return nil, fmt.Errorf("Node %s was made anew", n.Name)
			}
		}
	}
	return info, nil
}

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
