package analysis

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/reference"
)

// dice makes random states, small ones in which everything meets everything.
type dice struct{ *rand.Rand }

func one[T any](d dice, of ...T) T { return of[d.IntN(len(of))] }

func (d dice) chance(percent int) bool { return d.IntN(100) < percent }

func (d dice) labels() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"a", "b"} {
		if d.chance(60) {
			out[k] = one(d, "", "x", "y")
		}
	}
	return out
}

func (d dice) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if d.chance(40) {
		s.MatchLabels = map[string]string{one(d, "a", "b"): one(d, "", "x", "y")}
	}
	if d.chance(30) {
		e := metav1.LabelSelectorRequirement{Key: one(d, "a", "b", corev1.LabelMetadataName), Operator: one(d, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			e.Values = []string{one(d, "x", "y", "ns0", "ns1")}
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	if d.chance(3) {
		s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: "a", Operator: "Is"})
	}
	return s
}

func (d dice) block() *networkingv1.IPBlock {
	b := &networkingv1.IPBlock{CIDR: one(d, "0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/30", "10.0.0.4/30", "192.0.2.0/24", "10.0.0.5/32", "10.0.0.3/8", "::/0", "fd00::/64", "fd00::/126", "x")}
	for range d.IntN(3) {
		b.Except = append(b.Except, one(d, "10.0.0.0/30", "10.0.0.2/31", "192.0.2.128/25", "fd00::/126", "10.1.0.0/16"))
	}
	return b
}

func (d dice) ports() []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range d.IntN(3) {
		var p networkingv1.NetworkPolicyPort
		if d.chance(70) {
			p.Protocol = new(one(d, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP))
		}
		if d.chance(70) {
			p.Port = new(one(d, intstr.FromInt32(80), intstr.FromInt32(81), intstr.FromInt32(1), intstr.FromInt32(65535), intstr.FromString("http"), intstr.FromString("dns"), intstr.FromInt32(70000)))
		}
		if d.chance(30) {
			p.EndPort = new(one[int32](d, 85, 81, 65535, 2))
		}
		out = append(out, p)
	}
	return out
}

func (d dice) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range d.IntN(3) {
		var p networkingv1.NetworkPolicyPeer
		switch d.IntN(4) {
		case 0:
			p.PodSelector = d.selector()
		case 1:
			p.NamespaceSelector = d.selector()
		case 2:
			p.PodSelector, p.NamespaceSelector = d.selector(), d.selector()
		case 3:
			p.IPBlock = d.block()
			if d.chance(5) {
				p.PodSelector = d.selector()
			}
		}
		if d.chance(2) {
			p = networkingv1.NetworkPolicyPeer{}
		}
		out = append(out, p)
	}
	return out
}

func (d dice) meta(name string) metav1.ObjectMeta {
	m := metav1.ObjectMeta{Name: name}
	if d.chance(10) {
		m.Annotations = map[string]string{netpol.ModeAnnotation: netpol.ModeShadow}
	}
	return m
}

func (d dice) networkPolicy(i int) *networkingv1.NetworkPolicy {
	n := &networkingv1.NetworkPolicy{ObjectMeta: d.meta(fmt.Sprintf("np%d", i))}
	n.Namespace = one(d, "ns0", "ns1", "ns2")
	n.Spec.PodSelector = *d.selector()
	for range d.IntN(3) {
		n.Spec.Ingress = append(n.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{Ports: d.ports(), From: d.peers()})
	}
	for range d.IntN(3) {
		n.Spec.Egress = append(n.Spec.Egress, networkingv1.NetworkPolicyEgressRule{Ports: d.ports(), To: d.peers()})
	}
	for range d.IntN(3) {
		n.Spec.PolicyTypes = append(n.Spec.PolicyTypes, one(d, networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress))
	}
	if d.chance(2) {
		n.Spec.PolicyTypes = append(n.Spec.PolicyTypes, "Both")
	}
	return n
}

func (d dice) clusterPeer(egress bool) policyv1alpha2.ClusterNetworkPolicyEgressPeer {
	var p policyv1alpha2.ClusterNetworkPolicyEgressPeer
	kinds := 2
	if egress {
		kinds = 4
	}
	switch d.IntN(kinds) {
	case 0:
		p.Namespaces = d.selector()
	case 1:
		p.Pods = &policyv1alpha2.NamespacedPod{NamespaceSelector: *d.selector(), PodSelector: *d.selector()}
	case 2:
		p.Networks = []policyv1alpha2.CIDR{policyv1alpha2.CIDR(d.block().CIDR)}
	case 3:
		p.Nodes = d.selector()
	}
	if d.chance(3) {
		p = policyv1alpha2.ClusterNetworkPolicyEgressPeer{}
	}
	if d.chance(2) && egress {
		p = policyv1alpha2.ClusterNetworkPolicyEgressPeer{DomainNames: []policyv1alpha2.DomainName{"example.com"}}
	}
	return p
}

func (d dice) protocols() []policyv1alpha2.ClusterNetworkPolicyProtocol {
	var out []policyv1alpha2.ClusterNetworkPolicyProtocol
	for range d.IntN(3) {
		port := &policyv1alpha2.Port{Number: one[int32](d, 80, 81, 53, 1, 65535)}
		if d.chance(30) {
			port = &policyv1alpha2.Port{Range: &policyv1alpha2.PortRange{Start: one[int32](d, 1, 79, 80), End: one[int32](d, 80, 81, 90, 65535)}}
		}
		if d.chance(4) {
			port = nil
		}
		switch d.IntN(4) {
		case 0:
			out = append(out, policyv1alpha2.ClusterNetworkPolicyProtocol{TCP: &policyv1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}})
		case 1:
			out = append(out, policyv1alpha2.ClusterNetworkPolicyProtocol{UDP: &policyv1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}})
		case 2:
			out = append(out, policyv1alpha2.ClusterNetworkPolicyProtocol{SCTP: &policyv1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}})
		case 3:
			out = append(out, policyv1alpha2.ClusterNetworkPolicyProtocol{DestinationNamedPort: one(d, "http", "dns")})
		}
	}
	return out
}

func (d dice) clusterNetworkPolicy(i int) *policyv1alpha2.ClusterNetworkPolicy {
	c := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: d.meta(fmt.Sprintf("cnp%d", i))}
	c.Spec.Tier, c.Spec.Priority = one(d, policyv1alpha2.AdminTier, policyv1alpha2.BaselineTier), d.Int32N(2)
	if d.chance(3) {
		c.Spec.Tier = "Other"
	}
	if d.chance(50) {
		c.Spec.Subject.Namespaces = d.selector()
	} else if d.chance(95) {
		c.Spec.Subject.Pods = &policyv1alpha2.NamespacedPod{NamespaceSelector: *d.selector(), PodSelector: *d.selector()}
	}
	act := func() policyv1alpha2.ClusterNetworkPolicyRuleAction {
		if d.chance(2) {
			return "Drop"
		}
		return one(d, policyv1alpha2.ClusterNetworkPolicyRuleActionAccept, policyv1alpha2.ClusterNetworkPolicyRuleActionDeny, policyv1alpha2.ClusterNetworkPolicyRuleActionPass)
	}
	for range d.IntN(4) {
		r := policyv1alpha2.ClusterNetworkPolicyIngressRule{Action: act(), Protocols: d.protocols()}
		for range 1 + d.IntN(2) {
			p := d.clusterPeer(false)
			r.From = append(r.From, policyv1alpha2.ClusterNetworkPolicyIngressPeer{Namespaces: p.Namespaces, Pods: p.Pods})
		}
		c.Spec.Ingress = append(c.Spec.Ingress, r)
	}
	for range d.IntN(4) {
		r := policyv1alpha2.ClusterNetworkPolicyEgressRule{Action: act(), Protocols: d.protocols()}
		for range 1 + d.IntN(2) {
			r.To = append(r.To, d.clusterPeer(true))
		}
		c.Spec.Egress = append(c.Spec.Egress, r)
	}
	return c
}

func (d dice) state() netpol.State {
	var s netpol.State
	for i := range 2 { // ns2 has no object
		s.Namespaces = append(s.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("ns%d", i), Labels: d.labels()}})
	}
	for i := range 2 {
		s.Nodes = append(s.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node%d", i), Labels: d.labels()}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: fmt.Sprintf("node%d", i)}, {Type: corev1.NodeExternalIP, Address: fmt.Sprintf("192.0.2.%d", 128+i)},
			{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.1.0.%d", i+1)}, {Type: corev1.NodeInternalIP, Address: fmt.Sprintf("fd01::%d", i+1)}}}})
	}
	for i := range 2 + d.IntN(5) {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: one(d, "ns0", "ns1", "ns2"), Name: fmt.Sprintf("pod%d", i), Labels: d.labels()}}
		p.Spec.NodeName = one(d, "node0", "node1", "")
		p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.0.0.%d", i+1)}}
		if d.chance(40) {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: fmt.Sprintf("fd00::%d", i+1)})
		}
		if d.chance(10) && p.Spec.NodeName != "" {
			p.Spec.HostNetwork = true
			p.Status.PodIPs = []corev1.PodIP{{IP: map[string]string{"node0": "10.1.0.1", "node1": "10.1.0.2"}[p.Spec.NodeName]}}
		}
		if d.chance(7) {
			p.Status.Phase = one(d, corev1.PodSucceeded, corev1.PodFailed)
		}
		for range 1 + d.IntN(2) {
			var c corev1.Container
			for range d.IntN(3) {
				c.Ports = append(c.Ports, corev1.ContainerPort{Name: one(d, "http", "dns", ""), Protocol: one(d, corev1.ProtocolTCP, corev1.ProtocolUDP, ""), ContainerPort: one[int32](d, 80, 82, 53)})
			}
			if d.chance(20) {
				if d.chance(50) {
					c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
				}
				p.Spec.InitContainers = append(p.Spec.InitContainers, c)
			} else {
				p.Spec.Containers = append(p.Spec.Containers, c)
			}
		}
		s.Pods = append(s.Pods, p)
	}
	if d.chance(30) {
		s.DNSAddrs = []netip.Addr{netip.MustParseAddr("10.96.0.10")}
	}
	for i := range d.IntN(4) {
		s.NetworkPolicies = append(s.NetworkPolicies, d.networkPolicy(i))
	}
	for i := range d.IntN(3) {
		s.ClusterNetworkPolicies = append(s.ClusterNetworkPolicies, d.clusterNetworkPolicy(i))
	}
	return s
}

// asked is an end that both are asked about.
type asked struct {
	end   netpol.End
	class int
	node  string // that it is on, or is
	host  bool   // it is the node's own stack
	pod   *corev1.Pod
	dns   bool
	name  string // as a Diff has it
}

func ends(a *Analysis) []asked {
	var out []asked
	for _, m := range a.members {
		for f, c := range m.classes {
			if c < 0 {
				continue
			}
			e := netpol.End{Addr: m.addrs[f]}
			if !m.dns {
				e.Pod = types.NamespacedName{Namespace: m.pod.Namespace, Name: m.pod.Name}
			}
			out = append(out, asked{e, c, m.pod.Spec.NodeName, m.pod.Spec.HostNetwork, m.pod, m.dns, m.pod.Namespace + "/" + m.pod.Name})
		}
	}
	for _, n := range a.nodes {
		for f, c := range n.classes {
			if c >= 0 {
				out = append(out, asked{end: netpol.End{Addr: n.addrs[f]}, class: c, node: n.node.Name, host: true, name: "node " + n.nodeName()})
			}
		}
	}
	for _, b := range a.blocks {
		name := b.atom.prefix.String()
		if b.atom.prefix.Bits() == 0 {
			name = World
		}
		out = append(out, asked{end: netpol.End{Addr: b.atom.sample}, class: b.class, name: name})
	}
	return out
}

// TestMatchesTheReference: on random states, all pairs of ends and every port at which anything may change, the sets are what the
// evaluator says flow by flow, and the rules that decided are its own.
func TestMatchesTheReference(t *testing.T) {
	ports := []uint16{0, 1, 2, 3, 52, 53, 54, 78, 79, 80, 81, 82, 83, 84, 85, 86, 89, 90, 91, 65534, 65535}
	flows := 0
	for seed := range uint64(400) {
		d := dice{rand.New(rand.NewPCG(seed, 7))}
		s := d.state()
		ref, err := reference.New(s)
		if err != nil {
			t.Fatal(err)
		}
		a := New(s, Options{})
		all := ends(a)
		for _, from := range all {
			for _, to := range all {
				if from.end == to.end || from.end.Addr.Is4() != to.end.Addr.Is4() || from.host && from.node == to.node {
					continue
				}
				said := a.asked(from.class, to.class)
				c := a.cell(said)
				for _, proto := range []uint8{netpol.TCP, netpol.UDP, netpol.SCTP, netpol.ICMP, 47} {
					for _, port := range ports {
						if !slices.Contains(protocols[:], proto) && port > 0 {
							continue
						}
						flows++
						f := netpol.Flow{From: from.end, To: to.end, Protocol: proto, Port: port}
						v, err := ref.Judge(f)
						if err != nil {
							t.Fatalf("seed %d: %+v: %v", seed, f, err)
						}
						e, i := a.explain(said, proto, port)
						if got := c.Allowed.Has(proto, port); got != v.Allowed || !same(a, e, v.Egress) || !same(a, i, v.Ingress) {
							text, _ := yaml.Marshal(s)
							t.Fatalf("seed %d: %+v: %t (%+v, %+v), the reference says %+v %+v\n%s", seed, f, got, e, i, v, a.ranges(said), text)
						}
					}
				}
			}
		}
	}
	if flows < 100_000 {
		t.Errorf("only %d flows were asked about", flows)
	}
	t.Logf("%d flows", flows)
}

func same(a *Analysis, r reason, s netpol.Side) bool {
	if r.allowed != s.Allowed || r.tier != s.Tier || (r.policy < 0) != (s.Policy == nil) {
		return false
	}
	return r.policy < 0 || a.policies[r.policy].ref == *s.Policy && int(r.rule) == s.Rule
}

// TestEndsAreAlike: on random States, what a matrix says of two ends is what their classes say of each pod, node and range in them, all of which stand in one end.
func TestEndsAreAlike(t *testing.T) {
	joined := 0
	for seed := range uint64(400) {
		a := New(dice{rand.New(rand.NewPCG(seed, 19))}.state(), Options{})
		m := a.Matrix(nil, nil)
		type one struct {
			classes [2]int
			pod     *corev1.Pod
			subject bool
		}
		var in [][]one
		there := 0
		for _, e := range m.Ends {
			var list []one
			for _, x := range e.members {
				list = append(list, one{x.classes, x.pod, x.pod != nil && !x.dns && !x.pod.Spec.HostNetwork})
			}
			for _, x := range e.atoms {
				classes := [2]int{-1, -1}
				classes[familyOf(x.atom.sample)] = x.class
				list = append(list, one{classes: classes})
			}
			in, there, joined = append(in, list), there+len(list), joined+len(list)-1
		}
		if want := len(a.members) + len(a.nodes) + len(a.blocks); there != want {
			t.Fatalf("seed %d: %d stand in ends, of %d", seed, there, want)
		}
		for i := range in {
			for j := range in {
				for _, x := range in[i] {
					for _, y := range in[j] {
						for f := range x.classes {
							if x.classes[f] < 0 || y.classes[f] < 0 || !x.subject && !y.subject || x.pod == y.pod {
								continue
							}
							want, got := a.cell(a.asked(x.classes[f], y.classes[f])).Text, "nothing"
							if id := m.Rows[i][j]; id >= 0 && m.Answers[id].sets[f] != nil {
								got = m.Answers[id].sets[f].Text
							}
							if got != want {
								t.Fatalf("seed %d: %s to %s, family %d: %s, want %s", seed, m.Ends[i].Name, m.Ends[j].Name, f, got, want)
							}
						}
					}
				}
			}
		}
	}
	if joined < 400 {
		t.Errorf("only %d stand in an end with others", joined)
	}
}
