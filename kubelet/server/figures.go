package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

func (s *server) healthz(w http.ResponseWriter, _ *http.Request) {
	if s.Healthy != nil {
		if err := s.Healthy(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	fmt.Fprint(w, "ok")
}

func (s *server) pods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{}}
	for _, p := range s.Pods.List() {
		list.Items = append(list.Items, *p)
	}
	writeJSON(w, list)
}

func (s *server) summary(w http.ResponseWriter, r *http.Request) {
	sum, err := s.Stats.Summary(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, sum)
}

// text serves figures in Prometheus' text format.
func text(write func(context.Context, io.Writer) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		if err := write(r.Context(), w); err != nil {
			klog.V(4).InfoS("Client went away", "err", err)
		}
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		klog.V(4).InfoS("Client went away", "err", err)
	}
}

// metrics serves the kubelet's own figures.
func metrics(cfg Config) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	count := func(of func(*corev1.Pod) int) func() float64 {
		return func() float64 {
			n := 0
			for _, p := range cfg.Pods.List() {
				n += of(p)
			}
			return float64(n)
		}
	}
	r.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kubelet_node_name", Help: "The node's name. The count is always 1.", ConstLabels: prometheus.Labels{"node": cfg.NodeName}}, func() float64 { return 1 }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kubelet_desired_pods", Help: "The number of pods the kubelet is being instructed to run."}, count(func(*corev1.Pod) int { return 1 })),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kubelet_running_pods", Help: "Number of pods that have a running pod sandbox"}, count(func(p *corev1.Pod) int {
			if p.Status.Phase == corev1.PodRunning {
				return 1
			}
			return 0
		})),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kubelet_running_containers", Help: "Number of containers currently running", ConstLabels: prometheus.Labels{"container_state": "running"}}, count(runningContainers)),
	)
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// probes serves what probes have shown.
func probes(cfg Config) http.Handler {
	r := prometheus.NewRegistry()
	if cfg.Probes != nil {
		r.MustRegister(cfg.Probes)
	}
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

func runningContainers(p *corev1.Pod) int {
	n := 0
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, c := range list {
			if c.State.Running != nil {
				n++
			}
		}
	}
	return n
}
