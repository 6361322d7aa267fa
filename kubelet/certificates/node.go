package certificates

import (
	"context"
	"crypto/tls"
	"errors"

	"k8s.io/client-go/rest"
)

// Node holds the certificates of a running node.
type Node struct {
	cfg Config
}

// Open reads what Bootstrap left. It is an error if there is no client certificate, or one that has expired.
func Open(cfg Config) (*Node, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return nil, errors.New("not there yet")
}

// Run renews the certificates before they expire, and gets the first one to serve with once the Node object is there,
// until ctx ends. Connections of the clients below are closed when their certificate is renewed: they come again with the new one.
func (n *Node) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Kubelet returns how the kubelet talks to the API server: as system:node:NAME, always with its newest certificate.
func (n *Node) Kubelet() *rest.Config { return &rest.Config{Host: n.cfg.Server} }

// Network returns how the node network talks to the API server: as system:strake-agent:NAME, always with its newest certificate.
func (n *Node) Network() *rest.Config { return &rest.Config{Host: n.cfg.Server} }

// ServingCertificate is for a tls.Config's GetCertificate. It fails until Run has got the first one.
func (n *Node) ServingCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return nil, errors.New("there is no certificate to serve with yet")
}
