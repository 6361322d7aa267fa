// Package cluster brings a cluster up on this machine, or joins the machine to one as a node, tells how it is, and takes it down
// again. What runs is `strake server`, `strake containerd` and `strake agent`; this package is their wiring.
package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"reflect"
	"strings"

	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/strake-io/strake/atomicfile"
	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/agent"
	"github.com/strake-io/strake/cmd/strake/demo"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/netpol/flows"
	"github.com/strake-io/strake/proxy"
)

// Settings are what `up` or `join` was told; they stay with the data folder. Lists of addresses and ranges have one of each
// family at most, and that of the primary family first.
type Settings struct {
	NodeName   string          `json:"nodeName"`
	NodeAddrs  []netip.Addr    `json:"nodeAddrs"`
	FoundAddrs bool            `json:"foundAddrs,omitempty"` // nobody named them: the node follows what its links have
	ResolvConf string          `json:"resolvConf"`
	Healthz    string          `json:"healthzBindAddress,omitempty"` // as proxy.BindAddrs reads it
	Metrics    string          `json:"metricsBindAddress,omitempty"`
	Flows      int             `json:"flows,omitempty"` // as bpf.Config has it
	XDP        bpf.XDPMode     `json:"xdp,omitempty"`
	Recording  agent.Recording `json:"recordFlows,omitzero"`
	Shared

	// Of the control plane's node.
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs,omitempty"`
	Port         int            `json:"port,omitempty"`
	EtcdPort     int            `json:"etcdPort,omitempty"`
	// NodePortRange has the ports of NodePorts, as "MIN-MAX"; empty: the default of Kubernetes.
	NodePortRange string `json:"serviceNodePortRange,omitempty"`

	// APIServer is the URL of the API server that the node has joined; it is empty on the control plane's node.
	APIServer string `json:"server,omitempty"`

	// MaxFrontends and MaxBackends are the sizes of the tables of Services; 0 is the default.
	MaxFrontends int `json:"maxServiceFrontends,omitempty"`
	MaxBackends  int `json:"maxServiceBackends,omitempty"`
	// MaxPolicyPeers and MaxPolicyRules are those of the tables of policies.
	MaxPolicyPeers int `json:"maxPolicyPeers,omitempty"`
	MaxPolicyRules int `json:"maxPolicyRules,omitempty"`

	IPFamily IPFamily `json:"-"` // chooses the default ranges of a new cluster
}

// Shared is what all nodes of a cluster hold the same. The control plane tells it in ConfigMap kube-system/strake-cluster.
type Shared struct {
	Zone         string         `json:"zone"`
	DNSAddrs     []netip.Addr   `json:"dnsAddrs"`
	PodCIDRs     []netip.Prefix `json:"podCIDRs"`
	Routing      string         `json:"routing"`
	TunnelPort   int            `json:"tunnelPort"`
	NoMasquerade []netip.Prefix `json:"nonMasqueradeCIDRs,omitempty"` // where pods are known by their own addresses, besides the pod ranges
	// LabCIDRs are of the nodes beside the first one, LabNode, on its machine: the others know these by it alone.
	LabCIDRs []netip.Prefix `json:"labCIDRs,omitempty"`
	LabNode  string         `json:"labNode,omitempty"`
	// AllowLinkLocal are services on nodes' links that pods may reach; none by default.
	AllowLinkLocal []netip.Prefix `json:"allowLinkLocal,omitempty"`
	// NodePortAddrs are ranges of nodes' addresses where NodePorts answer; without any it is the nodes' InternalIPs.
	NodePortAddrs []netip.Prefix `json:"nodePortAddresses,omitempty"`
	// PolicyEstablished tells what becomes of established flows when policies change; empty: PolicyJudge.
	PolicyEstablished string `json:"policyEstablished,omitempty"`
	// LBMode tells how clients outside reach pods of other nodes than the one that they ask; empty: LBModeSNAT.
	LBMode string `json:"lbMode,omitempty"`
}

// How clients outside, who ask a Service at one node, reach a pod of another.
const (
	LBModeSNAT = "snat" // the node asks in its own name, and passes the answers back
	LBModeDSR  = "dsr"  // the pod's node answers by itself: direct server return
)

// What becomes of established flows when policies change.
const (
	PolicyJudge = "judge" // they are judged anew
	PolicyKeep  = "keep"  // they go on
)

// How packets come from node to node.
const (
	RoutingVXLAN  = "vxlan"  // in a tunnel
	RoutingNative = "native" // by routes to the other nodes
)

// Defaults are the settings of a new cluster. The node's name and addresses are found, and the ranges follow the families.
func Defaults() Settings {
	return Settings{
		Port: 6443, EtcdPort: 2379, ResolvConf: "/etc/resolv.conf",
		Shared: Shared{Zone: "cluster.local", Routing: RoutingVXLAN, TunnelPort: 8472},
	}
}

// Flags of `up`, each for one of the settings.
const (
	FlagNodes         = "nodes"
	FlagNodeName      = "node-name"
	FlagNodeIP        = "node-ip"
	FlagIPFamily      = "ip-family"
	FlagPodCIDR       = "pod-cidr"
	FlagServiceCIDR   = "service-cidr"
	FlagPort          = "port"
	FlagEtcdPort      = "etcd-port"
	FlagRouting       = "routing"
	FlagTunnelPort    = "tunnel-port"
	FlagResolvConf    = "resolv-conf"
	FlagNoMasquerade  = "non-masquerade-cidr"
	FlagLinkLocal     = "allow-link-local"
	FlagNodePorts     = "nodeport-addresses"
	FlagNodePortRange = "service-node-port-range"
	FlagHealthz       = "healthz-bind-address"
	FlagMetrics       = "metrics-bind-address"
	FlagFlows         = "flows"
	FlagXDP           = "xdp"

	FlagPolicyEstablished = "policy-established"
	FlagLBMode            = "lb-mode"
	FlagRecordFlows       = "record-flows"
	FlagRecordSize        = "record-flows-size"
	FlagRecordAge         = "record-flows-age"
)

// UnmarshalJSON reads the form of before there were two families as well.
func (s *Settings) UnmarshalJSON(data []byte) error {
	type plain Settings
	defaults := Defaults()
	p := plain{ResolvConf: defaults.ResolvConf, Shared: Shared{Zone: defaults.Zone, Routing: defaults.Routing, TunnelPort: defaults.TunnelPort}}
	var old struct {
		NodeAddr             netip.Addr
		PodCIDR, ServiceCIDR netip.Prefix
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	if err := json.Unmarshal(data, &old); err != nil {
		return err
	}
	if old.NodeAddr.IsValid() && len(p.NodeAddrs) == 0 {
		p.NodeAddrs = []netip.Addr{old.NodeAddr}
	}
	if old.PodCIDR.IsValid() && len(p.PodCIDRs) == 0 {
		p.PodCIDRs = []netip.Prefix{old.PodCIDR}
	}
	if old.ServiceCIDR.IsValid() && len(p.ServiceCIDRs) == 0 {
		p.ServiceCIDRs = []netip.Prefix{old.ServiceCIDR}
	}
	*s = Settings(p)
	return nil
}

// Joined tells whether the control plane is elsewhere.
func (s Settings) Joined() bool { return s.APIServer != "" }

// Components are the processes of the node, in the order that they are started in.
func (s Settings) Components() []string {
	if s.Joined() {
		return []string{"containerd", "agent"}
	}
	return []string{"containerd", "server", "agent"}
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
	return atomicfile.Write(l.Settings(), append(data, '\n'), 0o600)
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
		{FlagNodeName, s.NodeName, flags.NodeName}, {FlagIPFamily, familyOf(s.PodCIDRs), flags.IPFamily},
		{FlagPodCIDR, s.PodCIDRs, flags.PodCIDRs}, {FlagServiceCIDR, s.ServiceCIDRs, flags.ServiceCIDRs}, {FlagPort, s.Port, flags.Port},
		{FlagEtcdPort, s.EtcdPort, flags.EtcdPort},
	} {
		if given(f.name) && !reflect.DeepEqual(f.have, f.want) {
			if s.Joined() {
				return s, fmt.Errorf("the node in %s has joined %s with --%s %v, which can't be changed to %v: leave the flag out", l.Data, s.APIServer, f.name, f.have, f.want)
			}
			return s, fmt.Errorf("the cluster in %s was made with --%s %v, which can't be changed to %v: leave the flag out, or remove the cluster with `strake down --purge`",
				l.Data, f.name, f.have, f.want)
		}
	}
	if given(FlagNodeIP) {
		s.NodeAddrs, s.FoundAddrs = flags.NodeAddrs, false
	} else if now, err := s.withAddresses(anywhere); err == nil { // else the check of the machine says what is missing
		s = now
	}
	// No state of the cluster depends on these.
	if given(FlagRouting) {
		s.Routing = flags.Routing
	}
	if given(FlagTunnelPort) {
		s.TunnelPort = flags.TunnelPort
	}
	if given(FlagNoMasquerade) {
		s.NoMasquerade = flags.NoMasquerade
	}
	if given(FlagLinkLocal) {
		s.AllowLinkLocal = flags.AllowLinkLocal
	}
	if given(FlagNodePorts) {
		s.NodePortAddrs = flags.NodePortAddrs
	}
	if given(FlagNodePortRange) {
		s.NodePortRange = flags.NodePortRange
	}
	if given(FlagPolicyEstablished) {
		s.PolicyEstablished = flags.PolicyEstablished
	}
	if given(FlagLBMode) {
		s.LBMode = flags.LBMode
	}
	if given(bpf.FlagMaxPolicyPeers) {
		s.MaxPolicyPeers = flags.MaxPolicyPeers
	}
	if given(bpf.FlagMaxPolicyRules) {
		s.MaxPolicyRules = flags.MaxPolicyRules
	}
	if given(bpf.FlagMaxFrontends) {
		s.MaxFrontends = flags.MaxFrontends
	}
	if given(bpf.FlagMaxBackends) {
		s.MaxBackends = flags.MaxBackends
	}
	if given(FlagHealthz) {
		s.Healthz = flags.Healthz
	}
	if given(FlagMetrics) {
		s.Metrics = flags.Metrics
	}
	if given(FlagXDP) {
		s.XDP = flags.XDP
	}
	if given(FlagFlows) {
		s.Flows = flags.Flows
	}
	if given(FlagResolvConf) {
		s.ResolvConf = flags.ResolvConf
	}
	if given(FlagRecordFlows) {
		s.Recording.On = flags.Recording.On
	}
	if given(FlagRecordSize) {
		s.Recording.Size = flags.Recording.Size
	}
	if given(FlagRecordAge) {
		s.Recording.Age = flags.Recording.Age
	}
	return s, s.complete()
}

// complete finds what was not given (the machine's name, its addresses on the way to the default route, the ranges) and checks it all.
func (s *Settings) complete() error {
	if err := s.completeName(); err != nil {
		return err
	}
	if err := s.completeAddresses(); err != nil {
		return err
	}
	if !s.Joined() && len(s.LabCIDRs) > 0 {
		s.LabNode = s.NodeName
	}
	return s.check()
}

// nodePorts are the ports that NodePorts may have.
func (s Settings) nodePorts() (utilnet.PortRange, error) {
	r := utilnet.PortRange{Base: 30000, Size: 2768}
	if s.NodePortRange == "" {
		return r, nil
	}
	if err := r.Set(s.NodePortRange); err != nil || r.Base < 1 {
		return r, fmt.Errorf("--%s %q is no range of ports, such as 30000-32767", FlagNodePortRange, s.NodePortRange)
	}
	return r, nil
}

// DemoPort is the NodePort of the demo: its own, if there are such NodePorts.
func (s Settings) DemoPort() int {
	if r, err := s.nodePorts(); err == nil && !r.Contains(demo.NodePort) {
		return r.Base
	}
	return demo.NodePort
}

func (s *Settings) completeName() error {
	if s.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("node name: %w", err)
		}
		s.NodeName = strings.ToLower(host)
	}
	return nil
}

func (s Settings) check() error {
	if msgs := validation.IsDNS1123Subdomain(s.NodeName); len(msgs) > 0 {
		return fmt.Errorf("the node's name %q is not a valid one (%s); give another with --%s", s.NodeName, strings.Join(msgs, "; "), FlagNodeName)
	}
	if err := s.checkAddresses(); err != nil {
		return err
	}
	if s.Routing != RoutingVXLAN && s.Routing != RoutingNative {
		return fmt.Errorf("--%s %q is neither %s nor %s", FlagRouting, s.Routing, RoutingVXLAN, RoutingNative)
	}
	if e := s.PolicyEstablished; e != "" && e != PolicyJudge && e != PolicyKeep {
		return fmt.Errorf("--%s %q is neither %s nor %s", FlagPolicyEstablished, e, PolicyJudge, PolicyKeep)
	}
	if m := s.LBMode; m != "" && m != LBModeSNAT && m != LBModeDSR {
		return fmt.Errorf("--%s %q is neither %s nor %s", FlagLBMode, m, LBModeSNAT, LBModeDSR)
	}
	if err := s.XDP.Check(); err != nil {
		return fmt.Errorf("--%s: %w", FlagXDP, err)
	}
	if _, err := s.nodePorts(); err != nil {
		return err
	}
	if err := bpf.CheckFlows(s.Flows); err != nil {
		return fmt.Errorf("--%s: %w", FlagFlows, err)
	}
	if r := s.Recording; r.Size != 0 && r.Size < flows.MinSize>>20 || r.Age < 0 {
		return fmt.Errorf("--%s %d, --%s %v: a record has %d MiB at least, and an age of more than nothing", FlagRecordSize, r.Size, FlagRecordAge, r.Age, flows.MinSize>>20)
	}
	for flag, text := range map[string]string{FlagHealthz: s.Healthz, FlagMetrics: s.Metrics} {
		if _, err := proxy.BindAddrs(text, s.NodeAddrs, 1); err != nil {
			return fmt.Errorf("--%s: %w", flag, err)
		}
	}
	if s.TunnelPort < 1 || s.TunnelPort > 65535 {
		return fmt.Errorf("--%s %d is not a port: 1 to 65535", FlagTunnelPort, s.TunnelPort)
	}
	if s.Joined() {
		return nil
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
