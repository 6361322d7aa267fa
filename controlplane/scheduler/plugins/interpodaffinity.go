package plugins

import (
	"context"
	"maps"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/kube-scheduler/framework"
)

// interPodAffinity puts pods near to, or away from, other pods.
type interPodAffinity struct {
	handle     framework.Handle
	namespaces corelisters.NamespaceLister
}

// NewInterPodAffinity makes the plugin.
func NewInterPodAffinity(_ context.Context, _ runtime.Object, h framework.Handle) (framework.Plugin, error) {
	return interPodAffinity{h, h.SharedInformerFactory().Core().V1().Namespaces().Lister()}, nil
}

const (
	affinityKey      framework.StateKey = "PreFilterInterPodAffinity"
	affinityScoreKey framework.StateKey = "PreScoreInterPodAffinity"
)

// domain is one value of a topology key: a zone, a host.
type domain struct{ key, value string }

// affinityState counts pods by domain.
type affinityState struct {
	near, away []framework.AffinityTerm // what the pod requires
	self       bool                     // the pod matches all its own near terms
	// repelled counts existing pods whose anti-affinity the pod would offend; friends existing pods that match all
	// of the pod's near terms; foes those that match one of its away terms.
	repelled, friends, foes map[domain]int
}

func (s *affinityState) Clone() framework.StateData {
	c := *s
	c.repelled, c.friends, c.foes = maps.Clone(s.repelled), maps.Clone(s.friends), maps.Clone(s.foes)
	return &c
}

func (interPodAffinity) Name() string { return "InterPodAffinity" }

func (a interPodAffinity) labelsOf(namespace string) labels.Set {
	if ns, err := a.namespaces.Get(namespace); err == nil {
		return ns.Labels
	}
	return nil
}

func matchesAll(terms []framework.AffinityTerm, p *v1.Pod, ns labels.Set) bool {
	for i := range terms {
		if !terms[i].Matches(p, ns) {
			return false
		}
	}
	return len(terms) > 0
}

// count adds or takes one existing pod.
func (a interPodAffinity) count(s *affinityState, p *v1.Pod, other framework.PodInfo, n *v1.Node, sign int) {
	add := func(m map[domain]int, key string) {
		if value, ok := n.Labels[key]; ok {
			d := domain{key, value}
			if m[d] += sign; m[d] == 0 {
				delete(m, d)
			}
		}
	}
	anti := other.GetRequiredAntiAffinityTerms()
	for i := range anti {
		if anti[i].Matches(p, a.labelsOf(p.Namespace)) {
			add(s.repelled, anti[i].TopologyKey)
		}
	}
	if len(s.near)+len(s.away) == 0 {
		return
	}
	ns := a.labelsOf(other.GetPod().Namespace)
	if matchesAll(s.near, other.GetPod(), ns) {
		for i := range s.near {
			add(s.friends, s.near[i].TopologyKey)
		}
	}
	for i := range s.away {
		if s.away[i].Matches(other.GetPod(), ns) {
			add(s.foes, s.away[i].TopologyKey)
		}
	}
}

func (a interPodAffinity) PreFilter(_ context.Context, cs framework.CycleState, p *v1.Pod, nodes []framework.NodeInfo) (*framework.PreFilterResult, *framework.Status) {
	s := &affinityState{repelled: map[domain]int{}, friends: map[domain]int{}, foes: map[domain]int{}}
	var err error
	if s.near, err = framework.GetAffinityTerms(p, framework.GetPodAffinityTerms(p.Spec.Affinity)); err != nil {
		return nil, framework.NewStatus(framework.UnschedulableAndUnresolvable, "parsing pod affinity: "+err.Error())
	}
	if s.away, err = framework.GetAffinityTerms(p, framework.GetPodAntiAffinityTerms(p.Spec.Affinity)); err != nil {
		return nil, framework.NewStatus(framework.UnschedulableAndUnresolvable, "parsing pod anti-affinity: "+err.Error())
	}
	s.self = matchesAll(s.near, p, a.labelsOf(p.Namespace))
	for _, n := range nodes {
		// Only the pods with terms of their own matter, if the new one has none.
		others := n.GetPods()
		if len(s.near)+len(s.away) == 0 {
			others = n.GetPodsWithRequiredAntiAffinity()
		}
		for _, o := range others {
			a.count(s, p, o, n.Node(), 1)
		}
	}
	if len(s.near)+len(s.away)+len(s.repelled) == 0 {
		return nil, framework.NewStatus(framework.Skip)
	}
	cs.Write(affinityKey, s)
	return nil, nil
}

func (a interPodAffinity) PreFilterExtensions() framework.PreFilterExtensions { return a }
func (a interPodAffinity) AddPod(_ context.Context, cs framework.CycleState, p *v1.Pod, add framework.PodInfo, n framework.NodeInfo) *framework.Status {
	return a.change(cs, p, add, n, 1)
}
func (a interPodAffinity) RemovePod(_ context.Context, cs framework.CycleState, p *v1.Pod, gone framework.PodInfo, n framework.NodeInfo) *framework.Status {
	return a.change(cs, p, gone, n, -1)
}
func (a interPodAffinity) change(cs framework.CycleState, p *v1.Pod, o framework.PodInfo, n framework.NodeInfo, sign int) *framework.Status {
	s, err := cs.Read(affinityKey)
	if err != nil {
		return framework.AsStatus(err)
	}
	a.count(s.(*affinityState), p, o, n.Node(), sign)
	return nil
}

func (a interPodAffinity) Filter(_ context.Context, cs framework.CycleState, p *v1.Pod, n framework.NodeInfo) *framework.Status {
	data, err := cs.Read(affinityKey)
	if err != nil {
		return framework.AsStatus(err)
	}
	s := data.(*affinityState)
	if !s.isNear(n.Node()) {
		return framework.NewStatus(framework.UnschedulableAndUnresolvable, "node(s) didn't match pod affinity rules")
	}
	for _, t := range s.away {
		if value, ok := n.Node().Labels[t.TopologyKey]; ok && s.foes[domain{t.TopologyKey, value}] > 0 {
			return framework.NewStatus(framework.Unschedulable, "node(s) didn't match pod anti-affinity rules")
		}
	}
	for d := range s.repelled {
		if n.Node().Labels[d.key] == d.value {
			return framework.NewStatus(framework.Unschedulable, "node(s) didn't satisfy existing pods anti-affinity rules")
		}
	}
	return nil
}

// isNear tells whether the node is near to what the pod wants to be near to. The first of a group that wants to
// be near to itself may go anywhere where the topology is known.
func (s *affinityState) isNear(n *v1.Node) bool {
	found := true
	for _, t := range s.near {
		value, ok := n.Labels[t.TopologyKey]
		if !ok {
			return false
		}
		found = found && s.friends[domain{t.TopologyKey, value}] > 0
	}
	return found || len(s.friends) == 0 && s.self
}

func (interPodAffinity) EventsToRegister(context.Context) ([]framework.ClusterEventWithHint, error) {
	return append(on(framework.Node, framework.Add|framework.UpdateNodeLabel), on(framework.AssignedPod, framework.Add|framework.Delete|framework.UpdatePodLabel)...), nil
}

// affinityScores are the weights of domains.
type affinityScores map[domain]int64

func (s affinityScores) Clone() framework.StateData { return s }

// PreScore weighs the domains: by what the pod prefers, by what running pods prefer, and by what they require to
// be near to (which counts one).
func (a interPodAffinity) PreScore(_ context.Context, cs framework.CycleState, p *v1.Pod, _ []framework.NodeInfo) *framework.Status {
	all, err := a.handle.SnapshotSharedLister().NodeInfos().List()
	if err != nil {
		return framework.AsStatus(err)
	}
	var prefer, avoid []framework.WeightedAffinityTerm
	if af := p.Spec.Affinity; af != nil && af.PodAffinity != nil {
		if prefer, err = framework.GetWeightedAffinityTerms(p, af.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution); err != nil {
			return framework.AsStatus(err)
		}
	}
	if af := p.Spec.Affinity; af != nil && af.PodAntiAffinity != nil {
		if avoid, err = framework.GetWeightedAffinityTerms(p, af.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution); err != nil {
			return framework.AsStatus(err)
		}
	}
	scores := affinityScores{}
	for _, n := range all {
		weigh := func(t *framework.AffinityTerm, weight int64, who *v1.Pod) {
			if value, ok := n.Node().Labels[t.TopologyKey]; ok && weight != 0 && t.Matches(who, a.labelsOf(who.Namespace)) {
				scores[domain{t.TopologyKey, value}] += weight
			}
		}
		others := n.GetPodsWithAffinity()
		if len(prefer)+len(avoid) > 0 {
			others = n.GetPods()
		}
		for _, o := range others {
			for i := range prefer {
				weigh(&prefer[i].AffinityTerm, int64(prefer[i].Weight), o.GetPod())
			}
			for i := range avoid {
				weigh(&avoid[i].AffinityTerm, -int64(avoid[i].Weight), o.GetPod())
			}
			for _, t := range o.GetRequiredAffinityTerms() {
				weigh(&t, 1, p)
			}
			for _, t := range o.GetPreferredAffinityTerms() {
				weigh(&t.AffinityTerm, int64(t.Weight), p)
			}
			for _, t := range o.GetPreferredAntiAffinityTerms() {
				weigh(&t.AffinityTerm, -int64(t.Weight), p)
			}
		}
	}
	if len(scores) == 0 {
		return framework.NewStatus(framework.Skip)
	}
	cs.Write(affinityScoreKey, scores)
	return nil
}

func (interPodAffinity) Score(_ context.Context, cs framework.CycleState, _ *v1.Pod, n framework.NodeInfo) (int64, *framework.Status) {
	data, err := cs.Read(affinityScoreKey)
	if err != nil {
		return 0, framework.AsStatus(err)
	}
	var sum int64
	for d, w := range data.(affinityScores) {
		if n.Node().Labels[d.key] == d.value {
			sum += w
		}
	}
	return sum, nil
}

func (a interPodAffinity) ScoreExtensions() framework.ScoreExtensions { return a }

// NormalizeScore stretches what may be negative to the whole range.
func (interPodAffinity) NormalizeScore(_ context.Context, _ framework.CycleState, _ *v1.Pod, scores framework.NodeScoreList) *framework.Status {
	low, high := scores[0].Score, scores[0].Score
	for _, s := range scores {
		low, high = min(low, s.Score), max(high, s.Score)
	}
	for i := range scores {
		if high > low {
			scores[i].Score = framework.MaxScore * (scores[i].Score - low) / (high - low)
		} else {
			scores[i].Score = 0
		}
	}
	return nil
}
