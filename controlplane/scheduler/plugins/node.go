package plugins

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
	"k8s.io/kube-scheduler/framework"
)

// nodeName honours spec.nodeName.
type nodeName struct{}

// NewNodeName makes the plugin.
func NewNodeName(context.Context, runtime.Object, framework.Handle) (framework.Plugin, error) {
	return nodeName{}, nil
}

func (nodeName) Name() string { return "NodeName" }
func (nodeName) Filter(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	if p.Spec.NodeName != "" && p.Spec.NodeName != n.Node().Name {
		return framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) didn't match the requested node name")
	}
	return nil
}
func (nodeName) EventsToRegister(context.Context) ([]framework.ClusterEventWithHint, error) {
	return on(framework.Node, framework.Add), nil
}

// nodeUnschedulable keeps pods off cordoned nodes, unless they tolerate that.
type nodeUnschedulable struct{}

// NewNodeUnschedulable makes the plugin.
func NewNodeUnschedulable(context.Context, runtime.Object, framework.Handle) (framework.Plugin, error) {
	return nodeUnschedulable{}, nil
}

func (nodeUnschedulable) Name() string { return "NodeUnschedulable" }
func (nodeUnschedulable) Filter(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	cordon := &v1.Taint{Key: v1.TaintNodeUnschedulable, Effect: v1.TaintEffectNoSchedule}
	if !n.Node().Spec.Unschedulable || corev1.TolerationsTolerateTaint(klog.Background(), p.Spec.Tolerations, cordon, true) {
		return nil
	}
	return framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) were unschedulable")
}
func (nodeUnschedulable) EventsToRegister(context.Context) ([]framework.ClusterEventWithHint, error) {
	return on(framework.Node, framework.Add|framework.UpdateNodeTaint), nil
}

// taintToleration keeps pods off nodes whose taints they don't tolerate, and prefers nodes with few taints of
// effect PreferNoSchedule that they don't.
type taintToleration struct{}

// NewTaintToleration makes the plugin.
func NewTaintToleration(context.Context, runtime.Object, framework.Handle) (framework.Plugin, error) {
	return taintToleration{}, nil
}

func (taintToleration) Name() string { return "TaintToleration" }
func (taintToleration) Filter(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	hard := func(t *v1.Taint) bool {
		return t.Effect == v1.TaintEffectNoSchedule || t.Effect == v1.TaintEffectNoExecute
	}
	if t, found := corev1.FindMatchingUntoleratedTaint(klog.Background(), n.Node().Spec.Taints, p.Spec.Tolerations, hard, true); found {
		return framework.NewStatus(framework.UnschedulableAndUnresolvable, fmt.Sprintf("node(s) had untolerated taint {%s: %s}", t.Key, t.Value))
	}
	return nil
}
func (taintToleration) EventsToRegister(context.Context) ([]framework.ClusterEventWithHint, error) {
	return on(framework.Node, framework.Add|framework.UpdateNodeTaint), nil
}
func (taintToleration) Score(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) (int64, *framework.Status) {
	bad := int64(0)
	for i := range n.Node().Spec.Taints {
		t := &n.Node().Spec.Taints[i]
		if t.Effect == v1.TaintEffectPreferNoSchedule && !corev1.TolerationsTolerateTaint(klog.Background(), p.Spec.Tolerations, t, true) {
			bad++
		}
	}
	return bad, nil
}
func (t taintToleration) ScoreExtensions() framework.ScoreExtensions { return t }
func (taintToleration) NormalizeScore(_ context.Context, _ framework.CycleState, _ *v1.Pod, scores framework.NodeScoreList) *framework.Status {
	normalize(scores, true)
	return nil
}

// normalize stretches scores so that the highest becomes the maximum; reverse: so that the highest becomes zero.
func normalize(scores framework.NodeScoreList, reverse bool) {
	var top int64
	for _, s := range scores {
		top = max(top, s.Score)
	}
	for i := range scores {
		if top > 0 {
			scores[i].Score = scores[i].Score * framework.MaxScore / top
		}
		if reverse {
			scores[i].Score = framework.MaxScore - scores[i].Score
		}
	}
}

// nodeAffinity honours nodeSelector and required node affinity, and prefers preferred ones.
type nodeAffinity struct{}

// NewNodeAffinity makes the plugin.
func NewNodeAffinity(context.Context, runtime.Object, framework.Handle) (framework.Plugin, error) {
	return nodeAffinity{}, nil
}

func (nodeAffinity) Name() string { return "NodeAffinity" }

// PreFilter narrows the search to the nodes that every term names by metadata.name (as DaemonSets do).
func (nodeAffinity) PreFilter(_ context.Context, _ framework.CycleState, p *v1.Pod, _ []framework.NodeInfo) (*framework.PreFilterResult, *framework.Status) {
	a := p.Spec.Affinity
	required := a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil
	if !required {
		if len(p.Spec.NodeSelector) == 0 {
			return nil, framework.NewStatus(framework.Skip)
		}
		return nil, nil
	}
	names := sets.New[string]()
	for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		var named sets.Set[string]
		for _, f := range t.MatchFields {
			if f.Key == metaName && f.Operator == v1.NodeSelectorOpIn {
				if named = sets.New(f.Values...).Intersection(orAll(named, f.Values)); len(named) == 0 {
					break
				}
			}
		}
		if named == nil {
			return nil, nil // a term that any node may match
		}
		names = names.Union(named)
	}
	return &framework.PreFilterResult{NodeNames: names}, nil
}

const metaName = "metadata.name"

func orAll(s sets.Set[string], all []string) sets.Set[string] {
	if s == nil {
		return sets.New(all...)
	}
	return s
}

func (nodeAffinity) PreFilterExtensions() framework.PreFilterExtensions { return nil }
func (nodeAffinity) Filter(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(n.Node()); err != nil || !ok {
		return framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) didn't match Pod's node affinity/selector")
	}
	return nil
}
func (nodeAffinity) EventsToRegister(context.Context) ([]framework.ClusterEventWithHint, error) {
	return on(framework.Node, framework.Add|framework.UpdateNodeLabel), nil
}

func (nodeAffinity) PreScore(_ context.Context, _ framework.CycleState, p *v1.Pod, _ []framework.NodeInfo) *framework.Status {
	if a := p.Spec.Affinity; a == nil || a.NodeAffinity == nil || len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) == 0 {
		return framework.NewStatus(framework.Skip)
	}
	return nil
}
func (nodeAffinity) Score(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) (int64, *framework.Status) {
	if p.Spec.Affinity == nil || p.Spec.Affinity.NodeAffinity == nil {
		return 0, nil
	}
	preferred, err := nodeaffinity.NewPreferredSchedulingTerms(p.Spec.Affinity.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	if err != nil {
		return 0, framework.AsStatus(err)
	}
	return preferred.Score(n.Node()), nil
}
func (a nodeAffinity) ScoreExtensions() framework.ScoreExtensions { return a }
func (nodeAffinity) NormalizeScore(_ context.Context, _ framework.CycleState, _ *v1.Pod, scores framework.NodeScoreList) *framework.Status {
	normalize(scores, false)
	return nil
}

// nodePorts keeps two pods from wanting the same port of a host.
type nodePorts struct{}

// NewNodePorts makes the plugin.
func NewNodePorts(context.Context, runtime.Object, framework.Handle) (framework.Plugin, error) {
	return nodePorts{}, nil
}

func (nodePorts) Name() string { return "NodePorts" }

func hostPorts(p *v1.Pod) []v1.ContainerPort {
	var out []v1.ContainerPort
	add := func(c v1.Container) {
		for _, port := range c.Ports {
			if port.HostPort > 0 {
				out = append(out, port)
			}
		}
	}
	for _, c := range p.Spec.Containers {
		add(c)
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return out
}

func (nodePorts) PreFilter(_ context.Context, _ framework.CycleState, p *v1.Pod, _ []framework.NodeInfo) (*framework.PreFilterResult, *framework.Status) {
	if len(hostPorts(p)) == 0 {
		return nil, framework.NewStatus(framework.Skip)
	}
	return nil, nil
}
func (nodePorts) PreFilterExtensions() framework.PreFilterExtensions { return nil }
func (nodePorts) Filter(_ context.Context, _ framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	for _, port := range hostPorts(p) {
		if n.GetUsedPorts().CheckConflict(port.HostIP, string(port.Protocol), port.HostPort) {
			return framework.NewStatus(framework.Unschedulable, "node(s) didn't have free ports for the requested pod ports")
		}
	}
	return nil
}
func (nodePorts) EventsToRegister(context.Context) ([]framework.ClusterEventWithHint, error) {
	return append(on(framework.Node, framework.Add), on(framework.AssignedPod, framework.Delete)...), nil
}
