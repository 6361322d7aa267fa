package compiler

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

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
