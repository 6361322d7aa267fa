// Package stats tells what the node and its pods use: CPU, memory, network and
// disk. What the kernel knows of a pod is read from the pod's cgroup and its
// network namespace, what the runtime knows of a container is asked of it.
package stats

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/strake-io/strake/kubelet/cgroups"
)

// Config is where the figures come from.
type Config struct {
	NodeName string
	Boot     time.Time // of the machine
	RootDir  string    // a folder on the node's file system
	Runtime  cri.RuntimeService
	Images   cri.ImageManagerService
	Pods     func() []*corev1.Pod
	Cgroups  *cgroups.Manager
	// Sandbox is the process that holds the pod's network namespace; false: there is none.
	Sandbox func(ctx context.Context, p *corev1.Pod) (pid int, ok bool)
	// VolumesDir is the folder of a pod's volumes.
	VolumesDir func(*corev1.Pod) string
	LogsDir    func(*corev1.Pod) string
}

// Summary is the answer of /stats/summary.
func (c Config) Summary(ctx context.Context) (*statsapi.Summary, error) {
	now := metav1.Now()
	node, err := c.node(ctx, now)
	if err != nil {
		return nil, err
	}
	s := &statsapi.Summary{Node: *node, Pods: []statsapi.PodStats{}}
	containers, err := c.containers(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range c.Pods() {
		ps := statsapi.PodStats{PodRef: statsapi.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)}, StartTime: p.CreationTimestamp}
		if p.Status.StartTime != nil {
			ps.StartTime = *p.Status.StartTime
		}
		if g, err := c.Cgroups.PodUsage(p); err == nil {
			ps.CPU = &statsapi.CPUStats{Time: now, UsageCoreNanoSeconds: &g.CPU}
			ps.Memory = &statsapi.MemoryStats{Time: now, UsageBytes: &g.Memory, WorkingSetBytes: &g.WorkingSet, RSSBytes: &g.RSS}
			ps.ProcessStats = &statsapi.ProcessStats{ProcessCount: &g.PIDs}
		}
		used := uint64(0)
		for _, st := range containers[string(p.UID)] {
			cs := containerStats(st)
			cs.StartTime = startTime(p, cs.Name)
			if cs.Rootfs != nil && cs.Rootfs.UsedBytes != nil {
				used += *cs.Rootfs.UsedBytes
			}
			ps.Containers = append(ps.Containers, cs)
		}
		slices.SortFunc(ps.Containers, func(a, b statsapi.ContainerStats) int { return strings.Compare(a.Name, b.Name) })
		used += DiskUsage(c.VolumesDir(p)) + DiskUsage(c.LogsDir(p))
		ps.EphemeralStorage = &statsapi.FsStats{Time: now, UsedBytes: &used, AvailableBytes: node.Fs.AvailableBytes, CapacityBytes: node.Fs.CapacityBytes}
		if pid, ok := c.Sandbox(ctx, p); ok && !p.Spec.HostNetwork {
			if n, err := readNetwork(fmt.Sprintf("/proc/%d/net/dev", pid)); err == nil {
				ps.Network = network(n, now, "eth0")
			}
		}
		s.Pods = append(s.Pods, ps)
	}
	slices.SortFunc(s.Pods, func(a, b statsapi.PodStats) int {
		return strings.Compare(a.PodRef.Namespace+"/"+a.PodRef.Name, b.PodRef.Namespace+"/"+b.PodRef.Name)
	})
	return s, nil
}

// containers asks the runtime for what containers use, by their pod's UID.
func (c Config) containers(ctx context.Context) (map[string][]*runtimeapi.ContainerStats, error) {
	list, err := c.Runtime.ListContainerStats(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("statistics of containers: %w", err)
	}
	out := map[string][]*runtimeapi.ContainerStats{}
	for _, st := range list {
		if st.GetCpu().GetUsageCoreNanoSeconds() == nil && st.GetMemory().GetWorkingSetBytes() == nil {
			continue // it does not run
		}
		uid := st.GetAttributes().GetLabels()["io.kubernetes.pod.uid"]
		out[uid] = append(out[uid], st)
	}
	return out, nil
}

func value(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

func containerStats(st *runtimeapi.ContainerStats) statsapi.ContainerStats {
	out := statsapi.ContainerStats{Name: st.GetAttributes().GetLabels()["io.kubernetes.container.name"]}
	if cpu := st.GetCpu(); cpu != nil {
		out.CPU = &statsapi.CPUStats{Time: metav1.Unix(0, cpu.Timestamp), UsageCoreNanoSeconds: value(cpu.UsageCoreNanoSeconds), UsageNanoCores: value(cpu.UsageNanoCores)}
	}
	if m := st.GetMemory(); m != nil {
		out.Memory = &statsapi.MemoryStats{
			Time: metav1.Unix(0, m.Timestamp), WorkingSetBytes: value(m.WorkingSetBytes), UsageBytes: value(m.UsageBytes), AvailableBytes: value(m.AvailableBytes),
			RSSBytes: value(m.RssBytes), PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults),
		}
	}
	if m := out.Memory; m != nil && m.AvailableBytes != nil && *m.AvailableBytes == 0 && m.WorkingSetBytes != nil {
		m.AvailableBytes = nil // so containerd says that there is no limit
	}
	if l := st.GetWritableLayer(); l != nil {
		out.Rootfs = &statsapi.FsStats{Time: metav1.Unix(0, l.Timestamp), UsedBytes: value(l.UsedBytes), InodesUsed: value(l.InodesUsed)}
	}
	return out
}

// startTime is when a container started, by its status; zero: it is not known to run.
func startTime(p *corev1.Pod, name string) metav1.Time {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, st := range list {
			if st.Name == name && st.State.Running != nil {
				return st.State.Running.StartedAt
			}
		}
	}
	return metav1.Time{}
}

func (c Config) node(ctx context.Context, now metav1.Time) (*statsapi.NodeStats, error) {
	cpu, err := nodeCPU()
	if err != nil {
		return nil, err
	}
	mem, err := readMeminfo("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	n := &statsapi.NodeStats{NodeName: c.NodeName, StartTime: metav1.NewTime(c.Boot), CPU: &statsapi.CPUStats{Time: now, UsageCoreNanoSeconds: &cpu}}
	used, working, available := mem.Total-mem.Free, mem.WorkingSet(), mem.Available
	n.Memory = &statsapi.MemoryStats{Time: now, UsageBytes: &used, WorkingSetBytes: &working, AvailableBytes: &available}
	if n.Fs, err = fileSystem(c.RootDir, now); err != nil {
		return nil, err
	}
	if dir, err := c.ImageFS(ctx); err == nil {
		if fs, err := fileSystem(dir, now); err == nil {
			n.Runtime = &statsapi.RuntimeStats{ImageFs: fs}
		}
	}
	if links, err := readNetwork("/proc/self/net/dev"); err == nil {
		n.Network = network(links, now, "")
	}
	return n, nil
}

// ImageFS is the folder in which the runtime keeps images.
func (c Config) ImageFS(ctx context.Context) (string, error) {
	resp, err := c.Images.ImageFsInfo(ctx)
	if err != nil {
		return "", fmt.Errorf("file system of images: %w", err)
	}
	for _, fs := range resp.ImageFilesystems {
		if fs.GetFsId().GetMountpoint() != "" {
			return fs.FsId.Mountpoint, nil
		}
	}
	return "", fmt.Errorf("file system of images: the runtime names none")
}

func fileSystem(dir string, now metav1.Time) (*statsapi.FsStats, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, fmt.Errorf("file system of %s: %w", dir, err)
	}
	size := uint64(fs.Bsize)
	available, capacity, used := fs.Bavail*size, fs.Blocks*size, (fs.Blocks-fs.Bfree)*size
	inodes, free, inodesUsed := fs.Files, fs.Ffree, fs.Files-fs.Ffree
	return &statsapi.FsStats{Time: now, AvailableBytes: &available, CapacityBytes: &capacity, UsedBytes: &used, Inodes: &inodes, InodesFree: &free, InodesUsed: &inodesUsed}, nil
}

func network(links []link, now metav1.Time, first string) *statsapi.NetworkStats {
	n := &statsapi.NetworkStats{Time: now}
	for _, l := range links {
		i := statsapi.InterfaceStats{Name: l.name, RxBytes: &l.received.bytes, RxErrors: &l.received.errors, TxBytes: &l.sent.bytes, TxErrors: &l.sent.errors}
		n.Interfaces = append(n.Interfaces, i)
		if n.Name == "" && (i.Name == first || first == "") {
			n.InterfaceStats = i
		}
	}
	return n
}
