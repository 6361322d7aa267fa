package prober

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
)

// figures are what is told of probes at /metrics/probes, by the reference's names.
type figures struct {
	results  *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newFigures() figures {
	labels := []string{"probe_type", "container", "pod", "namespace", "pod_uid"}
	return figures{
		results:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "prober_probe_total", Help: "Cumulative number of a liveness, readiness or startup probe for a container by result."}, append(labels, "result")),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "prober_probe_duration_seconds", Help: "Duration in seconds for a probe response."}, labels),
	}
}

func (f figures) add(t target, kind Kind, ok bool, took time.Duration) {
	result := "failed"
	if ok {
		result = "successful"
	}
	of := []string{string(kind), t.container.Name, t.pod.Name, t.pod.Namespace, string(t.pod.UID)}
	f.results.WithLabelValues(append(of, result)...).Inc()
	f.duration.WithLabelValues(of...).Observe(took.Seconds())
}

// forget is for a pod that goes: there is no end of pods.
func (f figures) forget(pod types.UID) {
	of := prometheus.Labels{"pod_uid": string(pod)}
	f.results.DeletePartialMatch(of)
	f.duration.DeletePartialMatch(of)
}

// Describe implements prometheus.Collector.
func (m *Manager) Describe(ch chan<- *prometheus.Desc) {
	m.figures.results.Describe(ch)
	m.figures.duration.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Manager) Collect(ch chan<- prometheus.Metric) {
	m.figures.results.Collect(ch)
	m.figures.duration.Collect(ch)
}
