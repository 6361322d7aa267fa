package scheduler

import (
	"context"
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
)

func node(name, cpu, memory string, change ...func(*v1.Node)) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelHostname: name}}}
	n.Status.Allocatable = v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory), v1.ResourcePods: resource.MustParse("3")}
	for _, f := range change {
		f(n)
	}
	return n
}

func pod(name string, change ...func(*v1.Pod)) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Labels: map[string]string{"app": "a"}}, Spec: v1.PodSpec{SchedulerName: v1.DefaultSchedulerName, Containers: []v1.Container{{Name: "main"}}}}
	for _, f := range change {
		f(p)
	}
	return p
}

func wants(cpu, memory string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory)}
	}
}
func onNode(name string) func(*v1.Pod) { return func(p *v1.Pod) { p.Spec.NodeName = name } }
func hostPort(port int32) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{HostPort: port, Protocol: v1.ProtocolTCP}}
	}
}
func zone(name string) func(*v1.Node) {
	return func(n *v1.Node) { n.Labels[v1.LabelTopologyZone] = name }
}
func taint(key string, e v1.TaintEffect) func(*v1.Node) {
	return func(n *v1.Node) { n.Spec.Taints = append(n.Spec.Taints, v1.Taint{Key: key, Effect: e}) }
}
func term(key string) v1.PodAffinityTerm {
	return v1.PodAffinityTerm{TopologyKey: key, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}}
}
func away(key string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Affinity = &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{term(key)}}}
	}
}
func near(key string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Affinity = &v1.Affinity{PodAffinity: &v1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{term(key)}}}
	}
}
func spread(key string, when v1.UnsatisfiableConstraintAction) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{TopologyKey: key, MaxSkew: 1, WhenUnsatisfiable: when, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}}}
	}
}

// of makes a pod one of a controller's.
func of(kind, name string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: name, UID: types.UID(name), Controller: new(true)}}
	}
}

// with makes a scheduler that knows these nodes and pods, and a Service web of pods with app=web; nothing of it runs.
func with(t *testing.T, nodes []*v1.Node, pods []*v1.Pod) *scheduler {
	t.Helper()
	s, err := newScheduler(t.Context(), Config{Client: fake.NewClientset(), Name: v1.DefaultSchedulerName, Plugins: DefaultPlugins()}, record.NewFakeRecorder(100))
	if err != nil {
		t.Fatal(err)
	}
	web := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}, Spec: v1.ServiceSpec{Selector: map[string]string{"app": "web"}}}
	if err := s.informers.Core().V1().Services().Informer().GetStore().Add(web); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		s.cache.setNode(n)
	}
	for _, p := range pods {
		s.cache.setPod(p)
	}
	s.cache.snapshot(s.snap)
	return s
}

func TestChoose(t *testing.T) {
	two := []*v1.Node{node("a", "4", "4Gi", zone("z1")), node("b", "4", "4Gi", zone("z2"))}
	web := func(p *v1.Pod) { p.Labels = map[string]string{"app": "web"} }
	three := append([]*v1.Node{node("c", "4", "4Gi", zone("z2"))}, two...)
	for name, c := range map[string]struct {
		nodes []*v1.Node
		have  []*v1.Pod
		pod   *v1.Pod
		want  string // a node's name, or the reason
	}{
		"no nodes":                            {nil, nil, pod("p"), "no nodes available to schedule pods"},
		"the emptier node":                    {two, []*v1.Pod{pod("x", onNode("a"), wants("1", "1Gi"))}, pod("p", wants("1", "1Gi")), "b"},
		"pods that request nothing count too": {two, []*v1.Pod{pod("x", onNode("a"))}, pod("p"), "b"},
		"too much": {two, []*v1.Pod{pod("x", onNode("a"), wants("2", "1Gi")), pod("y", onNode("b"), wants("1", "3Gi"))}, pod("p", wants("3", "2Gi")),
			"0/2 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."},
		"both at once":  {two[:1], nil, pod("p", wants("5", "5Gi")), "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."},
		"too many pods": {two[:1], []*v1.Pod{pod("x", onNode("a")), pod("y", onNode("a")), pod("z", onNode("a"))}, pod("p"), "0/1 nodes are available: 1 Too many pods."},
		"init containers count as far as they want more": {two[:1], nil, pod("p", wants("1", "1Gi"), func(p *v1.Pod) {
			p.Spec.InitContainers = []v1.Container{{Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("5")}}}}
		}), "0/1 nodes are available: 1 Insufficient cpu."},
		"overhead counts": {two[:1], nil, pod("p", wants("4", "1Gi"), func(p *v1.Pod) {
			p.Spec.Overhead = v1.ResourceList{v1.ResourceCPU: resource.MustParse("1m")}
		}), "0/1 nodes are available: 1 Insufficient cpu."},
		"extended resources": {two[:1], nil, pod("p", func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Requests = v1.ResourceList{"example.com/gpu": resource.MustParse("1")}
		}), "0/1 nodes are available: 1 Insufficient example.com/gpu."},
		"a taint": {[]*v1.Node{node("a", "4", "4Gi", taint("k", v1.TaintEffectNoSchedule))}, nil, pod("p"), "0/1 nodes are available: 1 node(s) had untolerated taint {k: }."},
		"a tolerated taint": {[]*v1.Node{node("a", "4", "4Gi", taint("k", v1.TaintEffectNoSchedule))}, nil, pod("p", func(p *v1.Pod) {
			p.Spec.Tolerations = []v1.Toleration{{Operator: v1.TolerationOpExists}}
		}), "a"},
		"a taint to avoid": {[]*v1.Node{node("a", "8", "8Gi", taint("k", v1.TaintEffectPreferNoSchedule)), node("b", "4", "4Gi")}, nil, pod("p"), "b"},
		"cordoned":         {[]*v1.Node{node("a", "4", "4Gi", func(n *v1.Node) { n.Spec.Unschedulable = true })}, nil, pod("p"), "0/1 nodes are available: 1 node(s) were unschedulable."},
		"selector":         {two, nil, pod("p", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{v1.LabelTopologyZone: "z2"} }), "b"},
		"selector without match": {two, nil, pod("p", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }),
			"0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."},
		"affinity to a node by name": {two, nil, pod("p", func(p *v1.Pod) {
			p.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
				MatchFields: []v1.NodeSelectorRequirement{{Key: "metadata.name", Operator: v1.NodeSelectorOpIn, Values: []string{"b"}}},
			}}}}}
		}), "b"},
		"preferred affinity outweighs room": {two, []*v1.Pod{pod("x", onNode("b"), wants("1", "1Gi"))}, pod("p", func(p *v1.Pod) {
			p.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []v1.PreferredSchedulingTerm{{
				Weight: 1, Preference: v1.NodeSelectorTerm{MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelTopologyZone, Operator: v1.NodeSelectorOpIn, Values: []string{"z2"}}}},
			}}}}
		}), "b"},
		"a port that is taken": {two[:1], []*v1.Pod{pod("x", onNode("a"), hostPort(80))}, pod("p", hostPort(80)),
			"0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."},
		"a free port elsewhere":     {two, []*v1.Pod{pod("x", onNode("a"), hostPort(80))}, pod("p", hostPort(80)), "b"},
		"away from its like":        {two, []*v1.Pod{pod("x", onNode("b"))}, pod("p", away(v1.LabelHostname)), "a"},
		"away by zone":              {three, []*v1.Pod{pod("x", onNode("c"))}, pod("p", away(v1.LabelTopologyZone)), "a"},
		"nowhere away":              {two, []*v1.Pod{pod("x", onNode("a")), pod("y", onNode("b"))}, pod("p", away(v1.LabelHostname)), "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."},
		"others want to be away":    {two[:1], []*v1.Pod{pod("x", onNode("a"), away(v1.LabelHostname))}, pod("p"), "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."},
		"near its like":             {two, []*v1.Pod{pod("x", onNode("b"), wants("2", "2Gi"))}, pod("p", near(v1.LabelHostname)), "b"},
		"the first of its like":     {two, nil, pod("p", near(v1.LabelHostname)), "a"},
		"near to what there is not": {two, nil, pod("p", near(v1.LabelHostname), func(p *v1.Pod) { p.Labels = nil }), "0/2 nodes are available: 2 node(s) didn't match pod affinity rules."},
		"spread over zones":         {two, []*v1.Pod{pod("x", onNode("b"))}, pod("p", spread(v1.LabelTopologyZone, v1.DoNotSchedule), wants("3", "3Gi")), "a"},
		"spread counts a full zone": {[]*v1.Node{node("a", "4", "4Gi", zone("z1")), node("b", "1", "1Gi", zone("z2"))}, []*v1.Pod{pod("x", onNode("a"))}, pod("p", spread(v1.LabelTopologyZone, v1.DoNotSchedule), wants("2", "2Gi")), "0/2 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 node(s) didn't match pod topology spread constraints."},
		"spread if it can be":       {two, []*v1.Pod{pod("x", onNode("b")), pod("y", onNode("a"), wants("1", "1Gi"), func(p *v1.Pod) { p.Labels = nil })}, pod("p", spread(v1.LabelTopologyZone, v1.ScheduleAnyway)), "a"},
		"replicas keep apart by default": {two, []*v1.Pod{pod("x", onNode("a"), of("ReplicaSet", "rs")), pod("y", onNode("b"), wants("1500m", "1500Mi"))},
			pod("p", of("ReplicaSet", "rs")), "b"},
		"replicas of others don't matter": {two, []*v1.Pod{pod("x", onNode("a"), of("ReplicaSet", "other")), pod("y", onNode("b"), wants("1500m", "1500Mi"))},
			pod("p", of("ReplicaSet", "rs")), "a"},
		"pods of a Service keep apart by default": {two, []*v1.Pod{pod("x", onNode("a"), web), pod("y", onNode("b"), wants("1500m", "1500Mi"))}, pod("p", web), "b"},
		"pods of a Job don't": {two, []*v1.Pod{pod("x", onNode("a"), of("Job", "j")), pod("y", onNode("b"), wants("1500m", "1500Mi"))},
			pod("p", of("Job", "j")), "a"},
		"zones count where there are any": {append([]*v1.Node{node("d", "4", "4Gi")}, three...), []*v1.Pod{pod("x", onNode("b"), of("StatefulSet", "s")), pod("y", onNode("d"), of("StatefulSet", "s")), pod("z", onNode("a"), wants("500m", "500Mi"))},
			pod("p", of("StatefulSet", "s")), "a"},
		"outside of the topology": {[]*v1.Node{node("a", "4", "4Gi")}, nil, pod("p", spread(v1.LabelTopologyZone, v1.DoNotSchedule)), "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label)."},
	} {
		t.Run(name, func(t *testing.T) {
			s := with(t, c.nodes, c.have)
			got, why := s.choose(t.Context(), newCycleState(), c.pod)
			if why != nil {
				got = why.message
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestDecisionsCountAtOnce: the next pod sees a decision that the API does not know of yet, and a failed binding
// gives the room back.
func TestDecisionsCountAtOnce(t *testing.T) {
	s := with(t, []*v1.Node{node("a", "1", "1Gi")}, nil)
	first := pod("first", wants("1", "1Gi"))
	if !s.cache.assume(first, "a") || s.cache.assume(first, "a") {
		t.Fatal("a pod can be assumed once")
	}
	s.cache.snapshot(s.snap)
	if n, why := s.choose(context.Background(), newCycleState(), pod("second", wants("1", "1Gi"))); why == nil {
		t.Errorf("second pod on %s", n)
	}
	s.cache.forget("first")
	s.cache.snapshot(s.snap)
	if _, why := s.choose(context.Background(), newCycleState(), pod("second", wants("1", "1Gi"))); why != nil {
		t.Error(why.message)
	}
}

// TestCacheAccounts adds and takes pods and nodes in many ways; what is used must be zero in the end.
func TestCacheAccounts(t *testing.T) {
	c, s := newNodeCache(), newSnapshot()
	n := node("a", "4", "4Gi")
	c.setPod(pod("early", onNode("a"), wants("1", "1Gi"), hostPort(80))) // before its node is known
	c.setNode(n)
	c.setPod(pod("early", onNode("a"), wants("2", "1Gi"), hostPort(81)))
	c.assume(pod("late", away(v1.LabelTopologyZone)), "a")
	c.setPod(pod("late", onNode("a"), away(v1.LabelTopologyZone)))
	c.forget("late") // confirmed meanwhile: stays
	c.snapshot(s)
	info := s.index["a"]
	if got := fmt.Sprint(info.requested.milliCPU, len(info.pods), len(info.anti), len(info.wide), info.ports.Len()); got != "2000 2 1 1 1" {
		t.Errorf("used: %s", got)
	}
	c.dropNode("a")
	c.snapshot(s)
	if len(s.list) != 0 {
		t.Error("a deleted node is still there")
	}
	c.setNode(n) // comes back with its pods
	c.dropPod("early")
	c.dropPod("late")
	c.dropPod("unknown")
	c.snapshot(s)
	info = s.index["a"]
	if got := fmt.Sprint(info.requested.milliCPU, info.nonZero.memory, len(info.pods), len(info.anti), len(info.wide), info.ports.Len()); got != "0 0 0 0 0 0" {
		t.Errorf("used after all have gone: %s", got)
	}
}
