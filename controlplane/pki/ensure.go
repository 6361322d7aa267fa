package pki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"
)

// Config says whom the certificates are for.
type Config struct {
	Dir         string       // where the files are kept
	ServerAddrs []netip.Addr // addresses that the API server is reached at
	ServiceIPs  []netip.Addr // first addresses of the Service ranges: one is the kubernetes Service's
	Zone        string       // cluster domain, without a trailing dot
	Hostname    string       // further DNS name of the API server
}

// Ensure brings the server's files up to date and returns their names. It is idempotent;
// see the package comment for what it renews.
func Ensure(cfg Config) (Files, error) {
	f := Files{Dir: cfg.Dir}
	now := time.Now()
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return f, fmt.Errorf("certificates: %w", err)
	}
	ca, err := ensureAuthority(f.CA(), "strake-ca", now)
	if err != nil {
		return f, err
	}
	frontCA, err := ensureAuthority(f.FrontProxyCA(), "strake-front-proxy-ca", now)
	if err != nil {
		return f, err
	}
	etcdCA, err := ensureAuthority(f.EtcdCA(), "strake-etcd-ca", now)
	if err != nil {
		return f, err
	}
	if err := ensureServiceAccountKey(f); err != nil {
		return f, err
	}
	loopback := net.IPv4(127, 0, 0, 1).To4()
	for _, want := range []struct {
		ca   *authority
		pair KeyPair
		leaf leaf
	}{
		{ca, f.APIServer(), leaf{
			commonName: "kube-apiserver", server: true,
			dnsNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + cfg.Zone, "localhost", cfg.Hostname},
			ips:      ips(append(slices.Concat(cfg.ServerAddrs, cfg.ServiceIPs), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())),
		}},
		{ca, f.APIServerKubeletClient(), leaf{commonName: "kube-apiserver-kubelet-client", organization: []string{"strake:kubelet-api-admins"}, client: true}},
		{frontCA, f.FrontProxyClient(), leaf{commonName: "front-proxy-client", client: true}},
		{etcdCA, f.EtcdServer(), leaf{commonName: "etcd", dnsNames: []string{"localhost"}, ips: []net.IP{loopback}, server: true, client: true}},
		{etcdCA, f.EtcdClient(), leaf{commonName: "kube-apiserver-etcd-client", client: true}},
	} {
		if err := want.ca.ensureLeaf(want.pair, want.leaf, now); err != nil {
			return f, err
		}
	}
	return f, nil
}

// EnsureKubelet makes a node's serving certificate.
func EnsureKubelet(f Files, node string, addrs []netip.Addr) (KeyPair, error) {
	now := time.Now()
	pair := f.Kubelet(node)
	ca, err := ensureAuthority(f.CA(), "strake-ca", now)
	if err != nil {
		return pair, err
	}
	return pair, ca.ensureLeaf(pair, leaf{
		commonName: "system:node:" + node, organization: []string{"system:nodes"},
		dnsNames: []string{node}, ips: ips(addrs), server: true,
	}, now)
}

func ips(addrs []netip.Addr) []net.IP {
	list := make([]net.IP, len(addrs))
	for i, a := range addrs {
		list[i] = a.AsSlice()
	}
	return list
}

// ensureServiceAccountKey makes the signing key once: tokens that are out there depend on it.
func ensureServiceAccountKey(f Files) error {
	key, err := readKey(f.ServiceAccountKey())
	if errors.Is(err, fs.ErrNotExist) {
		key, err = newKey(f.ServiceAccountKey())
	}
	if err != nil {
		return err
	}
	pub, ok := key.Public().(*ecdsa.PublicKey)
	if !ok {
		return fmt.Errorf("ServiceAccount key %s: want an ECDSA key, have %T", f.ServiceAccountKey(), key.Public())
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return fmt.Errorf("ServiceAccount key %s: %w", f.ServiceAccountPub(), err)
	}
	return writeFile(f.ServiceAccountPub(), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
}
