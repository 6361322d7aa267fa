package cgroups

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// container makes one of "cpu request, cpu limit, memory request, memory limit"; empty: not set.
func container(values ...string) corev1.Container {
	c := corev1.Container{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}}
	for i, v := range values {
		if v == "" {
			continue
		}
		list := c.Resources.Requests
		if i%2 == 1 {
			list = c.Resources.Limits
		}
		list[[]corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}[i/2]] = resource.MustParse(v)
	}
	return c
}

func pod(cs ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Spec: corev1.PodSpec{Containers: cs}}
}

func TestPodResources(t *testing.T) {
	for name, c := range map[string]struct {
		pod                    *corev1.Pod
		class                  corev1.PodQOSClass
		shares, weight         uint64
		quota, memory, oomOf1G int64
		path                   string
	}{
		"nothing asked":           {pod(container()), corev1.PodQOSBestEffort, 2, 1, 0, 0, 1000, "/n/kubepods/besteffort/podu"},
		"guaranteed":              {pod(container("500m", "500m", "64Mi", "64Mi")), corev1.PodQOSGuaranteed, 512, 59, 50_000, 64 << 20, -997, "/n/kubepods/podu"},
		"burstable":               {pod(container("1", "2", "256Mi", "")), corev1.PodQOSBurstable, 1024, 100, 200_000, 0, 750, "/n/kubepods/burstable/podu"},
		"one without a limit":     {pod(container("100m", "100m", "1Mi", "1Mi"), container()), corev1.PodQOSBurstable, 102, 17, 0, 0, 999, "/n/kubepods/burstable/podu"},
		"tiny":                    {pod(container("1m", "1m", "", "")), corev1.PodQOSBurstable, 2, 1, 1000, 0, 999, "/n/kubepods/burstable/podu"},
		"asks for all the memory": {pod(container("", "", "1Gi", "")), corev1.PodQOSBurstable, 2, 1, 0, 0, 3, "/n/kubepods/burstable/podu"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &Manager{root: "/n", memory: 1 << 30}
			if got := QOS(c.pod); got != c.class {
				t.Errorf("class %s, want %s", got, c.class)
			}
			v1, v2 := podResources(c.pod, false), podResources(c.pod, true)
			if v1.CpuShares != c.shares || v1.CpuWeight != 0 || v1.CpuQuota != c.quota || v1.Memory != c.memory {
				t.Errorf("v1: shares %d weight %d quota %d memory %d", v1.CpuShares, v1.CpuWeight, v1.CpuQuota, v1.Memory)
			}
			if v2.CpuWeight != c.weight || v2.CpuQuota != c.quota || v2.Memory != c.memory {
				t.Errorf("v2: weight %d quota %d memory %d", v2.CpuWeight, v2.CpuQuota, v2.Memory)
			}
			if got := m.PodPath(c.pod); got != c.path {
				t.Errorf("path %s, want %s", got, c.path)
			}
			if got := m.ContainerResources(c.pod, &c.pod.Spec.Containers[0]).OomScoreAdj; got != c.oomOf1G {
				t.Errorf("out-of-memory score %d, want %d", got, c.oomOf1G)
			}
		})
	}
}

func TestContainerResources(t *testing.T) {
	c := container("", "250m", "", "32Mi")
	p := pod(c)
	v1 := (&Manager{memory: 1 << 30}).ContainerResources(p, &c)
	if v1.CpuShares != 256 || v1.CpuQuota != 25_000 || v1.CpuPeriod != 100_000 || v1.MemoryLimitInBytes != 32<<20 || len(v1.Unified) != 0 {
		t.Errorf("v1 %+v", v1)
	}
	v2 := (&Manager{memory: 1 << 30, tree: Tree{V2: true}}).ContainerResources(p, &c)
	if v2.Unified["memory.oom.group"] != "1" {
		t.Errorf("v2 %+v", v2)
	}
}

func TestOOMScores(t *testing.T) {
	m := &Manager{memory: 1 << 30}
	always := corev1.ContainerRestartPolicyAlways
	side := container("", "", "1Mi", "")
	side.RestartPolicy = &always
	p := pod(container("", "", "512Mi", ""))
	p.Spec.InitContainers = []corev1.Container{side}
	if got := m.oomScore(p, &side); got != 500 {
		t.Errorf("sidecar %d, want that of its container, 500", got)
	}
	for priority, want := range map[int32]int64{2_000_000_000: 500, 2_000_001_000: -997} {
		p.Spec.Priority = &priority
		if got := m.oomScore(p, &p.Spec.Containers[0]); got != want {
			t.Errorf("priority %d: %d, want %d", priority, got, want)
		}
	}
}

// The trees of cgroup v1, v2 and of both, as folders.
func TestLayouts(t *testing.T) {
	mkdirs := func(paths ...string) string {
		dir := t.TempDir()
		for _, p := range paths {
			if err := os.MkdirAll(filepath.Join(dir, p), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	v1 := mkdirs("cpu,cpuacct/n/kubepods/burstable/podb", "memory/n/kubepods/podg", "memory/n/kubepods/besteffort/pode")
	if err := os.Symlink("cpu,cpuacct", filepath.Join(v1, "cpu")); err != nil {
		t.Fatal(err)
	}
	hybrid := mkdirs("cpu/n/kubepods/burstable/podb", "memory/n/kubepods/podg", "unified/n/kubepods/besteffort/pode")
	if err := os.WriteFile(filepath.Join(hybrid, "unified", "cgroup.procs"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	v2 := mkdirs("n/kubepods/burstable/podb", "n/kubepods/podg", "n/kubepods/besteffort/pode", "system.slice")
	for name, c := range map[string]struct {
		tree        Tree
		hierarchies []string
		unified     string
	}{
		"v1":     {Tree{v1, false}, []string{v1 + "/cpu,cpuacct", v1 + "/memory"}, ""},
		"hybrid": {Tree{hybrid, false}, []string{hybrid + "/cpu", hybrid + "/memory", hybrid + "/unified"}, hybrid + "/unified"},
		"v2":     {Tree{v2, true}, []string{v2}, v2},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.tree.Hierarchies(); !slices.Equal(got, c.hierarchies) {
				t.Errorf("hierarchies %q, want %q", got, c.hierarchies)
			}
			if got := c.tree.Unified(); got != c.unified {
				t.Errorf("unified %q, want %q", got, c.unified)
			}
			m := &Manager{root: "/n", tree: c.tree}
			got := m.Pods()
			slices.Sort(got)
			if want := []types.UID{"b", "e", "g"}; !slices.Equal(got, want) {
				t.Errorf("pods %q, want %q", got, want)
			}
			if err := m.RemovePod("b"); err != nil {
				t.Error(err)
			}
			if slices.Contains(m.Pods(), "b") {
				t.Error("pod b is still there")
			}
		})
	}
}

// On the machine itself: limits get where they belong, and all goes away.
func TestEnsurePod(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root")
	}
	m := New("/strake-cgroups-test", 1<<30)
	t.Cleanup(func() {
		if err := m.RemoveAll(); err != nil {
			t.Error(err)
		}
		for _, h := range m.tree.Hierarchies() {
			if exists(filepath.Join(h, m.root)) {
				t.Errorf("%s is left in %s", m.root, h)
			}
		}
	})
	p := pod(container("1", "2", "64Mi", "64Mi"))
	path, err := m.EnsurePod(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.EnsureClasses([]*corev1.Pod{p}); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"cpu" + path + "/cpu.shares": "1024", "cpu" + path + "/cpu.cfs_quota_us": "200000", "memory" + path + "/memory.limit_in_bytes": "67108864",
		"cpu" + m.root + "/kubepods/burstable/cpu.shares": "1024", "cpu" + m.root + "/kubepods/besteffort/cpu.shares": "2",
	}
	if m.tree.V2 {
		files = map[string]string{path[1:] + "/cpu.weight": "100", path[1:] + "/cpu.max": "200000 100000", path[1:] + "/memory.max": "67108864"}
	}
	for file, want := range files {
		data, err := os.ReadFile(filepath.Join(m.tree.Root, file))
		if got := strings.TrimSpace(string(data)); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", file, got, err, want)
		}
	}
	if u := m.tree.Unified(); u != "" && !exists(filepath.Join(u, path)) {
		t.Errorf("%s is not in the cgroup2 tree", path)
	}
}
