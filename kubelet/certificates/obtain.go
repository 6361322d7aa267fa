package certificates

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/certificate"
	"k8s.io/client-go/util/certificate/csr"
	"k8s.io/client-go/util/keyutil"
)

// Names of the certificates' files.
const (
	kubeletClient = "kubelet-client"
	networkClient = "strake-agent-client"
	kubeletServer = "kubelet-server"
)

// identity is a certificate that a node has: its file, whose name is in it, and who signs it for what.
type identity struct {
	name    string
	subject pkix.Name
	signer  string
	usages  []certificatesv1.KeyUsage
}

func (c Config) kubelet() identity {
	return identity{kubeletClient, pkix.Name{CommonName: "system:node:" + c.NodeName, Organization: []string{"system:nodes"}}, certificatesv1.KubeAPIServerClientKubeletSignerName, clientUsages}
}

func (c Config) network() identity {
	return identity{networkClient, pkix.Name{CommonName: "system:strake-agent:" + c.NodeName, Organization: []string{"system:strake-agents"}}, certificatesv1.KubeAPIServerClientSignerName, clientUsages}
}

func (c Config) server() identity {
	return identity{kubeletServer, c.kubelet().subject, certificatesv1.KubeletServingSignerName, []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}}
}

// serverTemplate names how the kubelet is reached now.
func (c Config) serverTemplate() *x509.CertificateRequest {
	t := &x509.CertificateRequest{Subject: c.server().subject, DNSNames: []string{c.NodeName}}
	for _, a := range c.Addrs() {
		t.IPAddresses = append(t.IPAddresses, a.Unmap().AsSlice())
	}
	return t
}

var clientUsages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}

// lifetime is what a request asks for.
func (c Config) lifetime() *time.Duration {
	if c.Lifetime == 0 {
		return nil
	}
	return &c.Lifetime
}

// obtain asks for a client certificate and keeps it. The key is on disk before anybody is asked, and names the request: who is
// killed here finds its own request again.
func obtain(ctx context.Context, cfg Config, client *rest.Config, store certificate.Store, id identity) error {
	keyFile := filepath.Join(cfg.Dir, id.name+".key.new")
	key, keyPEM, err := ensureKey(keyFile)
	if err != nil {
		return permanent{err}
	}
	request, err := certutil.MakeCSR(key, &id.subject, nil, nil)
	if err != nil {
		return permanent{err}
	}
	api, err := newClient(client)
	if err != nil {
		return err
	}
	name, uid, err := csr.RequestCertificateWithContext(ctx, api, request, requestName(key, id), id.signer, cfg.lifetime(), id.usages, key)
	switch {
	case err == nil:
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return permanent{err}
	case strings.Contains(err.Error(), "not compatible"):
		// A request of ours that has gone stale: its certificate has expired.
		return errors.Join(err, os.Remove(keyFile))
	default:
		return err
	}
	certPEM, err := csr.WaitForCertificate(ctx, api, name, uid)
	if wait.Interrupted(err) {
		return fmt.Errorf("request %s waits for an approval; `strake kubectl certificate approve %s` gives it", name, name)
	}
	if err != nil {
		// Denied, failed or deleted: another attempt needs another request.
		if removeErr := os.Remove(keyFile); removeErr != nil {
			return permanent{errors.Join(err, removeErr)}
		}
		if strings.Contains(err.Error(), "was deleted") {
			return err
		}
		return permanent{fmt.Errorf("request %s: %w", name, err)}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err == nil {
		err = check(&pair, id, time.Now())
	}
	if err != nil {
		return permanent{err}
	}
	if _, err := store.Update(certPEM, keyPEM); err != nil {
		return permanent{err}
	}
	return os.Remove(keyFile)
}

// requestName is of the key and of what it is for: a request of another with the same name can't be.
func requestName(key crypto.Signer, id identity) string {
	h := sha256.New()
	if k, ok := key.Public().(*ecdsa.PublicKey); ok {
		if raw, err := k.Bytes(); err == nil { // fails for curves that we never make
			h.Write(raw)
		}
	}
	h.Write([]byte("|" + id.signer + "|" + id.subject.CommonName))
	return "node-csr-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// ensureKey reads the key of a request under way, or makes one. One that can't be read is made anew: nothing hangs on it.
func ensureKey(path string) (crypto.Signer, []byte, error) {
	if data, err := os.ReadFile(path); err == nil {
		if key, err := keyutil.ParsePrivateKeyPEM(data); err == nil {
			if signer, ok := key.(*ecdsa.PrivateKey); ok {
				return signer, data, nil
			}
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("key %s: %w", path, err)
	}
	data, err := keyutil.MarshalPrivateKeyToPEM(key)
	if err != nil {
		return nil, nil, fmt.Errorf("key %s: %w", path, err)
	}
	return key, data, writeFile(path, data, 0o600)
}
