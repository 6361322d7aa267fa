package resources

import (
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

var podColumns = []descriptor.Column{
	{Name: "Ready", Description: "The aggregate readiness state of this pod for accepting traffic.", Cell: descriptor.Cell(podReady)},
	{Name: "Status", Description: "The aggregate status of the containers in this pod.", Cell: descriptor.Cell(podStatusText)},
	{Name: "Restarts", Description: "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.", Cell: descriptor.Cell(podRestarts)},
	descriptor.Age,
	{Name: "IP", Wide: true, Description: "IP address of the pod.", Cell: descriptor.Cell(func(p *corev1.Pod) string { return orNone(p.Status.PodIP) })},
	{Name: "Node", Wide: true, Description: "Node that the pod runs on.", Cell: descriptor.Cell(func(p *corev1.Pod) string { return orNone(p.Spec.NodeName) })},
	{Name: "Nominated Node", Wide: true, Description: "Node that was nominated for the pod.", Cell: descriptor.Cell(func(p *corev1.Pod) string { return orNone(p.Status.NominatedNodeName) })},
	{Name: "Readiness Gates", Wide: true, Description: "How many of the pod's readiness gates are true.", Cell: descriptor.Cell(podGates)},
}

// sidecar tells whether an init container goes on running beside the others (KEP-753).
func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func podReady(p *corev1.Pod) string {
	total, ready := len(p.Spec.Containers), 0
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; sidecar(c) {
			total++
			if s := containerStatus(p.Status.InitContainerStatuses, c.Name); s != nil && s.Ready {
				ready++
			}
		}
	}
	for _, s := range p.Status.ContainerStatuses {
		if s.Ready && s.State.Running != nil {
			ready++
		}
	}
	return fmt.Sprintf("%d/%d", ready, total)
}

func containerStatus(list []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// beginning finds the init container that a pod waits for; nil if it is through with them.
func beginning(p *corev1.Pod) (int, *corev1.ContainerStatus) {
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		s := containerStatus(p.Status.InitContainerStatuses, c.Name)
		if s == nil || s.State.Terminated != nil && s.State.Terminated.ExitCode == 0 || sidecar(c) && s.Started != nil && *s.Started {
			continue
		}
		return i, s
	}
	return 0, nil
}

// podStatusText is the word in the STATUS column: the most telling of the pod's phase, reason, deletion and
// the states of its containers.
func podStatusText(p *corev1.Pod) string {
	reason := string(p.Status.Phase)
	if p.Status.Reason != "" {
		reason = p.Status.Reason
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			reason = corev1.PodReasonSchedulingGated
		}
	}
	i, waiting := beginning(p)
	if waiting != nil {
		switch s := waiting.State; {
		case s.Terminated != nil:
			reason = "Init:" + terminatedText(s.Terminated)
		case s.Waiting != nil && s.Waiting.Reason != "" && s.Waiting.Reason != "PodInitializing":
			reason = "Init:" + s.Waiting.Reason
		default:
			reason = fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
		}
	}
	if waiting == nil || podCondition(p, corev1.PodInitialized) {
		running := false
		for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
			switch s := p.Status.ContainerStatuses[i]; {
			case s.State.Waiting != nil && s.State.Waiting.Reason != "":
				reason = s.State.Waiting.Reason
			case s.State.Terminated != nil:
				reason = terminatedText(s.State.Terminated)
			case s.Ready && s.State.Running != nil:
				running = true
			}
		}
		// One container ended well while another goes on.
		if reason == "Completed" && running {
			reason = "NotReady"
			if podCondition(p, corev1.PodReady) {
				reason = "Running"
			}
		}
	}
	if p.DeletionTimestamp != nil {
		switch {
		case p.Status.Reason == "NodeLost":
			reason = "Unknown"
		case p.Status.Phase != corev1.PodFailed && p.Status.Phase != corev1.PodSucceeded:
			reason = "Terminating"
		}
	}
	return reason
}

func terminatedText(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return "Signal:" + strconv.Itoa(int(t.Signal))
	}
	return "ExitCode:" + strconv.Itoa(int(t.ExitCode))
}

func podCondition(p *corev1.Pod, t corev1.PodConditionType) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == t {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// podRestarts counts those of the containers that run: of the init containers until they are through, from then on of the others and sidecars.
func podRestarts(p *corev1.Pod) string {
	var n int32
	var last metav1.Time
	add := func(s corev1.ContainerStatus) {
		n += s.RestartCount
		if t := s.LastTerminationState.Terminated; t != nil && last.Before(&t.FinishedAt) {
			last = t.FinishedAt
		}
	}
	if _, waiting := beginning(p); waiting != nil && !podCondition(p, corev1.PodInitialized) {
		for _, s := range p.Status.InitContainerStatuses {
			add(s)
		}
	} else {
		for i := range p.Spec.InitContainers {
			if c := &p.Spec.InitContainers[i]; sidecar(c) {
				if s := containerStatus(p.Status.InitContainerStatuses, c.Name); s != nil {
					add(*s)
				}
			}
		}
		for _, s := range p.Status.ContainerStatuses {
			add(s)
		}
	}
	if n == 0 || last.IsZero() {
		return strconv.Itoa(int(n))
	}
	return fmt.Sprintf("%d (%s ago)", n, duration.HumanDuration(time.Since(last.Time)))
}

func podGates(p *corev1.Pod) string {
	if len(p.Spec.ReadinessGates) == 0 {
		return "<none>"
	}
	n := 0
	for _, g := range p.Spec.ReadinessGates {
		if podCondition(p, g.ConditionType) {
			n++
		}
	}
	return fmt.Sprintf("%d/%d", n, len(p.Spec.ReadinessGates))
}
