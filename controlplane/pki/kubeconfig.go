package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/keyutil"

	"github.com/strake-io/strake/atomicfile"
)

// Identity is a user as RBAC sees it: the certificate's common name and organizations.
type Identity struct {
	User   string
	Groups []string
}

// The identities of the cluster's own components and of its first administrator.
var (
	Admin             = Identity{User: "strake-admin", Groups: []string{"system:masters"}}
	Scheduler         = Identity{User: "system:kube-scheduler"}
	ControllerManager = Identity{User: "system:kube-controller-manager"}
)

// Kubeconfig is a file (0600) with which somebody reaches the API server.
type Kubeconfig struct {
	Path     string
	Identity Identity
	// Portable puts the certificate into the file itself, so that people can take it elsewhere. Otherwise it lies in two files
	// beside, which client-go reads again when they are renewed: its user goes on.
	Portable bool
}

// pair is where the certificate lies unless the kubeconfig is portable.
func (k Kubeconfig) pair() KeyPair {
	base := strings.TrimSuffix(k.Path, filepath.Ext(k.Path))
	return KeyPair{Cert: base + ".crt", Key: base + ".key"}
}

const clusterName = "strake"

// ensureKubeconfig writes it anew when the server, the CA or the identity changed, or the certificate nears its end, and returns
// the end of the certificate that is there then.
func (ca *authority) ensureKubeconfig(k Kubeconfig, server string, now time.Time) (time.Time, error) {
	want := leaf{commonName: k.Identity.User, organization: k.Identity.Groups, client: true}
	user, end := &clientcmdapi.AuthInfo{}, time.Time{}
	if k.Portable {
		if end, ok := fits(k.Path, server, want, ca, now); ok {
			return end, nil
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return end, fmt.Errorf("kubeconfig %s: %w", k.Path, err)
		}
		if user.ClientKeyData, err = keyutil.MarshalPrivateKeyToPEM(key); err != nil {
			return end, fmt.Errorf("kubeconfig %s: %w", k.Path, err)
		}
		if user.ClientCertificateData, err = ca.sign(want, key.Public(), now); err != nil {
			return end, fmt.Errorf("kubeconfig %s: %w", k.Path, err)
		}
		end = ca.end(now)
	} else {
		p := k.pair()
		var err error
		if end, err = ca.ensureLeaf(p, want, now); err != nil {
			return end, err
		}
		user.ClientCertificate, user.ClientKey = p.Cert, p.Key
	}
	data, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{clusterName: {Server: server, CertificateAuthorityData: ca.pem}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{k.Identity.User: user},
		Contexts:       map[string]*clientcmdapi.Context{clusterName: {Cluster: clusterName, AuthInfo: k.Identity.User}},
		CurrentContext: clusterName,
	})
	if err != nil {
		return end, fmt.Errorf("kubeconfig %s: %w", k.Path, err)
	}
	have, err := os.ReadFile(k.Path)
	if info, statErr := os.Stat(k.Path); err == nil && statErr == nil && info.Mode().Perm() == 0o600 && bytes.Equal(have, data) {
		return end, nil
	}
	return end, atomicfile.Write(k.Path, data, 0o600)
}

// fits tells whether a portable kubeconfig can stay, and when its certificate ends.
func fits(path, server string, want leaf, ca *authority, now time.Time) (time.Time, bool) {
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		return time.Time{}, false
	}
	cfg, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return time.Time{}, false
	}
	cluster, user := cfg.Clusters[clusterName], cfg.AuthInfos[want.commonName]
	if cluster == nil || user == nil || cluster.Server != server || !bytes.Equal(cluster.CertificateAuthorityData, ca.pem) {
		return time.Time{}, false
	}
	cert, err := parseCertificate(user.ClientCertificateData)
	if err != nil || !want.matches(cert, ca, now) {
		return time.Time{}, false
	}
	return cert.NotAfter, true
}
