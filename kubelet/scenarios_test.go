package kubelet_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/strake-io/strake/kubelet/changes"
	"github.com/strake-io/strake/kubelet/images"
	"github.com/strake-io/strake/kubelet/logrotate"
)

// All scenarios share a containerd.
func TestContainerd(t *testing.T) {
	m := start(t)
	for _, s := range []struct {
		name string
		run  func(*machine)
	}{
		{"exec", execScenario}, {"terminal", terminalScenario}, {"attach", attachScenario}, {"port-forward", portForwardScenario}, {"logs", logsScenario}, {"rotation", rotationScenario},
		{"limits", limitsScenario}, {"out of memory", oomScenario}, {"end", endScenario}, {"hooks", hooksScenario}, {"subPath", subPathScenario}, {"secret", secretScenario},
		{"kubelet restart", restartScenario}, {"killed sandbox", sandboxScenario}, {"ephemeral", ephemeralScenario}, {"start error", startErrorScenario}, {"stats", statsScenario}, {"images", imagesScenario}, {"events", eventsScenario},
	} {
		if !t.Run(s.name, func(t *testing.T) {
			old := m.t
			m.t = t
			defer func() { m.t = old }()
			s.run(m)
		}) {
			return // what comes after would only tell of the same
		}
	}
}

func logsScenario(m *machine) {
	m.create("logs", "echo out; echo err >&2; [ -e /tmp/again ] && sleep 1000; exit 1", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/tmp"}}
		p.Spec.Containers[0].Command[2] = "echo out $(ls /tmp); echo err >&2; [ -e /tmp/again ] && sleep 1000; echo > /tmp/again; exit 1"
	}, func(p *corev1.Pod) bool { return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
	defer m.remove("logs", 0)
	m.eventually("the log is written", func() bool { return strings.Contains(m.fetch("/containerLogs/default/logs/c"), "err\n") })
	if got := lines(m.fetch("/containerLogs/default/logs/c")); !slices.Contains(got, "out again") || !slices.Contains(got, "err") {
		m.t.Errorf("%q", got)
	}
	if got := lines(m.fetch("/containerLogs/default/logs/c?previous=true")); !slices.Contains(got, "out") {
		m.t.Errorf("previous: %q", got)
	}
}

// No line is lost over a rotation.
func rotationScenario(m *machine) {
	p := m.create("rotate", "i=0; while :; do i=$((i+1)); echo line $i; done", nil, ready)
	r := logrotate.Rotator{Runtime: m.cri, MaxSize: 20_000, MaxFiles: 3}
	dir := filepath.Join(m.pods.LogsOf(p), "c")
	m.eventually("logs are rotated three times", func() bool {
		if err := r.Rotate(m.t.Context()); err != nil {
			m.t.Error(err)
		}
		files, err := os.ReadDir(dir)
		if err != nil {
			m.t.Fatal(err)
		}
		if len(files) > 3 {
			m.t.Fatalf("%d files", len(files))
		}
		return len(files) == 3 && slices.ContainsFunc(files, func(f os.DirEntry) bool { return strings.HasSuffix(f.Name(), ".gz") })
	})
	// The newest two belong together.
	files, err := filepath.Glob(dir + "/0.log.*[0-9]")
	if err != nil || len(files) != 1 {
		m.t.Fatalf("%q, %v", files, err)
	}
	// containerd finishes the old log after it opened the new one, and may cut a line in two there.
	var wrong string
	defer func() {
		if m.t.Failed() {
			m.t.Log(wrong)
		}
	}()
	m.eventually("the old log goes on in the new one", func() bool {
		var both strings.Builder
		for _, f := range []string{files[0], dir + "/0.log"} {
			data, err := os.ReadFile(f)
			if err != nil {
				m.t.Fatal(err)
			}
			both.WriteString(logText(string(data)))
		}
		wrong = gap(both.String())
		return wrong == ""
	})
	m.remove("rotate", 0)
}

// logText is what a container wrote, of its log in CRI's format: a line with the tag P goes on in the next one.
func logText(log string) string {
	var text strings.Builder
	for line := range strings.Lines(log) {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) < 4 {
			break // being written
		}
		if fields[2] == "P" {
			fields[3] = strings.TrimSuffix(fields[3], "\n")
		}
		text.WriteString(fields[3])
	}
	return text.String()
}

// gap says where "line N" isn't followed by "line N+1". The first and last lines may be cut.
func gap(text string) string {
	all := strings.Split(text, "\n")
	if len(all) < 4 {
		return fmt.Sprintf("only %q", all)
	}
	for i := 2; i < len(all)-1; i++ {
		var n int
		if _, err := fmt.Sscanf(all[i-1], "line %d", &n); err != nil || all[i] != fmt.Sprintf("line %d", n+1) {
			return fmt.Sprintf("%q is followed by %q", all[i-1], all[i])
		}
	}
	return ""
}

func limitsScenario(m *machine) {
	p := m.create("limits", "sleep 1000", func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("16Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
		}
	}, ready)
	id := strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://")
	pod := m.pods.Cgroups.PodPath(p)
	files := map[string]string{
		"cpu" + pod + "/cpu.cfs_quota_us": "50000", "memory" + pod + "/memory.limit_in_bytes": "33554432", "cpu" + pod + "/" + id + "/cpu.shares": "256",
		"cpu" + pod + "/" + id + "/cpu.cfs_quota_us": "50000", "memory" + pod + "/" + id + "/memory.limit_in_bytes": "33554432",
	}
	tree := m.pods.Cgroups.Tree()
	if tree.V2 {
		files = map[string]string{pod[1:] + "/cpu.max": "50000 100000", pod[1:] + "/memory.max": "33554432", pod[1:] + "/" + id + "/memory.max": "33554432"}
	}
	for f, want := range files {
		data, err := os.ReadFile(filepath.Join(tree.Root, f))
		if got := strings.TrimSpace(string(data)); err != nil || got != want {
			m.t.Errorf("%s: %q, %v, want %q", f, got, err, want)
		}
	}
	m.remove("limits", 0)
	for _, h := range tree.Hierarchies() {
		if _, err := os.Stat(filepath.Join(h, pod)); err == nil {
			m.t.Errorf("%s is left in %s", pod, h)
		}
	}
}

func oomScenario(m *machine) {
	p := m.create("oom", "tail /dev/zero", func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("24Mi")}
	}, phase(corev1.PodFailed))
	defer m.remove("oom", 0)
	if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 137 || s.Reason != "OOMKilled" {
		m.t.Errorf("%+v", s)
	}
}

func endScenario(m *machine) {
	p := m.create("message", "echo the reason > /dev/termination-log; exit 7", func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever }, phase(corev1.PodFailed))
	if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 7 || s.Message != "the reason\n" || s.Reason != "Error" {
		m.t.Errorf("%+v", s)
	}
	m.remove("message", 0)
	p = m.create("lastlog", "echo first; echo last words >&2; exit 7", func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Spec.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
	}, phase(corev1.PodFailed))
	defer m.remove("lastlog", 0)
	if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || !strings.Contains(s.Message, "last words") {
		m.t.Errorf("%+v", s)
	}
}

func hooksScenario(m *machine) {
	m.create("hooks", `trap 'echo term >> /v/log; exit 0' TERM; while :; do sleep 0.05; done`, func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: m.dir + "/hooks"}}}}
		c := &p.Spec.Containers[0]
		c.VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
		run := func(s string) *corev1.LifecycleHandler {
			return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", s}}}
		}
		c.Lifecycle = &corev1.Lifecycle{PostStart: run("echo started >> /v/log"), PreStop: run("echo stopping >> /v/log")}
	}, ready)
	m.remove("hooks", 30)
	if data, err := os.ReadFile(m.dir + "/hooks/log"); err != nil || string(data) != "started\nstopping\nterm\n" {
		m.t.Errorf("%q, %v", data, err)
	}
}

// A link inside of a volume leads nowhere else, whatever it says.
func subPathScenario(m *machine) {
	m.create("subpath", "echo $(ls /mnt) : $(cat /one); sleep 1000", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: busybox, Command: []string{"sh", "-c", "ln -s / /v/escape; echo text > /v/file"}, VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/mnt", SubPath: "escape/etc"}, {Name: "v", MountPath: "/one", SubPath: "file"}}
	}, ready)
	defer m.remove("subpath", 0)
	m.eventually("the log is written", func() bool { return m.fetch("/containerLogs/default/subpath/c") != "" })
	if got := m.fetch("/containerLogs/default/subpath/c"); got != ": text\n" {
		m.t.Errorf("the container sees %q", got)
	}
}

func secretScenario(m *machine) {
	if err := m.client.Tracker().Add(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"}, Data: map[string][]byte{"k": []byte("word")}}); err != nil {
		m.t.Fatal(err)
	}
	p := m.create("secret", "cat /s/k; echo; sleep 1000", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "s", MountPath: "/s", ReadOnly: true}}
	}, ready)
	m.eventually("it is read", func() bool { return m.fetch("/containerLogs/default/secret/c") == "word\n" })
	if kind := strings.TrimSpace(m.sh(`stat -f -c %%T %s/volumes/s`, m.pods.Volumes.PodDir(p.UID))); kind != "tmpfs" {
		m.t.Errorf("the secret lies on %s", kind)
	}
	m.remove("secret", 0)
	if out := m.sh("grep -c %s /proc/self/mounts || true", p.UID); strings.TrimSpace(out) != "0" {
		m.t.Errorf("%s mounts are left", out)
	}
}

// A new kubelet takes over what runs.
func restartScenario(m *machine) {
	before := m.create("restart", "sleep 1000", nil, ready).Status.ContainerStatuses[0]
	m.stop()
	m.startKubelet()
	m.srv.Close()
	m.serve()
	m.create("other", "sleep 1000", nil, ready) // the new one works
	after := m.get("restart").Status.ContainerStatuses[0]
	if after.ContainerID != before.ContainerID || after.RestartCount != 0 || !after.Ready {
		m.t.Errorf("before %+v, after %+v", before, after)
	}
	m.remove("restart", 0)
	m.remove("other", 0)
}

func sandboxScenario(m *machine) {
	p := m.create("sandbox", "sleep 1000", nil, ready)
	id, ok := m.pods.SandboxID(m.t.Context(), p.UID)
	if !ok {
		m.t.Fatal("no sandbox")
	}
	if err := m.cri.StopPodSandbox(m.t.Context(), id); err != nil {
		m.t.Fatal(err)
	}
	// The container may be restarted in the dying sandbox before it is in the new one.
	m.wait("sandbox", func(p *corev1.Pod) bool {
		now, ok := m.pods.SandboxID(m.t.Context(), p.UID)
		return ok && now != id && ready(p) && p.Status.ContainerStatuses[0].RestartCount >= 1
	})
	m.remove("sandbox", 0)
}

func ephemeralScenario(m *machine) {
	m.create("debugged", "sleep 1000", func(p *corev1.Pod) {
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{TargetContainerName: "c", EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: busybox, Command: []string{"sh", "-c", "cat /proc/1/cmdline | head -c 5; echo; sleep 1000"}}}}
	}, func(p *corev1.Pod) bool {
		return ready(p) && len(p.Status.EphemeralContainerStatuses) == 1 && p.Status.EphemeralContainerStatuses[0].State.Running != nil
	})
	m.eventually("it sees the processes of its target", func() bool { return m.fetch("/containerLogs/default/debugged/debug") == "sleep\n" })
	m.remove("debugged", 0)
}

func startErrorScenario(m *machine) {
	m.create("nofile", "", func(p *corev1.Pod) { p.Spec.Containers[0].Command = []string{"/no/such/file"} }, func(p *corev1.Pod) bool {
		if len(p.Status.ContainerStatuses) == 0 {
			return false
		}
		s := p.Status.ContainerStatuses[0]
		return s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff" && s.LastTerminationState.Terminated != nil && s.LastTerminationState.Terminated.Reason == "StartError" &&
			strings.Contains(s.LastTerminationState.Terminated.Message, "/no/such/file")
	})
	m.remove("nofile", 0)
}

func statsScenario(m *machine) {
	m.create("stats", "while :; do :; done", func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi")}
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "true"}}}, TimeoutSeconds: 60, PeriodSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3}
	}, ready)
	defer m.remove("stats", 0)
	m.eventually("it is told what the pod uses", func() bool {
		s, err := m.stats.Summary(m.t.Context())
		if err != nil {
			m.t.Fatal(err)
		}
		if s.Node.Memory == nil || s.Node.Fs == nil || s.Node.Runtime == nil || len(s.Pods) != 1 {
			m.t.Fatalf("%+v", s)
		}
		p := s.Pods[0]
		return p.PodRef.Name == "stats" && len(p.Containers) == 1 && p.Containers[0].Name == "c" && *p.CPU.UsageCoreNanoSeconds > 0 && *p.Memory.WorkingSetBytes > 0 &&
			*p.Containers[0].CPU.UsageCoreNanoSeconds > 0 && *p.Containers[0].Memory.WorkingSetBytes > 0 && p.Containers[0].Rootfs != nil
	})
	text := m.fetch("/metrics/resource")
	for _, want := range []string{`container_cpu_usage_seconds_total{container="c",namespace="default",pod="stats"}`, `pod_memory_working_set_bytes{namespace="default",pod="stats"}`, "node_cpu_usage_seconds_total ", "resource_scrape_error 0"} {
		if !strings.Contains(text, want) {
			m.t.Errorf("%s is not in\n%s", want, text)
		}
	}
	m.eventually("it is told that the container is slowed down", func() bool {
		return m.figure("/metrics/cadvisor", "container_cpu_cfs_throttled_seconds_total", `container="c"`) > 0
	})
	for _, f := range [][2]string{
		{"machine_cpu_cores", ""}, {"container_cpu_usage_seconds_total", `id="/"`}, {"container_memory_working_set_bytes", `id="/"`},
		{"container_cpu_usage_seconds_total", `container="c"`}, {"container_memory_working_set_bytes", `container="c"`}, {"container_memory_rss", `container="c"`},
		{"container_start_time_seconds", `container="c"`}, {"container_spec_cpu_quota", `container="c"`}, {"container_threads", `container="c"`},
		{"container_cpu_usage_seconds_total", `container="",id="` + m.pods.Cgroups.PodPath(m.pods.List()[0]) + `"`},
	} {
		if v := m.figure("/metrics/cadvisor", f[0], f[1]); v <= 0 {
			m.t.Errorf("%s{%s} is %v", f[0], f[1], v)
		}
	}
	if v := m.figure("/metrics/cadvisor", "container_spec_memory_limit_bytes", `container="c"`); v != 64<<20 {
		m.t.Errorf("the limit of memory is told to be %v", v)
	}
	if v := m.figure("/metrics/probes", "prober_probe_total", `result="successful"`); v < 1 {
		m.t.Errorf("%v probes have succeeded", v)
	}
}

// figure is what the kubelet tells at a path of the first subject with these labels; -1: nothing.
func (m *machine) figure(path, name, labels string) float64 {
	m.t.Helper()
	for _, line := range strings.Split(m.fetch(path), "\n") {
		of, value, _ := strings.Cut(line, " ")
		if of == name || strings.HasPrefix(of, name+"{") && strings.Contains(of, labels) {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				m.t.Fatalf("%s: %v", line, err)
			}
			return v
		}
	}
	return -1
}

// What is used, and what sandboxes are made of, stays.
func imagesScenario(m *machine) {
	m.create("user", "sleep 1000", nil, ready)
	defer m.remove("user", 0)
	m.sh(`ctr --address %[1]s/c.sock --namespace k8s.io images import --base-name x %[1]s/i/image.tar >/dev/null; sed s/PATH=/OTHER=/ %[1]s/i/a.json > %[1]s/i/u.json; cd %[1]s/i
printf '[{"Config":"u.json","RepoTags":["strake.io/unused:1"],"Layers":["layer.tar"]}]' > manifest.json; tar -cf unused.tar layer.tar u.json manifest.json; ctr --address %[1]s/c.sock --namespace k8s.io images import unused.tar`, m.dir)
	has := func(name string) bool {
		resp, err := m.images.ImageStatus(m.t.Context(), &runtimeapi.ImageSpec{Image: name}, false)
		return err == nil && resp.Image != nil
	}
	m.eventually("the image is there", func() bool { return has("strake.io/unused:1") })
	if err := images.New(m.cri, m.images, m.stats.ImageFS).All(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
	if has("strake.io/unused:1") || !has(busybox) || !has(pause) {
		m.t.Errorf("unused %v, busybox %v, pause %v", has("strake.io/unused:1"), has(busybox), has(pause))
	}
}

// The end of a container is heard.
func eventsScenario(m *machine) {
	ctx, cancel := context.WithCancel(m.t.Context())
	ended, live := make(chan string, 100), make(chan struct{})
	var once sync.Once
	done := make(chan error, 1)
	go func() {
		done <- changes.Listen(ctx, m.cri, m.endpoint, changes.Listener{Ended: func(id string) { ended <- id }, Live: func(on bool) {
			if on {
				once.Do(func() { close(live) })
			}
		}})
	}()
	<-live
	p := m.create("short", "exit 0", func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever }, phase(corev1.PodSucceeded))
	want := strings.TrimPrefix(p.Status.ContainerStatuses[0].ContainerID, "containerd://")
	m.eventually("the end of "+want+" is heard", func() bool { return <-ended == want })
	m.remove("short", 0)
	cancel()
	if err := <-done; err != nil {
		m.t.Error(err)
	}
}
