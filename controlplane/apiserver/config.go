package apiserver

import (
	"context"
	"net"
	"net/netip"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Config says with which addresses, files and store the API server runs. All fields but those marked optional are required.
// As JSON it is for a server in another process, and leaves out what only this process can call.
type Config struct {
	BindAddresses []net.IP // where it listens; the machine need not have them yet
	Port          int
	// AdvertiseAddress is what the kubernetes Service leads to. Optional: the first of BindAddresses.
	AdvertiseAddress net.IP
	ServingCertFile  string
	ServingKeyFile   string
	ClientCAFile     string // signs the client certificates of users, nodes and components
	EtcdServers      []string
	EtcdCAFile       string
	EtcdCertFile     string
	EtcdKeyFile      string
	// EtcdClient makes clients of the same etcd that need no connection, because it runs in this process. Optional: the server asks EtcdServers
	// then, and always where the settings name others.
	EtcdClient func() *clientv3.Client `json:"-"`
	// ServiceCIDRs are the ranges of ClusterIPs, at most one of each family. The first is that of Services which ask for
	// no family; its first address is the kubernetes Service's, and AdvertiseAddress is of its family.
	ServiceCIDRs []netip.Prefix
	NodePortMin  int32
	NodePortMax  int32

	ServiceAccountKeyFile string // ECDSA private key
	ServiceAccountIssuer  string // URL

	FrontProxyCAFile    string // signs the certificates of proxies that vouch for users in headers
	ProxyClientCertFile string // with which the aggregator vouches for users
	ProxyClientKeyFile  string

	Settings *Settings // optional

	// Components are the other parts of the control plane that ComponentStatuses tell of, beside the store, by name: each returns why it does
	// not work. Optional.
	Components map[string]func(context.Context) error `json:"-"`

	KubeletCAFile         string
	KubeletClientCertFile string
	KubeletClientKeyFile  string
}
