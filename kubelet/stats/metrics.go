package stats

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strconv"
	"time"

	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// WriteResource writes the answer of /metrics/resource: what metrics-server reads, in Prometheus' text format. Names and
// labels are those of Kubernetes' "Resource metrics".
func (c Config) WriteResource(ctx context.Context, w io.Writer) error {
	s, err := c.Summary(ctx)
	failed := 0.0
	if err != nil {
		failed = 1
		s = &statsapi.Summary{}
	}
	m := metrics{}
	for _, p := range s.Pods {
		pod := fmt.Sprintf("namespace=%q,pod=%q", p.PodRef.Namespace, p.PodRef.Name)
		for _, x := range p.Containers {
			labels := fmt.Sprintf("container=%q,%s", x.Name, pod)
			if x.CPU != nil && x.CPU.UsageCoreNanoSeconds != nil {
				m.add("container_cpu_usage_seconds_total", labels, seconds(*x.CPU.UsageCoreNanoSeconds), x.CPU.Time.Time)
			}
			if x.Memory != nil && x.Memory.WorkingSetBytes != nil {
				m.add("container_memory_working_set_bytes", labels, float64(*x.Memory.WorkingSetBytes), x.Memory.Time.Time)
			}
			if !x.StartTime.IsZero() {
				m.add("container_start_time_seconds", labels, float64(x.StartTime.UnixNano())/1e9, time.Time{})
			}
		}
		if p.CPU != nil {
			m.add("pod_cpu_usage_seconds_total", pod, seconds(*p.CPU.UsageCoreNanoSeconds), p.CPU.Time.Time)
		}
		if p.Memory != nil {
			m.add("pod_memory_working_set_bytes", pod, float64(*p.Memory.WorkingSetBytes), p.Memory.Time.Time)
		}
	}
	if n := s.Node; n.CPU != nil && n.Memory != nil {
		m.add("node_cpu_usage_seconds_total", "", seconds(*n.CPU.UsageCoreNanoSeconds), n.CPU.Time.Time)
		m.add("node_memory_working_set_bytes", "", float64(*n.Memory.WorkingSetBytes), n.Memory.Time.Time)
	}
	m.add("resource_scrape_error", "", failed, time.Time{})
	return m.write(w)
}

func seconds(nanos uint64) float64 { return float64(nanos) / 1e9 }

// help tells of each metric its type and what it is.
var help = map[string][2]string{
	"container_cpu_usage_seconds_total":  {"counter", "Cumulative cpu time consumed by the container in core-seconds"},
	"container_memory_working_set_bytes": {"gauge", "Current working set of the container in bytes"},
	"container_start_time_seconds":       {"gauge", "Start time of the container since unix epoch in seconds"},
	"pod_cpu_usage_seconds_total":        {"counter", "Cumulative cpu time consumed by the pod in core-seconds"},
	"pod_memory_working_set_bytes":       {"gauge", "Current working set of the pod in bytes"},
	"node_cpu_usage_seconds_total":       {"counter", "Cumulative cpu time consumed by the node in core-seconds"},
	"node_memory_working_set_bytes":      {"gauge", "Current working set of the node in bytes"},
	"resource_scrape_error":              {"gauge", "1 if there was an error while getting container metrics, 0 otherwise"},

	// Those of cAdvisor.
	"machine_cpu_cores":                                {"gauge", "Number of logical CPU cores"},
	"machine_memory_bytes":                             {"gauge", "Amount of memory installed on the machine"},
	"container_scrape_error":                           {"gauge", "1 if there was an error while getting container metrics, 0 otherwise"},
	"container_last_seen":                              {"gauge", "Last time a container was seen by the exporter"},
	"container_cpu_cfs_periods_total":                  {"counter", "Number of elapsed enforcement period intervals"},
	"container_cpu_cfs_throttled_periods_total":        {"counter", "Number of throttled period intervals"},
	"container_cpu_cfs_throttled_seconds_total":        {"counter", "Total time duration the container has been throttled"},
	"container_memory_usage_bytes":                     {"gauge", "Current memory usage in bytes, including all memory regardless of when it was accessed"},
	"container_memory_rss":                             {"gauge", "Size of RSS in bytes"},
	"container_memory_cache":                           {"gauge", "Number of bytes of page cache memory"},
	"container_memory_mapped_file":                     {"gauge", "Size of memory mapped files in bytes"},
	"container_memory_swap":                            {"gauge", "Container swap usage in bytes"},
	"container_memory_failures_total":                  {"counter", "Cumulative count of memory allocation failures"},
	"container_threads":                                {"gauge", "Number of threads running inside the container"},
	"container_fs_reads_total":                         {"counter", "Cumulative count of reads completed"},
	"container_fs_writes_total":                        {"counter", "Cumulative count of writes completed"},
	"container_fs_reads_bytes_total":                   {"counter", "Cumulative count of bytes read"},
	"container_fs_writes_bytes_total":                  {"counter", "Cumulative count of bytes written"},
	"container_network_receive_bytes_total":            {"counter", "Cumulative count of bytes received"},
	"container_network_receive_packets_total":          {"counter", "Cumulative count of packets received"},
	"container_network_receive_errors_total":           {"counter", "Cumulative count of errors encountered while receiving"},
	"container_network_receive_packets_dropped_total":  {"counter", "Cumulative count of packets dropped while receiving"},
	"container_network_transmit_bytes_total":           {"counter", "Cumulative count of bytes transmitted"},
	"container_network_transmit_packets_total":         {"counter", "Cumulative count of packets transmitted"},
	"container_network_transmit_errors_total":          {"counter", "Cumulative count of errors encountered while transmitting"},
	"container_network_transmit_packets_dropped_total": {"counter", "Cumulative count of packets dropped while transmitting"},
	"container_spec_cpu_shares":                        {"gauge", "CPU share of the container"},
	"container_spec_cpu_period":                        {"gauge", "CPU period of the container"},
	"container_spec_cpu_quota":                         {"gauge", "CPU quota of the container"},
	"container_spec_memory_limit_bytes":                {"gauge", "Memory limit for the container"},
}

// metrics are lines by metric.
type metrics map[string][]string

func (m metrics) add(name, labels string, v float64, at time.Time) {
	line := name
	if labels != "" {
		line += "{" + labels + "}"
	}
	line += " " + strconv.FormatFloat(v, 'g', -1, 64)
	if !at.IsZero() {
		line += " " + strconv.FormatInt(at.UnixMilli(), 10)
	}
	m[name] = append(m[name], line)
}

func (m metrics) write(w io.Writer) error {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", n, help[n][1], n, help[n][0]); err != nil {
			return err
		}
		for _, line := range m[n] {
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
	}
	return nil
}
