package status

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func running() Container {
	return Container{Current: &runtimeapi.ContainerStatus{Id: "r", State: runtimeapi.ContainerState_CONTAINER_RUNNING, StartedAt: 1e9}, Started: true, Ready: true}
}

func exited(code int32) Container {
	return Container{Current: &runtimeapi.ContainerStatus{Id: "x", State: runtimeapi.ContainerState_CONTAINER_EXITED, ExitCode: code, StartedAt: 1e9, FinishedAt: 2e9}, Ready: code == 0}
}

func waits(c Container, reason string) Container { c.Reason = reason; return c }

func names(prefix string, n int) (out []corev1.Container) {
	for i := range n {
		out = append(out, corev1.Container{Name: prefix + string(rune('0'+i))})
	}
	return out
}

func TestPhase(t *testing.T) {
	always, onFailure, never := corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever
	for name, c := range map[string]struct {
		policy      corev1.RestartPolicy
		init, main  []Container
		terminating bool
		want        corev1.PodPhase
		ready       bool
		initialized bool
	}{
		"nothing yet":                  {always, nil, []Container{{}}, false, corev1.PodPending, false, true},
		"runs":                         {always, nil, []Container{running(), running()}, false, corev1.PodRunning, true, true},
		"one is not ready":             {always, nil, []Container{running(), func() Container { c := running(); c.Ready = false; return c }()}, false, corev1.PodRunning, false, true},
		"one is not made yet":          {always, nil, []Container{running(), {}}, false, corev1.PodPending, false, true},
		"init runs":                    {always, []Container{running()}, []Container{{}}, false, corev1.PodPending, false, false},
		"init failed, tried again":     {always, []Container{waits(exited(1), "CrashLoopBackOff")}, []Container{{}}, false, corev1.PodPending, false, false},
		"init failed for good":         {never, []Container{exited(1)}, []Container{{}}, false, corev1.PodFailed, false, false},
		"init is done":                 {never, []Container{exited(0)}, []Container{running()}, false, corev1.PodRunning, true, true},
		"init is done, its trace gone": {never, []Container{{}}, []Container{running()}, false, corev1.PodRunning, true, true},
		"crashed, waits":               {always, nil, []Container{waits(exited(1), "CrashLoopBackOff")}, false, corev1.PodRunning, false, true},
		"ended, always":                {always, nil, []Container{exited(0)}, false, corev1.PodRunning, false, true},
		"succeeded":                    {onFailure, nil, []Container{exited(0), exited(0)}, false, corev1.PodSucceeded, false, true},
		"failed, tried again":          {onFailure, nil, []Container{exited(1), exited(0)}, false, corev1.PodRunning, false, true},
		"failed":                       {never, nil, []Container{exited(1), exited(0)}, false, corev1.PodFailed, false, true},
		"one still runs":               {never, nil, []Container{exited(1), running()}, false, corev1.PodRunning, false, true},
		"ended by deletion":            {always, nil, []Container{exited(0)}, true, corev1.PodSucceeded, false, true},
		"killed by deletion":           {always, nil, []Container{exited(137), exited(0)}, true, corev1.PodFailed, false, true},
		"deleted while it crashed":     {always, nil, []Container{waits(exited(1), "CrashLoopBackOff")}, true, corev1.PodFailed, false, true},
		"deleted before it began":      {always, nil, []Container{{}}, true, corev1.PodPending, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			in := Input{Pod: &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: c.policy, InitContainers: names("i", len(c.init)), Containers: names("c", len(c.main))}}, Containers: map[string]Container{}, Terminating: c.terminating, Sandbox: true, Runtime: "containerd", Now: time.Unix(100, 0)}
			for i, x := range c.init {
				in.Containers[in.Pod.Spec.InitContainers[i].Name] = x
			}
			for i, x := range c.main {
				in.Containers[in.Pod.Spec.Containers[i].Name] = x
			}
			s := Make(in)
			if s.Phase != c.want {
				t.Errorf("phase %s, want %s", s.Phase, c.want)
			}
			if got := is(s, corev1.PodReady); got != c.ready {
				t.Errorf("ready %v", got)
			}
			if got := is(s, corev1.PodInitialized); got != c.initialized {
				t.Errorf("initialized %v", got)
			}
		})
	}
}

func is(s corev1.PodStatus, kind corev1.PodConditionType) bool {
	return slices.ContainsFunc(s.Conditions, func(c corev1.PodCondition) bool { return c.Type == kind && c.Status == corev1.ConditionTrue })
}

func TestContainerStatus(t *testing.T) {
	last := &runtimeapi.ContainerStatus{Id: "l", State: runtimeapi.ContainerState_CONTAINER_EXITED, ExitCode: 3, Reason: "OOMKilled", Message: "m"}
	in := Input{Runtime: "cri-o", Containers: map[string]Container{
		"runs":    func() Container { c := running(); c.Last = last; c.Restarts = 4; return c }(),
		"pulls":   {Reason: "ErrImagePull", Message: "why"},
		"fresh":   {},
		"crashed": waits(exited(1), "CrashLoopBackOff"),
		"ill":     waits(running(), "PostStartHookError"),
		"unmade":  func() Container { c := exited(128); c.Current.StartedAt = 0; return c }(),
	}}
	get := func(name string) corev1.ContainerStatus {
		return containerStatus(&corev1.Container{Name: name, Image: "img"}, in, "ContainerCreating")
	}
	if s := get("runs"); s.State.Running == nil || s.ContainerID != "cri-o://r" || s.RestartCount != 4 || !*s.Started || !s.Ready || s.LastTerminationState.Terminated.Reason != "OOMKilled" || s.LastTerminationState.Terminated.Message != "m" || s.LastTerminationState.Terminated.ContainerID != "cri-o://l" {
		t.Errorf("%+v", s)
	}
	if s := get("pulls"); s.State.Waiting == nil || s.State.Waiting.Reason != "ErrImagePull" || s.State.Waiting.Message != "why" || *s.Started || s.Ready || s.Image != "img" {
		t.Errorf("%+v", s)
	}
	if s := get("fresh"); s.State.Waiting == nil || s.State.Waiting.Reason != "ContainerCreating" {
		t.Errorf("%+v", s)
	}
	if s := get("crashed"); s.State.Waiting == nil || s.State.Terminated != nil || s.LastTerminationState.Terminated.ExitCode != 1 || s.LastTerminationState.Terminated.Reason != "Error" {
		t.Errorf("%+v", s)
	}
	// The end of a container that never began; kubectl describe prints its moments as the reference has them.
	if s := get("unmade").State.Terminated; s == nil || !s.StartedAt.Time.Equal(time.Unix(0, 0)) || s.StartedAt.IsZero() || !s.FinishedAt.Time.Equal(time.Unix(2, 0)) {
		t.Errorf("%+v", s)
	}
	if s := get("ill"); s.State.Running == nil || s.State.Waiting != nil {
		t.Errorf("%+v", s)
	}
}

// An end is an end, whatever is seen afterwards.
func TestEndStays(t *testing.T) {
	for _, phase := range []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed} {
		p := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: names("c", 1)}, Status: corev1.PodStatus{Phase: phase, Reason: "Evicted", Message: "m"}}
		s := Make(Input{Pod: p, Containers: map[string]Container{"c0": exited(0)}, Terminating: true})
		if s.Phase != phase || s.Reason != "Evicted" || s.Message != "m" {
			t.Errorf("%s became %s %s %s", phase, s.Phase, s.Reason, s.Message)
		}
	}
}

func TestFailure(t *testing.T) {
	p := &corev1.Pod{Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyAlways, Containers: names("c", 1)}}
	s := Make(Input{Pod: p, Containers: map[string]Container{"c0": waits(exited(137), "CrashLoopBackOff")}, FailedReason: "Evicted", FailedMessage: "low", FailedCondition: &corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "TerminationByKubelet"}})
	if s.Phase != corev1.PodFailed || s.Reason != "Evicted" || s.Message != "low" || !is(s, corev1.DisruptionTarget) || is(s, corev1.PodReady) || s.ContainerStatuses[0].State.Terminated == nil {
		t.Errorf("%+v", s)
	}
}

func TestConditions(t *testing.T) {
	then, now := time.Unix(50, 0), time.Unix(100, 0)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Generation: 7}, Spec: corev1.PodSpec{Containers: names("c", 2), ReadinessGates: []corev1.PodReadinessGate{{ConditionType: "gate"}}}}
	p.Status.Conditions = []corev1.PodCondition{
		{Type: "foreign", Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(then)}, {Type: corev1.PodInitialized, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(then)},
		{Type: corev1.ContainersReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(then)},
	}
	in := Input{Pod: p, Containers: map[string]Container{"c0": running(), "c1": running()}, Sandbox: true, Now: now}
	s := Make(in)
	at := func(kind corev1.PodConditionType) corev1.PodCondition {
		for _, c := range s.Conditions {
			if c.Type == kind {
				return c
			}
		}
		return corev1.PodCondition{}
	}
	if c := at("foreign"); !c.LastTransitionTime.Time.Equal(then) {
		t.Errorf("another's condition: %+v", c)
	}
	if c := at(corev1.PodInitialized); !c.LastTransitionTime.Time.Equal(then) || c.ObservedGeneration != 7 {
		t.Errorf("what did not change: %+v", c)
	}
	if c := at(corev1.ContainersReady); c.Status != corev1.ConditionTrue || !c.LastTransitionTime.Time.Equal(now) {
		t.Errorf("what changed: %+v", c)
	}
	if c := at(corev1.PodReady); c.Status != corev1.ConditionFalse || c.Reason != "ReadinessGatesNotReady" {
		t.Errorf("its gate is not there: %+v", c)
	}
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: "gate", Status: corev1.ConditionTrue})
	if s = Make(in); at(corev1.PodReady).Status != corev1.ConditionTrue {
		t.Errorf("its gate is open: %+v", at(corev1.PodReady))
	}
	in.Containers["c1"] = Container{}
	if s = Make(in); at(corev1.PodReady).Reason != "ContainersNotReady" || !strings.Contains(at(corev1.PodReady).Message, "[c1]") {
		t.Errorf("one is missing: %+v", at(corev1.PodReady))
	}
}

// The old fields are the first of the lists (KEP-563).
func TestAddresses(t *testing.T) {
	p := &corev1.Pod{}
	s := Make(Input{Pod: p, PodIPs: []string{"fd00::5", "10.0.0.5"}, HostIPs: []string{"fd00::1", "192.0.2.1"}, Now: time.Now()})
	if s.PodIP != "fd00::5" || !slices.Equal(s.PodIPs, []corev1.PodIP{{IP: "fd00::5"}, {IP: "10.0.0.5"}}) || s.HostIP != "fd00::1" || !slices.Equal(s.HostIPs, []corev1.HostIP{{IP: "fd00::1"}, {IP: "192.0.2.1"}}) {
		t.Errorf("%+v", s)
	}
	if s := Make(Input{Pod: p, Now: time.Now()}); s.PodIP != "" || s.PodIPs != nil || s.HostIP != "" || s.HostIPs != nil {
		t.Errorf("without addresses: %+v", s)
	}
}
