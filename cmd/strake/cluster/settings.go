// Package cluster brings a one-node cluster up on this machine, tells how it is,
// and takes it down again. What runs is `strake server` and `strake agent`; this
// package is their wiring.
package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/strake-io/strake/cmd/strake/agent"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/server"
	"github.com/strake-io/strake/controlplane/pki"
)

// Settings are what `up` was told; they stay with the data folder.
type Settings struct {
	NodeName    string       `json:"nodeName"`
	NodeAddr    netip.Addr   `json:"nodeAddr"`
	PodCIDR     netip.Prefix `json:"podCIDR"`
	ServiceCIDR netip.Prefix `json:"serviceCIDR"`
	Port        int          `json:"port"`
	EtcdPort    int          `json:"etcdPort"`
	Zone        string       `json:"zone"`
	ResolvConf  string       `json:"resolvConf"`

	// NoMasquerade is where pods are known by their own addresses, besides the pod range.
	NoMasquerade []netip.Prefix `json:"nonMasqueradeCIDRs,omitempty"`
}

// Defaults are the settings of a new cluster; the node's name and address are found.
func Defaults() Settings {
	return Settings{
		PodCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
		Port: 6443, EtcdPort: 2379, Zone: "cluster.local", ResolvConf: "/etc/resolv.conf",
	}
}

// Flags of `up`, each for one of the settings.
const (
	FlagNodeName     = "node-name"
	FlagNodeIP       = "node-ip"
	FlagPodCIDR      = "pod-cidr"
	FlagServiceCIDR  = "service-cidr"
	FlagPort         = "port"
	FlagEtcdPort     = "etcd-port"
	FlagNoMasquerade = "non-masquerade-cidr"
)

// nodeBits is the length of a node's part of the pod range.
const nodeBits = 24

// dnsIndex is the place of the cluster DNS in the Service range, where every distribution has it.
const dnsIndex = 10

// DNSAddr is the cluster DNS address.
func (s Settings) DNSAddr() netip.Addr { return nth(s.ServiceCIDR, dnsIndex) }

func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// Load reads the settings of a data folder; a folder without any gives the defaults and false.
func Load(l layout.Layout) (Settings, bool, error) {
	data, err := os.ReadFile(l.Settings())
	if errors.Is(err, fs.ErrNotExist) {
		return Defaults(), false, nil
	}
	s := Settings{}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, false, fmt.Errorf("settings %s: %w; restore them from a backup, or remove the cluster with `strake down --purge`", l.Settings(), err)
	}
	return s, true, nil
}

// Save keeps the settings.
func (s Settings) Save(l layout.Layout) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return layout.WriteFile(l.Settings(), append(data, '\n'), 0o600)
}

// settle returns the settings of the cluster in l: those it was made with, or for a new one those of the flags. A flag that was
// given and differs from what the cluster was made with is refused.
func settle(l layout.Layout, flags Settings, given func(flag string) bool) (Settings, error) {
	s, saved, err := Load(l)
	if err != nil {
		return s, err
	}
	if !saved {
		err := flags.complete()
		return flags, err
	}
	for _, f := range []struct {
		name       string
		have, want any
	}{
		{FlagNodeName, s.NodeName, flags.NodeName}, {FlagNodeIP, s.NodeAddr, flags.NodeAddr}, {FlagPodCIDR, s.PodCIDR, flags.PodCIDR},
		{FlagServiceCIDR, s.ServiceCIDR, flags.ServiceCIDR}, {FlagPort, s.Port, flags.Port}, {FlagEtcdPort, s.EtcdPort, flags.EtcdPort},
	} {
		if given(f.name) && f.have != f.want {
			return s, fmt.Errorf("the cluster in %s was made with --%s %v, which can't be changed to %v: leave the flag out, or remove the cluster with `strake down --purge`",
				l.Data, f.name, f.have, f.want)
		}
	}
	if given(FlagNoMasquerade) { // no state of the cluster depends on it
		s.NoMasquerade = flags.NoMasquerade
	}
	return s, s.complete()
}

// complete finds what was not given (the machine's name, and its address on the way to the default route) and checks it all.
func (s *Settings) complete() error {
	if s.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("node name: %w", err)
		}
		s.NodeName = strings.ToLower(host)
	}
	if !s.NodeAddr.IsValid() {
		var err error
		if s.NodeAddr, err = nodeAddr(); err != nil {
			return err
		}
	}
	return s.check()
}

func (s Settings) check() error {
	if msgs := validation.IsDNS1123Subdomain(s.NodeName); len(msgs) > 0 {
		return fmt.Errorf("the node's name %q is not a valid one (%s); give another with --%s", s.NodeName, strings.Join(msgs, "; "), FlagNodeName)
	}
	if !s.NodeAddr.Is4() {
		return fmt.Errorf("--%s %s is not an IPv4 address", FlagNodeIP, s.NodeAddr)
	}
	for _, r := range []struct {
		flag    string
		cidr    netip.Prefix
		longest int
	}{{FlagPodCIDR, s.PodCIDR, nodeBits}, {FlagServiceCIDR, s.ServiceCIDR, 28}} {
		if !r.cidr.IsValid() || !r.cidr.Addr().Is4() || r.cidr.Bits() > r.longest || r.cidr.Bits() < 8 || r.cidr != r.cidr.Masked() {
			return fmt.Errorf("--%s %s is not an IPv4 range of /8 to /%d, such as %s", r.flag, r.cidr, r.longest, Defaults().PodCIDR)
		}
		if r.cidr.Contains(s.NodeAddr) {
			return fmt.Errorf("the node's address %s lies in %s; choose another range with --%s", s.NodeAddr, r.cidr, r.flag)
		}
	}
	for _, r := range s.NoMasquerade {
		if !r.IsValid() || !r.Addr().Is4() || r != r.Masked() {
			return fmt.Errorf("--%s %s is not an IPv4 range, such as 192.168.0.0/16", FlagNoMasquerade, r)
		}
	}
	if s.PodCIDR.Overlaps(s.ServiceCIDR) {
		return fmt.Errorf("--%s %s and --%s %s overlap; choose ranges that don't", FlagPodCIDR, s.PodCIDR, FlagServiceCIDR, s.ServiceCIDR)
	}
	ports := map[int]string{agent.KubeletPort: "the kubelet"}
	for _, p := range []struct {
		port int
		flag string
	}{{s.Port, "--" + FlagPort}, {s.EtcdPort, "--" + FlagEtcdPort}, {s.EtcdPort + 1, "the peers' port of --" + FlagEtcdPort}} {
		if p.port < 1 || p.port > 65535 {
			return fmt.Errorf("%s %d is not a port: 1 to 65535", p.flag, p.port)
		}
		if other, ok := ports[p.port]; ok {
			return fmt.Errorf("port %d is of both %s and %s; choose others", p.port, other, p.flag)
		}
		ports[p.port] = p.flag
	}
	return nil
}

func nodeAddr() (netip.Addr, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("node address: %w", err)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("node address: %w", err)
	}
	preferred := 0
	for _, r := range routes {
		if r.Gw != nil && (r.Dst == nil || r.Dst.IP.IsUnspecified()) {
			preferred = r.LinkIndex
			break
		}
	}
	var found netip.Addr
	for _, link := range links {
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil {
			return found, fmt.Errorf("node address: %w", err)
		}
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP.To4())
			if !ok || !ip.IsGlobalUnicast() || strings.HasPrefix(link.Attrs().Name, "stk") {
				continue
			}
			if link.Attrs().Index == preferred {
				return ip, nil
			}
			if !found.IsValid() {
				found = ip
			}
		}
	}
	if !found.IsValid() {
		return found, errors.New("this machine has no IPv4 address but loopback; give it one, or name one with --node-ip")
	}
	return found, nil
}

// Server returns the configuration of `strake server`, with all its files in place.
func (s Settings) Server(l layout.Layout) (server.Config, error) {
	files, err := s.certificates(l)
	if err != nil {
		return server.Config{}, err
	}
	return server.Config{
		PKI: files, EtcdDir: l.Etcd(), Addr: s.NodeAddr, Port: s.Port, EtcdPort: s.EtcdPort, ServiceCIDR: s.ServiceCIDR, PodCIDR: s.PodCIDR, NodeBits: nodeBits,
		ControllerKubeconfig: l.Kubeconfig("controller-manager"), SchedulerKubeconfig: l.Kubeconfig("scheduler"),
	}, nil
}

// certificates makes what is missing of certificates and kubeconfigs.
func (s Settings) certificates(l layout.Layout) (pki.Files, error) {
	files, err := pki.Ensure(pki.Config{Dir: l.PKI(), ServerAddr: s.NodeAddr, ServiceIP: nth(s.ServiceCIDR, 1), Zone: s.Zone, Hostname: s.NodeName})
	if err != nil {
		return files, err
	}
	url := server.Config{Addr: s.NodeAddr, Port: s.Port}.URL()
	for path, id := range map[string]pki.Identity{
		l.AdminKubeconfig(): pki.Admin, l.Kubeconfig("controller-manager"): pki.ControllerManager, l.Kubeconfig("scheduler"): pki.Scheduler,
		l.Kubeconfig("node-network"): pki.NodeNetwork, l.Kubeconfig("kubelet"): pki.Node(s.NodeName),
	} {
		if err := pki.EnsureKubeconfig(files, path, url, id); err != nil {
			return files, err
		}
	}
	_, err = pki.EnsureKubelet(files, s.NodeName, s.NodeAddr)
	return files, err
}

// Agent returns the configuration of `strake agent`.
func (s Settings) Agent(l layout.Layout) agent.Config {
	files := pki.Files{Dir: l.PKI()}
	pair := files.Kubelet(s.NodeName)
	return agent.Config{
		Layout: l, NodeName: s.NodeName, NodeAddr: s.NodeAddr, DNSAddr: s.DNSAddr(), Zone: s.Zone, ResolvConf: s.ResolvConf,
		NoMasquerade:      append([]netip.Prefix{s.PodCIDR}, s.NoMasquerade...),
		KubeletKubeconfig: l.Kubeconfig("kubelet"), NetworkKubeconfig: l.Kubeconfig("node-network"),
		CertFile: pair.Cert, KeyFile: pair.Key, ClientCAFile: files.CA().Cert,
	}
}
