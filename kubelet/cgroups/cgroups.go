// Package cgroups keeps a cgroup for each pod, by the pod's quality of service,
// below the node's own cgroup. It works on cgroup v1, v2 and the hybrid of both.
package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubectl/pkg/util/qos"
)

const (
	minShares = 2
	cpuPeriod = 100_000 // microseconds
	minQuota  = 1_000
	sharesPer = 1024
	mountRoot = "/sys/fs/cgroup"
)

// Manager makes and removes pod cgroups.
type Manager struct {
	root   string // the node's cgroup, such as /strake-0123abcd
	memory int64  // of the machine, bytes
	tree   Tree
}

// Tree is where a machine's cgroups are.
type Tree struct {
	Root string // of the mounts
	V2   bool   // one tree with all controllers; otherwise a tree for each controller, and perhaps unified beside them
}

// Machine is the tree of this machine.
func Machine() Tree { return Tree{mountRoot, cgroups.IsCgroup2UnifiedMode()} }

// Hierarchies are the roots of all its trees.
func (t Tree) Hierarchies() []string {
	if t.V2 {
		return []string{t.Root}
	}
	entries, err := os.ReadDir(t.Root)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() { // names such as cpu,cpuacct are the folders, cpu a link to them
			out = append(out, filepath.Join(t.Root, e.Name()))
		}
	}
	return out
}

// Unified is the mount of cgroup2: the whole, or beside others; empty where there is none.
func (t Tree) Unified() string {
	if t.V2 {
		return t.Root
	}
	if dir := filepath.Join(t.Root, "unified"); exists(filepath.Join(dir, "cgroup.procs")) {
		return dir
	}
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// New returns a manager of the cgroups below root; memory is the machine's, by which the out-of-memory scores are set.
func New(root string, memory int64) *Manager {
	return &Manager{root: root, memory: memory, tree: Machine()}
}

// Tree is where the cgroups are.
func (m *Manager) Tree() Tree { return m.tree }

// UnifiedPath is the node's folder in the cgroup2 tree, the one that cgroup-BPF sees.
func UnifiedPath(root string) (mount, dir string) {
	mount = filepath.Join(mountRoot, "unified")
	if cgroups.IsCgroup2UnifiedMode() {
		mount = mountRoot
	}
	return mount, filepath.Join(mount, root)
}

// QOS is the pod's class: as its status says, or computed by the rules of the API.
func QOS(p *corev1.Pod) corev1.PodQOSClass { return qos.GetPodQOS(p) }

// PodPath is the path of the pod's cgroup, the parent of its containers' ones.
func (m *Manager) PodPath(p *corev1.Pod) string {
	switch QOS(p) {
	case corev1.PodQOSGuaranteed:
		return filepath.Join(m.root, "kubepods", "pod"+string(p.UID))
	case corev1.PodQOSBurstable:
		return filepath.Join(m.root, "kubepods", "burstable", "pod"+string(p.UID))
	}
	return filepath.Join(m.root, "kubepods", "besteffort", "pod"+string(p.UID))
}

// EnsurePod makes the pod's cgroup with its limits and returns its path, the parent of its containers' cgroups.
func (m *Manager) EnsurePod(p *corev1.Pod) (string, error) {
	path := m.PodPath(p)
	if err := m.ensure(path, podResources(p, m.tree.V2)); err != nil {
		return "", fmt.Errorf("cgroup %s: %w", path, err)
	}
	return path, nil
}

func (m *Manager) ensure(path string, r *cgroups.Resources) error {
	cm, err := manager.New(&cgroups.Cgroup{Path: path, Resources: r})
	if err == nil {
		err = cm.Apply(-1)
	}
	if err == nil {
		err = cm.Set(r)
	}
	if u := m.tree.Unified(); err == nil && !m.tree.V2 && u != "" {
		err = os.MkdirAll(filepath.Join(u, path), 0o755)
	}
	return err
}

// EnsureClasses gives the classes their part of the CPU: burstable pods together what they asked for, those of best
// effort what is left.
func (m *Manager) EnsureClasses(pods []*corev1.Pod) error {
	var asked int64
	for _, p := range pods {
		if QOS(p) == corev1.PodQOSBurstable && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			r := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
			asked += r.Cpu().MilliValue()
		}
	}
	return errors.Join(
		m.ensure(filepath.Join(m.root, "kubepods", "burstable"), cpuShare(shares(asked), m.tree.V2)),
		m.ensure(filepath.Join(m.root, "kubepods", "besteffort"), cpuShare(minShares, m.tree.V2)),
	)
}

func cpuShare(shares uint64, v2 bool) *cgroups.Resources {
	r := &cgroups.Resources{SkipDevices: true, CpuShares: shares}
	if v2 {
		r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(shares)
	}
	return r
}

// podResources are the limits of a whole pod.
func podResources(p *corev1.Pod, v2 bool) *cgroups.Resources {
	requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	limits := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{})
	r := cpuShare(shares(requests.Cpu().MilliValue()), v2)
	if limited(p, corev1.ResourceCPU) {
		r.CpuQuota, r.CpuPeriod = quota(limits.Cpu().MilliValue()), cpuPeriod
	}
	if limited(p, corev1.ResourceMemory) {
		r.Memory = limits.Memory().Value()
	}
	return r
}

// PodMemory is the limit of a whole pod's memory in bytes; 0: there is none.
func (m *Manager) PodMemory(p *corev1.Pod) int64 { return podResources(p, m.tree.V2).Memory }

// limited tells whether the pod, or every container of it, limits the resource: only then has the pod a limit.
func limited(p *corev1.Pod, name corev1.ResourceName) bool {
	if p.Spec.Resources != nil {
		if q, ok := p.Spec.Resources.Limits[name]; ok && !q.IsZero() {
			return true
		}
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for _, c := range list {
			if q, ok := c.Resources.Limits[name]; !ok || q.IsZero() {
				return false
			}
		}
	}
	return true
}

func shares(milliCPU int64) uint64 { return uint64(max(milliCPU*sharesPer/1000, minShares)) }

func quota(milliCPU int64) int64 { return max(milliCPU*cpuPeriod/1000, minQuota) }

// ContainerResources are the limits of one container.
func (m *Manager) ContainerResources(p *corev1.Pod, c *corev1.Container) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{
		CpuShares: int64(shares(c.Resources.Requests.Cpu().MilliValue())), OomScoreAdj: m.oomScore(p, c),
		MemoryLimitInBytes: c.Resources.Limits.Memory().Value(),
	}
	if c.Resources.Requests.Cpu().IsZero() {
		r.CpuShares = int64(shares(c.Resources.Limits.Cpu().MilliValue()))
	}
	if limit := c.Resources.Limits.Cpu(); !limit.IsZero() {
		r.CpuPeriod, r.CpuQuota = cpuPeriod, quota(limit.MilliValue())
	}
	if m.tree.V2 {
		r.Unified = map[string]string{"memory.oom.group": "1"} // one process out of memory ends the container
	}
	return r
}

// nodeCritical is the priority of system-node-critical (scheduling.k8s.io/v1).
const nodeCritical = 2_000_001_000

// oomScore says whom the kernel kills first when memory runs out: best effort, then burstable by how little they
// asked for, guaranteed and node-critical pods last ("Node out of memory behavior"). A sidecar is as precious as the
// most precious container that it serves.
func (m *Manager) oomScore(p *corev1.Pod, c *corev1.Container) int64 {
	if p.Spec.Priority != nil && *p.Spec.Priority >= nodeCritical {
		return -997
	}
	switch QOS(p) {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	score := func(c *corev1.Container) int64 {
		return min(max(1000-1000*c.Resources.Requests.Memory().Value()/max(m.memory, 1), 3), 999)
	}
	own := score(c)
	if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
		for i := range p.Spec.Containers {
			own = min(own, score(&p.Spec.Containers[i]))
		}
	}
	return own
}

// RemovePod removes the cgroups of a pod, whatever its class was; what still runs in them is killed.
func (m *Manager) RemovePod(uid types.UID) error {
	var errs []error
	for _, class := range []string{"", "burstable", "besteffort"} {
		errs = append(errs, m.remove(filepath.Join(m.root, "kubepods", class, "pod"+string(uid))))
	}
	return errors.Join(errs...)
}

// Usage is what the processes of a cgroup use.
type Usage struct {
	CPU                     uint64 // nanoseconds
	Memory, WorkingSet, RSS uint64 // bytes; WorkingSet is without what can be freed at once
	Cache, Mapped, Swap     uint64
	Faults, MajorFaults     uint64
	PIDs                    uint64
	// Of the periods in which there was something to run, how many ended with the limit reached, and how long there was to wait, in nanoseconds.
	Periods, Throttled, ThrottledTime uint64
	Disks                             map[Disk]Transfers
}

// Disk is a block device by its numbers.
type Disk struct{ Major, Minor uint64 }

// Transfers of a disk.
type Transfers struct{ Reads, Writes, ReadBytes, WrittenBytes uint64 }

// PodUsage reads a pod's cgroup.
func (m *Manager) PodUsage(p *corev1.Pod) (Usage, error) { return m.read(m.PodPath(p)) }

// ContainerPath is the path of the cgroup that the runtime makes for a container.
func (m *Manager) ContainerPath(p *corev1.Pod, id string) string {
	return filepath.Join(m.PodPath(p), id)
}

// ContainerUsage reads a container's cgroup. Where there is none, cgroup v1 would tell of zeros.
func (m *Manager) ContainerUsage(p *corev1.Pod, id string) (Usage, error) {
	path := m.ContainerPath(p, id)
	if !slices.ContainsFunc(m.tree.Hierarchies(), func(h string) bool { return exists(filepath.Join(h, path)) }) {
		return Usage{}, fmt.Errorf("cgroup %s: %w", path, fs.ErrNotExist)
	}
	return m.read(path)
}

func (m *Manager) read(path string) (Usage, error) {
	cm, err := manager.New(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{}})
	if err != nil {
		return Usage{}, fmt.Errorf("cgroup %s: %w", path, err)
	}
	st, err := cm.GetStats()
	if err != nil {
		return Usage{}, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return usage(st, m.tree.V2), nil
}

func usage(st *cgroups.Stats, v2 bool) Usage {
	mem, cpu := st.MemoryStats, st.CpuStats.ThrottlingData
	u := Usage{
		CPU: st.CpuStats.CpuUsage.TotalUsage, Memory: mem.Usage.Usage, PIDs: st.PidsStats.Current,
		Periods: cpu.Periods, Throttled: cpu.ThrottledPeriods, ThrottledTime: cpu.ThrottledTime, Disks: map[Disk]Transfers{},
	}
	prefix, rss, cache, mapped := "total_", "rss", "cache", "mapped_file"
	if v2 {
		prefix, rss, cache, mapped = "", "anon", "file", "file_mapped"
		u.Swap = mem.SwapOnlyUsage.Usage
	} else {
		u.Swap = mem.Stats["total_swap"]
	}
	u.RSS, u.Cache, u.Mapped = mem.Stats[prefix+rss], mem.Stats[prefix+cache], mem.Stats[prefix+mapped]
	u.Faults, u.MajorFaults = mem.Stats[prefix+"pgfault"], mem.Stats[prefix+"pgmajfault"]
	u.WorkingSet = u.Memory - min(mem.Stats[prefix+"inactive_file"], u.Memory)
	count := func(list []cgroups.BlkioStatEntry, reads, writes func(*Transfers) *uint64) {
		for _, e := range list {
			d := Disk{e.Major, e.Minor}
			t := u.Disks[d]
			switch e.Op {
			case "Read":
				*reads(&t) += e.Value
			case "Write":
				*writes(&t) += e.Value
			}
			u.Disks[d] = t
		}
	}
	count(st.BlkioStats.IoServicedRecursive, func(t *Transfers) *uint64 { return &t.Reads }, func(t *Transfers) *uint64 { return &t.Writes })
	count(st.BlkioStats.IoServiceBytesRecursive, func(t *Transfers) *uint64 { return &t.ReadBytes }, func(t *Transfers) *uint64 { return &t.WrittenBytes })
	return u
}

// Pods lists the UIDs that have cgroups.
func (m *Manager) Pods() []types.UID {
	seen := map[types.UID]bool{}
	var out []types.UID
	for _, h := range m.tree.Hierarchies() {
		for _, class := range []string{"", "burstable", "besteffort"} {
			entries, err := os.ReadDir(filepath.Join(h, m.root, "kubepods", class))
			if err != nil {
				continue
			}
			for _, e := range entries {
				if uid, ok := strings.CutPrefix(e.Name(), "pod"); ok && !seen[types.UID(uid)] {
					seen[types.UID(uid)] = true
					out = append(out, types.UID(uid))
				}
			}
		}
	}
	return out
}

// RemoveAll removes the node's whole subtree, killing what is in it.
func (m *Manager) RemoveAll() error { return m.remove(m.root) }

func (m *Manager) remove(path string) error {
	var errs []error
	for _, h := range m.tree.Hierarchies() {
		errs = append(errs, removeTree(filepath.Join(h, path)))
	}
	return errors.Join(errs...)
}

// removeTree removes a cgroup and those below it, the innermost first. A cgroup is busy until the last of its
// processes is reaped, so it is tried for a while.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		for try := 0; ; try++ {
			kill(dirs[i])
			err := unix.Rmdir(dirs[i])
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if try == 100 {
				return fmt.Errorf("remove cgroup %s: %w", dirs[i], err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

func kill(dir string) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return
	}
	for _, f := range strings.Fields(string(data)) {
		var pid int
		if _, err := fmt.Sscan(f, &pid); err == nil && pid > 1 && pid != os.Getpid() {
			_ = unix.Kill(pid, unix.SIGKILL) // it may be gone already
		}
	}
}
