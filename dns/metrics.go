package dns

import (
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics have CoreDNS' names where it has such a thing. Its label view is always empty here, and zones are those of the answer.
type metrics struct {
	requests, responses                *prometheus.CounterVec
	duration, requestSize, answerSize  *prometheus.HistogramVec
	hits, failedChecks                 *prometheus.CounterVec
	misses, cacheRequests, staleServed prometheus.Counter
	asks                               *prometheus.HistogramVec
	rejects, panics                    prometheus.Counter
	collectors                         []prometheus.Collector
}

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coredns_" + name, Help: help}, labels)
	}
	sizes := []float64{0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "coredns_" + name, Help: help, Buckets: buckets}, labels)
	}
	times := prometheus.ExponentialBuckets(0.00025, 2, 16) // 0.25 ms to 8 s
	m := &metrics{
		requests:     counter("dns_requests_total", "Queries that came to the resolver; what the kernel answers does not", "server", "zone", "view", "proto", "family", "type"),
		responses:    counter("dns_responses_total", "Answers, by code and by what answered", "server", "zone", "view", "rcode", "plugin"),
		duration:     histogram("dns_request_duration_seconds", "How long an answer took", times, "server", "zone", "view"),
		requestSize:  histogram("dns_request_size_bytes", "Size of queries", sizes, "server", "zone", "view", "proto"),
		answerSize:   histogram("dns_response_size_bytes", "Size of answers", sizes, "server", "zone", "view", "proto"),
		hits:         counter("cache_hits_total", "Questions to upstream servers that were answered from memory", "server", "type", "zones", "view"),
		asks:         histogram("proxy_request_duration_seconds", "How long an upstream server took", times, "proxy_name", "to", "rcode"),
		failedChecks: counter("proxy_healthcheck_failures_total", "Checks that found an upstream server silent", "proxy_name", "to"),
		rejects:      prometheus.NewCounter(prometheus.CounterOpts{Name: "coredns_forward_max_concurrent_rejects_total", Help: "Questions for which there was no room among those that wait for upstream servers"}),
		panics:       prometheus.NewCounter(prometheus.CounterOpts{Name: "coredns_panics_total", Help: "Queries that made the resolver fail"}),
	}
	misses := counter("cache_misses_total", "Questions to upstream servers that were not remembered", "server", "zones", "view")
	all := counter("cache_requests_total", "Questions to upstream servers", "server", "zones", "view")
	stale := counter("cache_served_stale_total", "Answers given after their time", "server", "zones", "view")
	m.misses, m.cacheRequests, m.staleServed = misses.WithLabelValues("", "", ""), all.WithLabelValues("", "", ""), stale.WithLabelValues("", "", "")
	m.collectors = []prometheus.Collector{m.requests, m.responses, m.duration, m.requestSize, m.answerSize, m.hits, m.asks, m.failedChecks, m.rejects, m.panics, misses, all, stale}
	return m
}

func (m *metrics) hit(kind string) {
	m.cacheRequests.Inc()
	m.hits.WithLabelValues("", kind, "", "").Inc()
}

func (m *metrics) missed() {
	m.cacheRequests.Inc()
	m.misses.Inc()
}

func (m *metrics) stale() { m.staleServed.Inc() }

func (m *metrics) rejected() { m.rejects.Inc() }

func (m *metrics) checkFailed(to string) { m.failedChecks.WithLabelValues("forward", to).Inc() }

// asked counts what an upstream server said; no answer has the code "".
func (m *metrics) asked(to string, answer *dns.Msg, took time.Duration) {
	code := ""
	if answer != nil {
		code = dns.RcodeToString[answer.Rcode]
	}
	m.asks.WithLabelValues("forward", to, code).Observe(took.Seconds())
}

// typeName is that of a question's type. Those that are seldom asked have one name for all: clients make no metrics.
func typeName(qtype uint16) string {
	switch qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeANY, dns.TypeCNAME, dns.TypeDNSKEY, dns.TypeDS, dns.TypeHTTPS, dns.TypeMX, dns.TypeNS, dns.TypePTR, dns.TypeSOA, dns.TypeSRV, dns.TypeSVCB, dns.TypeTXT:
		return dns.TypeToString[qtype]
	}
	return "other"
}

// cacheSizes are a collector of how much is remembered.
type cacheSizes struct{ s *Server }

var cacheEntries = prometheus.NewDesc("coredns_cache_entries", "Answers of upstream servers that are remembered", []string{"server", "type", "zones", "view"}, nil)

func (cacheSizes) Describe(to chan<- *prometheus.Desc) { to <- cacheEntries }

func (c cacheSizes) Collect(to chan<- prometheus.Metric) {
	success, denials := c.s.settings.Load().cache.sizes()
	to <- prometheus.MustNewConstMetric(cacheEntries, prometheus.GaugeValue, float64(success), "", kindSuccess, "", "")
	to <- prometheus.MustNewConstMetric(cacheEntries, prometheus.GaugeValue, float64(denials), "", kindDenial, "", "")
}
