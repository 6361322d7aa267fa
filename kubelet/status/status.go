// Package status makes a pod's status of what the container runtime says. It is
// pure: the same input gives the same status.
package status

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Container is what is known of one container of the spec.
type Container struct {
	Current *runtimeapi.ContainerStatus // newest incarnation, nil before the first
	Last    *runtimeapi.ContainerStatus // the one before
	// Waiting says why there is no running incarnation, such as ImagePullBackOff; empty: ContainerCreating.
	Reason, Message string
	Started, Ready  bool
	Restarts        int32
	// Allocated is what a running container is given of the node, Resources what it has; nil: nothing is told.
	Allocated corev1.ResourceList
	Resources *corev1.ResourceRequirements
}

// Input is all that the status follows from.
type Input struct {
	Pod        *corev1.Pod
	Containers map[string]Container // by name, init containers too
	PodIPs     []string
	HostIPs    []string
	Sandbox    bool // a sandbox with network is ready
	// Failed overrides the phase: reason and message, such as Evicted or DeadlineExceeded, and a condition to add.
	FailedReason, FailedMessage string
	FailedCondition             *corev1.PodCondition
	// How far the pod is from what its spec asks for; nil: no further.
	ResizePending, ResizeInProgress *corev1.PodCondition
	// Terminating: the pod's containers were ended for good, whatever its restart policy.
	Terminating bool
	Runtime     string // by which container ids are prefixed, such as containerd
	Now         time.Time
}

// Make computes the status.
func Make(in Input) corev1.PodStatus {
	p := in.Pod
	s := corev1.PodStatus{
		ObservedGeneration: p.Generation, QOSClass: p.Status.QOSClass, StartTime: p.Status.StartTime,
		NominatedNodeName: p.Status.NominatedNodeName, Reason: in.FailedReason, Message: in.FailedMessage,
		Resize: p.Status.Resize, ResourceClaimStatuses: p.Status.ResourceClaimStatuses, ExtendedResourceClaimStatus: p.Status.ExtendedResourceClaimStatus,
	}
	over := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	if over && in.FailedReason == "" {
		s.Reason, s.Message = p.Status.Reason, p.Status.Message
	}
	for i, ip := range in.HostIPs {
		if i == 0 {
			s.HostIP = ip
		}
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
	}
	if s.StartTime == nil {
		now := metav1.NewTime(in.Now.Truncate(time.Second))
		s.StartTime = &now
	}
	for i, ip := range in.PodIPs {
		if i == 0 {
			s.PodIP = ip
		}
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		s.InitContainerStatuses = append(s.InitContainerStatuses, containerStatus(c, in, "PodInitializing"))
	}
	initialized := begun(in) || initDone(p, s.InitContainerStatuses)
	waiting := "ContainerCreating"
	if !initialized {
		waiting = "PodInitializing"
	}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		s.ContainerStatuses = append(s.ContainerStatuses, containerStatus(c, in, waiting))
	}
	for i := range p.Spec.EphemeralContainers {
		c := corev1.Container(p.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		st := containerStatus(&c, in, waiting)
		st.Ready, st.Started = false, nil
		s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, st)
	}
	switch {
	case over: // an end is an end
		s.Phase = p.Status.Phase
	case in.FailedReason != "":
		s.Phase = corev1.PodFailed
	default:
		s.Phase = phase(p, s, initialized, in.Terminating)
	}
	s.Conditions = conditions(in, s, initialized)
	return s
}

func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// begun tells whether a container of the pod proper was ever made: then the init containers had done their part.
func begun(in Input) bool {
	return slices.ContainsFunc(in.Pod.Spec.Containers, func(c corev1.Container) bool {
		return in.Containers[c.Name].Current != nil
	})
}

// initDone tells whether all init containers have done their part.
func initDone(p *corev1.Pod, statuses []corev1.ContainerStatus) bool {
	for i := range p.Spec.InitContainers {
		st := statuses[i]
		if sidecar(&p.Spec.InitContainers[i]) {
			if st.Started == nil || !*st.Started {
				return false
			}
			continue
		}
		if st.State.Terminated == nil || st.State.Terminated.ExitCode != 0 {
			return false
		}
	}
	return true
}

func containerStatus(spec *corev1.Container, in Input, waiting string) corev1.ContainerStatus {
	c := in.Containers[spec.Name]
	s := corev1.ContainerStatus{Name: spec.Name, Image: spec.Image, RestartCount: c.Restarts, Ready: c.Ready}
	started := c.Started && c.Current != nil && c.Current.State == runtimeapi.ContainerState_CONTAINER_RUNNING
	s.Started = &started
	s.AllocatedResources, s.Resources = c.Allocated, c.Resources
	if c.Current != nil {
		s.ContainerID = in.Runtime + "://" + c.Current.Id
		s.ImageID = c.Current.ImageRef
		if c.Current.Image != nil && c.Current.Image.UserSpecifiedImage != "" {
			s.Image = c.Current.Image.UserSpecifiedImage
		}
		switch c.Current.State {
		case runtimeapi.ContainerState_CONTAINER_RUNNING:
			s.State.Running = &corev1.ContainerStateRunning{StartedAt: stamp(c.Current.StartedAt)}
		case runtimeapi.ContainerState_CONTAINER_EXITED:
			s.State.Terminated = terminated(c.Current, in.Runtime)
		}
	}
	if c.Last != nil {
		s.LastTerminationState.Terminated = terminated(c.Last, in.Runtime)
	}
	// An ended container that will be started again waits for that.
	if c.Reason != "" && s.State.Running == nil && !in.Terminating && in.FailedReason == "" {
		if s.State.Terminated != nil {
			s.LastTerminationState.Terminated = s.State.Terminated
		}
		s.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: c.Reason, Message: c.Message}}
	}
	if s.State == (corev1.ContainerState{}) {
		s.State.Waiting = &corev1.ContainerStateWaiting{Reason: waiting}
	}
	if s.State.Running == nil {
		s.Ready = s.Ready && s.State.Terminated != nil && s.State.Terminated.ExitCode == 0
	}
	return s
}

// stamp takes a moment as the runtime tells it. One that it doesn't know, as of the start of a container that could not be started, is 0: 1970, as with the reference.
func stamp(nanos int64) metav1.Time {
	return metav1.NewTime(time.Unix(0, nanos).Truncate(time.Second))
}

func terminated(c *runtimeapi.ContainerStatus, runtime string) *corev1.ContainerStateTerminated {
	t := &corev1.ContainerStateTerminated{
		ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message, StartedAt: stamp(c.StartedAt), FinishedAt: stamp(c.FinishedAt),
		ContainerID: runtime + "://" + c.Id,
	}
	if t.Reason == "" {
		t.Reason = "Error"
		if c.ExitCode == 0 {
			t.Reason = "Completed"
		}
	}
	return t
}

// phase follows the rules of "Pod Lifecycle".
func phase(p *corev1.Pod, s corev1.PodStatus, initialized, terminating bool) corev1.PodPhase {
	if !initialized {
		for i := range p.Spec.InitContainers {
			if t := s.InitContainerStatuses[i].State.Terminated; t != nil && t.ExitCode != 0 && (p.Spec.RestartPolicy == corev1.RestartPolicyNever || terminating) {
				return corev1.PodFailed
			}
		}
		return corev1.PodPending
	}
	var running, waiting, ok, failed int
	for _, c := range s.ContainerStatuses {
		switch {
		case c.State.Running != nil:
			running++
		case c.State.Terminated != nil && c.State.Terminated.ExitCode == 0:
			ok++
		case c.State.Terminated != nil:
			failed++
		case c.LastTerminationState.Terminated != nil:
			running++ // between two incarnations
		default:
			waiting++
		}
	}
	switch {
	case terminating && running == 0 && failed > 0:
		return corev1.PodFailed
	case terminating && running == 0 && waiting == 0:
		return corev1.PodSucceeded
	case waiting > 0:
		return corev1.PodPending
	case running > 0 || p.Spec.RestartPolicy == corev1.RestartPolicyAlways:
		return corev1.PodRunning
	case failed == 0:
		return corev1.PodSucceeded
	case p.Spec.RestartPolicy == corev1.RestartPolicyNever:
		return corev1.PodFailed
	}
	return corev1.PodRunning
}

func conditions(in Input, s corev1.PodStatus, initialized bool) []corev1.PodCondition {
	p := in.Pod
	out := slices.Clone(p.Status.Conditions)
	now := metav1.NewTime(in.Now.Truncate(time.Second))
	put := func(c corev1.PodCondition) {
		c.LastTransitionTime, c.ObservedGeneration = now, p.Generation
		for i := range out {
			if out[i].Type == c.Type {
				if out[i].Status == c.Status {
					c.LastTransitionTime = out[i].LastTransitionTime
				}
				out[i] = c
				return
			}
		}
		out = append(out, c)
	}
	set := func(t corev1.PodConditionType, ok bool, reason, message string) {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message}
		if ok {
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, "", ""
			if s.Phase == corev1.PodSucceeded {
				c.Reason = reason
			}
		}
		put(c)
	}
	for kind, c := range map[corev1.PodConditionType]*corev1.PodCondition{corev1.PodResizePending: in.ResizePending, corev1.PodResizeInProgress: in.ResizeInProgress} {
		if c != nil {
			put(*c)
		} else {
			out = slices.DeleteFunc(out, func(have corev1.PodCondition) bool { return have.Type == kind })
		}
	}
	if in.FailedCondition != nil {
		put(*in.FailedCondition)
	}
	var notReady []string
	for i, c := range s.ContainerStatuses {
		if !c.Ready || c.State.Running == nil {
			notReady = append(notReady, p.Spec.Containers[i].Name)
		}
	}
	for i, c := range s.InitContainerStatuses {
		if sidecar(&p.Spec.InitContainers[i]) && !c.Ready {
			notReady = append(notReady, c.Name)
		}
	}
	reason, message := "", ""
	switch {
	case s.Phase == corev1.PodSucceeded:
		reason = "PodCompleted"
	case s.Phase == corev1.PodFailed:
		reason = "PodFailed"
	case len(notReady) > 0:
		reason, message = "ContainersNotReady", fmt.Sprintf("containers with unready status: [%s]", strings.Join(notReady, " "))
	}
	ready := len(notReady) == 0 && s.Phase == corev1.PodRunning
	set("PodReadyToStartContainers", in.Sandbox, "", "")
	initReason := "ContainersNotInitialized"
	if s.Phase == corev1.PodSucceeded {
		initReason = "PodCompleted"
	}
	set(corev1.PodInitialized, initialized, initReason, "")
	set(corev1.ContainersReady, ready, reason, message)
	gates := ready
	for _, g := range p.Spec.ReadinessGates {
		if !slices.ContainsFunc(out, func(c corev1.PodCondition) bool {
			return c.Type == g.ConditionType && c.Status == corev1.ConditionTrue
		}) {
			if ready {
				reason, message = "ReadinessGatesNotReady", fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", g.ConditionType)
			}
			gates = false
		}
	}
	set(corev1.PodReady, gates, reason, message)
	set(corev1.PodScheduled, true, "", "")
	return out
}
