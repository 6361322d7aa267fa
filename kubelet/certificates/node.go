package certificates

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/certificate"
	"k8s.io/client-go/util/connrotation"
	"k8s.io/klog/v2"
)

// Node holds the certificates of a running node.
type Node struct {
	cfg                      Config
	kubelet, network, server *held
}

// held is a certificate in use.
type held struct {
	identity
	store   *store
	current atomic.Pointer[tls.Certificate]
	client  *rest.Config // with this certificate; nil for the one that is served with
}

// Open reads what Bootstrap left. It is an error if there is no client certificate, or one that has expired. The kubeconfigs
// are written anew if they are not what Config says.
func Open(cfg Config) (*Node, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	roots, err := certutil.NewPool(cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("CA of the cluster: %w", err)
	}
	n := &Node{cfg: cfg, kubelet: &held{identity: cfg.kubelet()}, network: &held{identity: cfg.network()}, server: &held{identity: cfg.server()}}
	now := time.Now()
	for _, h := range []*held{n.kubelet, n.network, n.server} {
		if h.store, err = openStore(cfg.Dir, h.name); err != nil {
			return nil, err
		}
		c, err := h.store.Current()
		if err == nil {
			err = check(c, h.identity, now)
		}
		switch {
		case err == nil:
			h.current.Store(c)
		case h == n.server:
			klog.InfoS("There is no certificate to serve with yet", "why", err)
		default:
			return nil, fmt.Errorf("certificate of %s: %w; join the cluster again with a token", h.subject.CommonName, err)
		}
		if h == n.server {
			h.store.updated = func(c *tls.Certificate) { h.current.Store(c) }
			continue
		}
		dialer := connrotation.NewDialer((&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext)
		h.store.updated = func(c *tls.Certificate) {
			h.current.Store(c)
			klog.InfoS("Certificate renewed: connections come again with it", "name", h.subject.CommonName, "until", c.Leaf.NotAfter)
			dialer.CloseAll()
		}
		h.client = &rest.Config{Host: cfg.Server, Transport: h.transport(roots, dialer)}
	}
	return n, cfg.writeKubeconfigs()
}

// transport shows the certificate of the moment to the API server.
func (h *held) transport(roots *x509.CertPool, dialer *connrotation.Dialer) http.RoundTripper {
	return utilnet.SetTransportDefaults(&http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second, MaxIdleConnsPerHost: 25, DialContext: dialer.DialContext,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return h.current.Load(), nil
		}},
	})
}

// Run renews the certificates before they expire, and gets the first one to serve with once the Node object is there,
// until ctx ends. Connections of the clients below are closed when their certificate is renewed: they come again with the new one.
func (n *Node) Run(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(n.kubelet.client)
	if err != nil {
		return fmt.Errorf("certificates of the node: %w", err)
	}
	for _, h := range []*held{n.kubelet, n.network, n.server} {
		config := &certificate.Config{
			// The kubelet asks for all of them: who it is decides what it gets.
			ClientsetFn: func(*tls.Certificate) (kubernetes.Interface, error) { return client, nil },
			SignerName:  h.signer, Usages: h.usages, CertificateStore: h.store, RequestedCertificateLifetime: n.cfg.lifetime(), Name: h.name, Ctx: &ctx,
			Template: &x509.CertificateRequest{Subject: h.subject},
		}
		if h == n.server {
			config.GetTemplate = func() *x509.CertificateRequest {
				if t := n.cfg.serverTemplate(); len(t.IPAddresses) > 0 {
					return t
				}
				return nil
			}
		}
		m, err := certificate.NewManager(config)
		if err != nil {
			return fmt.Errorf("certificate of %s: %w", h.subject.CommonName, err)
		}
		m.Start()
	}
	<-ctx.Done()
	return nil
}

// Kubelet returns how the kubelet talks to the API server: as system:node:NAME, always with its newest certificate.
func (n *Node) Kubelet() *rest.Config { return rest.CopyConfig(n.kubelet.client) }

// Network returns how the node network talks to the API server: as system:strake-agent:NAME, always with its newest certificate.
func (n *Node) Network() *rest.Config { return rest.CopyConfig(n.network.client) }

// ServingCertificate is for a tls.Config's GetCertificate. It fails until Run has got the first one.
func (n *Node) ServingCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := n.server.current.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("there is no certificate to serve with yet")
}
