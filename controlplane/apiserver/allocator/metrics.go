package allocator

import (
	"math"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/klog/v2"
)

// Metrics have the names and labels of kube-apiserver's.
const (
	addressMetrics = "kube_apiserver_clusterip_allocator_"
	portMetrics    = "kube_apiserver_nodeport_allocator_"
)

// Scopes of a claim: of a value that was asked for, or of one that was chosen.
const (
	static  = "static"
	dynamic = "dynamic"
)

func counter(name, help string, labels ...string) *metrics.CounterVec {
	return metrics.NewCounterVec(&metrics.CounterOpts{Name: name, Help: help, StabilityLevel: metrics.ALPHA}, labels)
}

var (
	addressesGiven   = counter(addressMetrics+"allocation_total", "Number of Cluster IPs allocations", "cidr", "scope")
	addressesRefused = counter(addressMetrics+"allocation_errors_total", "Number of errors trying to allocate Cluster IPs", "cidr", "scope")
	addressTakes     = metrics.NewHistogramVec(&metrics.HistogramOpts{
		Name: addressMetrics + "allocation_duration_seconds", Help: "Duration in seconds to allocate a Cluster IP by ServiceCIDR", Buckets: metrics.DefBuckets, StabilityLevel: metrics.ALPHA,
	}, []string{"cidr"})
	portsGiven   = counter(portMetrics+"allocation_total", "Number of NodePort allocations", "scope")
	portsRefused = counter(portMetrics+"allocation_errors_total", "Number of errors trying to allocate NodePort", "scope")

	// used is counted when it is asked for: a claim costs no more the more there are.
	used usage
)

func init() {
	legacyregistry.MustRegister(addressesGiven, addressesRefused, addressTakes, portsGiven, portsRefused)
	legacyregistry.CustomMustRegister(&used)
}

// tally counts claims of addresses of a range, or of node ports.
type tally struct {
	cidr  string // empty: node ports
	scope string
}

func addressTally(p netip.Prefix, scope string) tally { return tally{p.String(), scope} }

func (t tally) given(began time.Time) {
	if t.cidr == "" {
		portsGiven.WithLabelValues(t.scope).Inc()
		return
	}
	addressesGiven.WithLabelValues(t.cidr, t.scope).Inc()
	addressTakes.WithLabelValues(t.cidr).Observe(time.Since(began).Seconds())
}

func (t tally) refused() {
	if t.cidr == "" {
		portsRefused.WithLabelValues(t.scope).Inc()
		return
	}
	addressesRefused.WithLabelValues(t.cidr, t.scope).Inc()
}

// usage tells of this process' allocator how much of its ranges is claimed.
type usage struct {
	metrics.BaseStableCollector
	of atomic.Pointer[Allocator]
}

var (
	addressesHeld = metrics.NewDesc(addressMetrics+"allocated_ips", "Gauge measuring the number of allocated IPs for Services", []string{"cidr"}, nil, metrics.ALPHA, "")
	addressesLeft = metrics.NewDesc(addressMetrics+"available_ips", "Gauge measuring the number of available IPs for Services", []string{"cidr"}, nil, metrics.ALPHA, "")
	portsHeld     = metrics.NewDesc(portMetrics+"allocated_ports", "Gauge measuring the number of allocated NodePorts for Services", nil, nil, metrics.ALPHA, "")
	portsLeft     = metrics.NewDesc(portMetrics+"available_ports", "Gauge measuring the number of available NodePorts for Services", nil, nil, metrics.ALPHA, "")
)

// DescribeWithStability implements metrics.StableCollector.
func (u *usage) DescribeWithStability(ch chan<- *metrics.Desc) {
	for _, d := range []*metrics.Desc{addressesHeld, addressesLeft, portsHeld, portsLeft} {
		ch <- d
	}
}

// CollectWithStability implements metrics.StableCollector.
func (u *usage) CollectWithStability(ch chan<- metrics.Metric) {
	a := u.of.Load()
	if a == nil {
		return
	}
	report := func(held, left *metrics.Desc, n, of float64, labels ...string) {
		ch <- metrics.NewLazyConstMetric(held, metrics.GaugeValue, n, labels...)
		ch <- metrics.NewLazyConstMetric(left, metrics.GaugeValue, max(of-n, 0), labels...)
	}
	var addresses []netip.Addr
	for _, v := range a.addresses.values() {
		if ip, err := netip.ParseAddr(v); err == nil {
			addresses = append(addresses, ip)
		}
	}
	for _, f := range a.families {
		ranges, err := a.ranges(f)
		if err != nil {
			klog.V(2).InfoS("Ranges of addresses are not told to who reads metrics", "family", f, "err", err)
			continue
		}
		for _, p := range ranges {
			n := 0
			for _, ip := range addresses {
				if gives(p, ip) {
					n++
				}
			}
			report(addressesHeld, addressesLeft, float64(n), capacity(p), p.String())
		}
	}
	n := 0
	for _, v := range a.ports.values() {
		if port, err := strconv.ParseInt(v, 10, 32); err == nil && int32(port) >= a.cfg.PortMin && int32(port) <= a.cfg.PortMax {
			n++
		}
	}
	report(portsHeld, portsLeft, float64(n), float64(a.cfg.PortMax-a.cfg.PortMin+1))
}

// capacity is how many addresses of a range Services may have.
func capacity(p netip.Prefix) float64 {
	n := math.Ldexp(1, p.Addr().BitLen()-p.Bits()) - 1
	if p.Addr().Is4() {
		n--
	}
	return n
}
