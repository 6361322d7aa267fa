package plugins

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kube-scheduler/framework"
)

// prioritySort takes pods of higher priority first, then those that have waited longest.
type prioritySort struct{}

// NewPrioritySort makes the plugin that sorts the queue.
func NewPrioritySort(context.Context, runtime.Object, framework.Handle) (framework.Plugin, error) {
	return prioritySort{}, nil
}

func (prioritySort) Name() string { return "PrioritySort" }
func (prioritySort) Less(a, b framework.QueuedEntityInfo) bool {
	if pa, pb := a.GetPriority(), b.GetPriority(); pa != pb {
		return pa > pb
	}
	return a.GetTimestamp().Before(b.GetTimestamp())
}

// schedulingGates holds pods back while they have gates (KEP-3521).
type schedulingGates struct{}

// NewSchedulingGates makes the plugin that honours spec.schedulingGates.
func NewSchedulingGates(context.Context, runtime.Object, framework.Handle) (framework.Plugin, error) {
	return schedulingGates{}, nil
}

func (schedulingGates) Name() string { return "SchedulingGates" }
func (schedulingGates) PreEnqueue(_ context.Context, p *v1.Pod) *framework.Status {
	if len(p.Spec.SchedulingGates) == 0 {
		return nil
	}
	var names []string
	for _, g := range p.Spec.SchedulingGates {
		names = append(names, g.Name)
	}
	return framework.NewStatus(framework.UnschedulableAndUnresolvable, fmt.Sprintf("waiting for scheduling gates: %v", names))
}
func (schedulingGates) EventsToRegister(context.Context) ([]framework.ClusterEventWithHint, error) {
	return on(framework.UnscheduledPod, framework.UpdatePodSchedulingGatesEliminated), nil
}

// on is a list of one event.
func on(r framework.EventResource, a framework.ActionType) []framework.ClusterEventWithHint {
	return []framework.ClusterEventWithHint{{Event: framework.ClusterEvent{Resource: r, ActionType: a}}}
}
