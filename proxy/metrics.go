package proxy

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"k8s.io/component-base/metrics"
)

// instruments are the metrics of the proxy, with kube-proxy's names where it has such a thing. One round there writes all Services;
// here it is that of the one that changed.
type instruments struct {
	duration, programming             *metrics.Histogram
	last, lastQueued                  *metrics.Gauge
	services, endpoints               *metrics.Counter
	servicesPending, endpointsPending *metrics.Gauge
	noLocal                           *metrics.GaugeVec
	failures                          *metrics.Counter
	rows                              *metrics.CounterVec
	healthz, livez                    *metrics.CounterVec

	mu      sync.Mutex
	without map[string]noLocal // by Service key: what is counted in noLocal
}

// noLocal counts the ports of a Service whose policy is Local, and that have endpoints, but none on this node.
type noLocal struct{ internal, external int }

func newInstruments() *instruments {
	const kubeProxy = "kubeproxy"
	counter := func(name, help string) *metrics.Counter {
		return metrics.NewCounter(&metrics.CounterOpts{Subsystem: kubeProxy, Name: name, Help: help, StabilityLevel: metrics.ALPHA})
	}
	gauge := func(name, help string) *metrics.Gauge {
		return metrics.NewGauge(&metrics.GaugeOpts{Subsystem: kubeProxy, Name: name, Help: help, StabilityLevel: metrics.ALPHA})
	}
	answers := func(name, help string) *metrics.CounterVec {
		return metrics.NewCounterVec(&metrics.CounterOpts{Subsystem: kubeProxy, Name: name, Help: help, StabilityLevel: metrics.ALPHA}, []string{"code"})
	}
	return &instruments{
		duration: metrics.NewHistogram(&metrics.HistogramOpts{
			Subsystem: kubeProxy, Name: "sync_proxy_rules_duration_seconds", Help: "How long the rows of a Service took to be computed and written",
			Buckets: metrics.ExponentialBuckets(0.0001, 2, 18), StabilityLevel: metrics.ALPHA,
		}),
		programming: metrics.NewHistogram(&metrics.HistogramOpts{
			Subsystem: kubeProxy, Name: "network_programming_duration_seconds", Help: "Time from the change of a pod or Service to its endpoints being in the kernel's tables",
			Buckets:        append([]float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5}, append(metrics.LinearBuckets(1, 1, 59), append(metrics.LinearBuckets(60, 5, 12), metrics.LinearBuckets(120, 30, 7)...)...)...),
			StabilityLevel: metrics.ALPHA,
		}),
		last:             gauge("sync_proxy_rules_last_timestamp_seconds", "When rows were last written as they should be"),
		lastQueued:       gauge("sync_proxy_rules_last_queued_timestamp_seconds", "When a change was last queued"),
		services:         counter("sync_proxy_rules_service_changes_total", "Changes of Services seen"),
		endpoints:        counter("sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices seen"),
		servicesPending:  gauge("sync_proxy_rules_service_changes_pending", "Changes of Services that are not in the kernel yet"),
		endpointsPending: gauge("sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that are not in the kernel yet"),
		noLocal: metrics.NewGaugeVec(&metrics.GaugeOpts{
			Subsystem: kubeProxy, Name: "sync_proxy_rules_no_local_endpoints_total", Help: "Service ports with a Local traffic policy and endpoints elsewhere only",
			StabilityLevel: metrics.ALPHA,
		}, []string{"traffic_policy"}),
		healthz: answers("proxy_healthz_total", "Answers of /healthz"),
		livez:   answers("proxy_livez_total", "Answers of /livez"),
		failures: metrics.NewCounter(&metrics.CounterOpts{
			Subsystem: "strake", Name: "service_sync_failures_total", Help: "Times that rows of a Service could not all be written", StabilityLevel: metrics.ALPHA,
		}),
		rows: metrics.NewCounterVec(&metrics.CounterOpts{
			Subsystem: "strake", Name: "service_rows_total", Help: "Rows of Services written", StabilityLevel: metrics.ALPHA,
		}, []string{"change"}),
		without: map[string]noLocal{},
	}
}

func (i *instruments) register(r metrics.KubeRegistry) {
	r.MustRegister(i.duration, i.programming, i.last, i.lastQueued, i.services, i.endpoints, i.servicesPending, i.endpointsPending, i.noLocal, i.failures, i.rows, i.healthz, i.livez)
	i.noLocal.WithLabelValues("internal").Set(0)
	i.noLocal.WithLabelValues("external").Set(0)
}

// answered counts an answer of /healthz or /livez.
func answered(c *metrics.CounterVec, code int) { c.WithLabelValues(strconv.Itoa(code)).Inc() }

// setNoLocal notes how it is with a Service now.
func (i *instruments) setNoLocal(key string, now noLocal) {
	i.mu.Lock()
	defer i.mu.Unlock()
	before := i.without[key]
	if now == before {
		return
	}
	i.noLocal.WithLabelValues("internal").Add(float64(now.internal - before.internal))
	i.noLocal.WithLabelValues("external").Add(float64(now.external - before.external))
	if i.without[key] = now; now == (noLocal{}) {
		delete(i.without, key)
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// MetricsHandler serves a registry in the format that is asked for.
func MetricsHandler(r metrics.KubeRegistry) http.Handler {
	return metrics.HandlerFor(r, metrics.HandlerOpts{ErrorHandling: metrics.ContinueOnError})
}
