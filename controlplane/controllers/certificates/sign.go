package certificates

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
)

const (
	// longest is how long a certificate is good unless less is asked for.
	longest = 365 * 24 * time.Hour
	// shortest is the least that the API lets one ask for.
	shortest = 10 * time.Minute
	// backdate tolerates clocks that run a little behind ours.
	backdate = 5 * time.Minute
)

// authority is the cluster's CA.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func loadAuthority(certFile, keyFile string) (*authority, error) {
	certs, err := cert.CertsFromFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("signer: CA %s: %w", certFile, err)
	}
	key, err := keyutil.PrivateKeyFromFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("signer: key of the CA %s: %w", keyFile, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("signer: key of the CA %s: type %T can't sign", keyFile, key)
	}
	return &authority{cert: certs[0], key: signer}, nil
}

// mayHave are the usages of each signer, and the one that must be there
// (https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/#kubernetes-signers).
var mayHave = map[string]certificatesv1.KeyUsage{
	certificatesv1.KubeAPIServerClientSignerName:        certificatesv1.UsageClientAuth,
	certificatesv1.KubeAPIServerClientKubeletSignerName: certificatesv1.UsageClientAuth,
	certificatesv1.KubeletServingSignerName:             certificatesv1.UsageServerAuth,
}

// permitted says why an approved request is not for its signer; the signers of nodes sign nothing else, whoever approved it.
func permitted(c *certificatesv1.CertificateSigningRequest) (*x509.CertificateRequest, error) {
	if c.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
		p, node, r, err := recognize(c)
		if err == nil && p == kubeletServer && !isNode(c, node) {
			err = fmt.Errorf("it is for node %s, but %s asks", node, c.Spec.Username)
		}
		return r, err
	}
	r, err := parse(c.Spec.Request)
	if err != nil {
		return nil, err
	}
	must := mayHave[c.Spec.SignerName]
	for _, u := range c.Spec.Usages {
		if u != must && u != certificatesv1.UsageDigitalSignature && u != certificatesv1.UsageKeyEncipherment {
			return nil, fmt.Errorf("usage %q is not of this signer", u)
		}
	}
	if !slices.Contains(c.Spec.Usages, must) {
		return nil, fmt.Errorf("usage %q is missing", must)
	}
	return r, nil
}

// sign makes the certificate of a request that is permitted, PEM.
func (a *authority) sign(c *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest, now time.Time) ([]byte, error) {
	lifetime := longest
	if s := c.Spec.ExpirationSeconds; s != nil {
		lifetime = min(longest, max(shortest, time.Duration(*s)*time.Second))
	}
	end := now.Add(lifetime)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	if !end.After(now) {
		return nil, errors.New("the cluster's CA has expired")
	}
	// RFC 5280 4.1.2.2: positive, at most 20 octets.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: r.Subject,
		DNSNames: r.DNSNames, IPAddresses: r.IPAddresses, EmailAddresses: r.EmailAddresses, URIs: r.URIs,
		NotBefore: now.Add(-backdate), NotAfter: end, BasicConstraintsValid: true,
	}
	for _, u := range c.Spec.Usages {
		switch u {
		case certificatesv1.UsageDigitalSignature:
			tmpl.KeyUsage |= x509.KeyUsageDigitalSignature
		case certificatesv1.UsageKeyEncipherment:
			tmpl.KeyUsage |= x509.KeyUsageKeyEncipherment
		case certificatesv1.UsageClientAuth:
			tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
		case certificatesv1.UsageServerAuth:
			tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, r.PublicKey, a.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
