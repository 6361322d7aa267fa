// Package agent runs a node in one process: its kubelet and its network (CNI
// server, Services, DNS).
package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/informer"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/ready"
	"github.com/strake-io/strake/cmd/strake/services"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/dns"
	"github.com/strake-io/strake/kubelet"
	"github.com/strake-io/strake/kubelet/certificates"
	"github.com/strake-io/strake/kubelet/cgroups"
	"github.com/strake-io/strake/mirror"
	"github.com/strake-io/strake/proxy"
)

// Config is all that differs between nodes.
type Config struct {
	Layout            layout.Layout
	NodeName          string
	NodeAddrs         []netip.Addr // of each family one at most, that of the primary family first; so are the DNS's
	DNSAddrs          []netip.Addr
	PodCIDRs          []netip.Prefix // of the cluster
	Zone              string
	ResolvConf        string
	NoMasquerade      []netip.Prefix // destinations that get pods' packets with the pods' own addresses
	MasqueradeSources []netip.Prefix // ranges behind this node that are not its pods, and leave by it as they do
	AllowLinkLocal    []netip.Prefix // link-local destinations that pods reach
	Native            bool           // routes lead to the other nodes' pods, else the tunnel
	Relay             cni.Relay
	TunnelPort        int
	MaxFrontends      int // sizes of the tables of Services; 0: as bpf.Config has them
	MaxBackends       int
	MaxPolicyPeers    int // and of those of policies
	MaxPolicyRules    int
	DSR               bool                               // other nodes' pods answer clients outside by themselves, as bpf.Config has it
	XDP               bpf.XDPMode                        // as bpf.Config has it; auto means it for native routing
	KeepFlows         bool                               // established flows go on when policies change
	NodePortAddrs     []netip.Prefix                     // where NodePorts answer; none: NodeAddrs
	Recording         Recording                          // of the flows of the node's pods
	Flows             int                                // how many connections the node follows at a time, as bpf.Config has it
	Healthz, Metrics  string                             // where Services tell how they are, as services.Config has it
	Uplinks           []string                           // interfaces that lead to other nodes besides those that have the node's addresses
	CalledBy          func(user string, from netip.Addr) // as kubelet.Config has it
	Certificates      certificates.Config                // by which the API server knows the node, and the node is known
}

// Recording says whether, and within which bounds, flows are recorded.
type Recording struct {
	On   bool          `json:"on,omitempty"`
	Size int64         `json:"sizeMiB,omitempty"` // 0: flows.DefaultSize
	Age  time.Duration `json:"age,omitempty"`     // 0: flows.DefaultAge
}

// rate is how many flows of a kind are told in a second.
func (r Recording) rate() int {
	if !r.On {
		return 0
	}
	return bpf.DefaultRecordFlows
}

const dnsTTL = 30 // seconds

// DNSConfigMap, in namespace kube-system, configures the resolver of all nodes where it is there.
const DNSConfigMap = "strake-dns"

// KubeletPort is where the kubelet of a node serves the API server.
const KubeletPort = 10250

// OpenDatapath mounts the node's bpffs and opens what is loaded in it.
func OpenDatapath(cfg Config) (*bpf.Datapath, error) {
	if err := bpf.MountBPFFS(cfg.Layout.BPF()); err != nil {
		return nil, err
	}
	c, err := cfg.Datapath()
	if err != nil {
		return nil, err
	}
	return bpf.Open(c)
}

// Datapath is with what the node's programs are loaded. It makes the node's cgroup if there is none.
func (cfg Config) Datapath() (bpf.Config, error) {
	l := cfg.Layout
	root, dir := cgroups.UnifiedPath(l.Cgroup())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return bpf.Config{}, fmt.Errorf("node cgroup: %w", err)
	}
	return bpf.Config{
		PinDir: l.BPF(), CgroupRoot: root, NodeCgroup: dir, DNSAddrs: cfg.DNSAddrs, Zone: cfg.Zone, DNSTTL: dnsTTL,
		NodeAddrs: cfg.NodeAddrs, NoMasquerade: cfg.NoMasquerade, MasqueradeSources: cfg.MasqueradeSources, AllowLinkLocal: cfg.AllowLinkLocal,
		Flows: cfg.Flows, DSR: cfg.DSR, XDP: cfg.xdp(),
		MaxFrontends: cfg.MaxFrontends, MaxBackends: cfg.MaxBackends,
		Policy: true, MaxPolicyPeers: cfg.MaxPolicyPeers, MaxPolicyRules: cfg.MaxPolicyRules, RecordFlows: cfg.Recording.rate(),
	}, nil
}

// xdp is off where the program at the driver would only pass everything on: what goes through the tunnel is not for it.
func (cfg Config) xdp() bpf.XDPMode {
	if cfg.XDP == bpf.XDPAuto && !cfg.Native {
		return bpf.XDPOff
	}
	return cfg.XDP
}

// CNI returns the CNI server over a datapath. mtu tells that of pods' interfaces.
func CNI(l layout.Layout, d *bpf.Datapath, nodeAddrs []netip.Addr, mtu func() int, podCIDRs func() ([]netip.Prefix, bool), leavesSockets func(pod string) (off, known bool), guard cni.Guard) (*cni.Server, error) {
	return cni.New(cni.Config{
		Socket: l.CNISocket(), StateDir: l.CNIState(), ConfDir: l.CNIConf(), Alias: "strake-" + l.ID, NodeAddrs: nodeAddrs, MTU: mtu, Datapath: d, PodCIDRs: podCIDRs,
		Sandboxes: func(ctx context.Context) ([]string, error) { return sandboxes(ctx, l) }, LeavesSockets: leavesSockets,
		Guard: guard,
	})
}

// gcPercent makes the heap grow by half between collections rather than to the double: most of what an agent of a large cluster
// holds stays, and what it allocates is little.
const gcPercent = 50 // until Services are there, see package services

// Run runs the node until ctx ends. Pods and their network go on without it.
func Run(ctx context.Context, cfg Config) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	l := cfg.Layout
	d, err := OpenDatapath(cfg)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := cni.Prepare(l.CNIState(), cfg.NodeAddrs, cfg.DNSAddrs); err != nil {
		return err
	}
	if err := installPlugin(l); err != nil {
		return err
	}
	id, err := cfg.identity(ctx)
	if err != nil {
		return err
	}
	netClient, err := id.networkClient()
	if err != nil {
		return err
	}
	pods := newLocalPods(netClient, cfg.NodeName)
	policies, err := newPolicies(cfg, id.network, netClient, d)
	if err != nil {
		return err
	}
	var podCIDRs atomic.Pointer[[]netip.Prefix]
	var links underlay
	server, err := CNI(l, d, cfg.NodeAddrs, links.mtu, func() ([]netip.Prefix, bool) {
		if p := podCIDRs.Load(); p != nil {
			return *p, true
		}
		return nil, false
	}, pods.leavesSockets, policies)
	if err != nil {
		return err
	}
	policies.known(server.Attachments())
	f := informers.NewSharedInformerFactoryWithOptions(netClient, 0, informers.WithTransform(informer.DropManagedFields))
	nodes, err := links.nodes(cfg, d, server)
	if err != nil {
		return err
	}
	if err := nodes.Follow(f); err != nil {
		return err
	}
	objects := mirror.New(netClient, cfg.NodeName)
	names, err := dns.NewNames(objects, d.Names(), d, cfg.Zone)
	if err != nil {
		return err
	}
	kernelRecords := dns.NewKernelRecords(objects, d.Records(), cfg.Zone)
	kernelRecords.Flush = d.Outside().Flush
	records := dns.NewRecords(objects, cfg.DNSAddrs...)
	var listen []netip.AddrPort
	for _, a := range cfg.DNSAddrs {
		listen = append(listen, netip.AddrPortFrom(a, 53))
	}
	dnsConfig := dns.Config{Zones: []string{cfg.Zone}, TTL: dnsTTL, Upstream: dns.Upstream{Servers: []string{cfg.ResolvConf}}, Avoid: listen}
	resolver, err := dns.NewServer(records, dnsConfig, listen...)
	if err != nil {
		return err
	}
	configure := func(c dns.Config) error { return errors.Join(names.Configure(c), kernelRecords.Configure(c)) }
	if err := errors.Join(resolver.OnConfigure(configure), resolver.ShareWith(d.Outside())); err != nil {
		return err
	}
	svc, err := services.New(services.Config{
		Client: netClient, Objects: objects, Informers: f, Datapath: d, Node: proxy.Node{Name: cfg.NodeName, Addrs: cfg.NodeAddrs, Local: cfg.DNSAddrs},
		NodePorts: cfg.NodePortAddrs, Healthz: cfg.Healthz, Metrics: cfg.Metrics, Namespaces: server.Namespaces,
		Collectors: append(resolver.Collectors(), policies),
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	defer f.Shutdown()
	g.Go(func() error {
		if ready.API(ctx, netClient.Discovery().RESTClient()) == nil {
			f.Start(ctx.Done())
			objects.Run(ctx)
		}
		return nil
	})
	g.Go(func() error { return id.Run(ctx) })
	g.Go(func() error { return server.Run(ctx) })
	g.Go(func() error {
		if ready.API(ctx, netClient.Discovery().RESTClient()) != nil {
			return nil // ctx ended
		}
		return pods.run(ctx, server.PodSeen)
	})
	g.Go(func() error {
		if ready.API(ctx, netClient.Discovery().RESTClient()) != nil {
			return nil // ctx ended
		}
		return policies.run(ctx)
	})
	g.Go(func() error { return nodes.Run(ctx) })
	g.Go(func() error {
		if ready.API(ctx, netClient.Discovery().RESTClient()) != nil {
			return nil // ctx ended
		}
		return svc.Run(ctx)
	})
	g.Go(func() error { return names.Run(ctx) })
	g.Go(func() error { return kernelRecords.Run(ctx) })
	g.Go(func() error { return resolver.Run(ctx) })
	g.Go(func() error { resolver.ServeQueries(ctx, l.DNSSocket()); return nil })
	g.Go(func() error { resolver.ServeForget(ctx, l.DNSForgetSocket()); return nil })
	g.Go(func() error {
		if ready.API(ctx, netClient.Discovery().RESTClient()) != nil {
			return nil // ctx ended
		}
		return dns.FollowConfigMap(ctx, netClient, metav1.NamespaceSystem, DNSConfigMap, resolver, dnsConfig)
	})
	g.Go(func() error {
		if ready.API(ctx, netClient.Discovery().RESTClient()) != nil {
			return nil // ctx ended
		}
		// The runtime calls the network ready once the configuration is there: not before pods can have addresses.
		return awaitPodCIDRs(ctx, netClient, cfg.NodeName, func(ranges []netip.Prefix) error {
			if podCIDRs.Swap(&ranges) != nil {
				return nil
			}
			return cni.WriteConfig(l.CNIConf(), l.CNISocket())
		})
	})
	g.Go(func() error {
		if err := connectRuntime(ctx, l); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if ready.API(ctx, netClient.Discovery().RESTClient()) != nil {
			return nil // ctx ended
		}
		var dnsAddrs []string
		for _, a := range cfg.DNSAddrs {
			dnsAddrs = append(dnsAddrs, a.String())
		}
		return kubelet.Run(ctx, kubelet.Config{
			NodeName: cfg.NodeName, NodeIPs: cfg.NodeAddrs, Port: KubeletPort, Client: id.kubelet, CRISocket: l.ContainerdSocket(),
			RootDir: l.Kubelet(), PodLogsDir: l.PodLogs(), Cgroup: l.Cgroup(), ClusterDNS: dnsAddrs, ClusterDomain: cfg.Zone,
			ResolvConf: cfg.ResolvConf, Certificate: id.ServingCertificate, ClientCAFile: cfg.Certificates.CAFile,
			CalledBy: cfg.CalledBy,
		})
	})
	return g.Wait()
}

// awaitPodCIDRs calls use whenever the node's pod ranges are seen.
func awaitPodCIDRs(ctx context.Context, c kubernetes.Interface, node string, use func([]netip.Prefix) error) error {
	return informer.FollowNode(ctx, c, node, func(n *corev1.Node) error {
		if len(n.Spec.PodCIDRs) == 0 {
			return nil
		}
		var ranges []netip.Prefix
		for _, text := range n.Spec.PodCIDRs {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return fmt.Errorf("pod ranges %s: %w", n.Spec.PodCIDRs, err)
			}
			ranges = append(ranges, p)
		}
		if err := use(ranges); err != nil {
			return fmt.Errorf("pod ranges %s: %w", n.Spec.PodCIDRs, err)
		}
		return nil
	})
}
