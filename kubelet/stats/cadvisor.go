package stats

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/kubelet/cgroups"
)

// WriteCadvisor writes the answer of /metrics/cadvisor: what dashboards and alerts read of containers, pods and the machine, in Prometheus' text
// format. Names and labels are cAdvisor's ("Monitoring cAdvisor with Prometheus"), whose figures the reference's kubelet serves there.
func (c Config) WriteCadvisor(ctx context.Context, w io.Writer) error {
	m := metrics{}
	failed := 0.0
	if err := c.machine(m); err != nil {
		klog.ErrorS(err, "What the machine uses is not known")
		failed = 1
	}
	for _, p := range c.Pods() {
		c.podFigures(ctx, m, p)
	}
	m.add("container_scrape_error", "", failed, time.Time{})
	return m.write(w)
}

// subject names what figures are of. A pod has no container's name and no image; the machine has the id "/" alone.
func subject(p *corev1.Pod, container, id, image, name string) string {
	return fmt.Sprintf("container=%q,id=%q,image=%q,name=%q,namespace=%q,pod=%q", container, id, image, name, p.Namespace, p.Name)
}

const machine = `container="",id="/",image="",name="",namespace="",pod=""`

func (c Config) machine(m metrics) error {
	m.add("machine_cpu_cores", "", float64(runtime.NumCPU()), time.Time{})
	cpu, err := nodeCPU()
	if err != nil {
		return err
	}
	mem, err := Memory()
	if err != nil {
		return err
	}
	m.add("machine_memory_bytes", "", float64(mem.Total), time.Time{})
	m.add("container_cpu_usage_seconds_total", `cpu="total",`+machine, seconds(cpu), time.Time{})
	m.add("container_memory_usage_bytes", machine, float64(mem.Total-min(mem.Free, mem.Total)), time.Time{})
	m.add("container_memory_working_set_bytes", machine, float64(mem.WorkingSet()), time.Time{})
	m.add("container_start_time_seconds", machine, float64(c.Boot.Unix()), time.Time{})
	m.add("container_last_seen", machine, float64(time.Now().Unix()), time.Time{})
	links, err := readNetwork("/proc/self/net/dev")
	m.network(machine, links)
	return err
}

func (c Config) podFigures(ctx context.Context, m metrics, p *corev1.Pod) {
	pod := subject(p, "", c.Cgroups.PodPath(p), "", "")
	if u, err := c.Cgroups.PodUsage(p); err == nil {
		m.usage(pod, u)
	}
	if pid, ok := c.Sandbox(ctx, p); ok && !p.Spec.HostNetwork {
		if links, err := readNetwork(fmt.Sprintf("/proc/%d/net/dev", pid)); err == nil {
			m.network(pod, links)
		}
	}
	specs := map[string]*corev1.Container{}
	for i := range p.Spec.InitContainers {
		specs[p.Spec.InitContainers[i].Name] = &p.Spec.InitContainers[i]
	}
	for i := range p.Spec.Containers {
		specs[p.Spec.Containers[i].Name] = &p.Spec.Containers[i]
	}
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, st := range list {
			_, id, _ := strings.Cut(st.ContainerID, "://")
			if st.State.Running == nil || id == "" {
				continue
			}
			u, err := c.Cgroups.ContainerUsage(p, id)
			if err != nil {
				continue // it has ended meanwhile
			}
			labels := subject(p, st.Name, c.Cgroups.ContainerPath(p, id), st.Image, id)
			m.usage(labels, u)
			m.add("container_start_time_seconds", labels, float64(st.State.Running.StartedAt.Unix()), time.Time{})
			m.add("container_last_seen", labels, float64(time.Now().Unix()), time.Time{})
			if spec := specs[st.Name]; spec != nil {
				r := c.Cgroups.ContainerResources(p, spec)
				m.add("container_spec_cpu_shares", labels, float64(r.CpuShares), time.Time{})
				m.add("container_spec_memory_limit_bytes", labels, float64(r.MemoryLimitInBytes), time.Time{})
				if r.CpuQuota > 0 {
					m.add("container_spec_cpu_period", labels, float64(r.CpuPeriod), time.Time{})
					m.add("container_spec_cpu_quota", labels, float64(r.CpuQuota), time.Time{})
				}
			}
		}
	}
}

// usage adds what a cgroup uses.
func (m metrics) usage(labels string, u cgroups.Usage) {
	m.add("container_cpu_usage_seconds_total", `cpu="total",`+labels, seconds(u.CPU), time.Time{})
	if u.Periods > 0 { // there is a limit
		m.add("container_cpu_cfs_periods_total", labels, float64(u.Periods), time.Time{})
		m.add("container_cpu_cfs_throttled_periods_total", labels, float64(u.Throttled), time.Time{})
		m.add("container_cpu_cfs_throttled_seconds_total", labels, seconds(u.ThrottledTime), time.Time{})
	}
	for name, v := range map[string]uint64{
		"container_memory_usage_bytes": u.Memory, "container_memory_working_set_bytes": u.WorkingSet, "container_memory_rss": u.RSS,
		"container_memory_cache": u.Cache, "container_memory_mapped_file": u.Mapped, "container_memory_swap": u.Swap, "container_threads": u.PIDs,
	} {
		m.add(name, labels, float64(v), time.Time{})
	}
	m.add("container_memory_failures_total", labels+`,failure_type="pgfault",scope="hierarchy"`, float64(u.Faults), time.Time{})
	m.add("container_memory_failures_total", labels+`,failure_type="pgmajfault",scope="hierarchy"`, float64(u.MajorFaults), time.Time{})
	for d, t := range u.Disks {
		labels := fmt.Sprintf("%s,device=%q", labels, device(d))
		m.add("container_fs_reads_total", labels, float64(t.Reads), time.Time{})
		m.add("container_fs_writes_total", labels, float64(t.Writes), time.Time{})
		m.add("container_fs_reads_bytes_total", labels, float64(t.ReadBytes), time.Time{})
		m.add("container_fs_writes_bytes_total", labels, float64(t.WrittenBytes), time.Time{})
	}
}

// device is the name of a disk, by which dashboards choose (/dev/sda).
func device(d cgroups.Disk) string {
	numbers := fmt.Sprintf("%d:%d", d.Major, d.Minor)
	if target, err := os.Readlink("/sys/dev/block/" + numbers); err == nil {
		return "/dev/" + filepath.Base(target)
	}
	return numbers
}

func (m metrics) network(labels string, links []link) {
	for _, l := range links {
		labels := fmt.Sprintf("%s,interface=%q", labels, l.name)
		for direction, t := range map[string]traffic{"receive": l.received, "transmit": l.sent} {
			m.add("container_network_"+direction+"_bytes_total", labels, float64(t.bytes), time.Time{})
			m.add("container_network_"+direction+"_packets_total", labels, float64(t.packets), time.Time{})
			m.add("container_network_"+direction+"_errors_total", labels, float64(t.errors), time.Time{})
			m.add("container_network_"+direction+"_packets_dropped_total", labels, float64(t.dropped), time.Time{})
		}
	}
}
