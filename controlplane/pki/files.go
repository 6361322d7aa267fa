package pki

import (
	"path/filepath"
)

// Files names every file that Ensure keeps, all of them below Dir.
type Files struct {
	Dir string
}

func (f Files) path(name string) string { return filepath.Join(f.Dir, name) }

// CA is the cluster's certificate authority: it signs the serving
// certificates and the client certificates of people, nodes and components.
func (f Files) CA() KeyPair { return f.pair("ca") }

// APIServer is the serving certificate of the API server.
func (f Files) APIServer() KeyPair { return f.pair("apiserver") }

// APIServerKubeletClient is what the API server shows to kubelets.
func (f Files) APIServerKubeletClient() KeyPair { return f.pair("apiserver-kubelet-client") }

// FrontProxyCA signs the certificate with which the aggregator vouches for a user
// to extension API servers (request headers).
func (f Files) FrontProxyCA() KeyPair { return f.pair("front-proxy-ca") }

// FrontProxyClient is the aggregator's client certificate.
func (f Files) FrontProxyClient() KeyPair { return f.pair("front-proxy-client") }

// EtcdCA signs etcd's certificates only, so that no cluster certificate opens the store.
func (f Files) EtcdCA() KeyPair { return f.pair("etcd/ca") }

// EtcdServer serves clients and peers of the embedded etcd.
func (f Files) EtcdServer() KeyPair { return f.pair("etcd/server") }

// EtcdClient is the API server's certificate towards etcd.
func (f Files) EtcdClient() KeyPair { return f.pair("etcd/apiserver-client") }

// ServiceAccountKey signs ServiceAccount tokens; ServiceAccountPub verifies them.
func (f Files) ServiceAccountKey() string { return f.path("sa.key") }

// ServiceAccountPub is the public half of ServiceAccountKey.
func (f Files) ServiceAccountPub() string { return f.path("sa.pub") }

func (f Files) pair(name string) KeyPair {
	return KeyPair{Cert: f.path(name + ".crt"), Key: f.path(name + ".key")}
}

// KeyPair is a certificate and its private key, as two PEM files.
type KeyPair struct {
	Cert, Key string
}
