package certificates

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/certificate"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/atomicfile"
)

// store keeps one certificate with its key as client-go does, and none of those before it.
type store struct {
	certificate.FileStore
	dir, name string
	// updated is called with a certificate that is new, once it is on disk.
	updated func(*tls.Certificate)
}

func currentPath(dir, name string) string { return filepath.Join(dir, name+"-current.pem") }

func openStore(dir, name string) (*store, error) {
	fs, err := certificate.NewFileStoreWithLogger(klog.Background().V(3), name, dir, dir, "", "")
	if err != nil {
		return nil, fmt.Errorf("certificate %s in %s: %w", name, dir, err)
	}
	return &store{FileStore: fs, dir: dir, name: name, updated: func(*tls.Certificate) {}}, nil
}

// Update makes a certificate the current one and removes those before it.
func (s *store) Update(certPEM, keyPEM []byte) (*tls.Certificate, error) {
	c, err := s.FileStore.Update(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	if err := s.prune(); err != nil {
		klog.ErrorS(err, "Old certificates were not removed", "name", s.name)
	}
	s.updated(c)
	return c, nil
}

func (s *store) prune() error {
	current, err := os.Readlink(s.CurrentPath())
	if err != nil {
		return err
	}
	all, err := filepath.Glob(filepath.Join(s.dir, s.name+"-*.pem"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range all {
		if path != s.CurrentPath() && filepath.Base(path) != filepath.Base(current) {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// writeKubeconfigs writes a kubeconfig for each of the two identities, unless it is there as it should be.
func (c Config) writeKubeconfigs() error {
	for path, id := range map[string]identity{c.KubeletKubeconfig: c.kubelet(), c.NetworkKubeconfig: c.network()} {
		if path == "" {
			continue
		}
		pair, user := currentPath(c.Dir, id.name), id.subject.CommonName
		const name = "strake"
		data, err := clientcmd.Write(clientcmdapi.Config{
			Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: c.Server, CertificateAuthority: c.CAFile}},
			AuthInfos:      map[string]*clientcmdapi.AuthInfo{user: {ClientCertificate: pair, ClientKey: pair}},
			Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: user}},
			CurrentContext: name,
		})
		if err != nil {
			return fmt.Errorf("kubeconfig %s: %w", path, err)
		}
		if have, err := os.ReadFile(path); err == nil && slices.Equal(have, data) {
			continue
		}
		if err := writeFile(path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// writeFile replaces a file in a folder that need not be there yet.
func writeFile(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return atomicfile.Write(path, data, mode)
}
