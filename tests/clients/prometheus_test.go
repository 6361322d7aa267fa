package clients

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/strake-io/strake/cmd/strake/ociimage"
	"github.com/strake-io/strake/tests/lab/labtest"
)

const prometheus = "github.com/prometheus/prometheus"

// TestPrometheus runs Prometheus with the example of its own documentation, for what it may do and for what it scrapes. Then it knows nodes, Services, pods,
// endpoints and Ingresses, and answers what dashboards ask.
func TestPrometheus(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "prometheus")
	goIn(t, "prometheus", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, ".")
	examples := filepath.Join(goIn(t, "prometheus", "list", "-m", "-f", "{{.Dir}}", prometheus), "documentation", "examples")
	config, err := os.ReadFile(filepath.Join(examples, "prometheus-kubernetes.yml"))
	if err != nil {
		t.Fatal(err)
	}
	// A minute is long to wait, and the example has endpoints only, which EndpointSlices have followed.
	config = []byte(strings.Replace(string(config), "global:\n", "global:\n  scrape_interval: 2s\n", 1) + prometheusJobs)
	if err := os.WriteFile(filepath.Join(dir, "prometheus.yml"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "server.yaml"), []byte(prometheusServer), 0o600); err != nil {
		t.Fatal(err)
	}
	c := startCluster(t, "strake-prom")
	labtest.LoadImage(t, c, ociimage.Image{Name: "strake.io/prometheus:1", Files: map[string]string{"prometheus": binary}, Entrypoint: []string{"/prometheus"}, User: "65534"})
	kubectl := func(args ...string) (string, error) { return c.Strake(append([]string{"kubectl"}, args...)...) }
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(examples, "rbac-setup.yml")}, {"create", "configmap", "prometheus", "--from-file", filepath.Join(dir, "prometheus.yml")},
		{"apply", "-f", filepath.Join(dir, "server.yaml")}, {"rollout", "status", "deployment/prometheus", "--timeout=60s"},
		{"get", "--raw", "/livez"}, // what is not asked is not told of
	} {
		if out, err := kubectl(args...); err != nil {
			log, _ := kubectl("logs", "-l", "app=prometheus", "--tail=50")
			t.Fatalf("kubectl %v: %v\n%s\n%s", args, err, out, log)
		}
	}
	query := func(q string) (string, error) {
		return kubectl("get", "--raw", "/api/v1/namespaces/default/services/prometheus:web/proxy/api/v1/query?query="+url.QueryEscape(q))
	}
	t.Cleanup(func() {
		if t.Failed() {
			targets, _ := query("up")
			log, _ := kubectl("logs", "-l", "app=prometheus", "--tail=50")
			t.Logf("%s\n%s", targets, log)
		}
	})
	const pod = `namespace="default",pod=~"prometheus-.*"`
	for _, q := range []struct{ what, query, want string }{
		{"the API server", `up{job="kubernetes-apiservers"}`, "=> 1 "},
		{"the kubelet", `up{job="kubernetes-nodes",kubernetes_io_hostname="node-1"}`, "=> 1 "},
		{"containers' figures", `up{job="kubernetes-cadvisor"}`, "=> 1 "},
		{"probes' figures", `up{job="probes"}`, "=> 1 "},
		{"levels of service", `up{job="slis"}`, "=> 1 "},
		{"a Service's endpoints", `up{job="kubernetes-service-endpoints",service="prometheus"}`, "=> 1 "},
		{"EndpointSlices", `up{job="slices",slice=~"prometheus-.*",ready="true"}`, "=> 1 "},
		{"a pod", `up{job="kubernetes-pods",pod=~"prometheus-.*",app="prometheus"}`, "=> 1 "},
		{"a Service to be probed", `up{job="kubernetes-services",service="prometheus"}`, "=> 0 "}, // by an exporter that is not there
		{"an Ingress to be probed", `up{job="kubernetes-ingresses",ingress="web",instance="http://metrics.example.org/"}`, "=> 0 "},
		// What dashboards and alerts ask, such as those of kubernetes-mixin.
		{"CPU of a container", `sum(irate(container_cpu_usage_seconds_total{` + pod + `,container="prometheus",image!=""}[1m])) > 0`, "=>"},
		{"a container's share of its limit of CPU", `sum(irate(container_cpu_usage_seconds_total{` + pod + `,container="prometheus"}[1m])) / sum(container_spec_cpu_quota{` + pod + `} / container_spec_cpu_period) > 0`, "=>"},
		{"waiting for CPU", `sum(increase(container_cpu_cfs_periods_total{` + pod + `,container!=""}[1m])) > 0`, "=>"},
		{"memory of a container", `sum(container_memory_working_set_bytes{` + pod + `,container!="",image!=""}) / sum(container_spec_memory_limit_bytes{` + pod + `})`, `=> 0\.\d`},
		{"memory by sort", `container_memory_rss{` + pod + `,container="prometheus"} + container_memory_cache + container_memory_swap > 0`, "=>"},
		{"a pod's network", `sum by (pod) (irate(container_network_receive_bytes_total{` + pod + `,interface="eth0"}[1m])) > 0`, "prometheus-.*=>"},
		{"the machine", `sum(container_memory_working_set_bytes{id="/"}) / sum(machine_memory_bytes)`, `=> 0\.\d`},
		{"its processors", `machine_cpu_cores`, `=> [1-9]`},
		{"pods of the kubelet", `kubelet_running_pods`, `=> [1-9]`},
		{"probes of a pod", `prober_probe_total{` + pod + `,probe_type="Readiness",result="successful"}`, `=> [1-9]`},
		{"requests of the API server", `sum by (resource) (rate(apiserver_request_total{verb=~"LIST|GET|WATCH",code=~"2..",resource="pods"}[1m]))`, "pods.*=>"},
		{"their latency", `histogram_quantile(0.99, sum by (le) (rate(apiserver_request_duration_seconds_bucket{verb="GET"}[1m]))) > 0`, "=>"},
		{"objects in the store", `apiserver_resource_objects{resource="pods"} or apiserver_storage_objects{resource="pods"}`, `=> [1-9]`},
		{"when certificates end", `histogram_quantile(0.01, sum by (le) (apiserver_client_certificate_expiration_seconds_bucket)) > 3600`, "=>"},
		{"health by level of service", `kubernetes_healthcheck{name="ping",type="livez"}`, "=> 1 "},
		{"memory of the API server", `process_resident_memory_bytes{job="kubernetes-apiservers"} > 1e7`, "=>"},
	} {
		eventually(t, q.what, func() error {
			out, err := query(q.query)
			if err == nil && !regexp.MustCompile(q.want).MatchString(out) {
				err = fmt.Errorf("want %s", q.want)
			}
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", q.query, err, out)
			}
			return nil
		})
	}
	// Nothing that it was told was wrong: no figure came twice, and no watch or list failed.
	for _, name := range []string{
		"prometheus_target_scrapes_sample_duplicate_timestamp_total", "prometheus_target_scrapes_sample_out_of_order_total", "prometheus_target_scrapes_sample_out_of_bounds_total",
		"prometheus_sd_kubernetes_failures_total", "prometheus_sd_failed_configs",
	} {
		if out, err := query("max(" + name + `{job="kubernetes-pods"})`); err != nil || !strings.Contains(out, "=> 0 ") {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
}

// prometheusJobs are jobs that the example does not have: EndpointSlices, and what else components tell at paths of their own.
const prometheusJobs = `
  - job_name: slices
    kubernetes_sd_configs: [{role: endpointslice}]
    relabel_configs:
      - {source_labels: [__meta_kubernetes_endpointslice_name], target_label: slice}
      - {source_labels: [__meta_kubernetes_endpointslice_endpoint_conditions_ready], target_label: ready}
  - job_name: probes
    scheme: https
    metrics_path: /metrics/probes
    tls_config: {ca_file: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt}
    authorization: {credentials_file: /var/run/secrets/kubernetes.io/serviceaccount/token}
    kubernetes_sd_configs: [{role: node}]
  - job_name: slis
    scheme: https
    metrics_path: /metrics/slis
    tls_config: {ca_file: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt}
    authorization: {credentials_file: /var/run/secrets/kubernetes.io/serviceaccount/token}
    kubernetes_sd_configs: [{role: endpointslice}]
    relabel_configs:
      - {source_labels: [__meta_kubernetes_namespace, __meta_kubernetes_service_name], action: keep, regex: default;kubernetes}
`

const prometheusServer = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: prometheus-slices}
rules:
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}
- {nonResourceURLs: [/metrics/slis], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: prometheus-slices}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: prometheus-slices}
subjects: [{kind: ServiceAccount, name: prometheus, namespace: default}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: prometheus}
spec:
  selector: {matchLabels: {app: prometheus}}
  template:
    metadata: {labels: {app: prometheus}}
    spec:
      serviceAccountName: prometheus
      terminationGracePeriodSeconds: 1
      containers:
      - name: prometheus
        image: strake.io/prometheus:1
        args: [--config.file=/etc/prometheus/prometheus.yml, --storage.tsdb.path=/data]
        ports: [{containerPort: 9090, name: web}]
        readinessProbe: {httpGet: {path: /metrics, port: web}, periodSeconds: 2}
        resources: {limits: {cpu: "1", memory: 512Mi}}
        volumeMounts: [{name: config, mountPath: /etc/prometheus}, {name: data, mountPath: /data}]
      volumes: [{name: config, configMap: {name: prometheus}}, {name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: prometheus}
spec: {selector: {app: prometheus}, ports: [{name: web, port: 9090, targetPort: web}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  rules: [{host: metrics.example.org, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: prometheus, port: {name: web}}}}]}}]
`
