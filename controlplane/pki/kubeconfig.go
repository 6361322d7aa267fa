package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/keyutil"
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

// Node is the identity of a node's kubelet, as the Node authorizer wants it.
func Node(name string) Identity {
	return Identity{User: "system:node:" + name, Groups: []string{"system:nodes"}}
}

// NodeNetwork is the identity of a node's network.
func NodeNetwork(name string) Identity {
	return Identity{User: "system:strake-agent:" + name, Groups: []string{"system:strake-agents"}}
}

// EnsureKubeconfig keeps a kubeconfig (0600) at path with which id talks to server, an https URL.
// It is written anew when the server, the CA or the identity changed, or the certificate nears its end.
func EnsureKubeconfig(f Files, path, server string, id Identity) error {
	now := time.Now()
	ca, err := ensureAuthority(f.CA(), "strake-ca", now)
	if err != nil {
		return err
	}
	want := leaf{commonName: id.User, organization: id.Groups, client: true}
	if kubeconfigFits(path, server, want, ca, now) {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	cert, err := ca.sign(want, key.Public(), now)
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	const name = "strake"
	data, err := clientcmd.Write(clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{name: {Server: server, CertificateAuthorityData: ca.pem}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{id.User: {
			ClientCertificateData: cert,
			ClientKeyData:         pem.EncodeToMemory(&pem.Block{Type: keyutil.ECPrivateKeyBlockType, Bytes: keyDER}),
		}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: id.User}},
		CurrentContext: name,
	})
	if err != nil {
		return fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return writeFile(path, data, 0o600)
}

func kubeconfigFits(path, server string, want leaf, ca *authority, now time.Time) bool {
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		return false
	}
	cfg, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return false
	}
	cluster, user := cfg.Clusters["strake"], cfg.AuthInfos[want.commonName]
	if cluster == nil || user == nil || cluster.Server != server || !bytes.Equal(cluster.CertificateAuthorityData, ca.pem) {
		return false
	}
	cert, err := parseCertificate(user.ClientCertificateData)
	return err == nil && want.matches(cert, ca, now)
}
