package pki

import (
	"context"
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

	"k8s.io/klog/v2"

	"github.com/strake-io/strake/atomicfile"
)

// APIServer is who the API server is to its clients. No other server of the cluster is given a certificate with this common name.
const APIServer = "kube-apiserver"

// KubeletClient is who the API server is to kubelets.
const KubeletClient = "kube-apiserver-kubelet-client"

// caName is the common name of the cluster's CA.
const caName = "strake-ca"

// Config says whom the certificates are for.
type Config struct {
	Dir         string       // where the files are kept
	ServerAddrs []netip.Addr // addresses that the API server is reached at
	ServiceIPs  []netip.Addr // first addresses of the Service ranges: one is the kubernetes Service's
	Zone        string       // cluster domain, without a trailing dot
	Hostname    string       // further DNS name of the API server
	Server      string       // https URL of the API server, for Kubeconfigs
	Kubeconfigs []Kubeconfig // of the control plane's components and of the administrator
}

// Ensure brings the server's files up to date and returns their names. It is idempotent;
// see the package comment for what it renews.
func Ensure(cfg Config) (Files, error) {
	f := Files{Dir: cfg.Dir}
	_, err := ensure(f, cfg, time.Now())
	return f, err
}

// Pauses of Keep between two looks.
const (
	// longest is far less than a month: timers stand still while a machine sleeps.
	longestPause  = 24 * time.Hour
	shortestPause = time.Minute
)

// Keep renews certificates when they near their end, until ctx ends. Whoever uses the files reads them again.
func Keep(ctx context.Context, cfg Config) error {
	f := Files{Dir: cfg.Dir}
	for {
		now := time.Now()
		due, err := ensure(f, cfg, now)
		if err != nil {
			klog.ErrorS(err, "Certificates were not renewed, trying again")
			due = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(longestPause, max(shortestPause, due.Sub(now)))):
		}
	}
}

// ensure does what Ensure says and returns when the first certificate is due to be renewed.
func ensure(f Files, cfg Config, now time.Time) (due time.Time, err error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return due, fmt.Errorf("certificates: %w", err)
	}
	ca, err := ensureAuthority(f.CA(), caName, now)
	if err != nil {
		return due, err
	}
	frontCA, err := ensureAuthority(f.FrontProxyCA(), "strake-front-proxy-ca", now)
	if err != nil {
		return due, err
	}
	etcdCA, err := ensureAuthority(f.EtcdCA(), "strake-etcd-ca", now)
	if err != nil {
		return due, err
	}
	if err := ensureServiceAccountKey(f); err != nil {
		return due, err
	}
	due = now.Add(leafLifetime)
	note := func(end time.Time) {
		if at := end.Add(-renewBefore); at.Before(due) {
			due = at
		}
	}
	loopback := net.IPv4(127, 0, 0, 1).To4()
	for _, want := range []struct {
		ca   *authority
		pair KeyPair
		leaf leaf
	}{
		{ca, f.APIServer(), leaf{
			commonName: APIServer, server: true,
			dnsNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + cfg.Zone, "localhost", cfg.Hostname},
			ips:      ips(append(slices.Concat(cfg.ServerAddrs, cfg.ServiceIPs), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())),
		}},
		{ca, f.APIServerKubeletClient(), leaf{commonName: KubeletClient, organization: []string{"strake:kubelet-api-admins"}, client: true}},
		{frontCA, f.FrontProxyClient(), leaf{commonName: "front-proxy-client", client: true}},
		{etcdCA, f.EtcdServer(), leaf{commonName: "etcd", dnsNames: []string{"localhost"}, ips: []net.IP{loopback}, server: true, client: true}},
		{etcdCA, f.EtcdClient(), leaf{commonName: "kube-apiserver-etcd-client", client: true}},
	} {
		end, err := want.ca.ensureLeaf(want.pair, want.leaf, now)
		if err != nil {
			return due, err
		}
		note(end)
	}
	for _, k := range cfg.Kubeconfigs {
		end, err := ca.ensureKubeconfig(k, cfg.Server, now)
		if err != nil {
			return due, err
		}
		note(end)
	}
	return due, nil
}

// Sign signs a request with the cluster's CA: for the node beside the control plane. Of the request count its subject, names,
// addresses and key; the certificate is for a server, or for a client.
func Sign(f Files, r *x509.CertificateRequest, server bool) ([]byte, error) {
	now := time.Now()
	ca, err := ensureAuthority(f.CA(), caName, now)
	if err != nil {
		return nil, err
	}
	return ca.sign(leaf{commonName: r.Subject.CommonName, organization: r.Subject.Organization, dnsNames: r.DNSNames, ips: r.IPAddresses, server: server, client: !server}, r.PublicKey, now)
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
	return atomicfile.Write(f.ServiceAccountPub(), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
}
