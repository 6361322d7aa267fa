package verify

import (
	"context"
	"errors"
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
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/compiler"
)

const policies = `
- metadata: {namespace: shop, name: deny}
  spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
- metadata: {namespace: shop, name: web}
  spec:
    podSelector: {matchLabels: {app: web}}
    ingress:
    - from: [{podSelector: {matchLabels: {app: client}}}, {ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.64/26]}}]
      ports: [{port: 8080, endPort: 8083}, {port: metrics, protocol: UDP}]
    egress:
    - to: [{namespaceSelector: {}}]
      ports: [{port: metrics}]
`

const clusterPolicies = `
- metadata: {name: guard}
  spec:
    tier: Admin
    priority: 3
    subject: {namespaces: {}}
    egress: [{action: Deny, to: [{networks: [198.51.100.0/24]}]}, {action: Pass, to: [{namespaces: {}}]}]
- metadata: {name: last}
  spec:
    tier: Baseline
    priority: 3
    subject: {namespaces: {}}
    ingress: [{action: Deny, from: [{pods: {podSelector: {matchLabels: {app: rogue}}}}], protocols: [{tcp: {destinationPort: {range: {start: 20, end: 30}}}}]}]
`

func pod(namespace, name, node, app string, addrs ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + name), Labels: map[string]string{"app": app}}, Spec: corev1.PodSpec{NodeName: node}}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "metrics", ContainerPort: int32(9000 + len(name))}, {Name: "metrics", Protocol: "UDP", ContainerPort: 9100}}}}
	for _, a := range addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a})
	}
	return p
}

func state(t *testing.T) netpol.State {
	t.Helper()
	s := netpol.State{
		Nodes: []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "198.18.0.2"}}}}},
		Pods: []*corev1.Pod{
			pod("shop", "web", "n1", "web", "10.0.0.1", "fd00::1"), pod("shop", "web2", "n1", "web", "10.0.0.2", "fd00::2"), pod("shop", "client", "n1", "client", "10.0.0.3"),
			pod("shop", "far", "n2", "client", "10.0.1.3", "fd00::1:3"), pod("other", "rogue", "n2", "rogue", "10.0.1.4"), pod("other", "free", "n1", "free", "10.0.0.4"),
		},
		DNSAddrs: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
	}
	for _, ns := range []string{"shop", "other", "kube-system"} {
		s.Namespaces = append(s.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
	}
	var nps []*networkingv1.NetworkPolicy
	var cnps []*policyv1alpha2.ClusterNetworkPolicy
	if err := yaml.Unmarshal([]byte(policies), &nps); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(clusterPolicies), &cnps); err != nil {
		t.Fatal(err)
	}
	s.NetworkPolicies, s.ClusterNetworkPolicies = nps, cnps
	return s
}

func rowsOf(s netpol.State) bpf.PolicyRows {
	c := compiler.New(compiler.Options{NodeName: "n1"})
	c.SetState(s)
	c.Flush()
	return c.Rows()
}

func verified(t *testing.T, rows bpf.PolicyRows, s netpol.State) Report {
	t.Helper()
	r, err := Verify(t.Context(), rows, s, Options{Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRowsThatAreRight(t *testing.T) {
	r := verified(t, rowsOf(state(t)), state(t))
	if r.Drifts != 0 || r.Pods != 6 || r.Asked != r.Of || r.Asked < 500 {
		t.Errorf("report %+v", r)
	}
	few, err := Verify(t.Context(), rowsOf(state(t)), state(t), Options{Node: "n1", Questions: 100})
	if err != nil || few.Asked != 100 || few.Of != r.Of {
		t.Errorf("report %+v, error %v", few, err)
	}
}

// Pods in the node's network and pods that have ended have no rows. Of an address that two pods claim, of which one is about to go, nothing is asked.
func TestPodsWithoutAnAddressOfTheirOwn(t *testing.T) {
	s := state(t)
	host, ended := pod("shop", "host", "n1", "web", "198.18.0.2"), pod("shop", "ended", "n1", "web", "10.0.0.1")
	host.Spec.HostNetwork, ended.Status.Phase = true, corev1.PodSucceeded
	s.Pods = append(s.Pods, host, ended)
	if r := verified(t, rowsOf(s), s); r.Drifts != 0 || r.Pods != 6 {
		t.Errorf("report %+v", r)
	}
	rows := rowsOf(s) // they have rogue, who goes
	s.Pods = append(s.Pods, pod("shop", "next", "n2", "client", "10.0.1.4"))
	s.Pods[len(s.Pods)-1].CreationTimestamp = metav1.Unix(1, 0)
	if r := verified(t, rows, s); r.Drifts != 0 {
		t.Errorf("report %+v", r)
	}
}

// Every kind of row that is wrong is seen.
func TestRowsThatAreWrong(t *testing.T) {
	for name, spoil := range map[string]func(*bpf.PolicyRows){
		"a subject is missing": func(r *bpf.PolicyRows) { r.Subjects = r.Subjects[1:] },
		"a subject too much": func(r *bpf.PolicyRows) {
			r.Subjects = append(r.Subjects, bpf.PolicySubject{Addr: netip.MustParseAddr("10.0.0.99")})
		},
		"a pod that is not judged": func(r *bpf.PolicyRows) { r.Subjects[0].Ingress = 0 },
		"another's rules":          func(r *bpf.PolicyRows) { r.Subjects[0].Egress = r.Subjects[2].Egress },
		"a peer is forgotten": func(r *bpf.PolicyRows) {
			r.Peers = slices.DeleteFunc(r.Peers, func(p bpf.PolicyPeer) bool { return p.Prefix == netip.MustParsePrefix("10.0.1.3/32") })
		},
		"an exception is forgotten": func(r *bpf.PolicyRows) {
			r.Peers = slices.DeleteFunc(r.Peers, func(p bpf.PolicyPeer) bool { return p.Prefix == netip.MustParsePrefix("203.0.113.64/26") })
		},
		"a stranger is a friend": func(r *bpf.PolicyRows) {
			for i, p := range r.Peers {
				if p.Prefix == netip.MustParsePrefix("10.0.1.4/32") {
					r.Peers[i].Identity = r.Subjects[2].Identity
				}
			}
		},
		"somebody is a friend whom nobody knows": func(r *bpf.PolicyRows) {
			r.Peers = append(r.Peers, bpf.PolicyPeer{Prefix: netip.MustParsePrefix("198.18.7.7/32"), Identity: r.Subjects[2].Identity})
		},
		"a range of friends that nobody knows": func(r *bpf.PolicyRows) {
			r.Peers = append(r.Peers, bpf.PolicyPeer{Prefix: netip.MustParsePrefix("100.64.0.0/10"), Identity: r.Subjects[2].Identity})
		},
		"a port that no policy names": func(r *bpf.PolicyRows) {
			for _, p := range slices.Clone(r.Ports) {
				if p.Protocol == 0 && !p.Verdict.Allow {
					r.Ports = append(r.Ports, bpf.PolicyPort{Ports: p.Ports, Protocol: netpol.TCP, Port: 4444, Bits: 16, Verdict: bpf.PolicyVerdict{Allow: true}})
				}
			}
		},
		"the upper half of a protocol": func(r *bpf.PolicyRows) {
			for _, p := range slices.Clone(r.Ports) {
				if p.Protocol == 0 && !p.Verdict.Allow {
					open, shut := bpf.PolicyVerdict{Allow: true}, p.Verdict
					r.Ports = append(r.Ports, bpf.PolicyPort{Ports: p.Ports, Protocol: netpol.SCTP, Port: 1 << 15, Bits: 1, Verdict: open}, bpf.PolicyPort{Ports: p.Ports, Protocol: netpol.SCTP, Port: 65535, Bits: 16, Verdict: shut})
				}
			}
		},
		"answers are missing": func(r *bpf.PolicyRows) { r.Answers = nil },
		"a port is open": func(r *bpf.PolicyRows) {
			for i := range r.Ports {
				if r.Ports[i].Protocol == 0 {
					r.Ports[i].Verdict.Allow = true
				}
			}
		},
		"a range ends early": func(r *bpf.PolicyRows) {
			r.Ports = slices.DeleteFunc(r.Ports, func(p bpf.PolicyPort) bool {
				return p.Protocol == netpol.TCP && p.Port <= 8083 && p.Port >= 8082 || p.Port == 8080 && p.Bits < 16
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			rows := rowsOf(state(t))
			spoil(&rows)
			r := verified(t, rows, state(t))
			if r.Drifts == 0 || len(r.Examples) == 0 || strings.TrimSpace(r.Examples[0].String()) == "" {
				t.Errorf("not seen: %+v", r)
			}
		})
	}
}

// Pods that have ended are nobody: a row that they have left is seen.
func TestRowsOfPodsThatHaveEnded(t *testing.T) {
	rows, s := rowsOf(state(t)), state(t)
	for _, p := range s.Pods {
		if p.Name == "far" {
			p.Status.Phase = corev1.PodSucceeded
		}
	}
	if r := verified(t, rows, s); r.Drifts == 0 {
		t.Errorf("not seen: %+v", r)
	}
}

// What policies in shadow would do is proved, too, and is told apart.
func TestRowsOfPoliciesInShadow(t *testing.T) {
	s := state(t)
	for _, p := range s.NetworkPolicies {
		if p.Name == "deny" {
			p.Annotations = map[string]string{netpol.ModeAnnotation: netpol.ModeShadow}
		}
	}
	if r := verified(t, rowsOf(s), s); r.Drifts != 0 {
		t.Errorf("report %+v", r)
	}
	rows := rowsOf(s)
	for i := range rows.Subjects {
		rows.Subjects[i].ShadowIngress = 0
	}
	if r := verified(t, rows, s); r.Drifts == 0 || !strings.Contains(r.Examples[0].String(), "with the policies in shadow") {
		t.Errorf("not seen: %+v", r)
	}
}

// TestTurns: where a list says otherwise, however its rows lie in one another.
func TestTurns(t *testing.T) {
	row := func(port uint16, bits uint8, allow bool) bpf.PolicyPort {
		return bpf.PolicyPort{Ports: 1, Protocol: netpol.TCP, Port: port, Bits: bits, Verdict: bpf.PolicyVerdict{Allow: allow}}
	}
	rest := func(allow bool) bpf.PolicyPort {
		return bpf.PolicyPort{Ports: 1, Verdict: bpf.PolicyVerdict{Allow: allow}}
	}
	for name, c := range map[string]struct {
		rows []bpf.PolicyPort
		want []uint16
	}{
		"nothing but the rest":           {[]bpf.PolicyPort{rest(true)}, nil},
		"a port":                         {[]bpf.PolicyPort{row(80, 16, true), rest(false)}, []uint16{80, 81}},
		"the last port":                  {[]bpf.PolicyPort{row(65535, 16, true), rest(false)}, []uint16{65535}},
		"what the rest says, too":        {[]bpf.PolicyPort{row(80, 16, true), rest(true)}, nil},
		"two that touch":                 {[]bpf.PolicyPort{row(80, 15, true), row(82, 16, true), rest(false)}, []uint16{80, 83}},
		"one in another":                 {[]bpf.PolicyPort{row(64, 10, true), row(80, 16, false), rest(false)}, []uint16{64, 80, 81, 128}},
		"one at the other's beginning":   {[]bpf.PolicyPort{row(64, 10, true), row(64, 16, false), rest(false)}, []uint16{65, 128}},
		"both end at once":               {[]bpf.PolicyPort{row(64, 10, false), row(127, 16, true), rest(true)}, []uint16{64, 127}},
		"all of a protocol, but for one": {[]bpf.PolicyPort{row(0, 0, true), row(0, 16, false), rest(false)}, []uint16{1}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []uint16
			for _, p := range turns(append(c.rows, bpf.PolicyPort{Ports: 2, Verdict: bpf.PolicyVerdict{Allow: true}})) {
				if p.protocol != netpol.TCP {
					t.Errorf("protocol %d", p.protocol)
				}
				got = append(got, p.number)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("turns at %v, want %v", got, c.want)
			}
		})
	}
}

// Questions have numbers: each is one of its own, and there are as many as are counted.
func TestQuestionsAreAllDifferent(t *testing.T) {
	http, dns, metrics := port{netpol.TCP, 80}, port{netpol.UDP, 53}, port{netpol.TCP, 9100}
	of := func(addr string, named ...port) end {
		return end{End: netpol.End{Addr: netip.MustParseAddr(addr)}, named: named}
	}
	locals := []end{of("10.0.0.1"), of("10.0.0.2", metrics, http, metrics)}
	others := []end{of("10.0.0.1", metrics), of("10.0.0.2"), of("192.0.2.1", dns)}
	for _, egress := range []bool{true, false} {
		q := newQuestions(locals, others, egress, []port{http, dns})
		if want := map[bool]int{true: 2 * (3 + 2 + 2), false: 3 * (2 + 3)}[egress]; q.count != want {
			t.Errorf("egress %v: %d questions, want %d", egress, q.count, want)
		}
		type key struct {
			from, to netip.Addr
			p        port
		}
		seen := map[key]bool{}
		for n := range q.count {
			from, to, p := q.at(n)
			seen[key{from.Addr, to.Addr, p}] = true
		}
		if len(seen) != q.count {
			t.Errorf("egress %v: %d of %d questions differ", egress, len(seen), q.count)
		}
	}
}

// What is asked of a large cluster is bounded, however many questions there are, and a proof ends with its context.
func TestLargeClustersAreSampled(t *testing.T) {
	s := state(t)
	for i := range 1000 {
		at := netip.AddrFrom4([4]byte{203, byte(i >> 8), byte(i), 0}).String() + "/24"
		s.NetworkPolicies = append(s.NetworkPolicies, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "p" + at, UID: types.UID(at)},
			Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": at}}, Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: at}}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &intstr.IntOrString{IntVal: int32(1000 + 3*i)}}},
			}}},
		})
	}
	rows := rowsOf(s)
	r, err := Verify(t.Context(), rows, s, Options{Node: "n1", Questions: 200})
	if err != nil || r.Asked != 200 || r.Of < 10_000_000 || r.Drifts != 0 {
		t.Errorf("report %+v, error %v", r, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ended, rows, s, Options{Node: "n1"}); !errors.Is(err, context.Canceled) {
		t.Errorf("all questions, though nobody waits for them: error %v", err)
	}
}

// What policies deny beyond what they say, for want of room, is told as such: by the rows, of which an agent may say that it is not so.
func TestClosedForWantOfRoom(t *testing.T) {
	blocks, ports := state(t), state(t)
	open := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "open", UID: "open"},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}, Ingress: []networkingv1.NetworkPolicyIngressRule{{}}},
	}
	many := open.DeepCopy()
	for i := range 20 {
		many.Spec.Ingress[0].From = append(many.Spec.Ingress[0].From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("192.0.%d.0/24", 2*i)}})
	}
	blocks.NetworkPolicies = append(blocks.NetworkPolicies, many)
	many = open.DeepCopy()
	for i := range 600 {
		port := intstr.FromInt(1 + 2*i)
		many.Spec.Ingress[0].Ports = append(many.Spec.Ingress[0].Ports, networkingv1.NetworkPolicyPort{Port: &port})
	}
	ports.NetworkPolicies = append(ports.NetworkPolicies, many)
	for name, c := range map[string]struct {
		s netpol.State
		o compiler.Options
	}{"blocks": {blocks, compiler.Options{NodeName: "n1", MaxPeers: 36}}, "ports": {ports, compiler.Options{NodeName: "n1", MaxRules: 1000}}} {
		t.Run(name, func(t *testing.T) {
			made := compiler.New(c.o)
			made.SetState(c.s)
			made.Flush()
			asked := Options{Node: "n1", Questions: 20000}
			verified := func() Report {
				t.Helper()
				r, err := Verify(t.Context(), made.Rows(), c.s, asked)
				if err != nil {
					t.Fatal(err)
				}
				return r
			}
			r := verified()
			if r.Drifts != 0 || len(r.Closed) == 0 || !strings.Contains(r.Crowded(), "shop/") || !strings.Contains(r.Crowded(), "--max-policy-") {
				t.Errorf("report %+v: %q", r, r.Crowded())
			}
			if asked.Closed = made.Closed(); verified().Drifts != 0 {
				t.Errorf("the compiler closed others than the rows tell: %v", asked.Closed)
			}
			if asked.Closed = map[netpol.PolicyRef]bool{}; verified().Drifts == 0 {
				t.Error("rows are believed that the compiler does not know of")
			}
		})
	}
}
