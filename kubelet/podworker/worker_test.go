package podworker

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/strake-io/strake/kubelet/cgroups"
	"github.com/strake-io/strake/kubelet/objects"
	"github.com/strake-io/strake/kubelet/podnet"
	"github.com/strake-io/strake/kubelet/volumes"
)

// lab is a kubelet between a fake runtime and a fake API, in the time of a synctest bubble.
type lab struct {
	t      *testing.T
	cri    *fakeCRI
	images *fakeImages
	client *fake.Clientset
	dir    string
	group  string // cgroup
	events *eventLog

	k    *Pods
	stop func()

	mu   sync.Mutex
	pods map[types.UID]*corev1.Pod
	rv   int
}

type eventLog struct {
	mu  sync.Mutex
	all []string
}

func (e *eventLog) Event(_ runtime.Object, kind, reason, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, kind+" "+reason+" "+message)
}

func (e *eventLog) Eventf(obj runtime.Object, kind, reason, format string, args ...any) {
	e.Event(obj, kind, reason, fmt.Sprintf(format, args...))
}

func (e *eventLog) AnnotatedEventf(obj runtime.Object, _ map[string]string, kind, reason, format string, args ...any) {
	e.Eventf(obj, kind, reason, format, args...)
}

func (e *eventLog) has(text string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.all, func(s string) bool { return strings.Contains(s, text) })
}

// inLab runs a test in a bubble with a kubelet.
func inLab(t *testing.T, f func(*lab)) {
	if os.Getuid() != 0 {
		t.Skip("needs root: pods have cgroups and mounts")
	}
	dir := t.TempDir()
	group := fmt.Sprintf("/strake-test-%d-%d", os.Getpid(), labs())
	t.Cleanup(func() {
		if err := cgroups.New(group, 1<<30).RemoveAll(); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		l := &lab{t: t, cri: newFakeCRI(), images: &fakeImages{have: map[string]*runtimeapi.Image{"have": {Id: "sha256:1", Username: ""}}}, client: fake.NewClientset(), dir: dir, group: group, events: &eventLog{}, pods: map[types.UID]*corev1.Pod{}}
		l.client.PrependReactor("patch", "pods", l.patched)
		l.client.PrependReactor("delete", "pods", l.removed)
		l.start()
		defer func() {
			l.stop()
			for uid := range l.pods {
				if err := l.k.Volumes.Teardown(uid); err != nil {
					t.Error(err)
				}
			}
		}()
		f(l)
	})
}

var labCount struct {
	sync.Mutex
	n int
}

func labs() int {
	labCount.Lock()
	defer labCount.Unlock()
	labCount.n++
	return labCount.n
}

// start starts a kubelet, as after a restart if there was one.
func (l *lab) start() {
	ctx, cancel := context.WithCancel(context.Background())
	k := &Pods{
		Client: l.client, RuntimeName: "containerd", Runtime: l.cri, Images: l.images, Recorder: l.events,
		Cgroups: cgroups.New(l.group, 1<<30), Net: podnet.Config{ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "cluster.local", ResolvConf: filepath.Join(l.dir, "resolv.conf")},
		Services: func() []*corev1.Service { return nil }, Allocatable: func() corev1.ResourceList { return nil }, HostIP: "198.18.0.2", LogsDir: filepath.Join(l.dir, "logs"),
	}
	k.Objects = objects.New(l.client, func(uids []types.UID) { k.Wake(uids...) })
	k.Volumes = volumes.New(filepath.Join(l.dir, "pods"), volumes.Sources{
		ConfigMap: func(ctx context.Context, p *corev1.Pod, name string) (*corev1.ConfigMap, error) {
			return k.Objects.ConfigMap(ctx, p.UID, p.Namespace, name)
		},
		Secret: func(ctx context.Context, p *corev1.Pod, name string) (*corev1.Secret, error) {
			return k.Objects.Secret(ctx, p.UID, p.Namespace, name)
		},
		Token: func(context.Context, *corev1.Pod, authenticationv1.TokenRequestSpec) (string, time.Time, error) {
			return "token", time.Now().Add(time.Hour), nil
		},
	})
	k.Init(ctx)
	l.k = k
	done := make(chan struct{})
	go func() { k.Run(ctx); close(done) }()
	l.mu.Lock()
	for _, p := range l.pods {
		k.Set(p.DeepCopy())
	}
	l.mu.Unlock()
	l.stop = func() {
		cancel()
		<-done
		for uid := range l.pods {
			k.Objects.Release(uid)
		}
		synctest.Wait()
	}
}

func (l *lab) patched(a clienttesting.Action) (bool, runtime.Object, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	patch := a.(clienttesting.PatchAction)
	for uid, p := range l.pods {
		if p.Name != patch.GetName() {
			continue
		}
		old, err := json.Marshal(p)
		if err != nil {
			return true, nil, err
		}
		data, err := strategicpatch.StrategicMergePatch(old, patch.GetPatch(), corev1.Pod{})
		if err != nil {
			return true, nil, err
		}
		next := &corev1.Pod{}
		if err := json.Unmarshal(data, next); err != nil {
			return true, nil, err
		}
		l.rv++
		next.ResourceVersion = fmt.Sprint(l.rv)
		l.pods[uid] = next
		go l.k.Set(next.DeepCopy())
		return true, next.DeepCopy(), nil
	}
	return true, nil, fmt.Errorf("no pod %s", patch.GetName())
}

func (l *lab) removed(a clienttesting.Action) (bool, runtime.Object, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for uid, p := range l.pods {
		if p.Name == a.(clienttesting.DeleteAction).GetName() {
			delete(l.pods, uid)
			go l.k.Gone(p)
		}
	}
	return true, nil, nil
}

// create makes a pod; containers without an image get one that is there.
func (l *lab) create(spec corev1.PodSpec) *corev1.Pod {
	l.t.Helper()
	if spec.RestartPolicy == "" {
		spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if list[i].Image == "" {
				list[i].Image = "have"
			}
		}
	}
	l.mu.Lock()
	l.rv++
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", l.rv), Namespace: "default", UID: types.UID(fmt.Sprintf("uid-%d", l.rv)), ResourceVersion: fmt.Sprint(l.rv)}, Spec: spec, Status: corev1.PodStatus{Phase: corev1.PodPending}}
	l.pods[p.UID] = p
	l.mu.Unlock()
	l.k.Set(p.DeepCopy())
	synctest.Wait()
	return p
}

// remove asks for a graceful end, as the API does.
func (l *lab) remove(p *corev1.Pod, grace int64) {
	l.mu.Lock()
	next := l.pods[p.UID].DeepCopy()
	l.rv++
	next.ResourceVersion = fmt.Sprint(l.rv)
	now := metav1.Now()
	next.DeletionTimestamp, next.DeletionGracePeriodSeconds = &now, &grace
	l.pods[p.UID] = next
	l.mu.Unlock()
	l.k.Set(next.DeepCopy())
	synctest.Wait()
}

// status is what the API has; nil: the object is gone.
func (l *lab) status(p *corev1.Pod) *corev1.PodStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.pods[p.UID]; p != nil {
		return p.Status.DeepCopy()
	}
	return nil
}

func (l *lab) wait(d time.Duration) { time.Sleep(d); synctest.Wait() }

func (l *lab) wantCalls(want ...string) {
	l.t.Helper()
	if got := l.cri.history(); !slices.Equal(got, want) {
		l.t.Errorf("calls\n got %q\nwant %q", got, want)
	}
}

func ready(s *corev1.PodStatus) bool {
	return slices.ContainsFunc(s.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func TestStart(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}, {Name: "b"}}})
		l.wantCalls("sandbox 0", "create a/0", "start a", "create b/0", "start b")
		s := l.status(p)
		if s.Phase != corev1.PodRunning || !ready(s) || s.PodIP != "10.0.0.7" || len(s.ContainerStatuses) != 2 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestInitContainers(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{InitContainers: []corev1.Container{{Name: "i"}, {Name: "j"}}, Containers: []corev1.Container{{Name: "a"}}})
		l.wantCalls("sandbox 0", "create i/0", "start i")
		if s := l.status(p); s.Phase != corev1.PodPending || s.ContainerStatuses[0].State.Waiting.Reason != "PodInitializing" {
			t.Errorf("before: %+v", s)
		}
		l.cri.exit("i", 1) // fails: it is tried again, at once the first time
		l.wait(time.Second)
		l.cri.exit("i", 0)
		l.wait(time.Second)
		l.cri.exit("j", 0)
		l.wait(time.Second)
		l.wantCalls("sandbox 0", "create i/0", "start i", "create i/1", "start i", "create j/0", "start j", "create a/0", "start a")
		if s := l.status(p); s.Phase != corev1.PodRunning || !ready(s) || s.InitContainerStatuses[0].RestartCount != 1 {
			t.Errorf("after: %+v", s)
		}
	})
}

func TestInitContainerFailsForGood(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, InitContainers: []corev1.Container{{Name: "i"}}, Containers: []corev1.Container{{Name: "a"}}})
		l.cri.exit("i", 3)
		l.wait(time.Second)
		l.wantCalls("sandbox 0", "create i/0", "start i", "stop-sandbox 0")
		if s := l.status(p); s.Phase != corev1.PodFailed || s.InitContainerStatuses[0].State.Terminated.ExitCode != 3 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy   corev1.RestartPolicy
		code     int32
		restarts bool
		phase    corev1.PodPhase
	}{
		{corev1.RestartPolicyAlways, 0, true, corev1.PodRunning},
		{corev1.RestartPolicyAlways, 1, true, corev1.PodRunning},
		{corev1.RestartPolicyOnFailure, 0, false, corev1.PodSucceeded},
		{corev1.RestartPolicyOnFailure, 1, true, corev1.PodRunning},
		{corev1.RestartPolicyNever, 0, false, corev1.PodSucceeded},
		{corev1.RestartPolicyNever, 1, false, corev1.PodFailed},
	} {
		t.Run(fmt.Sprintf("%s-%d", c.policy, c.code), func(t *testing.T) {
			inLab(t, func(l *lab) {
				p := l.create(corev1.PodSpec{RestartPolicy: c.policy, Containers: []corev1.Container{{Name: "a"}}})
				l.cri.exit("a", c.code)
				l.wait(time.Second)
				if got := slices.Contains(l.cri.history(), "create a/1"); got != c.restarts {
					t.Errorf("restarted %v: %q", got, l.cri.history())
				}
				s := l.status(p)
				if s.Phase != c.phase {
					t.Errorf("phase %s, want %s", s.Phase, c.phase)
				}
				if c.restarts && (s.ContainerStatuses[0].RestartCount != 1 || s.ContainerStatuses[0].LastTerminationState.Terminated.ExitCode != c.code) {
					t.Errorf("status %+v", s.ContainerStatuses[0])
				}
			})
		})
	}
}

func TestCrashLoop(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}})
		var pauses []time.Duration
		for range 8 {
			l.cri.exit("a", 1)
			began, n := time.Now(), len(l.cri.containers)
			l.wait(50 * time.Millisecond)
			if s := l.status(p).ContainerStatuses[0]; len(pauses) > 0 && (s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" || s.LastTerminationState.Terminated == nil) {
				t.Errorf("while waiting: %+v", s)
			}
			_ = n
			for !l.running("a") {
				l.wait(50 * time.Millisecond)
			}
			pauses = append(pauses, time.Since(began).Round(time.Second))
		}
		want := []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 300 * time.Second, 300 * time.Second}
		if !slices.Equal(pauses, want) {
			t.Errorf("pauses %v, want %v", pauses, want)
		}
		if s := l.status(p).ContainerStatuses[0]; s.RestartCount != 8 {
			t.Errorf("restarts %d", s.RestartCount)
		}
		// Of the dead ones only the last is kept.
		if n := len(l.cri.containers); n != 2 {
			t.Errorf("%d containers are kept", n)
		}
		if !l.events.has("Warning BackOff Back-off restarting failed container a in pod") {
			t.Errorf("events %q", l.events.all)
		}
		// After ten minutes of good behaviour a crash is a first one again.
		l.wait(11 * time.Minute)
		l.cri.exit("a", 1)
		l.wait(time.Second)
		if !l.running("a") {
			t.Error("not restarted at once after a long run")
		}
	})
}

// A container that can't even be started waits like one that crashes.
func TestStartErrorsBackOff(t *testing.T) {
	inLab(t, func(l *lab) {
		l.cri.startFail["a"] = fmt.Errorf("no such file: /x")
		l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}})
		l.wait(25 * time.Second)
		l.wantCalls("sandbox 0", "create a/0", "start a", "create a/1", "start a", "remove a/0", "create a/2", "start a")
	})
}

func (l *lab) running(name string) bool {
	l.cri.mu.Lock()
	defer l.cri.mu.Unlock()
	for _, c := range l.cri.containers {
		if c.Metadata.Name == name && c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			return true
		}
	}
	return false
}

func always() *corev1.ContainerRestartPolicy {
	p := corev1.ContainerRestartPolicyAlways
	return &p
}

func TestSidecars(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, InitContainers: []corev1.Container{{Name: "s", RestartPolicy: always()}, {Name: "i"}, {Name: "z", RestartPolicy: always()}}, Containers: []corev1.Container{{Name: "a"}}})
		l.wait(time.Second)
		l.cri.exit("i", 0)
		l.wait(2 * time.Second)
		l.wantCalls("sandbox 0", "create s/0", "start s", "create i/0", "start i", "create z/0", "start z", "create a/0", "start a")
		// A sidecar is restarted, whatever the pod's policy, and does not hold up the others.
		l.cri.exit("s", 1)
		l.wait(time.Second)
		if s := l.status(p); s.Phase != corev1.PodRunning || s.InitContainerStatuses[0].RestartCount != 1 || !ready(s) {
			t.Errorf("after its restart: %+v", s)
		}
		// The pod ends with its containers proper; sidecars go in the opposite order.
		l.cri.exit("a", 0)
		l.wait(time.Second)
		h := l.cri.history()
		if got, want := h[len(h)-5:], []string{"stop z 30s", "stopped z", "stop s 30s", "stopped s", "stop-sandbox 0"}; !slices.Equal(got, want) {
			t.Errorf("end %q, want %q", got, want)
		}
		if s := l.status(p); s.Phase != corev1.PodSucceeded {
			t.Errorf("phase %s", s.Phase)
		}
	})
}

func TestSidecarWithStartupProbe(t *testing.T) {
	inLab(t, func(l *lab) {
		var mu sync.Mutex
		up := false
		l.cri.exec = func(string, []string) error {
			mu.Lock()
			defer mu.Unlock()
			if !up {
				return fmt.Errorf("not yet")
			}
			return nil
		}
		l.create(corev1.PodSpec{InitContainers: []corev1.Container{{Name: "s", RestartPolicy: always(), StartupProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}, PeriodSeconds: 1, FailureThreshold: 30, SuccessThreshold: 1}}}, Containers: []corev1.Container{{Name: "a"}}})
		l.wait(5 * time.Second)
		l.wantCalls("sandbox 0", "create s/0", "start s")
		mu.Lock()
		up = true
		mu.Unlock()
		l.wait(2 * time.Second)
		l.wantCalls("sandbox 0", "create s/0", "start s", "create a/0", "start a")
	})
}

func TestGracefulTermination(t *testing.T) {
	inLab(t, func(l *lab) {
		var order []string
		var mu sync.Mutex
		l.cri.exec = func(c string, cmd []string) error {
			mu.Lock()
			order = append(order, c+" "+cmd[0])
			mu.Unlock()
			time.Sleep(3 * time.Second)
			return nil
		}
		l.cri.stopTakes["a"] = time.Minute
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Lifecycle: &corev1.Lifecycle{
			PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"after"}}},
			PreStop:   &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"before"}}},
		}}}})
		l.wait(4 * time.Second)
		began := time.Now()
		l.remove(p, 10)
		for l.status(p) != nil {
			l.wait(100 * time.Millisecond)
		}
		if took := time.Since(began).Round(time.Second); took != 10*time.Second {
			t.Errorf("took %s: preStop and the signal share the grace period of 10 s", took)
		}
		if want := []string{"a after", "a before"}; !slices.Equal(order, want) {
			t.Errorf("hooks %q, want %q", order, want)
		}
		l.wantCalls("sandbox 0", "create a/0", "start a", "stop a 7s", "stopped a", "stop-sandbox 0", "remove-sandbox 0")
		if _, err := os.Stat(l.k.Volumes.PodDir(p.UID)); !os.IsNotExist(err) {
			t.Errorf("the pod's folder is left: %v", err)
		}
	})
}

func TestShorterGraceInterrupts(t *testing.T) {
	inLab(t, func(l *lab) {
		l.cri.stopTakes["a"] = time.Hour
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}})
		l.remove(p, 600)
		l.wait(5 * time.Second)
		l.remove(p, 1)
		l.wait(2 * time.Second)
		if l.status(p) != nil {
			t.Errorf("the pod still waits for its first grace period: %q", l.cri.history())
		}
	})
}

// While a container that failed its liveness probe is given its time, the deletion of the pod is not kept waiting.
func TestDeletionInterruptsKill(t *testing.T) {
	inLab(t, func(l *lab) {
		l.cri.stopTakes["a"] = time.Hour
		l.cri.exec = func(string, []string) error { return fmt.Errorf("ill") }
		grace := int64(3600)
		p := l.create(corev1.PodSpec{TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "a", LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}, PeriodSeconds: 1, FailureThreshold: 2}}}})
		l.wait(10 * time.Second)
		l.remove(p, 1)
		l.wait(2 * time.Second)
		if l.status(p) != nil {
			t.Errorf("not ended: %q", l.cri.history())
		}
	})
}

func TestLiveness(t *testing.T) {
	inLab(t, func(l *lab) {
		l.cri.exec = func(c string, _ []string) error {
			if c == "a" && !slices.Contains(l.cri.history(), "create a/1") {
				return fmt.Errorf("ill")
			}
			return nil
		}
		own := int64(5)
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a", LivenessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}, PeriodSeconds: 10, FailureThreshold: 3, TerminationGracePeriodSeconds: &own}}, {Name: "b"}}})
		l.wait(19 * time.Second)
		if h := l.cri.history(); slices.Contains(h, "stop a 5s") {
			t.Errorf("killed before its third failure: %q", h)
		}
		l.wait(4 * time.Second)
		l.wantCalls("sandbox 0", "create a/0", "start a", "create b/0", "start b", "stop a 5s", "stopped a", "create a/1", "start a")
		if !l.events.has("Killing Container a failed liveness probe, will be restarted") || !l.events.has("Warning Unhealthy Liveness probe failed: ill") {
			t.Errorf("events %q", l.events.all)
		}
		if s := l.status(p); s.ContainerStatuses[0].RestartCount != 1 || s.ContainerStatuses[1].RestartCount != 0 {
			t.Errorf("status %+v", s.ContainerStatuses)
		}
	})
}

func TestKilledSandbox(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{InitContainers: []corev1.Container{{Name: "i"}}, Containers: []corev1.Container{{Name: "a"}}})
		l.cri.exit("i", 0)
		l.wait(time.Second)
		for attempt := range 3 {
			l.cri.killSandbox(fmt.Sprintf("box-%s-%d", p.UID, attempt))
			l.wait(time.Second)
			l.cri.exit("i", 0) // init containers run again in a new sandbox
			l.wait(time.Second)
		}
		if s := l.status(p); s.Phase != corev1.PodRunning || !ready(s) || s.ContainerStatuses[0].RestartCount != 3 {
			t.Errorf("status %+v", s)
		}
		if n := len(l.cri.boxes); n != 2 {
			t.Errorf("%d sandboxes are kept, want the present and the last one", n)
		}
	})
}

func TestKilledSandboxOfFinishedPod(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "a"}}})
		l.cri.killSandbox(fmt.Sprintf("box-%s-0", p.UID))
		l.wait(time.Second)
		l.wantCalls("sandbox 0", "create a/0", "start a")
		if s := l.status(p); s.Phase != corev1.PodFailed {
			t.Errorf("phase %s", s.Phase)
		}
	})
}

// A kubelet that starts anew finds everything as it is: it restarts nothing and forgets nothing.
func TestKubeletRestart(t *testing.T) {
	inLab(t, func(l *lab) {
		probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}, PeriodSeconds: 10, FailureThreshold: 3}
		p := l.create(corev1.PodSpec{InitContainers: []corev1.Container{{Name: "i"}}, Containers: []corev1.Container{{Name: "a", ReadinessProbe: probe, StartupProbe: probe}}})
		l.cri.exit("i", 0)
		l.wait(5 * time.Second)
		before, calls := l.status(p), l.cri.history()
		if !ready(before) {
			t.Fatalf("not ready: %+v", before)
		}
		l.stop()
		block := make(chan struct{})
		l.cri.mu.Lock()
		l.cri.exec = func(string, []string) error { <-block; return nil } // probes of the new kubelet give no result yet
		l.cri.mu.Unlock()
		l.start()
		l.wait(500 * time.Millisecond)
		l.wantCalls(calls...)
		if s := l.status(p); !ready(s) {
			t.Errorf("the pod is not ready for a new kubelet: %+v", s.Conditions)
		}
		// What happens while there is none is found.
		l.stop()
		close(block)
		l.cri.exit("a", 1)
		l.start()
		l.wait(time.Second)
		l.wantCalls(append(calls, "create a/1", "start a")...)
		if s := l.status(p); s.ContainerStatuses[0].RestartCount != 1 {
			t.Errorf("status %+v", s.ContainerStatuses[0])
		}
	})
}

func TestImagePullBackOff(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "registry.example/absent:1"}}})
		waiting := func() corev1.ContainerStateWaiting { return *l.status(p).ContainerStatuses[0].State.Waiting }
		if w := waiting(); w.Reason != "ErrImagePull" || !strings.Contains(w.Message, "no such registry") {
			t.Errorf("first %+v", w)
		}
		l.wait(3 * time.Second)
		if w := waiting(); w.Reason != "ImagePullBackOff" || w.Message != `Back-off pulling image "registry.example/absent:1": ErrImagePull: no such registry` {
			t.Errorf("then %+v", w)
		}
		l.wait(60 * time.Second) // pulls at 0, 10, 30, 70 s
		if l.images.pulls != 3 {
			t.Errorf("%d pulls in the first minute, want 3", l.images.pulls)
		}
		l.images.mu.Lock()
		l.images.have["registry.example/absent:1"] = &runtimeapi.Image{Id: "sha256:2"}
		l.images.mu.Unlock()
		l.wait(20 * time.Second)
		if s := l.status(p); !ready(s) {
			t.Errorf("the image is there: %+v", s)
		}
	})
}

// While an image is pulled the pod shows that it is on the way, and its deletion does not wait.
func TestLongPull(t *testing.T) {
	inLab(t, func(l *lab) {
		l.images.takes = time.Hour
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "registry.example/huge:1"}}})
		s := l.status(p)
		if s.StartTime == nil || s.PodIP == "" || len(s.ContainerStatuses) != 1 || s.ContainerStatuses[0].State.Waiting.Reason != "ContainerCreating" {
			t.Errorf("status %+v", s)
		}
		l.remove(p, 30)
		l.wait(time.Second)
		if l.status(p) != nil {
			t.Errorf("not deleted: %q", l.cri.history())
		}
	})
}

func TestTroubleIsShown(t *testing.T) {
	for name, c := range map[string]struct {
		change          func(*lab, *corev1.PodSpec)
		reason, message string
		event           string
	}{
		"never pull": {func(_ *lab, s *corev1.PodSpec) {
			s.Containers[0].Image, s.Containers[0].ImagePullPolicy = "absent", corev1.PullNever
		}, "ErrImageNeverPull", `Container image "absent" is not present with pull policy of Never`, "Warning ErrImageNeverPull"},
		"image name": {func(_ *lab, s *corev1.PodSpec) { s.Containers[0].Image = "UPPER::x" }, "InvalidImageName", `couldn't parse image name "UPPER::x"`, "Warning InspectFailed"},
		"no image":   {func(_ *lab, s *corev1.PodSpec) { s.Containers[0].Image = " " }, "InvalidImageName", "couldn't parse image name", "Warning InspectFailed"},
		"no config map": {func(_ *lab, s *corev1.PodSpec) {
			s.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "x"}}}}
		}, "CreateContainerConfigError", `"x" not found`, "Warning Failed Error: "},
		"no volume": {func(_ *lab, s *corev1.PodSpec) {
			s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
		}, "CreateContainerConfigError", `no volume "v"`, "Warning Failed"},
		"subPath": {func(_ *lab, s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
			s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPath: "a/../../../etc"}}
		}, "CreateContainerConfigError", `must not contain ".."`, "Warning Failed"},
		"subPathExpr": {func(_ *lab, s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
			s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPathExpr: "$(NOPE)"}}
		}, "CreateContainerConfigError", `missing value for "NOPE"`, "Warning Failed"},
		"host path": {func(l *lab, s *corev1.PodSpec) {
			kind := corev1.HostPathDirectory
			s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: filepath.Join(l.dir, "absent"), Type: &kind}}}}
		}, "ContainerCreating", "", "Warning FailedMount volume \"v\": hostPath type check failed"},
		"volume type": {func(_ *lab, s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}}}
		}, "ContainerCreating", "", "Warning FailedMount volume \"v\": its type is not supported"},
		"root": {func(_ *lab, s *corev1.PodSpec) {
			yes := true
			s.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes}
		}, "CreateContainerConfigError", "image will run as root", "Warning Failed"},
		"create": {func(l *lab, _ *corev1.PodSpec) { l.cri.fault = "create" }, "CreateContainerError", "fault of create a/0", "Warning Failed"},
		"start":  {func(l *lab, _ *corev1.PodSpec) { l.cri.startFail["a"] = fmt.Errorf("no such file: /x") }, "RunContainerError", "no such file: /x", "Warning Failed Error: no such file: /x"},
		"post start": {func(l *lab, s *corev1.PodSpec) {
			l.cri.exec = func(string, []string) error { return fmt.Errorf("hook is ill") }
			s.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{}}}
		}, "PostStartHookError", "hook is ill", "Warning FailedPostStartHook"},
		"sandbox": {func(l *lab, _ *corev1.PodSpec) { l.cri.fault = "sandbox" }, "ContainerCreating", "", "Warning FailedCreatePodSandBox Failed to create pod sandbox: fault of sandbox 0"},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, func(l *lab) {
				spec := corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}}
				c.change(l, &spec)
				p := l.create(spec)
				seen := false
				for range 5 { // a container that failed to start is restarted, then waits
					if s := l.status(p); len(s.ContainerStatuses) > 0 {
						w := s.ContainerStatuses[0].State.Waiting
						seen = seen || w != nil && w.Reason == c.reason && strings.Contains(w.Message, c.message)
					}
					l.wait(100 * time.Millisecond)
				}
				if !seen {
					t.Errorf("status %+v", l.status(p).ContainerStatuses)
				}
				if !l.events.has(c.event) {
					t.Errorf("events %q", l.events.all)
				}
				// It can be deleted all the same.
				l.cri.mu.Lock()
				l.cri.fault = ""
				l.cri.mu.Unlock()
				l.remove(p, 1)
				l.wait(5 * time.Second)
				if l.status(p) != nil {
					t.Errorf("not deleted: %q", l.cri.history())
				}
			})
		})
	}
}

func TestDeadline(t *testing.T) {
	inLab(t, func(l *lab) {
		limit := int64(30)
		p := l.create(corev1.PodSpec{ActiveDeadlineSeconds: &limit, Containers: []corev1.Container{{Name: "a"}}})
		l.wait(29 * time.Second)
		if s := l.status(p); s.Phase != corev1.PodRunning {
			t.Errorf("phase %s before the deadline", s.Phase)
		}
		l.wait(5 * time.Second)
		if s := l.status(p); s.Phase != corev1.PodFailed || s.Reason != "DeadlineExceeded" || l.running("a") {
			t.Errorf("status %+v", s)
		}
	})
}

func TestEphemeralContainer(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a"}}})
		l.mu.Lock()
		next := l.pods[p.UID].DeepCopy()
		l.rv++
		next.ResourceVersion = fmt.Sprint(l.rv)
		next.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: "have"}, TargetContainerName: "a"}}
		l.pods[p.UID] = next
		l.mu.Unlock()
		l.k.Set(next.DeepCopy())
		l.wait(time.Second)
		l.wantCalls("sandbox 0", "create a/0", "start a", "create debug/0", "start debug")
		l.cri.exit("debug", 1)
		l.wait(time.Minute)
		l.wantCalls("sandbox 0", "create a/0", "start a", "create debug/0", "start debug")
		if s := l.status(p); !ready(s) || len(s.EphemeralContainerStatuses) != 1 || s.EphemeralContainerStatuses[0].State.Terminated == nil {
			t.Errorf("status %+v", s)
		}
	})
}

// What others write into the status stays.
func TestForeignConditionStays(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{ReadinessGates: []corev1.PodReadinessGate{{ConditionType: "gate"}}, Containers: []corev1.Container{{Name: "a"}}})
		if ready(l.status(p)) {
			t.Error("ready before its gate")
		}
		l.mu.Lock()
		next := l.pods[p.UID].DeepCopy()
		l.rv++
		next.ResourceVersion = fmt.Sprint(l.rv)
		next.Status.Conditions = append(next.Status.Conditions, corev1.PodCondition{Type: "gate", Status: corev1.ConditionTrue})
		l.pods[p.UID] = next
		l.mu.Unlock()
		l.k.Set(next.DeepCopy())
		l.wait(time.Second)
		s := l.status(p)
		if !ready(s) || !slices.ContainsFunc(s.Conditions, func(c corev1.PodCondition) bool { return c.Type == "gate" }) {
			t.Errorf("conditions %+v", s.Conditions)
		}
	})
}
