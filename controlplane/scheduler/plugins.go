package scheduler

import (
	"context"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
	"k8s.io/kube-scheduler/framework"
)

// DefaultPlugins are the plugins that run unless Config names others.
func DefaultPlugins() []framework.Plugin {
	return []framework.Plugin{nodeName{}, nodeUnschedulable{}, taintToleration{}, nodeAffinity{}, nodePorts{}, nodeResourcesFit{}}
}

// nodeName honours spec.nodeName.
type nodeName struct{}

func (nodeName) Name() string { return "NodeName" }
func (nodeName) Filter(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	if p.Spec.NodeName != "" && p.Spec.NodeName != n.Node().Name {
		return framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) didn't match the requested node name")
	}
	return nil
}

// nodeUnschedulable keeps pods off cordoned nodes, unless they tolerate that.
type nodeUnschedulable struct{}

func (nodeUnschedulable) Name() string { return "NodeUnschedulable" }
func (nodeUnschedulable) Filter(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	if !n.Node().Spec.Unschedulable {
		return nil
	}
	if corev1.TolerationsTolerateTaint(klog.Background(), p.Spec.Tolerations, &v1.Taint{Key: v1.TaintNodeUnschedulable, Effect: v1.TaintEffectNoSchedule}, false) {
		return nil
	}
	return framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) were unschedulable")
}

// taintToleration keeps pods off nodes whose taints they don't tolerate, and prefers nodes with few taints
// of effect PreferNoSchedule that they don't.
type taintToleration struct{}

func (taintToleration) Name() string { return "TaintToleration" }
func (taintToleration) Filter(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	hard := func(t *v1.Taint) bool {
		return t.Effect == v1.TaintEffectNoSchedule || t.Effect == v1.TaintEffectNoExecute
	}
	if t, found := corev1.FindMatchingUntoleratedTaint(klog.Background(), n.Node().Spec.Taints, p.Spec.Tolerations, hard, false); found {
		return framework.NewStatus(framework.UnschedulableAndUnresolvable, fmt.Sprintf("node(s) had untolerated taint {%s: %s}", t.Key, t.Value))
	}
	return nil
}

func (taintToleration) Score(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) (int64, *framework.Status) {
	bad := int64(0)
	for i := range n.Node().Spec.Taints {
		t := &n.Node().Spec.Taints[i]
		if t.Effect == v1.TaintEffectPreferNoSchedule && !corev1.TolerationsTolerateTaint(klog.Background(), p.Spec.Tolerations, t, false) {
			bad++
		}
	}
	return max(0, framework.MaxNodeScore-20*bad), nil
}
func (taintToleration) ScoreExtensions() framework.ScoreExtensions { return nil }

// nodeAffinity honours nodeSelector and required node affinity, and prefers preferred ones.
type nodeAffinity struct{}

func (nodeAffinity) Name() string { return "NodeAffinity" }
func (nodeAffinity) Filter(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(n.Node()); err != nil || !ok {
		return framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) didn't match Pod's node affinity/selector")
	}
	return nil
}

func (nodeAffinity) Score(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) (int64, *framework.Status) {
	if p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil {
		return 0, nil
	}
	terms := p.Spec.Affinity.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution
	preferred, err := nodeaffinity.NewPreferredSchedulingTerms(terms)
	if err != nil {
		return 0, framework.AsStatus(err)
	}
	var sum int64
	for _, t := range terms {
		sum += int64(t.Weight)
	}
	if sum == 0 {
		return 0, nil
	}
	return preferred.Score(n.Node()) * framework.MaxNodeScore / sum, nil
}
func (nodeAffinity) ScoreExtensions() framework.ScoreExtensions { return nil }

// nodePorts keeps two pods from wanting the same port of a host.
type nodePorts struct{}

func (nodePorts) Name() string { return "NodePorts" }
func (nodePorts) Filter(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.HostPort > 0 && n.GetUsedPorts().CheckConflict(port.HostIP, string(port.Protocol), port.HostPort) {
				return framework.NewStatus(framework.Unschedulable, "node(s) didn't have free ports for the requested pod ports")
			}
		}
	}
	return nil
}

// nodeResourcesFit wants room for the pod's requests, and prefers the node with most room left (LeastAllocated).
type nodeResourcesFit struct{}

func (nodeResourcesFit) Name() string { return "NodeResourcesFit" }
func (nodeResourcesFit) Filter(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	want, used, all := newPodInfo(p).requests, n.GetRequested(), n.GetAllocatable()
	var reasons []string
	if len(n.GetPods())+1 > all.GetAllowedPodNumber() {
		reasons = append(reasons, "Too many pods")
	}
	if want.milliCPU > 0 && want.milliCPU > all.GetMilliCPU()-used.GetMilliCPU() {
		reasons = append(reasons, "Insufficient cpu")
	}
	if want.memory > 0 && want.memory > all.GetMemory()-used.GetMemory() {
		reasons = append(reasons, "Insufficient memory")
	}
	if want.ephemeral > 0 && want.ephemeral > all.GetEphemeralStorage()-used.GetEphemeralStorage() {
		reasons = append(reasons, "Insufficient ephemeral-storage")
	}
	for name, n := range want.scalar {
		if n > 0 && n > all.GetScalarResources()[name]-used.GetScalarResources()[name] {
			reasons = append(reasons, "Insufficient "+string(name))
		}
	}
	if len(reasons) == 0 {
		return nil
	}
	slices.Sort(reasons)
	return framework.NewStatus(framework.Unschedulable, reasons...)
}

func (nodeResourcesFit) Score(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) (int64, *framework.Status) {
	want, used, all := newPodInfo(p).non0, n.GetNonZeroRequested(), n.GetAllocatable()
	free := func(want, used, all int64) int64 {
		if all <= 0 || used+want > all {
			return 0
		}
		return (all - used - want) * framework.MaxNodeScore / all
	}
	return (free(want.milliCPU, used.GetMilliCPU(), all.GetMilliCPU()) + free(want.memory, used.GetMemory(), all.GetMemory())) / 2, nil
}
func (nodeResourcesFit) ScoreExtensions() framework.ScoreExtensions { return nil }
