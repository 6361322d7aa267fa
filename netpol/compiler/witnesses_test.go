package compiler

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/reference"
)

// said is what a witness says of one side, in words that all have.
type said struct {
	allowed bool
	policy  string
	rule    int
}

func saidBy(s netpol.Side) said {
	if s.Policy == nil {
		return said{s.Allowed, "", netpol.NoRule}
	}
	return said{s.Allowed, s.Policy.Kind + " " + s.Policy.String() + " " + string(s.Policy.UID), s.Rule}
}

// saidByRows reads a verdict of rows. itself: the pod asks itself, which NetworkPolicies allow.
func saidByRows(v *bpf.PolicyVerdict, names *Tables, itself bool) said {
	if v == nil || v.Policy == 0 && v.Allow {
		return said{true, "", netpol.NoRule}
	}
	out := said{v.Allow || itself && v.Tier == bpf.PolicyTierNetworkPolicy, fmt.Sprint("number ", v.Policy), int(v.Rule)}
	if ref, is := names.Policy(v.Policy); is {
		out.policy = ref.Kind + " " + ref.String() + " " + string(ref.UID)
	}
	if v.Rule == bpf.PolicyNoRule {
		out.rule = netpol.NoRule
	}
	return out
}

// trial is a state, and what its witnesses are asked through.
type trial struct {
	state     netpol.State
	node      string
	evaluator *reference.Evaluator
	subject   map[netip.Addr]bool // whose direction the rows judge
	home      map[netip.Addr][]netip.Addr
}

func newTrial(t testing.TB, s netpol.State, node string) *trial {
	s.Pods = WithoutForeignClaims(s.Pods, node)
	e, err := reference.New(s)
	if err != nil {
		t.Fatal(err)
	}
	out := &trial{state: s, node: node, evaluator: e, subject: map[netip.Addr]bool{}, home: map[netip.Addr][]netip.Addr{}}
	owners := map[netip.Addr]*corev1.Pod{}
	for _, p := range s.Pods {
		if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		var addrs []netip.Addr
		for _, ip := range p.Status.PodIPs {
			addrs = appendAddr(addrs, ip.IP)
		}
		for _, a := range appendAddr(addrs, p.Status.PodIP) {
			if have := owners[a]; have == nil || have.CreationTimestamp.Before(&p.CreationTimestamp) ||
				have.CreationTimestamp.Equal(&p.CreationTimestamp) && p.Namespace+"/"+p.Name < have.Namespace+"/"+have.Name {
				owners[a] = p
			}
		}
	}
	known := map[string]bool{}
	for _, n := range s.Namespaces {
		known[n.Name] = true
	}
	for a, p := range owners {
		out.subject[a] = node == "" || p.Spec.NodeName == node && known[p.Namespace]
		for _, n := range s.Nodes {
			if n.Name == p.Spec.NodeName {
				for _, x := range n.Status.Addresses {
					out.home[a] = appendAddr(out.home[a], x.Address)
				}
			}
		}
	}
	return out
}

// query is a flow as rows are asked.
func (tr *trial) query(f netpol.Flow) bpf.PolicyQuery {
	q := bpf.PolicyQuery{From: f.From.Addr, To: f.To.Addr, Protocol: f.Protocol, Port: f.Port}
	if _, pod := tr.subject[f.From.Addr]; !f.Forwarded && !pod {
		for _, a := range tr.home[f.To.Addr] {
			q.Node = q.Node || a == f.From.Addr
		}
	}
	return q
}

// testimony is what a witness says of the sides that the rows judge: egress, ingress, and those with the policies in shadow.
type testimony struct{ sides, shadow [2]said }

// expect is what the evaluator says.
func (tr *trial) expect(t testing.TB, f netpol.Flow) testimony {
	v, err := tr.evaluator.Judge(f)
	if err != nil {
		t.Fatal(err)
	}
	w, err := tr.evaluator.JudgeShadow(f)
	if err != nil {
		t.Fatal(err)
	}
	unjudged := said{true, "", netpol.NoRule}
	out := testimony{[2]said{unjudged, unjudged}, [2]said{unjudged, unjudged}}
	if tr.subject[f.From.Addr] {
		out.sides[0], out.shadow[0] = saidBy(v.Egress), saidBy(w.Egress)
	}
	if tr.subject[f.To.Addr] {
		out.sides[1], out.shadow[1] = saidBy(v.Ingress), saidBy(w.Ingress)
	}
	return out
}

// got is a decision in the same words.
func got(q bpf.PolicyQuery, d bpf.PolicyDecision, names *Tables) testimony {
	itself := q.From == q.To
	sides := [2]said{saidByRows(d.Egress, names, itself), saidByRows(d.Ingress, names, itself)}
	out := testimony{sides, sides}
	if d.ShadowEgress != nil {
		out.shadow[0] = saidByRows(d.ShadowEgress, names, itself)
	}
	if d.ShadowIngress != nil {
		out.shadow[1] = saidByRows(d.ShadowIngress, names, itself)
	}
	return out
}

// differs compares a decision with what the evaluator says; empty: they agree.
func differs(want testimony, f netpol.Flow, q bpf.PolicyQuery, d bpf.PolicyDecision, names *Tables) string {
	have := got(q, d, names)
	if want != have || d.Allowed != (want.sides[0].allowed && want.sides[1].allowed) || d.NoVerdict {
		return fmt.Sprintf("%v -> %v protocol %d port %d forwarded %v:\n evaluator: egress and ingress %v; with shadow %v\n rows: %v; %v; %+v",
			f.From.Addr, f.To.Addr, f.Protocol, f.Port, f.Forwarded, want.sides, want.shadow, have.sides, have.shadow, d)
	}
	return ""
}

// TestRowsSayWhatTheEvaluatorSays holds compiled rows of random clusters against the evaluator.
func TestRowsSayWhatTheEvaluatorSays(t *testing.T) {
	for seed := range uint64(1500) {
		r := newRandom(seed)
		node := pick(r, "", "node-0")
		tr := newTrial(t, r.state(), node)
		c := New(Options{NodeName: node})
		c.SetState(tr.state)
		c.Flush()
		rows := Interpret(c.Rows())
		ends := ends(tr.state)
		for range 200 {
			f := r.flow(ends)
			q := tr.query(f)
			if d := differs(tr.expect(t, f), f, q, rows.Judge(q), rows); d != "" {
				t.Fatalf("seed %d: %s", seed, d)
			}
		}
	}
}

// TestThreeWitnesses holds the evaluator, the rows interpreted in Go and the programs in the kernel against each other: a million flows of random clusters. The tables
// go from one cluster to the next as from one agent to the next.
func TestThreeWitnesses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: not root: the kernel takes no programs")
	}
	machine, err := bpf.OpenPolicyMachine()
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	clusters, flows := uint64(2000), 520
	if testing.Short() {
		clusters = 100
	}
	var held bpf.PolicyRows
	asked := 0
	for seed := range clusters {
		r := newRandom(1_000_000 + seed)
		node := pick(r, "", "", "node-0")
		s := r.state()
		c := New(Options{NodeName: node})
		c.Continue(held)
		c.SetState(s)
		apply := func() {
			for _, change := range c.Flush() {
				if err := machine.Apply(change); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
		}
		apply()
		for range r.IntN(4) {
			r.step(&s, c)
			apply()
		}
		tr := newTrial(t, s, node)
		held = c.Rows()
		if seed%100 == 0 {
			if dump, err := machine.Dump(); err != nil || !reflect.DeepEqual(dump, held) {
				t.Fatalf("seed %d: the tables hold %d subjects, %d peers, %d answers, %d ports, not what was said: %v", seed, len(dump.Subjects), len(dump.Peers), len(dump.Answers), len(dump.Ports), err)
			}
		}
		rows := Interpret(held)
		ends := ends(tr.state)
		fs, qs := make([]netpol.Flow, flows), make([]bpf.PolicyQuery, flows)
		for i := range fs {
			fs[i] = r.flow(ends)
			qs[i] = tr.query(fs[i])
		}
		decisions, err := machine.Judge(qs)
		if err != nil {
			t.Fatal(err)
		}
		for i, f := range fs {
			want := tr.expect(t, f)
			if d := differs(want, f, qs[i], decisions[i], rows); d != "" {
				t.Fatalf("seed %d: the kernel: %s", seed, d)
			}
			if d := differs(want, f, qs[i], rows.Judge(qs[i]), rows); d != "" {
				t.Fatalf("seed %d: %s", seed, d)
			}
			asked++
		}
	}
	t.Logf("%d flows of %d clusters", asked, clusters)
}
