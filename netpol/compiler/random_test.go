package compiler

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
)

// random makes clusters in which much meets: few labels, names, ports and ranges, used again and again.
type random struct {
	*rand.Rand
	serial   int64
	labelled bool // most of what happens are labels of namespaces, and most policies look at these
}

func newRandom(seed uint64) *random { return &random{Rand: rand.New(rand.NewPCG(seed, 1))} }

func pick[T any](r *random, of ...T) T { return of[r.IntN(len(of))] }

// chance is true once in n times.
func (r *random) chance(n int) bool { return r.IntN(n) == 0 }

func (r *random) labels(keys ...string) map[string]string {
	out := map[string]string{}
	for _, k := range keys {
		if !r.chance(3) {
			out[k] = pick(r, "a", "b", "c", "")
		}
	}
	return out
}

var (
	spaceNames = []string{"alpha", "beta", "gamma", "kube-system"}
	spaceKeys  = []string{"team", "env"}
	podKeys    = []string{"app", "tier"}
	portNames  = []string{"http", "metrics", "dns"}
	someNumber = []int32{53, 80, 81, 443, 1023, 1024, 8080, 8443, 65535, 1}
	cidrs      = []string{
		"0.0.0.0/0", "::/0", "10.0.0.0/8", "10.0.0.0/16", "10.0.1.0/24", "10.0.1.0/28", "10.0.1.4/30", "10.0.1.5/32", "10.0.2.0/23", "192.0.2.0/24", "192.0.2.128/25",
		"198.51.100.7/32", "172.16.0.0/12", "172.16.0.1/32", "fd00::/8", "fd00:1::/64", "fd00:1::/120", "fd00:1::5/128", "2001:db8::/32", "0.0.0.0/1", "10.0.1.77/8",
	}
	strangers = []string{"192.0.2.1", "192.0.2.200", "198.51.100.7", "8.8.8.8", "10.0.1.250", "10.200.0.1", "2001:db8::1", "fd00:1::ffff", "fd99::1", "172.16.200.1", "2600::1"}
)

func (r *random) selector(keys []string) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	for _, k := range keys {
		if r.chance(3) {
			if s.MatchLabels == nil {
				s.MatchLabels = map[string]string{}
			}
			s.MatchLabels[k] = pick(r, "a", "b", "c", "")
		}
	}
	for r.chance(3) {
		e := metav1.LabelSelectorRequirement{Key: pick(r, append([]string{"kubernetes.io/metadata.name"}, keys...)...), Operator: pick(r, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			for len(e.Values) == 0 || r.chance(2) {
				e.Values = append(e.Values, pick(r, "a", "b", "c", "alpha", "beta"))
			}
		}
		if r.chance(40) {
			e.Values = nil
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	if r.chance(40) {
		s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: "app", Operator: "Near"})
	}
	return s
}

func (r *random) namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: r.labels(spaceKeys...), Annotations: r.flows()}}
}

func (r *random) flows() map[string]string {
	if r.chance(4) {
		return map[string]string{netpol.FlowsAnnotation: pick(r, netpol.FlowsKeep, netpol.FlowsJudge, "perhaps")}
	}
	return nil
}

func (r *random) node(i int) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("node-", i), Labels: r.labels("zone", "team")},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "host"}, {Type: corev1.NodeInternalIP, Address: fmt.Sprint("172.16.0.", i+1)}, {Type: corev1.NodeInternalIP, Address: fmt.Sprint("fd00:2::", i+1)},
		}},
	}
}

func (r *random) pod(name string) *corev1.Pod {
	r.serial++
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pick(r, spaceNames...), Name: name, UID: types.UID(fmt.Sprint("uid-", r.serial)), Labels: r.labels(podKeys...), Annotations: r.flows(),
			CreationTimestamp: metav1.Unix(1700000000+int64(r.IntN(3)), 0),
		},
		Spec: corev1.PodSpec{NodeName: fmt.Sprint("node-", r.IntN(3)), HostNetwork: r.chance(10)},
	}
	var ports []corev1.ContainerPort
	for r.chance(2) {
		ports = append(ports, corev1.ContainerPort{Name: pick(r, append(portNames, "")...), ContainerPort: pick(r, someNumber...), Protocol: pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP, "")})
	}
	always := corev1.ContainerRestartPolicyAlways
	switch r.IntN(4) {
	case 0:
		p.Spec.InitContainers = []corev1.Container{{RestartPolicy: &always, Ports: ports}}
	case 1:
		p.Spec.InitContainers = []corev1.Container{{Ports: ports}}
	default:
		p.Spec.Containers = []corev1.Container{{}, {Ports: ports}}
	}
	p.Status.Phase = pick(r, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodPending, corev1.PodSucceeded, corev1.PodFailed)
	v4, v6 := corev1.PodIP{IP: fmt.Sprintf("10.0.%d.%d", r.IntN(4), 1+r.IntN(9))}, corev1.PodIP{IP: fmt.Sprintf("fd00:%d::%d", r.IntN(2), 1+r.IntN(9))}
	if p.Spec.HostNetwork {
		v4, v6 = corev1.PodIP{IP: "172.16.0.1"}, corev1.PodIP{IP: "fd00:2::1"}
	}
	switch r.IntN(5) {
	case 0:
		p.Status.PodIPs = []corev1.PodIP{v6}
	case 1, 2:
		p.Status.PodIPs = []corev1.PodIP{v4, v6}
	default:
		p.Status.PodIP = v4.IP
	}
	return p
}

func (r *random) mode() map[string]string {
	if r.chance(5) {
		return map[string]string{netpol.ModeAnnotation: pick(r, netpol.ModeShadow, netpol.ModeShadow, "enforced")}
	}
	return nil
}

func (r *random) networkPolicy(name string) *networkingv1.NetworkPolicy {
	r.serial++
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, spaceNames...), Name: name, UID: types.UID(fmt.Sprint("uid-", r.serial)), Annotations: r.mode()}}
	if !r.chance(3) {
		p.Spec.PodSelector = *r.selector(podKeys)
	}
	p.Spec.PolicyTypes = pick(r, nil, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
	if r.chance(40) {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, "Sideways")
	}
	for r.chance(2) || r.chance(2) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: r.peers(), Ports: r.ports()})
	}
	for r.chance(2) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: r.peers(), Ports: r.ports()})
	}
	return p
}

func (r *random) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for r.chance(2) || r.chance(3) {
		var p networkingv1.NetworkPolicyPeer
		switch r.IntN(5) {
		case 0:
			p.PodSelector = r.selector(podKeys)
		case 1:
			p.NamespaceSelector = r.selector(spaceKeys)
		case 2:
			p.NamespaceSelector, p.PodSelector = r.selector(spaceKeys), r.selector(podKeys)
		default:
			p.IPBlock = &networkingv1.IPBlock{CIDR: pick(r, cidrs...)}
			if in, err := netip.ParsePrefix(p.IPBlock.CIDR); err == nil {
				for _, e := range cidrs {
					if x := netip.MustParsePrefix(e); in.Contains(x.Addr()) && x.Bits() > in.Bits() && r.chance(4) {
						p.IPBlock.Except = append(p.IPBlock.Except, e)
					}
				}
			}
		}
		if r.chance(40) {
			switch r.IntN(4) {
			case 0:
				p.IPBlock = &networkingv1.IPBlock{CIDR: pick(r, "10.0.0.0/33", "::ffff:10.0.0.0/104", "", "10.0.0.0")}
			case 1:
				p.IPBlock = &networkingv1.IPBlock{CIDR: "10.0.0.0/24", Except: []string{pick(r, "10.0.0.0/8", "10.0.0.0/24", "fd00::/64", "x")}}
			case 2:
				p = networkingv1.NetworkPolicyPeer{}
			case 3:
				p.IPBlock, p.PodSelector = &networkingv1.IPBlock{CIDR: "0.0.0.0/0"}, &metav1.LabelSelector{}
			}
		}
		out = append(out, p)
	}
	return out
}

func (r *random) ports() []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for r.chance(2) {
		var p networkingv1.NetworkPolicyPort
		if !r.chance(3) {
			protocol := pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
			if r.chance(40) {
				protocol = pick[corev1.Protocol](r, "", "ICMP", "tcp")
			}
			p.Protocol = &protocol
		}
		switch r.IntN(4) {
		case 0:
			name := intstr.FromString(pick(r, append(portNames, "other")...))
			p.Port = &name
		case 1:
			number := intstr.FromInt32(pick(r, someNumber...))
			end := number.IntVal + int32(r.IntN(8000))
			p.Port, p.EndPort = &number, &end
			if !r.chance(30) {
				end = min(end, 65535)
			}
		case 2:
			number := intstr.FromInt32(pick(r, someNumber...))
			p.Port = &number
		}
		if r.chance(40) {
			bad := pick(r, intstr.FromInt32(0), intstr.FromInt32(70000), intstr.FromString("NO-NAME-OF-A-PORT"))
			p.Port = &bad
		}
		if r.chance(60) {
			end := int32(3)
			p.EndPort = &end
		}
		out = append(out, p)
	}
	return out
}

func (r *random) clusterPolicy(name string) *policyv1alpha2.ClusterNetworkPolicy {
	r.serial++
	p := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(fmt.Sprint("uid-", r.serial)), Annotations: r.mode()}}
	p.Spec.Tier = pick(r, policyv1alpha2.AdminTier, policyv1alpha2.BaselineTier)
	p.Spec.Priority = int32(r.IntN(4))
	if r.chance(2) {
		p.Spec.Subject.Namespaces = r.selector(spaceKeys)
	} else {
		p.Spec.Subject.Pods = r.namespacedPod()
	}
	if r.chance(40) {
		p.Spec.Tier = "Middle"
	}
	if r.chance(40) {
		p.Spec.Subject = policyv1alpha2.ClusterNetworkPolicySubject{}
	}
	for r.chance(2) || r.chance(2) {
		rule := policyv1alpha2.ClusterNetworkPolicyIngressRule{Action: r.action(), Protocols: r.protocols()}
		for !r.chance(40) && (len(rule.From) == 0 || r.chance(2)) {
			var peer policyv1alpha2.ClusterNetworkPolicyIngressPeer
			if r.chance(2) {
				peer.Namespaces = r.selector(spaceKeys)
			} else {
				peer.Pods = r.namespacedPod()
			}
			if r.chance(40) {
				peer.Namespaces = pick(r, nil, &metav1.LabelSelector{})
			}
			rule.From = append(rule.From, peer)
		}
		p.Spec.Ingress = append(p.Spec.Ingress, rule)
	}
	for r.chance(2) || r.chance(2) {
		rule := policyv1alpha2.ClusterNetworkPolicyEgressRule{Action: r.action(), Protocols: r.protocols()}
		for !r.chance(40) && (len(rule.To) == 0 || r.chance(2)) {
			var peer policyv1alpha2.ClusterNetworkPolicyEgressPeer
			switch r.IntN(4) {
			case 0:
				peer.Namespaces = r.selector(spaceKeys)
			case 1:
				peer.Pods = r.namespacedPod()
			case 2:
				peer.Nodes = r.selector([]string{"zone", "team"})
			case 3:
				for len(peer.Networks) == 0 || r.chance(2) {
					peer.Networks = append(peer.Networks, policyv1alpha2.CIDR(pick(r, cidrs...)))
				}
			}
			if r.chance(60) {
				peer.Networks = append(peer.Networks, pick[policyv1alpha2.CIDR](r, "nowhere", "::ffff:0.0.0.0/96"))
			}
			if r.chance(60) {
				peer.DomainNames = []policyv1alpha2.DomainName{"strake.io"}
			}
			rule.To = append(rule.To, peer)
		}
		p.Spec.Egress = append(p.Spec.Egress, rule)
	}
	return p
}

func (r *random) action() policyv1alpha2.ClusterNetworkPolicyRuleAction {
	if r.chance(40) {
		return "Shrug"
	}
	return pick(r, policyv1alpha2.ClusterNetworkPolicyRuleActionAccept, policyv1alpha2.ClusterNetworkPolicyRuleActionDeny, policyv1alpha2.ClusterNetworkPolicyRuleActionPass)
}

func (r *random) namespacedPod() *policyv1alpha2.NamespacedPod {
	return &policyv1alpha2.NamespacedPod{NamespaceSelector: *r.selector(spaceKeys), PodSelector: *r.selector(podKeys)}
}

func (r *random) protocols() []policyv1alpha2.ClusterNetworkPolicyProtocol {
	var out []policyv1alpha2.ClusterNetworkPolicyProtocol
	for r.chance(2) {
		var p policyv1alpha2.ClusterNetworkPolicyProtocol
		port := &policyv1alpha2.Port{Number: pick(r, someNumber...)}
		if r.chance(2) {
			start := pick(r, someNumber...)
			port = &policyv1alpha2.Port{Range: &policyv1alpha2.PortRange{Start: start, End: min(start+1+int32(r.IntN(3000)), 65535)}}
		}
		if r.chance(40) {
			port = pick(r, nil, &policyv1alpha2.Port{}, &policyv1alpha2.Port{Number: 70000})
		}
		switch r.IntN(4) {
		case 0:
			p.TCP = &policyv1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		case 1:
			p.UDP = &policyv1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
		case 2:
			p.SCTP = &policyv1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}
		case 3:
			p.DestinationNamedPort = pick(r, portNames...)
		}
		if r.chance(60) {
			p.DestinationNamedPort = pick(r, "", "http")
			p.TCP = &policyv1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		}
		out = append(out, p)
	}
	return out
}

func (r *random) state() netpol.State {
	var s netpol.State
	extra := 0
	if r.labelled {
		extra = 4
	}
	for _, name := range spaceNames {
		if !r.chance(6) {
			s.Namespaces = append(s.Namespaces, r.namespace(name))
		}
	}
	for i := range 3 {
		s.Nodes = append(s.Nodes, r.node(i))
	}
	for i := range 4 + r.IntN(20) {
		s.Pods = append(s.Pods, r.pod(fmt.Sprint("pod-", i)))
	}
	for i := range r.IntN(8) {
		s.NetworkPolicies = append(s.NetworkPolicies, r.networkPolicy(fmt.Sprint("np-", i)))
	}
	for i := range r.IntN(6) + extra {
		s.ClusterNetworkPolicies = append(s.ClusterNetworkPolicies, r.clusterPolicy(fmt.Sprint("cnp-", i)))
	}
	if r.chance(2) {
		s.DNSAddrs = []netip.Addr{netip.MustParseAddr("10.0.1.250"), netip.MustParseAddr("fd00:1::ffff")}
	}
	return s
}

// ends are the addresses by which flows of a state are asked.
func ends(s netpol.State) []netip.Addr {
	var out []netip.Addr
	for _, p := range s.Pods {
		for _, ip := range p.Status.PodIPs {
			out = appendAddr(out, ip.IP)
		}
		out = appendAddr(out, p.Status.PodIP)
	}
	for _, n := range s.Nodes {
		for _, a := range n.Status.Addresses {
			out = appendAddr(out, a.Address)
		}
	}
	for _, a := range s.DNSAddrs {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	for _, a := range strangers {
		out = appendAddr(out, a)
	}
	return out
}

// flow asks for something that policies speak of, most of the time.
func (r *random) flow(ends []netip.Addr) netpol.Flow {
	for {
		f := netpol.Flow{From: netpol.End{Addr: pick(r, ends...)}, To: netpol.End{Addr: pick(r, ends...)}, Forwarded: r.chance(2)}
		if f.From.Addr.Is4() != f.To.Addr.Is4() {
			continue
		}
		f.ViaService = f.From.Addr == f.To.Addr
		f.Protocol = pick[uint8](r, netpol.TCP, netpol.TCP, netpol.TCP, netpol.UDP, netpol.UDP, netpol.SCTP, 0)
		if f.Protocol == 0 { // without ports: pings of both families, a tunnel, whatever else
			f.Protocol = pick(r, netpol.ICMP, netpol.ICMPv6, 47, uint8(r.IntN(256)))
		}
		if f.Protocol == netpol.TCP || f.Protocol == netpol.UDP || f.Protocol == netpol.SCTP {
			f.Port = uint16(pick(r, someNumber...) + int32(r.IntN(3)) - 1)
			if r.chance(4) {
				f.Port = uint16(r.IntN(65536))
			}
		}
		return f
	}
}
