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
	allowed     bool
	sides, with [2]said
}

func (t *Tables) verdicts(q bpf.PolicyQuery) verdicts {
	d := t.Judge(q)
	v := verdicts{allowed: d.Allowed}
	v.sides, v.with = got(q, d, t)
	return v
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
				if d := tr.differs(t, flows[i], q, end.Judge(q), end); d != "" {
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
		if !v.with[i].like(before.with[i]) && !v.with[i].like(after.with[i]) && !v.with[i].like(before.sides[i]) && !v.with[i].like(after.sides[i]) {
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

// TestTwoPodsAtOnce: changes of two pods that are written together. Between any two writes a flow is judged as if both, one or none had changed.
func TestTwoPodsAtOnce(t *testing.T) {
	for seed := range uint64(250) {
		r := newRandom(seed)
		s := r.state()
		if len(s.Pods) < 2 {
			continue
		}
		a := r.IntN(len(s.Pods))
		b := (a + 1 + r.IntN(len(s.Pods)-1)) % len(s.Pods)
		changed := [2]*corev1.Pod{s.Pods[a].DeepCopy(), s.Pods[b].DeepCopy()}
		c := New(Options{})
		c.SetState(s)
		tables := Interpret(bpf.PolicyRows{})
		for _, change := range c.Flush() {
			tables.Apply(change)
		}
		for _, p := range changed {
			p.Labels = r.labels(podKeys...)
			c.SetPod(p)
		}
		var states []*Tables
		for which := range 4 {
			one := New(Options{})
			one.SetState(s)
			for i, p := range changed {
				if which>>i&1 == 1 {
					one.SetPod(p)
				}
			}
			one.Flush()
			states = append(states, Interpret(one.Rows()))
		}
		known := ends(s)
		var queries []bpf.PolicyQuery
		for range 60 {
			f := r.flow(known)
			queries = append(queries, bpf.PolicyQuery{From: f.From.Addr, To: f.To.Addr, Protocol: f.Protocol, Port: f.Port})
		}
		// Of these the numbers of policies differ: what is allowed, and by which rules, does not.
		what := func(t *Tables, q bpf.PolicyQuery) string {
			d := t.Judge(q)
			text := fmt.Sprint(d.Allowed)
			for _, v := range []*bpf.PolicyVerdict{d.Egress, d.Ingress} {
				if v == nil {
					v = &bpf.PolicyVerdict{Allow: true, Rule: bpf.PolicyNoRule}
				}
				text += fmt.Sprint(" ", v.Allow, v.Rule, v.Tier)
			}
			return text
		}
		for _, change := range c.Flush() {
			for _, write := range single(change) {
				tables.Apply(write)
				for _, q := range queries {
					if !slices.ContainsFunc(states, func(s *Tables) bool { return what(s, q) == what(tables, q) }) {
						t.Fatalf("seed %d: after %+v: %+v is %s, but %s, %s, %s or %s", seed, write, q, what(tables, q), what(states[0], q), what(states[1], q), what(states[2], q), what(states[3], q))
					}
				}
			}
		}
	}
}

// TestPodThatMovesIsKnownToNewRules: a pod becomes isolated by a policy that selected nobody before, and lets another one in whose other labels change at the same time.
func TestPodThatMovesIsKnownToNewRules(t *testing.T) {
	pod := func(addr string, labels map[string]string) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: addr, UID: types.UID(addr), Labels: labels},
			Status:     corev1.PodStatus{PodIP: addr},
		}
	}
	c := New(Options{})
	c.SetPod(pod("10.0.0.1", map[string]string{"app": "old"}))
	c.SetPod(pod("10.0.0.2", map[string]string{"app": "client", "tier": "a"}))
	c.SetNetworkPolicy(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: "clients"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "new"}},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}}}}},
		},
	})
	tables := Interpret(bpf.PolicyRows{})
	for _, change := range c.Flush() {
		tables.Apply(change)
	}
	c.SetPod(pod("10.0.0.1", map[string]string{"app": "new"}))
	c.SetPod(pod("10.0.0.2", map[string]string{"app": "client", "tier": "b"}))
	q := bpf.PolicyQuery{From: netip.MustParseAddr("10.0.0.2"), To: netip.MustParseAddr("10.0.0.1"), Protocol: netpol.TCP, Port: 80}
	for _, change := range c.Flush() {
		for _, write := range single(change) {
			tables.Apply(write)
			if !tables.Judge(q).Allowed {
				t.Fatalf("the client is denied after %+v", write)
			}
		}
	}
	if d := tables.Judge(q); d.Ingress == nil || d.Ingress.Rule != 0 {
		t.Fatalf("in the end %+v", d)
	}
	q.From = netip.MustParseAddr("192.0.2.1")
	if tables.Judge(q).Allowed {
		t.Fatal("a stranger is let in")
	}
}

// TestPodComesBack: of two pods of a kind one lies in a block that a rule names. It goes, and another one comes in its place.
func TestPodComesBack(t *testing.T) {
	app := map[string]string{"app": "client"}
	c := New(Options{})
	c.SetPod(plainPod("server", "10.0.0.1", map[string]string{"app": "server"}))
	c.SetPod(plainPod("one", "10.0.0.2", app))
	c.SetPod(plainPod("two", "10.1.0.2", app))
	c.SetNetworkPolicy(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: "block"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{
				{From: []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "10.1.0.0/16"}}}},
				{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "nobody"}}}}},
				{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: app}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "a"}}}}},
				{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: app}}}, Ports: make([]networkingv1.NetworkPolicyPort, 1)},
			},
		},
	})
	tables := Interpret(bpf.PolicyRows{})
	apply := func() {
		for _, change := range c.Flush() {
			tables.Apply(change)
		}
	}
	apply()
	c.DeletePod("two")
	apply()
	c.SetPod(plainPod("three", "10.1.0.3", app))
	apply()
	d := tables.Judge(bpf.PolicyQuery{From: netip.MustParseAddr("10.1.0.3"), To: netip.MustParseAddr("10.0.0.1"), Protocol: netpol.UDP, Port: 53})
	if !d.Allowed || d.Ingress.Rule != 0 {
		t.Fatalf("%+v %+v", d, d.Ingress)
	}
}

// TestClaimOfAnotherNode: what says that a pod of another node has a local pod's address leaves the local pod judged as what it is, however new it is.
func TestClaimOfAnotherNode(t *testing.T) {
	c := New(Options{NodeName: "here"})
	c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "alpha"}})
	local := plainPod("local", "10.0.0.1", nil)
	local.Spec.NodeName = "here"
	remote := plainPod("remote", "10.0.0.1", map[string]string{"app": "other"})
	remote.Spec.NodeName = "there"
	remote.CreationTimestamp = metav1.Unix(2e9, 0)
	c.SetPod(local)
	c.Flush()
	want := c.Rows()
	c.SetPod(remote)
	c.Flush()
	if got := c.Rows(); len(want.Subjects) != 1 || !reflect.DeepEqual(got, want) {
		t.Fatalf("the rows were %+v and are %+v", want, got)
	}
	c.DeletePod(local.UID)
	c.Flush()
	if rows := c.Rows(); len(rows.Subjects) != 0 {
		t.Fatalf("of the other node's pod there are %+v", rows.Subjects)
	}
}

// TestIdentityKey: what an identity was is told from what it is, whatever the atoms' numbers.
func TestIdentityKey(t *testing.T) {
	seen := map[string]string{}
	for _, atoms := range [][]uint32{{}, {1}, {1, 2}, {0x100}, {1, 0}, {0x01000000}} {
		for _, was := range [][]uint32{nil, {}, {1}, {0x02000000}, {0x100}, {0, 0x100}, {2}} {
			make := func(numbers []uint32) (out []*atom) {
				for _, n := range numbers {
					out = append(out, &atom{id: n})
				}
				if numbers != nil && out == nil {
					out = []*atom{}
				}
				return out
			}
			what := fmt.Sprintf("%#v %#v", atoms, was)
			key := identityKey(make(atoms), make(was))
			if other, is := seen[key]; is {
				t.Errorf("%s has the key of %s", what, other)
			}
			seen[key] = what
		}
	}
}

// TestAddressPassesOn: a pod that gets another's address, between two writes, is a new one, also if it is like the one before; one that changes is not.
func TestAddressPassesOn(t *testing.T) {
	c := New(Options{})
	labels := map[string]string{"app": "web"}
	c.SetPod(plainPod("one", "10.0.0.1", labels))
	reborn := func() (out []netip.Addr) {
		for _, change := range c.Flush() {
			for _, a := range change.Reborn {
				if !slices.ContainsFunc(change.Subjects, func(s bpf.PolicySubject) bool { return s.Addr == a }) {
					t.Errorf("%s has no row in %+v", a, change)
				}
			}
			out = append(out, change.Reborn...)
		}
		return out
	}
	if got := reborn(); len(got) > 0 {
		t.Errorf("at first: %v", got)
	}
	for i, name := range []string{"two", "three"} {
		c.DeletePod(types.UID([]string{"one", "two"}[i]))
		if i > 0 {
			labels = map[string]string{"app": "db"}
		}
		c.SetPod(plainPod(name, "10.0.0.1", labels))
		if got := reborn(); len(got) != 1 || got[0] != netip.MustParseAddr("10.0.0.1") {
			t.Errorf("%s: %v", name, got)
		}
	}
	c.SetPod(plainPod("three", "10.0.0.1", map[string]string{"app": "other"}))
	if got := reborn(); len(got) > 0 {
		t.Errorf("relabelled: %v", got)
	}
}
