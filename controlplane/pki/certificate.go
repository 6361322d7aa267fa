package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/client-go/util/keyutil"

	"github.com/strake-io/strake/atomicfile"
)

const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	leafLifetime = 365 * 24 * time.Hour
	// renewBefore leaves a month of restarts in which a certificate is renewed before it would fail.
	renewBefore = 30 * 24 * time.Hour
	// backdate tolerates clocks that run a little behind ours.
	backdate = 5 * time.Minute
)

// authority is a CA that is loaded and can sign.
type authority struct {
	cert *x509.Certificate
	pem  []byte
	key  crypto.Signer
}

// leaf says what a certificate that a CA signs must be.
type leaf struct {
	commonName   string
	organization []string
	dnsNames     []string
	ips          []net.IP
	server       bool
	client       bool
}

func (l leaf) usages() []x509.ExtKeyUsage {
	var u []x509.ExtKeyUsage
	if l.server {
		u = append(u, x509.ExtKeyUsageServerAuth)
	}
	if l.client {
		u = append(u, x509.ExtKeyUsageClientAuth)
	}
	return u
}

// matches tells whether an existing certificate can stay: signed by this CA, not near its
// end, for the same subject, names and addresses.
func (l leaf) matches(c *x509.Certificate, ca *authority, now time.Time) bool {
	if now.Add(renewBefore).After(c.NotAfter) || now.Before(c.NotBefore) {
		return false
	}
	if c.CheckSignatureFrom(ca.cert) != nil {
		return false
	}
	if c.Subject.CommonName != l.commonName || !sameSet(c.Subject.Organization, l.organization) || !sameSet(c.DNSNames, l.dnsNames) {
		return false
	}
	return slices.Equal(sortedIPs(c.IPAddresses), sortedIPs(l.ips)) && slices.Equal(c.ExtKeyUsage, l.usages())
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func sortedIPs(ips []net.IP) []string {
	out := make([]string, len(ips))
	for i, ip := range ips {
		out[i] = ip.String()
	}
	slices.Sort(out)
	return out
}

// ensureAuthority loads a CA, or makes it if neither of its files is there. One file without
// the other is an error: making a new CA would cut off everything signed by the old.
func ensureAuthority(p KeyPair, commonName string, now time.Time) (*authority, error) {
	certPEM, certErr := os.ReadFile(p.Cert)
	_, keyErr := os.Stat(p.Key)
	switch {
	case errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist):
		return newAuthority(p, commonName, now)
	case certErr != nil:
		return nil, fmt.Errorf("certificate authority %s: %w (its key %s is there; restore the pair from a backup)", p.Cert, certErr, p.Key)
	}
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", p.Cert, err)
	}
	key, err := readKey(p.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", p.Cert, err)
	}
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("certificate authority %s: the key %s is not its key; restore the pair from a backup", p.Cert, p.Key)
	}
	if now.After(cert.NotAfter) {
		return nil, fmt.Errorf("certificate authority %s: expired on %s", p.Cert, cert.NotAfter.Format(time.DateOnly))
	}
	return &authority{cert: cert, pem: certPEM, key: key}, nil
}

func newAuthority(p KeyPair, commonName string, now time.Time) (*authority, error) {
	key, err := newKey(p.Key)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", p.Cert, err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := atomicfile.Write(p.Cert, data, 0o644); err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", p.Cert, err)
	}
	return &authority{cert: cert, pem: data, key: key}, nil
}

// ensureLeaf keeps a signed pair on disk, and makes a new one, key included, when the old one does not fit. It returns the
// end of the one that is there then.
func (ca *authority) ensureLeaf(p KeyPair, want leaf, now time.Time) (time.Time, error) {
	if data, err := os.ReadFile(p.Cert); err == nil {
		cert, err := parseCertificate(data)
		key, keyErr := readKey(p.Key)
		if err == nil && keyErr == nil && want.matches(cert, ca, now) {
			if pub, ok := key.Public().(*ecdsa.PublicKey); ok && pub.Equal(cert.PublicKey) {
				return cert.NotAfter, nil
			}
		}
	}
	key, err := newKey(p.Key)
	if err != nil {
		return time.Time{}, err
	}
	data, err := ca.sign(want, key.Public(), now)
	if err != nil {
		return time.Time{}, fmt.Errorf("certificate %s: %w", p.Cert, err)
	}
	return ca.end(now), atomicfile.Write(p.Cert, data, 0o644)
}

// end is when a leaf that is signed now ends.
func (ca *authority) end(now time.Time) time.Time {
	if end := now.Add(leafLifetime); end.Before(ca.cert.NotAfter) {
		return end
	}
	return ca.cert.NotAfter
}

// sign returns the PEM certificate of a leaf.
func (ca *authority) sign(want leaf, pub crypto.PublicKey, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: want.commonName, Organization: want.organization},
		DNSNames:              want.dnsNames,
		IPAddresses:           want.ips,
		NotBefore:             now.Add(-backdate),
		NotAfter:              ca.end(now),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           want.usages(),
		BasicConstraintsValid: true,
	}, ca.cert, pub, ca.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func newSerial() (*big.Int, error) {
	// RFC 5280 4.1.2.2: positive, at most 20 octets.
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("certificate serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// newKey makes an ECDSA P-256 key and writes it, 0600.
func newKey(path string) (crypto.Signer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return key, atomicfile.Write(path, pem.EncodeToMemory(&pem.Block{Type: keyutil.ECPrivateKeyBlockType, Bytes: der}), 0o600)
}

func readKey(path string) (crypto.Signer, error) {
	key, err := keyutil.PrivateKeyFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key %s: type %T cannot sign", path, key)
	}
	return signer, nil
}

func parseCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(bytes.TrimSpace(data))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM certificate in it")
	}
	return x509.ParseCertificate(block.Bytes)
}
