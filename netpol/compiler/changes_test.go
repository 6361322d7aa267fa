package compiler

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// step changes one object of a state, tells the compiler, and says what it was.
func (r *random) step(s *netpol.State, c *Compiler) string {
	r.serial++
	n := r.IntN(12)
	if r.labelled && !r.chance(3) {
		n = 0
	}
	switch n {
	case 0: // a namespace comes, or gets other labels
		n := r.namespace(pick(r, spaceNames...))
		replace(&s.Namespaces, n, func(o *corev1.Namespace) bool { return o.Name == n.Name })
		c.SetNamespace(n)
		return "namespace " + n.Name
	case 1:
		if len(s.Namespaces) > 2 && r.chance(3) {
			n := remove(r, &s.Namespaces)
			c.DeleteNamespace(n.Name)
			return "no namespace " + n.Name
		}
		n := r.node(r.IntN(3))
		replace(&s.Nodes, n, func(o *corev1.Node) bool { return o.Name == n.Name })
		c.SetNode(n)
		return "node " + n.Name
	case 2, 3: // a pod comes
		p := r.pod(fmt.Sprint("pod-", r.serial))
		s.Pods = append(s.Pods, p)
		c.SetPod(p)
		return "pod " + p.Namespace + "/" + p.Name
	case 4: // a pod goes
		if len(s.Pods) > 3 {
			p := remove(r, &s.Pods)
			c.DeletePod(p.UID)
			return "no pod " + p.Namespace + "/" + p.Name
		}
	case 5, 6, 7: // a pod gets other labels, other addresses, or ends
		if len(s.Pods) > 0 {
			old := pick(r, s.Pods...)
			p := old.DeepCopy()
			switch r.IntN(5) {
			case 0:
				p.Status.Phase = pick(r, corev1.PodSucceeded, corev1.PodRunning)
			case 1:
				p.Annotations = r.flows()
			default:
				p.Labels = r.labels(podKeys...)
			}
			replace(&s.Pods, p, func(o *corev1.Pod) bool { return o == old })
			c.SetPod(p)
			return "pod changed " + p.Namespace + "/" + p.Name
		}
	case 8, 9:
		if len(s.NetworkPolicies) > 0 && r.chance(3) {
			p := remove(r, &s.NetworkPolicies)
			c.DeleteNetworkPolicy(p.Namespace, p.Name)
			return "no NetworkPolicy " + p.Namespace + "/" + p.Name
		}
		p := r.networkPolicy(fmt.Sprint("np-", r.IntN(8)))
		if len(s.NetworkPolicies) > 0 && r.chance(2) { // a little of one is other
			p = pick(r, s.NetworkPolicies...).DeepCopy()
			if n := len(p.Spec.Ingress); n > 0 {
				rule := &p.Spec.Ingress[r.IntN(n)]
				if r.chance(2) {
					rule.Ports = r.ports()
				} else {
					rule.From = r.peers()
				}
			} else {
				p.Spec.PodSelector = *r.selector(podKeys)
			}
		}
		for _, old := range s.NetworkPolicies {
			if old.Namespace == p.Namespace && old.Name == p.Name && !r.chance(4) {
				p.UID = old.UID
			}
		}
		replace(&s.NetworkPolicies, p, func(o *networkingv1.NetworkPolicy) bool { return o.Namespace == p.Namespace && o.Name == p.Name })
		c.SetNetworkPolicy(p)
		return "NetworkPolicy " + p.Namespace + "/" + p.Name
	case 10:
		if len(s.ClusterNetworkPolicies) > 0 && r.chance(3) {
			p := remove(r, &s.ClusterNetworkPolicies)
			c.DeleteClusterNetworkPolicy(p.Name)
			return "no ClusterNetworkPolicy " + p.Name
		}
		p := r.clusterPolicy(fmt.Sprint("cnp-", r.IntN(6)))
		if len(s.ClusterNetworkPolicies) > 0 && !r.chance(3) {
			p = pick(r, s.ClusterNetworkPolicies...).DeepCopy()
			switch n, m := len(p.Spec.Ingress), len(p.Spec.Egress); {
			case n > 0 && r.chance(2):
				p.Spec.Ingress[r.IntN(n)].Action = r.action()
			case m > 0 && r.chance(2):
				p.Spec.Egress[r.IntN(m)].Action = r.action()
			case m > 0:
				p.Spec.Egress[r.IntN(m)].Protocols = r.protocols()
			default:
				p.Spec.Priority = int32(r.IntN(4))
			}
		}
		for _, old := range s.ClusterNetworkPolicies {
			if old.Name == p.Name && !r.chance(4) {
				p.UID = old.UID
			}
		}
		replace(&s.ClusterNetworkPolicies, p, func(o *policyv1alpha2.ClusterNetworkPolicy) bool { return o.Name == p.Name })
		c.SetClusterNetworkPolicy(p)
		return "ClusterNetworkPolicy " + p.Name
	}
	s.DNSAddrs = nil
	if r.chance(2) {
		s.DNSAddrs = []netip.Addr{netip.MustParseAddr("10.0.1.250"), netip.MustParseAddr("fd00:1::ffff")}
	}
	c.SetDNSAddrs(s.DNSAddrs)
	return "DNS"
}

func replace[T any](list *[]T, with T, is func(T) bool) {
	out := slices.DeleteFunc(slices.Clone(*list), is)
	*list = append(out, with)
}

func remove[T any](r *random, list *[]T) T {
	i := r.IntN(len(*list))
	out := (*list)[i]
	*list = slices.Delete(slices.Clone(*list), i, i+1)
	return out
}

// single are the writes of a change, one by one, as PolicyTables.Apply makes them: blocks before single addresses.
func single(c bpf.PolicyChange) []bpf.PolicyChange {
	var out []bpf.PolicyChange
	for i := range c.Names {
		out = append(out, bpf.PolicyChange{Names: c.Names[i : i+1]})
	}
	for i := range c.Ports {
		out = append(out, bpf.PolicyChange{Ports: c.Ports[i : i+1]})
	}
	for i := range c.Answers {
		out = append(out, bpf.PolicyChange{Answers: c.Answers[i : i+1]})
	}
	for _, one := range []bool{false, true} {
		for i := range c.Peers {
			if c.Peers[i].Prefix.IsSingleIP() == one {
				out = append(out, bpf.PolicyChange{Peers: c.Peers[i : i+1]})
			}
		}
	}
	for i := range c.Subjects {
		out = append(out, bpf.PolicyChange{Subjects: c.Subjects[i : i+1]})
	}
	for i := range c.GoneSubjects {
		out = append(out, bpf.PolicyChange{GoneSubjects: c.GoneSubjects[i : i+1]})
	}
	for i := range c.GonePeers {
		out = append(out, bpf.PolicyChange{GonePeers: c.GonePeers[i : i+1]})
	}
	for i := range c.GoneAnswers {
		out = append(out, bpf.PolicyChange{GoneAnswers: c.GoneAnswers[i : i+1]})
	}
	for i := range c.GonePorts {
		out = append(out, bpf.PolicyChange{GonePorts: c.GonePorts[i : i+1]})
	}
	for i := range c.GoneNames {
		out = append(out, bpf.PolicyChange{GoneNames: c.GoneNames[i : i+1]})
	}
	return out
}

// verdicts are what tables say of flows: whole, and by side.
type verdicts struct {
	allowed bool
	testimony
}

func (t *Tables) verdicts(q bpf.PolicyQuery) verdicts {
	d := t.Judge(q)
	return verdicts{d.Allowed, got(q, d, t)}
}

// TestChanges makes random changes, one object at a time. After each, what was written is what the compiler says is there, the rows say what the evaluator says, and
// between any two writes no flow was judged but as before or as after.
func TestChanges(t *testing.T) {
	for seed := range uint64(150) {
		r := newRandom(seed)
		r.labelled = seed%3 == 0
		node := pick(r, "", "node-0", "node-0")
		s := r.state()
		c := New(Options{NodeName: node})
		c.SetState(s)
		tables := Interpret(bpf.PolicyRows{})
		for _, change := range c.Flush() {
			tables.Apply(change)
		}
		away := false
		for range 20 {
			if r.chance(10) { // the agent begins anew
				held := c.Rows()
				c = New(Options{NodeName: node})
				c.Continue(held)
				c.SetState(s)
				for _, change := range c.Flush() {
					tables.Apply(change)
					// Nothing but answers for identities that nobody has by a row: of a range of one address that a pod has.
					change.Answers, change.GoneAnswers = nil, nil
					if !reflect.DeepEqual(change, bpf.PolicyChange{}) {
						t.Fatalf("seed %d: a new compiler writes what is there: %+v", seed, change)
					}
				}
			}
			if r.chance(6) { // and something changes while there is none
				held := c.Rows()
				c = New(Options{NodeName: node})
				c.Continue(held)
				c.SetState(s)
				away = true
			}
			what := r.step(&s, c)
			tr := newTrial(t, s, node)
			known := ends(s)
			var flows []netpol.Flow
			var queries []bpf.PolicyQuery
			for range 60 {
				f := r.flow(known)
				flows = append(flows, f)
				queries = append(queries, tr.query(f))
			}
			changes := c.Flush()
			if away {
				what += " while there was no agent"
				away = false
			}
			before, after := make([]verdicts, len(flows)), make([]verdicts, len(flows))
			end := Interpret(c.Rows())
			for i, q := range queries {
				if d := differs(tr.expect(t, flows[i]), flows[i], q, end.Judge(q), end); d != "" {
					t.Fatalf("seed %d, after %s: %s", seed, what, d)
				}
				before[i], after[i] = tables.verdicts(q), end.verdicts(q)
			}
			for n, change := range changes {
				for _, write := range single(change) {
					tables.Apply(write)
					for i, q := range queries {
						if v := tables.verdicts(q); !v.between(before[i], after[i]) {
							t.Fatalf("seed %d, in the midst of %s, change %d of %d, write %+v: %+v is neither\n%+v nor\n%+v\nbut\n%+v\n%+v", seed, what, n+1, len(changes), write, q, before[i], after[i], v, changes)
						}
					}
				}
			}
			if !reflect.DeepEqual(tables, end) {
				t.Fatalf("seed %d, after %s: what was written is not what the compiler says is there:\n%s", seed, what, unlike(tables, end))
			}
		}
	}
}

// between tells whether verdicts are some that tables said before or say after. The names of policies come first and go last: they are not compared.
func (v verdicts) between(before, after verdicts) bool {
	if v.allowed != before.allowed && v.allowed != after.allowed {
		return false
	}
	for i := range v.sides {
		if !v.sides[i].like(before.sides[i]) && !v.sides[i].like(after.sides[i]) {
			return false
		}
		if !v.shadow[i].like(before.shadow[i]) && !v.shadow[i].like(after.shadow[i]) && !v.shadow[i].like(before.sides[i]) && !v.shadow[i].like(after.sides[i]) {
			return false
		}
	}
	return true
}

func (s said) like(o said) bool {
	return s.allowed == o.allowed && s.rule == o.rule && (s.policy == o.policy || strings.HasPrefix(s.policy, "number") || strings.HasPrefix(o.policy, "number"))
}

func unlike(a, b *Tables) string {
	var out strings.Builder
	x, y := reflect.ValueOf(*a), reflect.ValueOf(*b)
	for i := range x.NumField() {
		if m := x.Field(i); m.Kind() == reflect.Map {
			for _, k := range m.MapKeys() {
				if v := y.Field(i).MapIndex(k); !v.IsValid() || fmt.Sprint(v) != fmt.Sprint(m.MapIndex(k)) {
					fmt.Fprintln(&out, x.Type().Field(i).Name, "written", k, m.MapIndex(k), "said", v)
				}
			}
			for _, k := range y.Field(i).MapKeys() {
				if !m.MapIndex(k).IsValid() {
					fmt.Fprintln(&out, x.Type().Field(i).Name, "not written", k)
				}
			}
		}
	}
	return out.String()
}

// TestTwoPoliciesAtOnce: what one pod may send loosens and what another may get tightens, in the same moment. What neither state allows no moment between two
// writes does, whichever pod's row is written first.
func TestTwoPoliciesAtOnce(t *testing.T) {
	for _, addrs := range [][2]string{{"10.0.0.1", "10.0.0.2"}, {"10.0.0.2", "10.0.0.1"}} {
		c := New(Options{})
		c.SetPod(plainPod("asks", addrs[0], map[string]string{"app": "asks"}))
		c.SetPod(plainPod("serves", addrs[1], map[string]string{"app": "serves"}))
		policies := func(out, in bool) {
			for name, allows := range map[string]bool{"asks": out, "serves": in} {
				p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: name, UID: types.UID(name)}, Spec: networkingv1.NetworkPolicySpec{
					PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}}}
				if name == "asks" {
					p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
				}
				if allows {
					p.Spec.Egress, p.Spec.Ingress = []networkingv1.NetworkPolicyEgressRule{{}}, []networkingv1.NetworkPolicyIngressRule{{}}
				}
				c.SetNetworkPolicy(p)
			}
		}
		tables := Interpret(bpf.PolicyRows{})
		allowed := func() bool {
			return tables.Judge(bpf.PolicyQuery{From: netip.MustParseAddr(addrs[0]), To: netip.MustParseAddr(addrs[1]), Protocol: netpol.TCP, Port: 80}).Allowed
		}
		policies(false, true)
		for _, change := range c.Flush() {
			tables.Apply(change)
		}
		for _, next := range [][2]bool{{true, false}, {false, true}} {
			policies(next[0], next[1])
			for _, change := range c.Flush() {
				for _, write := range single(change) {
					if tables.Apply(write); allowed() {
						t.Fatalf("%s to %s is allowed behind %+v, on the way to egress %v, ingress %v", addrs[0], addrs[1], write, next[0], next[1])
					}
				}
			}
		}
		policies(true, true)
		for _, change := range c.Flush() {
			tables.Apply(change)
		}
		if !allowed() {
			t.Error("denied where both policies allow it")
		}
	}
}

// TestTwoPoliciesSwapPorts: what one pod may send and what another may get both loosen and tighten, in the same moment: of neither port any state allows both ends.
func TestTwoPoliciesSwapPorts(t *testing.T) {
	for _, addrs := range [][2]string{{"10.0.0.1", "10.0.0.2"}, {"10.0.0.2", "10.0.0.1"}} {
		c := New(Options{})
		c.SetPod(plainPod("asks", addrs[0], map[string]string{"app": "asks"}))
		c.SetPod(plainPod("serves", addrs[1], map[string]string{"app": "serves"}))
		policies := func(out, in int32) {
			for name, port := range map[string]int32{"asks": out, "serves": in} {
				number := intstr.FromInt32(port)
				ports := []networkingv1.NetworkPolicyPort{{Port: &number}}
				p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: name, UID: types.UID(name)}, Spec: networkingv1.NetworkPolicySpec{
					PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: ports}}}}
				if name == "asks" {
					p.Spec.PolicyTypes, p.Spec.Ingress, p.Spec.Egress = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}, nil, []networkingv1.NetworkPolicyEgressRule{{Ports: ports}}
				}
				c.SetNetworkPolicy(p)
			}
		}
		tables := Interpret(bpf.PolicyRows{})
		allowed := func(port uint16) bool {
			return tables.Judge(bpf.PolicyQuery{From: netip.MustParseAddr(addrs[0]), To: netip.MustParseAddr(addrs[1]), Protocol: netpol.TCP, Port: port}).Allowed
		}
		policies(80, 81)
		for _, change := range c.Flush() {
			tables.Apply(change)
		}
		for _, next := range [][2]int32{{81, 80}, {80, 81}} {
			policies(next[0], next[1])
			for _, change := range c.Flush() {
				for _, write := range single(change) {
					if tables.Apply(write); allowed(80) || allowed(81) {
						t.Fatalf("%s to %s: 80 %v, 81 %v behind %+v, on the way to egress %d, ingress %d", addrs[0], addrs[1], allowed(80), allowed(81), write, next[0], next[1])
					}
				}
			}
		}
		policies(80, 80)
		for _, change := range c.Flush() {
			tables.Apply(change)
		}
		if !allowed(80) || allowed(81) {
			t.Error("80 is what both policies allow")
		}
	}
}
