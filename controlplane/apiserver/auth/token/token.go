package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/client-go/util/keyutil"
)

// Issuer signs and verifies tokens with one ECDSA key.
type Issuer struct {
	key       *ecdsa.PrivateKey
	keyID     string
	url       string
	audiences authenticator.Audiences
	objects   Objects
	now       func() time.Time
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
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("ServiceAccount key %s: want ECDSA P-256, have %T", keyFile, k)
	}
	id, err := keyID(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("ServiceAccount key %s: %w", keyFile, err)
	}
	return &Issuer{key: key, keyID: id, url: url, audiences: audiences, objects: objects, now: time.Now}, nil
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
	now := i.now()
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
	parser := jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodES256.Alg()}), jwt.WithExpirationRequired(), jwt.WithTimeFunc(i.now), jwt.WithStrictDecoding())
	// All of the claims are read only after the signature is found good; the issuer alone tells whose token it is.
	var whose jwt.RegisteredClaims
	if _, _, err := parser.ParseUnverified(raw, &whose); err != nil || whose.Issuer != i.url {
		return nil, false, nil
	}
	var c claims
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
	info, err := i.live(ctx, c.Kubernetes)
	if err != nil {
		return nil, false, fmt.Errorf("ServiceAccount token: %w", err)
	}
	info.CredentialID = "JTI=" + c.ID
	return &authenticator.Response{User: info.UserInfo(), Audiences: audiences}, true, nil
}
