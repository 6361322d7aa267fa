package podworker

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

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
