package compiler

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

func plainPod(name, addr string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: name, UID: types.UID(name), Labels: labels},
		Status:     corev1.PodStatus{PodIP: addr},
	}
}

// greedy is a policy with so many ports that a list of them takes more rows than there are.
func greedy(ports int) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: "greedy", UID: "greedy"},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "greedy"}}, Ingress: []networkingv1.NetworkPolicyIngressRule{{}}},
	}
	for i := range ports {
		number := intstr.FromInt(1 + 2*i)
		p.Spec.Ingress[0].Ports = append(p.Spec.Ingress[0].Ports, networkingv1.NetworkPolicyPort{Port: &number})
	}
	return p
}

// TestNoRoom: what a policy says of its pods does not fit. They are closed, it is reported, others go on; and when there is less of it it counts.
func TestNoRoom(t *testing.T) {
	c := New(Options{MaxRules: 1000})
	c.SetPod(plainPod("greedy", "10.0.0.1", map[string]string{"app": "greedy"}))
	c.SetPod(plainPod("other", "10.0.0.2", map[string]string{"app": "other"}))
	web := intstr.FromInt(80)
	c.SetNetworkPolicy(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: "web", UID: "web"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "other"}},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Port: &web}}}},
		},
	})
	tables := Interpret(bpf.PolicyRows{})
	apply := func() {
		t.Helper()
		for _, change := range c.Flush() {
			if len(change.Ports)+len(change.Answers) > 1000 {
				t.Fatalf("a change of %d ports and %d answers", len(change.Ports), len(change.Answers))
			}
			tables.Apply(change)
		}
		if n := max(len(tables.ports), len(tables.answers)); n > 1000 {
			t.Fatalf("%d rows", n)
		}
	}
	allowed := func(to string, port uint16) bool {
		return tables.Judge(bpf.PolicyQuery{From: netip.MustParseAddr("192.0.2.1"), To: netip.MustParseAddr(to), Protocol: netpol.TCP, Port: port}).Allowed
	}
	for range 2 {
		c.SetNetworkPolicy(greedy(5000))
		apply()
		if allowed("10.0.0.1", 1) || allowed("10.0.0.1", 2) {
			t.Fatal("what does not fit opens")
		}
		if !allowed("10.0.0.2", 80) || allowed("10.0.0.2", 81) {
			t.Fatal("others are judged otherwise by it")
		}
		if p := c.Problems(); len(p) != 1 || p[0].Policy.Name != "greedy" || !strings.Contains(p[0].Reason, bpf.FlagMaxPolicyRules) {
			t.Fatalf("reported is %+v", p)
		}
		c.SetNetworkPolicy(greedy(10))
		apply()
		if !allowed("10.0.0.1", 1) || allowed("10.0.0.1", 2) || len(c.Problems()) > 0 {
			t.Fatalf("a smaller policy does not count: %+v", c.Problems())
		}
	}
}

// TestNoRoomForMore: classes come for which rule sets that are there have no room. Their pods are closed before anybody is of such a class, and open again when there is
// room.
func TestNoRoomForMore(t *testing.T) {
	c := New(Options{MaxRules: 256, NodeName: "here"})
	c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "alpha"}})
	here := func(name, addr string) {
		p := plainPod(name, addr, map[string]string{"app": name})
		p.Spec.NodeName = "here"
		c.SetPod(p)
	}
	here("server", "10.0.0.1")
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: "clients", UID: "clients"}, Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}}}}
	// Of each pair of classes the verdicts are different ones, so that nothing is shared.
	for i := range 200 {
		number := intstr.FromInt(1000 + i)
		policy.Spec.Ingress = append(policy.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
			From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"class": fmt.Sprint(i)}}}},
			Ports: []networkingv1.NetworkPolicyPort{{Port: &number}},
		})
	}
	c.SetNetworkPolicy(policy)
	tables := Interpret(bpf.PolicyRows{})
	server := netip.MustParseAddr("10.0.0.1")
	client := func(i int) *corev1.Pod {
		return plainPod(fmt.Sprint("client-", i), fmt.Sprint("10.1.0.", i), map[string]string{"class": fmt.Sprint(i)})
	}
	asks := func(i int) bool {
		return tables.Judge(bpf.PolicyQuery{From: netip.MustParseAddr(fmt.Sprint("10.1.0.", i)), To: server, Protocol: netpol.TCP, Port: uint16(1000 + i)}).Allowed
	}
	closed := 0
	for i := 1; i < 200 && closed == 0; i++ {
		c.SetPod(client(i))
		for _, change := range c.Flush() {
			for _, write := range single(change) {
				tables.Apply(write)
				if n := max(len(tables.ports), len(tables.answers)); n > 256 {
					t.Fatalf("%d rows", n)
				}
			}
		}
		if !asks(i) {
			closed = i
		}
	}
	if closed == 0 || len(c.Problems()) != 1 {
		t.Fatalf("closed at %d, reported %+v", closed, c.Problems())
	}
	if asks(1) {
		t.Fatal("the pod is not closed")
	}
	for i := 1; i <= closed; i++ {
		if i%3 != 0 {
			c.DeletePod(client(i).UID)
		}
	}
	apply := func() {
		for _, change := range c.Flush() {
			tables.Apply(change)
		}
	}
	for i := 0; i < 100 && len(c.Problems()) > 0; i++ {
		apply()
	}
	if !asks(3) || asks(1) || len(c.Problems()) > 0 {
		t.Fatalf("with room again: %v, %v, %+v", asks(3), asks(1), c.Problems())
	}
	if rows := c.Rows(); len(rows.Answers) != c.answerRows || len(rows.Ports) != c.portRows {
		t.Fatalf("%d answers and %d ports, counted %d and %d", len(rows.Answers), len(rows.Ports), c.answerRows, c.portRows)
	}
}

// TestKeepFlows: the pod's annotation counts before its namespace's, and that before the option.
func TestKeepFlows(t *testing.T) {
	for _, want := range []struct {
		option         bool
		namespace, pod string
		keep           bool
	}{
		{false, "", "", false}, {true, "", "", true}, {true, netpol.FlowsJudge, "", false}, {false, netpol.FlowsKeep, "", true}, {false, netpol.FlowsKeep, netpol.FlowsJudge, false}, {true, netpol.FlowsJudge, netpol.FlowsKeep, true}, {true, "", "perhaps", true},
	} {
		c := New(Options{KeepFlows: want.option})
		pod := plainPod("pod", "10.0.0.1", nil)
		c.SetPod(pod)
		c.Flush()
		c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "alpha", Annotations: map[string]string{netpol.FlowsAnnotation: want.namespace}}})
		c.Flush()
		pod = pod.DeepCopy()
		pod.Annotations = map[string]string{netpol.FlowsAnnotation: want.pod}
		c.SetPod(pod)
		c.Flush()
		if i := slices.IndexFunc(c.Rows().Subjects, func(s bpf.PolicySubject) bool { return s.KeepFlows == want.keep }); i < 0 {
			t.Errorf("%+v: %+v", want, c.Rows().Subjects)
		}
	}
}

// TestNoRoomInBetween: both directions change at once, and there is room for neither what is in between nor always for what comes. The pods are closed, and
// no moment allows what neither state does.
func TestNoRoomInBetween(t *testing.T) {
	policies := func(c *Compiler, first int) {
		for _, name := range []string{"one", "two"} {
			p := &networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: name, UID: types.UID(name)},
				Spec: networkingv1.NetworkPolicySpec{
					PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
					PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
				},
			}
			var ports []networkingv1.NetworkPolicyPort
			for i := range 60 {
				number := intstr.FromInt(first + 2*i)
				ports = append(ports, networkingv1.NetworkPolicyPort{Port: &number})
			}
			p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{Ports: ports}}
			p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{Ports: ports}}
			c.SetNetworkPolicy(p)
		}
	}
	inBetween := false
	for most := 130; most <= 400; most += 5 {
		c := New(Options{MaxRules: most})
		c.SetPod(plainPod("one", "10.0.0.1", map[string]string{"app": "one"}))
		c.SetPod(plainPod("two", "10.0.0.2", map[string]string{"app": "two"}))
		policies(c, 1001)
		tables := Interpret(bpf.PolicyRows{})
		for _, change := range c.Flush() {
			tables.Apply(change)
		}
		policies(c, 1061)
		allowed := func(port uint16) bool {
			return tables.Judge(bpf.PolicyQuery{From: netip.MustParseAddr("10.0.0.1"), To: netip.MustParseAddr("10.0.0.2"), Protocol: netpol.TCP, Port: port}).Allowed
		}
		for _, change := range c.Flush() {
			for _, write := range single(change) {
				tables.Apply(write)
				if allowed(1000) || allowed(1062) || allowed(1181) {
					t.Fatalf("with %d rows: a moment allows what neither state does", most)
				}
			}
		}
		if allowed(1001) {
			t.Fatalf("with %d rows: what was allowed before still is", most)
		}
		inBetween = inBetween || allowed(1061)
	}
	if !inBetween {
		t.Fatal("nothing is allowed however much room there is")
	}
}

// TestTooManyBlocks: the policies of one namespace name no more than half of the blocks. One that goes beyond denies all and is reported, until it or others name fewer.
func TestTooManyBlocks(t *testing.T) {
	c := New(Options{MaxPeers: 100})
	c.SetPod(plainPod("server", "10.0.0.1", nil))
	policy := func(name string, net, blocks int) {
		p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: name, UID: types.UID(name)}}
		var from []networkingv1.NetworkPolicyPeer
		for i := range blocks {
			from = append(from, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.%d.%d.0/24", net, 2*i)}})
		}
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: from}}
		c.SetNetworkPolicy(p)
	}
	tables := Interpret(bpf.PolicyRows{})
	check := func(first, second bool) {
		t.Helper()
		for _, change := range c.Flush() {
			tables.Apply(change)
		}
		for net, want := range map[int]bool{1: first, 2: second} {
			from := netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", net))
			if got := tables.Judge(bpf.PolicyQuery{From: from, To: netip.MustParseAddr("10.0.0.1"), Protocol: netpol.TCP, Port: 80}).Allowed; got != want {
				t.Errorf("from %v: allowed %v", from, got)
			}
		}
		if n := len(c.Rows().Peers); n > 50 {
			t.Errorf("%d rows of blocks", n)
		}
		if problems := len(c.Problems()) > 0; problems != !(first && second) {
			t.Errorf("reported are %+v", c.Problems())
		}
	}
	policy("first", 1, 30)
	policy("second", 2, 30)
	check(true, false)
	policy("second", 2, 20)
	check(true, true)
	policy("first", 1, 31)
	check(false, true)
	policy("second", 2, 19) // nobody writes the first one anew
	check(true, true)
	policy("second", 2, 30)
	check(true, false)
	c.DeleteNetworkPolicy("alpha", "first")
	for _, change := range c.Flush() {
		tables.Apply(change)
	}
	q := bpf.PolicyQuery{From: netip.MustParseAddr("10.2.0.1"), To: netip.MustParseAddr("10.0.0.1"), Protocol: netpol.TCP, Port: 80}
	if !tables.Judge(q).Allowed || len(c.Problems()) > 0 {
		t.Errorf("what was closed stays so: %v", c.Problems())
	}
}

// TestTenantsShareBlocks: however many namespaces name blocks, a quarter of the tables is left, and who is closed is opened when another one goes.
func TestTenantsShareBlocks(t *testing.T) {
	c := New(Options{MaxPeers: 100})
	tables := Interpret(bpf.PolicyRows{})
	apply := func() {
		for _, change := range c.Flush() {
			tables.Apply(change)
		}
	}
	open := func() (out string) {
		for i := range 4 {
			from, to := netip.MustParseAddr(fmt.Sprintf("10.%d.0.1", i)), netip.MustParseAddr(fmt.Sprintf("10.100.0.%d", i))
			if tables.Judge(bpf.PolicyQuery{From: from, To: to, Protocol: netpol.TCP, Port: 80}).Allowed {
				out += fmt.Sprint(i)
			}
		}
		return out
	}
	for i := range 4 {
		ns := fmt.Sprint("tenant-", i)
		c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
		pod := plainPod(ns, fmt.Sprintf("10.100.0.%d", i), nil)
		pod.Namespace = ns
		c.SetPod(pod)
		p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "p", UID: types.UID(ns)}}
		var from []networkingv1.NetworkPolicyPeer
		for j := range 25 {
			from = append(from, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.%d.%d.0/24", i, 2*j)}})
		}
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: from}}
		c.SetNetworkPolicy(p)
		apply()
	}
	if got := open(); got != "012" || len(c.Problems()) != 1 || len(c.Rows().Peers) > 75+4 {
		t.Errorf("open are %q, %d rows, problems %v", got, len(c.Rows().Peers), c.Problems())
	}
	c.DeleteNetworkPolicy("tenant-1", "p")
	apply()
	if got := open(); got != "0123" || len(c.Problems()) != 0 { // nothing judges 1 any more
		t.Errorf("when one has gone, open are %q, problems %v", got, c.Problems())
	}
}
