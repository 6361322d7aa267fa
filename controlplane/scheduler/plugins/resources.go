package plugins

import (
	"context"
	"math"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/kube-scheduler/framework"
)

// assumed is what a container counts for in scores if it requests nothing.
var assumed = v1.ResourceList{v1.ResourceCPU: resource.MustParse("100m"), v1.ResourceMemory: resource.MustParse("200Mi")}

// nodeResourcesFit wants room for the pod's requests, and prefers the node with most room left (LeastAllocated).
type nodeResourcesFit struct{}

// NewNodeResourcesFit makes the plugin.
func NewNodeResourcesFit(context.Context, runtime.Object, framework.Handle) (framework.Plugin, error) {
	return nodeResourcesFit{}, nil
}

// fitState holds what the pod wants, computed once.
type fitState struct{ want v1.ResourceList }

func (s *fitState) Clone() framework.StateData { return s }

const fitKey framework.StateKey = "PreFilterNodeResourcesFit"

func (nodeResourcesFit) Name() string { return "NodeResourcesFit" }

// PreFilter adds up what the pod wants: containers, init containers as far as they want more, overhead.
func (nodeResourcesFit) PreFilter(_ context.Context, s framework.CycleState, p *v1.Pod, _ []framework.NodeInfo) (*framework.PreFilterResult, *framework.Status) {
	s.Write(fitKey, &fitState{resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})})
	return nil, nil
}
func (nodeResourcesFit) PreFilterExtensions() framework.PreFilterExtensions { return nil }

func (nodeResourcesFit) Filter(_ context.Context, s framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	data, err := s.Read(fitKey)
	if err != nil {
		return framework.AsStatus(err)
	}
	used, all := n.GetRequested(), n.GetAllocatable()
	var reasons []string
	code := framework.Unschedulable
	if len(n.GetPods())+1 > all.GetAllowedPodNumber() {
		reasons = append(reasons, "Too many pods")
	}
	for name, q := range data.(*fitState).want {
		var want, have, capacity int64
		switch name {
		case v1.ResourceCPU:
			want, have, capacity = q.MilliValue(), used.GetMilliCPU(), all.GetMilliCPU()
		case v1.ResourceMemory:
			want, have, capacity = q.Value(), used.GetMemory(), all.GetMemory()
		case v1.ResourceEphemeralStorage:
			want, have, capacity = q.Value(), used.GetEphemeralStorage(), all.GetEphemeralStorage()
		default:
			want, have, capacity = q.Value(), used.GetScalarResources()[name], all.GetScalarResources()[name]
		}
		if want > 0 && want > capacity-have {
			reasons = append(reasons, "Insufficient "+string(name))
			if want > capacity {
				code = framework.UnschedulableAndUnresolvable // not even on the empty node
			}
		}
	}
	if len(reasons) == 0 {
		return nil
	}
	slices.Sort(reasons)
	return framework.NewStatus(code, reasons...)
}

func (nodeResourcesFit) EventsToRegister(context.Context) ([]framework.ClusterEventWithHint, error) {
	return append(on(framework.Node, framework.Add|framework.UpdateNodeAllocatable), on(framework.AssignedPod, framework.Delete|framework.UpdatePodScaleDown)...), nil
}

func (nodeResourcesFit) Score(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) (int64, *framework.Status) {
	cpu, memory := fractions(p, n, n.GetNonZeroRequested(), assumed)
	free := func(f float64) int64 { return int64((1 - min(f, 1)) * float64(framework.MaxScore)) }
	return (free(cpu) + free(memory)) / 2, nil
}
func (nodeResourcesFit) ScoreExtensions() framework.ScoreExtensions { return nil }

// fractions are how full the node would be with the pod, one being full.
func fractions(p *v1.Pod, n framework.NodeInfo, used framework.Resource, missing v1.ResourceList) (cpu, memory float64) {
	want := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{NonMissingContainerRequests: missing})
	of := func(want, used, all int64) float64 {
		if all <= 0 {
			return 1
		}
		return float64(want+used) / float64(all)
	}
	all := n.GetAllocatable()
	return of(want.Cpu().MilliValue(), used.GetMilliCPU(), all.GetMilliCPU()), of(want.Memory().Value(), used.GetMemory(), all.GetMemory())
}

// balancedAllocation prefers nodes whose CPU and memory would be equally full.
type balancedAllocation struct{}

// NewNodeResourcesBalancedAllocation makes the plugin.
func NewNodeResourcesBalancedAllocation(context.Context, runtime.Object, framework.Handle) (framework.Plugin, error) {
	return balancedAllocation{}, nil
}

func (balancedAllocation) Name() string { return "NodeResourcesBalancedAllocation" }

// PreScore leaves pods alone that request nothing: they balance nothing.
func (balancedAllocation) PreScore(_ context.Context, _ framework.CycleState, p *v1.Pod, _ []framework.NodeInfo) *framework.Status {
	if want := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{}); want.Cpu().IsZero() && want.Memory().IsZero() {
		return framework.NewStatus(framework.Skip)
	}
	return nil
}
func (balancedAllocation) Score(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) (int64, *framework.Status) {
	cpu, memory := fractions(p, n, n.GetRequested(), nil)
	spread := math.Abs(min(cpu, 1)-min(memory, 1)) / 2 // the standard deviation of two values
	return int64((1 - spread) * float64(framework.MaxScore)), nil
}
func (balancedAllocation) ScoreExtensions() framework.ScoreExtensions { return nil }
