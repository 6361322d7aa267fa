package enforce

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// instruments are what is measured as it happens.
type instruments struct {
	latency  prometheus.Histogram
	failures prometheus.Counter
	broken   prometheus.Gauge
	problems prometheus.Gauge

	proofs, questions prometheus.Counter
	drift, proved     prometheus.Gauge
}

func (m *instruments) all() []prometheus.Collector {
	return []prometheus.Collector{m.latency, m.failures, m.broken, m.problems, m.proofs, m.questions, m.drift, m.proved}
}

func newInstruments() *instruments {
	return &instruments{
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "strake_policy_programming_seconds", Help: "From a change of the API being seen on this node until all packets are judged by it",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "strake_policy_write_failures_total", Help: "Writes of policy rows that did not succeed, and are tried again"}),
		broken:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "strake_policy_stale", Help: "1 while the kernel's policy rows are older than what the API has, because they can't be written"}),
		problems: prometheus.NewGauge(prometheus.GaugeOpts{Name: "strake_policy_problems", Help: "Parts of policies that are invalid or do not fit, and close"}),

		proofs:    prometheus.NewCounter(prometheus.CounterOpts{Name: "strake_policy_proofs_total", Help: "How often the kernel's policy rows were held against the policies"}),
		questions: prometheus.NewCounter(prometheus.CounterOpts{Name: "strake_policy_proof_questions_total", Help: "Questions that rows and policies were asked for it"}),
		drift:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "strake_policy_drift", Help: "Differences between rows and policies that the last proof found"}),
		proved:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "strake_policy_proved_timestamp_seconds", Help: "When the last proof found none"}),
	}
}

var (
	objectsDesc = prometheus.NewDesc("strake_policy_objects", "Objects of the API that verdicts follow from, by kind", []string{"kind"}, nil)
	rowsDesc    = prometheus.NewDesc("strake_policy_rows", "Rows of the kernel's policy tables", []string{"table"}, nil)
	roomDesc    = prometheus.NewDesc("strake_policy_rows_max", "Rows that the kernel's policy tables have room for", []string{"table"}, nil)
	hitsDesc    = prometheus.NewDesc("strake_policy_packets_total", "Packets that were judged, by the policy that decided: those that begin a flow, and all that are dropped",
		[]string{"kind", "namespace", "policy", "direction", "verdict", "shadow"}, nil)
	hitBytesDesc = prometheus.NewDesc("strake_policy_bytes_total", "Bytes of the packets of strake_policy_packets_total",
		[]string{"kind", "namespace", "policy", "direction", "verdict", "shadow"}, nil)
)

// Describe implements prometheus.Collector.
func (e *Enforcer) Describe(to chan<- *prometheus.Desc) {
	for _, c := range e.metrics.all() {
		c.Describe(to)
	}
	for _, d := range []*prometheus.Desc{objectsDesc, rowsDesc, roomDesc, hitsDesc, hitBytesDesc} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (e *Enforcer) Collect(to chan<- prometheus.Metric) {
	for _, c := range e.metrics.all() {
		c.Collect(to)
	}
	for _, f := range []*followed{e.pods, e.namespaces, e.nodes, e.policies, e.clusterPolicies} {
		to <- prometheus.MustNewConstMetric(objectsDesc, prometheus.GaugeValue, float64(f.count()), f.kind)
	}
	e.collectRows(to)
	e.collectHits(to)
}

// usage is how full the tables were when somebody asked. Counting large tables takes a while: it is done only after a write.
type usage struct {
	mu    sync.Mutex
	known bool
	last  []bpf.MapStatus
}

func (u *usage) stale() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.known = false
}

func (u *usage) get(count func() ([]bpf.MapStatus, error)) ([]bpf.MapStatus, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.known {
		last, err := count()
		if err != nil {
			return nil, err
		}
		u.last, u.known = last, true
	}
	return u.last, nil
}

func (e *Enforcer) collectRows(to chan<- prometheus.Metric) {
	tables, err := e.usage.get(e.cfg.Tables.Usage)
	if err != nil {
		to <- prometheus.NewInvalidMetric(rowsDesc, err)
		return
	}
	for _, t := range tables {
		to <- prometheus.MustNewConstMetric(rowsDesc, prometheus.GaugeValue, float64(t.Rows), t.Name)
		to <- prometheus.MustNewConstMetric(roomDesc, prometheus.GaugeValue, float64(t.Max), t.Name)
	}
}

// hitKey is what hits are summed by: rules would be too many series.
type hitKey struct {
	policy    uint32
	direction string
	verdict   string
	shadow    bool
}

func (e *Enforcer) collectHits(to chan<- prometheus.Metric) {
	hits, err := e.cfg.Tables.Hits()
	if err != nil {
		to <- prometheus.NewInvalidMetric(hitsDesc, err)
		return
	}
	type sum struct{ packets, bytes uint64 }
	sums := map[hitKey]sum{}
	for _, h := range hits {
		k := hitKey{h.Policy, direction(h.Ingress).String(), "dropped", h.Shadow}
		if h.Allow {
			k.verdict = "allowed"
		}
		s := sums[k]
		sums[k] = sum{s.packets + h.Packets, s.bytes + h.Bytes}
	}
	for k, s := range sums {
		n := e.nameOf(k.policy)
		labels := []string{n.Kind, n.Namespace, n.Name, k.direction, k.verdict, strconv.FormatBool(k.shadow)}
		to <- prometheus.MustNewConstMetric(hitsDesc, prometheus.CounterValue, float64(s.packets), labels...)
		to <- prometheus.MustNewConstMetric(hitBytesDesc, prometheus.CounterValue, float64(s.bytes), labels...)
	}
}

func direction(ingress bool) netpol.Direction {
	if ingress {
		return netpol.Ingress
	}
	return netpol.Egress
}

// nameOf is the policy with a number; a number that is not known any more has an empty name.
func (e *Enforcer) nameOf(policy uint32) bpf.PolicyName {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.names[policy]
}
