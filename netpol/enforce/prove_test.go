package enforce

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol/compiler"
)

func deny(name string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)},
		Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "b"}}}}}},
		},
	}
}

// settle waits until all is enforced.
func (l *lab) settle() {
	l.tb.Helper()
	for deadline := time.Now().Add(patience); !l.Settled(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			l.tb.Fatal("it does not settle")
		}
	}
}

// Rows that somebody has changed are seen by the next proof, told, and mended.
func TestDriftIsMended(t *testing.T) {
	l := newLab(t, newTables(), namespace("ns"), pod("ns", "a", "u1", self), pod("ns", "b", "u2", "node-2", "10.244.1.2"), deny("d")).run()
	if err := l.Admit(t.Context(), endpoint("c1", "ns", "a", "u1", "10.244.0.2")); err != nil {
		t.Fatal(err)
	}
	if err := l.Admit(t.Context(), endpoint("c2", "", "", "", "10.244.0.3")); err != nil {
		t.Fatal(err)
	}
	l.settle()
	if !l.proof(t.Context()) || testutil.ToFloat64(l.metrics.drift) != 0 || testutil.ToFloat64(l.metrics.questions) < 30 {
		t.Errorf("drift %v after %v questions", testutil.ToFloat64(l.metrics.drift), testutil.ToFloat64(l.metrics.questions))
	}
	addr := netip.MustParseAddr("10.244.0.2")
	l.tables.mu.Lock()
	right := l.tables.subjects[addr]
	l.tables.subjects[addr] = bpf.PolicySubject{Addr: addr, Identity: right.Identity}
	l.tables.mu.Unlock()
	if right.Ingress == 0 {
		t.Fatal("the pod was not judged")
	}
	noted := func() uint64 { l.Enforcer.mu.Lock(); defer l.Enforcer.mu.Unlock(); return l.noted }
	before := noted()
	if !l.proof(t.Context()) || testutil.ToFloat64(l.metrics.drift) == 0 {
		t.Error("drift is not seen")
	}
	if noted() == before {
		t.Error("what is written is not proved before long")
	}
	if e := <-l.events; !strings.Contains(e, ReasonDrift) || !strings.Contains(e, "ns/a") {
		t.Errorf("event %q", e)
	}
	l.tables.await(t, "the right row", func() bool { return l.tables.subjects[addr] == right })
	l.settle()
	if !l.proof(t.Context()) || testutil.ToFloat64(l.metrics.drift) != 0 {
		t.Error("drift is left")
	}
}

// Of a large cluster's pods a proof has a sample. Addresses that others have too, or that policies name, are no drift.
func TestSamplesAreNoDrift(t *testing.T) {
	objects := []runtime.Object{namespace("ns"), pod("ns", "a", "u0", self)}
	for i := range proveSamples + 100 {
		name := fmt.Sprintf("far-%d", i)
		// Two have the same address, as one of them is about to go, and only one of them is what the policy lets in.
		p := pod("ns", name, name, "node-2", fmt.Sprintf("10.244.%d.%d", 1+i/200, 1+i/2%100))
		if i%2 == 0 {
			p.Labels["app"] = "b"
		}
		objects = append(objects, p)
	}
	d, e := deny("d"), deny("e")
	e.Spec.PodSelector.MatchLabels = map[string]string{"app": "nobody"}
	for i := range 100 {
		e.Spec.Ingress[0].From = append(e.Spec.Ingress[0].From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.244.1.%d/32", 1+i)}})
	}
	l := newLab(t, newTables(), append(objects, d, e)...).run()
	if err := l.Admit(t.Context(), endpoint("c1", "ns", "a", "u0", "10.244.0.2")); err != nil {
		t.Fatal(err)
	}
	l.settle()
	for range 3 {
		if !l.proof(t.Context()) || testutil.ToFloat64(l.metrics.drift) != 0 {
			t.Fatalf("drift of %v: %s", testutil.ToFloat64(l.metrics.drift), <-l.events)
		}
	}
}

// Of many policies a proof has those of some namespaces, by lot: pods of others are no drift, and what is wrong is found in the end.
func TestSomeNamespacesAreProved(t *testing.T) {
	const namespaces = 4
	var objects []runtime.Object
	for i := range namespaces {
		ns := fmt.Sprint("ns-", i)
		objects = append(objects, namespace(ns), pod(ns, "a", "u-"+ns, self))
		for j := range provePolicies/namespaces + 1 {
			p := deny(fmt.Sprint("p-", j))
			p.Namespace = ns
			objects = append(objects, p)
		}
	}
	l := newLab(t, newTables(), objects...).run()
	addr := func(i int) string { return fmt.Sprint("10.244.0.", 2+i) }
	for i := range namespaces {
		ns := fmt.Sprint("ns-", i)
		if err := l.Admit(t.Context(), endpoint("c-"+ns, ns, "a", "u-"+ns, addr(i))); err != nil {
			t.Fatal(err)
		}
	}
	l.settle()
	proved := map[string]bool{}
	for len(proved) < namespaces {
		some := l.provedNamespaces()
		if len(some) != namespaces-1 {
			t.Fatalf("proved are %v", some)
		}
		maps.Copy(proved, some)
		if !l.proof(t.Context()) || testutil.ToFloat64(l.metrics.drift) != 0 {
			t.Fatalf("drift of %v: %s", testutil.ToFloat64(l.metrics.drift), <-l.events)
		}
	}
	l.tables.mu.Lock()
	wrong := l.tables.subjects[netip.MustParseAddr(addr(0))]
	wrong.Ingress = 0
	l.tables.subjects[wrong.Addr] = wrong
	l.tables.mu.Unlock()
	for testutil.ToFloat64(l.metrics.drift) == 0 {
		if !l.proof(t.Context()) {
			t.Fatal("no proof")
		}
	}
}

// Whatever tables hold, repair makes them what they should be, and takes nothing away that rows in force lead to before others are there.
func TestRepair(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	rows := func() bpf.PolicyRows {
		var r bpf.PolicyRows
		for i := range uint32(6) {
			n := random.Uint32N(4)
			if n == 0 {
				continue
			}
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			r.Subjects = append(r.Subjects, bpf.PolicySubject{Addr: a, Identity: n, Ingress: n})
			r.Peers = append(r.Peers, bpf.PolicyPeer{Prefix: netip.PrefixFrom(a, 32), Identity: n})
			r.Answers = append(r.Answers, bpf.PolicyAnswer{RuleSet: i + 1, Ports: n})
			r.Ports = append(r.Ports, bpf.PolicyPort{Ports: i + 1}, bpf.PolicyPort{Ports: i + 1, Protocol: 6, Port: uint16(n) << 8, Bits: uint8(8 + n), Verdict: bpf.PolicyVerdict{Allow: n == 2, Policy: n}})
			r.Names = append(r.Names, bpf.PolicyName{Policy: i + 1, Name: strings.Repeat("x", int(n))})
		}
		return r
	}
	load := func(r bpf.PolicyRows) *fakeTables {
		f := newTables()
		if err := f.Apply(bpf.PolicyChange{Names: r.Names, Ports: r.Ports, Answers: r.Answers, Peers: r.Peers, Subjects: r.Subjects}); err != nil {
			t.Fatal(err)
		}
		return f
	}
	for range 500 {
		have, want := rows(), rows()
		tables := load(have)
		for i, c := range repair(have, want, nil) {
			if i == 0 && len(c.Subjects)+len(c.Answers) == 0 { // what frees room
				for _, a := range c.GoneAnswers {
					if slices.ContainsFunc(have.Subjects, func(s bpf.PolicySubject) bool { return s.Ingress == a.RuleSet }) {
						t.Fatalf("an answer in force goes first: %+v", a)
					}
				}
			}
			if err := tables.Apply(c); err != nil {
				t.Fatal(err)
			}
		}
		now, err := tables.Dump()
		if err != nil {
			t.Fatal(err)
		}
		if left := repair(now, want, nil); len(left) != 0 {
			t.Fatalf("left %+v\nof %+v\nto %+v", left, have, want)
		}
		got, meant := compiler.Interpret(now), compiler.Interpret(want)
		for _, s := range want.Subjects {
			for port := uint16(0); port < 2000; port += 50 {
				q := bpf.PolicyQuery{From: netip.MustParseAddr("192.0.2.1"), To: s.Addr, Protocol: 6, Port: port}
				if g, m := got.Judge(q).Allowed, meant.Judge(q).Allowed; g != m {
					t.Fatalf("%+v: %v, should be %v", q, g, m)
				}
			}
		}
	}
}

// The addresses of an Endpoint are the CNI server's own: they stay in its order.
func TestAddressesStayInOrder(t *testing.T) {
	ep := endpoint("c1", "", "", "", "10.244.0.9", "10.244.0.3")
	p := withAddrs(pod("ns", "a", "u1", self), ep.Addrs)
	if ep.Addrs[0] != netip.MustParseAddr("10.244.0.9") || p.Status.PodIPs[0].IP != "10.244.0.3" {
		t.Errorf("addresses %v, of the pod %v", ep.Addrs, p.Status.PodIPs)
	}
}

// What is followed may be behind: whether ClusterNetworkPolicies are defined the API itself is asked.
func TestPoliciesOfANewDefinition(t *testing.T) {
	l := newLab(t, newTables())
	if _, err := l.dynamic.Resource(customPolicies).Create(t.Context(), custom("new", map[string]any{}), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	all, err := l.clusterVersions(t.Context())
	if err != nil || len(all) != 1 || all[0].by["new"] != "7" {
		t.Errorf("%+v, error %v", all, err)
	}
}

// What a policy denies beyond what it says, as the tables have no room for it, is told as such, and is no drift that is mended again and again.
func TestClosedPoliciesAreNoDrift(t *testing.T) {
	p := deny("many")
	p.Spec.Ingress[0].From = nil
	for i := range 20 {
		p.Spec.Ingress[0].From = append(p.Spec.Ingress[0].From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("192.0.%d.0/24", 2*i)}})
	}
	l := newLab(t, newTables(), namespace("ns"), pod("ns", "a", "u1", self), p)
	l.compiler = compiler.New(compiler.Options{NodeName: self, MaxPeers: 20})
	l.run()
	if err := l.Admit(t.Context(), endpoint("c1", "ns", "a", "u1", "10.244.0.2")); err != nil {
		t.Fatal(err)
	}
	l.settle()
	if e := <-l.events; !strings.Contains(e, reasonInvalid) || !strings.Contains(e, "names 20 blocks") {
		t.Errorf("event %q", e)
	}
	if !l.proof(t.Context()) || testutil.ToFloat64(l.metrics.drift) != 0 {
		t.Errorf("%v differences", testutil.ToFloat64(l.metrics.drift))
	}
	if asked := testutil.ToFloat64(l.metrics.questions); asked < 30 {
		t.Errorf("%v questions", asked)
	}
}
