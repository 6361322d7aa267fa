// Package services runs the Services of a node, with what tells of them: Events, metrics, and whether the node is well.
package services

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-base/metrics"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/memory"
	"github.com/strake-io/strake/mirror"
	"github.com/strake-io/strake/proxy"
)

// Config says whose Services they are, and where the node is asked about them.
type Config struct {
	Client    kubernetes.Interface // for Events
	Objects   *mirror.Mirror
	Informers informers.SharedInformerFactory
	Datapath  *bpf.Datapath
	Node      proxy.Node     // with its primary addresses
	NodePorts []netip.Prefix // ranges of the node's addresses where NodePorts answer; none: the primary ones
	// Healthz and Metrics are where /healthz and /livez, and /metrics are served, as proxy.BindAddrs reads it. Load balancers ask for the
	// former: it is on the node's primary addresses and on loopback. The latter is on loopback.
	Healthz, Metrics string
	// Namespaces are the paths of pods' network namespaces: connections in them end when their backend is deleted.
	Namespaces func() []string
	// Collectors are measured besides.
	Collectors []prometheus.Collector
}

// Services are those of one node.
type Services struct {
	cfg              Config
	proxy            *proxy.Proxy
	events           record.EventBroadcaster
	registry         metrics.KubeRegistry
	healthz, metrics []netip.AddrPort
}

// loopback of the families that addresses have.
func loopback(addrs []netip.Addr) []netip.Addr {
	out := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	for _, a := range addrs {
		if a.Is6() {
			return append(out, netip.IPv6Loopback())
		}
	}
	return out
}

// What the first lists bring is garbage as soon as it is packed: with the heap's usual bound, collecting it takes a third of the agent's processor time
// until all is written. So the bound is wide until then. In a cluster of 50 000 Services the agent has 240 MiB for these seconds, and half of that then.
const (
	firstGCPercent = 200
	laterGCPercent = 25 // most of what an agent holds stays, and what it allocates is little
)

// tidy is for after the first lists.
func tidy() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(laterGCPercent)
	}
	go memory.GiveBack()
}

// New registers with the informers and the mirror; start them afterwards.
func New(cfg Config) (*Services, error) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(firstGCPercent)
	}
	s := &Services{cfg: cfg, events: record.NewBroadcaster(), registry: metrics.NewKubeRegistry()}
	var err error
	lo := loopback(cfg.Node.Addrs)
	if s.healthz, err = proxy.BindAddrs(cfg.Healthz, append(lo, cfg.Node.Addrs...), proxy.HealthzPort); err != nil {
		return nil, fmt.Errorf("health of Services: %w", err)
	}
	if s.metrics, err = proxy.BindAddrs(cfg.Metrics, lo, proxy.MetricsPort); err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	aborted := prometheus.NewCounter(prometheus.CounterOpts{Name: "strake_sockets_aborted_total", Help: "Connections of the node and its pods that ended because their Service's backend was deleted"})
	if err := cfg.Datapath.AbortSockets(cfg.Namespaces, func(n int, err error) {
		aborted.Add(float64(n))
		if err != nil {
			klog.ErrorS(err, "Connections to deleted backends may hang")
		}
	}); err != nil {
		return nil, err
	}
	s.registry.RawMustRegister(aborted, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), drops{cfg.Datapath}, flows{cfg.Datapath})
	s.registry.RawMustRegister(cfg.Collectors...)
	// The first rows are already for the addresses that are followed later: a restart takes none away.
	node := cfg.Node
	if len(cfg.NodePorts) > 0 {
		all, err := proxy.InterfaceAddrs()
		if err != nil {
			return nil, err
		}
		node.Addrs = proxy.NodePortAddrs(cfg.NodePorts, cfg.Node.Addrs, all, cfg.Node.Local)
	}
	s.proxy, err = proxy.New(proxy.Config{
		Objects: cfg.Objects, Informers: cfg.Informers, Table: cfg.Datapath.LoadBalancers(), Node: node, Registry: s.registry, Held: bpf.HeldPorts, Synced: tidy,
		Recorder: s.events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "strake-proxy", Host: cfg.Node.Name}),
	})
	return s, err
}

// Run serves until ctx ends. What is in the kernel stays.
func (s *Services) Run(ctx context.Context) error {
	s.events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: s.cfg.Client.CoreV1().Events("")})
	defer s.events.Shutdown()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.proxy.Run(ctx) })
	g.Go(func() error { return s.cfg.Datapath.KeepFlows(ctx, tellFlows) })
	g.Go(func() error { return s.proxy.FollowInterfaces(ctx, s.cfg.NodePorts) })
	g.Go(func() error { proxy.Serve(ctx, s.healthz, s.proxy.HealthHandler()); return nil })
	mux := http.NewServeMux()
	mux.Handle("/metrics", proxy.MetricsHandler(s.registry))
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ebpf") })
	mux.Handle("/", s.proxy.HealthHandler())
	g.Go(func() error { proxy.Serve(ctx, s.metrics, mux); return nil })
	return g.Wait()
}

// Settled tells whether all that the API has said of Services is in the kernel.
func (s *Services) Settled() bool { return s.proxy.Settled() }

// tellFlows logs what came of a search for connections that are over. Where all is well there is nothing to tell.
func tellFlows(swept bpf.SweptFlows, err error) {
	if err != nil {
		klog.ErrorS(err, "Connections that are over could not be looked for")
	} else if swept.Full {
		klog.InfoS("There is no room for more connections: new ones are dropped (drop_conntrack_full) until some end", "ended", swept.Deleted/2, "left", swept.Left/2)
	}
}

// flows are those that the node's programs follow.
type flows struct{ datapath *bpf.Datapath }

var (
	flowCount = prometheus.NewDesc("strake_flows", "Flows that the node's programs follow, by protocol number and state", []string{"protocol", "state"}, nil)
	flowRows  = prometheus.NewDesc("strake_flow_rows", "Rows of the tables of flows, two for a flow", []string{"table"}, nil)
	flowRoom  = prometheus.NewDesc("strake_flow_rows_max", "Rows that the tables of flows have room for", []string{"table"}, nil)
)

func (flows) Describe(to chan<- *prometheus.Desc) { to <- flowCount; to <- flowRows; to <- flowRoom }

func (f flows) Collect(to chan<- prometheus.Metric) {
	stats, err := f.datapath.FlowStats()
	if err != nil {
		to <- prometheus.NewInvalidMetric(flowCount, err)
		return
	}
	for _, c := range stats.Counts {
		to <- prometheus.MustNewConstMetric(flowCount, prometheus.GaugeValue, float64(c.Flows), strconv.Itoa(int(c.Protocol)), c.State)
	}
	for _, t := range []bpf.MapStatus{stats.Open, stats.Passing} {
		to <- prometheus.MustNewConstMetric(flowRows, prometheus.GaugeValue, float64(t.Rows), t.Name)
		to <- prometheus.MustNewConstMetric(flowRoom, prometheus.GaugeValue, float64(t.Max), t.Name)
	}
}

// drops are the packets that the programs did not let pass, by reason.
type drops struct{ datapath *bpf.Datapath }

var dropped = prometheus.NewDesc("strake_drops_total", "Packets dropped by the node's programs, by reason", []string{"reason"}, nil)

func (drops) Describe(to chan<- *prometheus.Desc) { to <- dropped }

func (d drops) Collect(to chan<- prometheus.Metric) {
	counters, err := d.datapath.Counters()
	if err != nil {
		to <- prometheus.NewInvalidMetric(dropped, err)
		return
	}
	for reason, n := range counters {
		if name, ok := strings.CutPrefix(reason, "drop_"); ok {
			to <- prometheus.MustNewConstMetric(dropped, prometheus.CounterValue, float64(n), name)
		}
	}
}
