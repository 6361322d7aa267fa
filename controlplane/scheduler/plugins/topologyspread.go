package plugins

import (
	"context"
	"fmt"
	"math"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
	"k8s.io/kube-scheduler/framework"
)

// podTopologySpread spreads pods of a kind over domains.
type podTopologySpread struct {
	handle   framework.Handle
	services corelisters.ServiceLister
}

// NewPodTopologySpread makes the plugin.
func NewPodTopologySpread(_ context.Context, _ runtime.Object, h framework.Handle) (framework.Plugin, error) {
	return podTopologySpread{h, h.SharedInformerFactory().Core().V1().Services().Lister()}, nil
}

const (
	spreadKey      framework.StateKey = "PreFilterPodTopologySpread"
	spreadScoreKey framework.StateKey = "PreScorePodTopologySpread"
)

// constraint is a topologySpreadConstraint, ready for use.
type constraint struct {
	v1.TopologySpreadConstraint
	selector   labels.Selector
	controller types.UID // if set, its pods are meant, whatever their labels
	self       int       // 1 if the pod counts itself
}

// spreadState counts, by constraint, the matching pods of each domain.
type spreadState struct {
	constraints []constraint
	counts      []map[string]int
	partly      bool // nodes count that are in some of the domains only
}

func (s *spreadState) Clone() framework.StateData {
	c := &spreadState{constraints: s.constraints, counts: make([]map[string]int, len(s.counts)), partly: s.partly}
	for i, m := range s.counts {
		c.counts[i] = map[string]int{}
		for k, v := range m {
			c.counts[i][k] = v
		}
	}
	return c
}

func (podTopologySpread) Name() string { return "PodTopologySpread" }

func constraintsOf(p *v1.Pod, when v1.UnsatisfiableConstraintAction) ([]constraint, error) {
	var out []constraint
	for _, c := range p.Spec.TopologySpreadConstraints {
		if c.WhenUnsatisfiable != when {
			continue
		}
		sel, err := metav1.LabelSelectorAsSelector(c.LabelSelector)
		if err != nil {
			return nil, fmt.Errorf("topologySpreadConstraints of pod %s/%s: %w", p.Namespace, p.Name, err)
		}
		// The pod's own values of these labels tell its revision from others (KEP-3243).
		for _, key := range c.MatchLabelKeys {
			if value, ok := p.Labels[key]; ok {
				req, err := labels.NewRequirement(key, "=", []string{value})
				if err != nil {
					return nil, fmt.Errorf("topologySpreadConstraints of pod %s/%s: %w", p.Namespace, p.Name, err)
				}
				sel = sel.Add(*req)
			}
		}
		x := constraint{TopologySpreadConstraint: c, selector: sel}
		if sel.Matches(labels.Set(p.Labels)) {
			x.self = 1
		}
		out = append(out, x)
	}
	return out, nil
}

// eligible tells whether a node's domain counts for a constraint: the pod could go there by its node affinity, and
// by its tolerations if those are to be honoured (KEP-3094).
func (c constraint) eligible(p *v1.Pod, n *v1.Node) bool {
	if c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == v1.NodeInclusionPolicyHonor {
		if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(n); err != nil || !ok {
			return false
		}
	}
	if c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == v1.NodeInclusionPolicyHonor {
		_, bad := corev1.FindMatchingUntoleratedTaint(klog.Background(), n.Spec.Taints, p.Spec.Tolerations, func(t *v1.Taint) bool {
			return t.Effect == v1.TaintEffectNoSchedule || t.Effect == v1.TaintEffectNoExecute
		}, true)
		return !bad
	}
	return true
}

// byDefault: pods are spread, if it can be, over nodes and zones as far as these have a name (the reference's system defaults).
var byDefault = []v1.TopologySpreadConstraint{
	{MaxSkew: 3, TopologyKey: v1.LabelHostname, WhenUnsatisfiable: v1.ScheduleAnyway},
	{MaxSkew: 5, TopologyKey: v1.LabelTopologyZone, WhenUnsatisfiable: v1.ScheduleAnyway},
}

// defaults are the constraints of a pod that has none of its own: it keeps away from the others of its ReplicaSet or
// StatefulSet, or else from those of its Services. Other pods have none.
func (s podTopologySpread) defaults(p *v1.Pod) ([]constraint, error) {
	like := constraint{self: 1}
	if owner := metav1.GetControllerOf(p); owner != nil && (owner.Kind == "ReplicaSet" || owner.Kind == "StatefulSet" || owner.Kind == "ReplicationController") {
		like.controller = owner.UID
	} else {
		all, err := s.services.Services(p.Namespace).List(labels.Everything())
		if err != nil {
			return nil, err
		}
		together := labels.Set{}
		for _, svc := range all {
			if len(svc.Spec.Selector) > 0 && labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(p.Labels)) {
				together = labels.Merge(together, svc.Spec.Selector)
			}
		}
		if len(together) == 0 {
			return nil, nil
		}
		like.selector = labels.SelectorFromSet(together)
	}
	var out []constraint
	for _, c := range byDefault {
		like.TopologySpreadConstraint = c
		out = append(out, like)
	}
	return out, nil
}

// about tells whether a constraint is about a pod.
func (c constraint) about(p *v1.Pod) bool {
	if c.controller != "" {
		owner := metav1.GetControllerOf(p)
		return owner != nil && owner.UID == c.controller
	}
	return c.selector.Matches(labels.Set(p.Labels))
}

// matching counts a node's pods that a constraint is about.
func (c constraint) matching(namespace string, pods []framework.PodInfo) int {
	n := 0
	for _, o := range pods {
		if p := o.GetPod(); p.Namespace == namespace && p.DeletionTimestamp == nil && c.about(p) {
			n++
		}
	}
	return n
}

func tally(p *v1.Pod, constraints []constraint, nodes []framework.NodeInfo, partly bool) *spreadState {
	s := &spreadState{constraints: constraints, counts: make([]map[string]int, len(constraints)), partly: partly}
	for i, c := range constraints {
		s.counts[i] = map[string]int{}
		for _, n := range nodes {
			if value, ok := n.Node().Labels[c.TopologyKey]; ok && (partly || hasAll(n.Node(), constraints)) && c.eligible(p, n.Node()) {
				s.counts[i][value] += c.matching(p.Namespace, n.GetPods())
			}
		}
	}
	return s
}

// hasAll tells whether the node is in a domain of every constraint.
func hasAll(n *v1.Node, constraints []constraint) bool {
	for _, c := range constraints {
		if _, ok := n.Labels[c.TopologyKey]; !ok {
			return false
		}
	}
	return true
}

func (podTopologySpread) PreFilter(_ context.Context, cs framework.CycleState, p *v1.Pod, nodes []framework.NodeInfo) (*framework.PreFilterResult, *framework.Status) {
	constraints, err := constraintsOf(p, v1.DoNotSchedule)
	if err != nil {
		return nil, framework.AsStatus(err)
	}
	if len(constraints) == 0 {
		return nil, framework.NewStatus(framework.Skip)
	}
	cs.Write(spreadKey, tally(p, constraints, nodes, false))
	return nil, nil
}

func (s podTopologySpread) PreFilterExtensions() framework.PreFilterExtensions { return s }
func (podTopologySpread) AddPod(_ context.Context, cs framework.CycleState, p *v1.Pod, add framework.PodInfo, n framework.NodeInfo) *framework.Status {
	return recount(cs, p, add, n, 1)
}
func (podTopologySpread) RemovePod(_ context.Context, cs framework.CycleState, p *v1.Pod, gone framework.PodInfo, n framework.NodeInfo) *framework.Status {
	return recount(cs, p, gone, n, -1)
}

func recount(cs framework.CycleState, p *v1.Pod, other framework.PodInfo, n framework.NodeInfo, sign int) *framework.Status {
	data, err := cs.Read(spreadKey)
	if err != nil {
		return framework.AsStatus(err)
	}
	s := data.(*spreadState)
	for i, c := range s.constraints {
		value, ok := n.Node().Labels[c.TopologyKey]
		if ok && hasAll(n.Node(), s.constraints) && c.eligible(p, n.Node()) {
			s.counts[i][value] += sign * c.matching(p.Namespace, []framework.PodInfo{other})
		}
	}
	return nil
}

func (podTopologySpread) Filter(_ context.Context, cs framework.CycleState, _ *v1.Pod, n framework.NodeInfo) *framework.Status {
	data, err := cs.Read(spreadKey)
	if err != nil {
		return framework.AsStatus(err)
	}
	s := data.(*spreadState)
	for i, c := range s.constraints {
		value, ok := n.Node().Labels[c.TopologyKey]
		if !ok {
			return framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) didn't match pod topology spread constraints (missing required label)")
		}
		least := math.MaxInt
		for _, k := range s.counts[i] {
			least = min(least, k)
		}
		if len(s.counts[i]) == 0 || c.MinDomains != nil && len(s.counts[i]) < int(*c.MinDomains) {
			least = 0 // too few domains: an empty one is still to come
		}
		if s.counts[i][value]+c.self-least > int(c.MaxSkew) {
			return framework.NewStatus(framework.Unschedulable, "node(s) didn't match pod topology spread constraints")
		}
	}
	return nil
}

func (podTopologySpread) EventsToRegister(context.Context) ([]framework.ClusterEventWithHint, error) {
	return append(on(framework.Node, framework.Add|framework.Delete|framework.UpdateNodeLabel|framework.UpdateNodeTaint), on(framework.AssignedPod, framework.Add|framework.Delete|framework.UpdatePodLabel)...), nil
}

func (s podTopologySpread) PreScore(_ context.Context, cs framework.CycleState, p *v1.Pod, _ []framework.NodeInfo) *framework.Status {
	constraints, err := constraintsOf(p, v1.ScheduleAnyway)
	own := len(p.Spec.TopologySpreadConstraints) > 0
	if !own {
		constraints, err = s.defaults(p)
	}
	if err != nil {
		return framework.AsStatus(err)
	}
	if len(constraints) == 0 {
		return framework.NewStatus(framework.Skip)
	}
	all, err := s.handle.SnapshotSharedLister().NodeInfos().List()
	if err != nil {
		return framework.AsStatus(err)
	}
	cs.Write(spreadScoreKey, tally(p, constraints, all, !own))
	return nil
}

// Score counts the pods that are in the node's domains already; a constraint over many domains weighs more, for
// its counts are small. Nodes outside of a domain are the last choice.
func (podTopologySpread) Score(_ context.Context, cs framework.CycleState, _ *v1.Pod, n framework.NodeInfo) (int64, *framework.Status) {
	data, err := cs.Read(spreadScoreKey)
	if err != nil {
		return 0, framework.AsStatus(err)
	}
	s := data.(*spreadState)
	if !s.partly && !hasAll(n.Node(), s.constraints) {
		return outside, nil
	}
	var sum float64
	for i, c := range s.constraints {
		sum += float64(c.MaxSkew - 1)
		if value, ok := n.Node().Labels[c.TopologyKey]; ok {
			sum += float64(s.counts[i][value]) * math.Log(float64(len(s.counts[i])+2))
		}
	}
	return int64(math.Round(sum)), nil
}

// outside marks a node that is in no domain of a constraint.
const outside = -1

func (s podTopologySpread) ScoreExtensions() framework.ScoreExtensions { return s }

// NormalizeScore turns few into much.
func (podTopologySpread) NormalizeScore(_ context.Context, _ framework.CycleState, _ *v1.Pod, scores framework.NodeScoreList) *framework.Status {
	low, high := int64(math.MaxInt64), int64(0)
	for _, s := range scores {
		if s.Score != outside {
			low, high = min(low, s.Score), max(high, s.Score)
		}
	}
	for i, s := range scores {
		switch {
		case s.Score == outside:
			scores[i].Score = 0
		case high == 0:
			scores[i].Score = framework.MaxScore
		default:
			scores[i].Score = framework.MaxScore * (high + low - s.Score) / high
		}
	}
	return nil
}
