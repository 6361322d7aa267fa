// Package cgroups keeps a cgroup for each pod, by the pod's quality of service,
// below the node's own cgroup. It works on cgroup v1, v2 and the hybrid of both.
package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	minShares   = 2
	cpuPeriod   = 100_000 // microseconds
	minQuota    = 1_000
	sharesPer   = 1024
	unifiedRoot = "/sys/fs/cgroup/unified"
)

// Manager makes and removes pod cgroups.
type Manager struct {
	root    string // the node's cgroup, such as /strake-0123abcd
	unified string // cgroup2 mount beside v1 hierarchies; empty where there is none
	memory  int64  // of the machine, bytes
}

// New returns a manager of the cgroups below root; memory is the machine's, by which the out-of-memory scores are set.
func New(root string, memory int64) *Manager {
	m := &Manager{root: root, memory: memory}
	if !cgroups.IsCgroup2UnifiedMode() {
		if _, err := os.Stat(unifiedRoot + "/cgroup.procs"); err == nil {
			m.unified = unifiedRoot
		}
	}
	return m
}

// UnifiedPath is the node's folder in the cgroup2 tree, the one that cgroup-BPF sees.
func UnifiedPath(root string) (mount, dir string) {
	if cgroups.IsCgroup2UnifiedMode() {
		return "/sys/fs/cgroup", filepath.Join("/sys/fs/cgroup", root)
	}
	return unifiedRoot, filepath.Join(unifiedRoot, root)
}

// QOS is the pod's class: as its status says, or computed by the rules of the API.
func QOS(p *corev1.Pod) corev1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass
	}
	return corev1.PodQOSBestEffort
}

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
	r := &cgroups.Resources{SkipDevices: true}
	requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	limits := resourcehelper.PodLimits(p, resourcehelper.PodResourcesOptions{})
	cpu := requests[corev1.ResourceCPU]
	r.CpuShares = shares(cpu.MilliValue())
	if limited(p, corev1.ResourceCPU) {
		q := limits[corev1.ResourceCPU]
		r.CpuQuota, r.CpuPeriod = quota(q.MilliValue()), cpuPeriod
	}
	if limited(p, corev1.ResourceMemory) {
		q := limits[corev1.ResourceMemory]
		r.Memory = q.Value()
	}
	if cgroups.IsCgroup2UnifiedMode() {
		r.CpuWeight = 1 + ((r.CpuShares-2)*9999)/262142
	}
	cm, err := manager.New(&cgroups.Cgroup{Path: path, Resources: r})
	if err == nil {
		err = cm.Apply(-1)
	}
	if err == nil {
		err = cm.Set(r)
	}
	if err == nil && m.unified != "" {
		err = os.MkdirAll(filepath.Join(m.unified, path), 0o755)
	}
	if err != nil {
		return "", fmt.Errorf("cgroup %s: %w", path, err)
	}
	return path, nil
}

// limited tells whether every container limits the resource: only then has the pod a limit.
func limited(p *corev1.Pod, name corev1.ResourceName) bool {
	for _, c := range p.Spec.Containers {
		if q, ok := c.Resources.Limits[name]; !ok || q.IsZero() {
			return false
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
	return r
}

// oomScore says whom the kernel kills first when memory runs out: best effort, then burstable by how little they
// asked for, guaranteed and system-critical pods last ("Node out of memory behavior").
func (m *Manager) oomScore(p *corev1.Pod, c *corev1.Container) int64 {
	if p.Spec.Priority != nil && *p.Spec.Priority >= 2_000_000_000 {
		return -997
	}
	switch QOS(p) {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	return min(max(1000-1000*c.Resources.Requests.Memory().Value()/max(m.memory, 1), 3), 999)
}

// hierarchies are the roots of all cgroup trees, each with the node's folder in it.
func (m *Manager) hierarchies() []string {
	if cgroups.IsCgroup2UnifiedMode() {
		return []string{"/sys/fs/cgroup"}
	}
	entries, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, filepath.Join("/sys/fs/cgroup", e.Name()))
		}
	}
	return out
}

// RemovePod removes the cgroups of a pod, whatever its class was; what still runs in them is killed.
func (m *Manager) RemovePod(uid types.UID) error {
	var errs []error
	for _, class := range []string{"", "burstable", "besteffort"} {
		errs = append(errs, m.remove(filepath.Join(m.root, "kubepods", class, "pod"+string(uid))))
	}
	return errors.Join(errs...)
}

// Pods lists the UIDs that have cgroups.
func (m *Manager) Pods() []types.UID {
	seen := map[types.UID]bool{}
	var out []types.UID
	for _, h := range m.hierarchies() {
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
	for _, h := range m.hierarchies() {
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
