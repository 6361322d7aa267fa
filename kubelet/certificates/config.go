package certificates

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
)

// Config says whose certificates these are and where they are kept.
type Config struct {
	// Dir holds the certificates. It is made if it is missing (0700).
	Dir string
	// NodeName is the name of the Node object.
	NodeName string
	// Addrs returns the addresses of the node, which its serving certificate names. They may change while Run runs: it
	// then asks for another certificate.
	Addrs func() []netip.Addr
	// Server is the https URL of the API server.
	Server string
	// CAFile is the cluster's CA, PEM. Bootstrap writes it where it is missing.
	CAFile string
	// KubeletKubeconfig and NetworkKubeconfig are files that Bootstrap and Open write: the two identities, for people and
	// other programs. They name the certificate files, so that they stay good when those are renewed.
	KubeletKubeconfig, NetworkKubeconfig string
	// Lifetime of the certificates that are asked for, at least ten minutes; zero: as the signer thinks (a year).
	Lifetime time.Duration

	// Sign, if it is set, signs what Bootstrap asks for in place of the API server, and returns PEM: the machine of the control
	// plane has the CA. Bootstrap then makes the serving certificate too, and wants no token.
	Sign func(r *x509.CertificateRequest, usages []certificatesv1.KeyUsage) ([]byte, error)

	// Token is a bootstrap token, ID.SECRET, and CAHashes are the SHA-256 hashes of the public keys of the CAs that are
	// believed, each "sha256:" and 64 hex digits. Only Bootstrap looks at them, and only as long as there is no kubelet
	// certificate.
	Token    string
	CAHashes []string
}

var tokenForm = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)

// ParseToken takes a bootstrap token apart. The error does not show the token.
func ParseToken(token string) (id, secret string, err error) {
	m := tokenForm.FindStringSubmatch(token)
	if m == nil {
		return "", "", fmt.Errorf("the token is not of the form abcdef.0123456789abcdef (6 and 16 of a-z and 0-9): copy all of what `strake token create` printed")
	}
	return m[1], m[2], nil
}

func (c Config) check() error {
	u, err := url.Parse(c.Server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("API server %q: not a URL such as https://192.0.2.1:6443", c.Server)
	}
	return nil
}
