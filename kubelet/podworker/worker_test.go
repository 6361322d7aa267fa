package podworker

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

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
