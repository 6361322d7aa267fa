package netpol

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// State is the part of a cluster that policies are judged by. Objects are not changed by who reads a State.
type State struct {
	Namespaces             []*corev1.Namespace
	Pods                   []*corev1.Pod // those that are Succeeded or Failed are nobody's peer, and no subject
	Nodes                  []*corev1.Node
	NetworkPolicies        []*networkingv1.NetworkPolicy
	ClusterNetworkPolicies []*policyv1alpha2.ClusterNetworkPolicy
	Services               []*corev1.Service // no part of any verdict: a Service's address is a backend's when policies are asked
	// DNSAddrs are the addresses of the cluster's DNS where the node network answers it by itself. They count as those of a
	// pod in kube-system with the label k8s-app=kube-dns and the ports dns (53/UDP) and dns-tcp (53/TCP): that is how
	// policies name the cluster's DNS.
	DNSAddrs []netip.Addr
}

// End is one end of a flow: a pod or an address. An address that is a pod's is that pod.
type End struct {
	Pod  types.NamespacedName // empty: Addr tells
	Addr netip.Addr           // of a pod with addresses of both families: which; invalid: its first
}

// Flow is what is asked about: who begins it, and with whom. It is the flow as the pods' interfaces see it: after a Service's
// address and port have become those of a backend.
type Flow struct {
	From, To End
	Protocol uint8  // of IP: 6 TCP, 17 UDP, 132 SCTP; others have no port
	Port     uint16 // of To
	// ICMPType is that of a message of ICMP (protocol 1) or ICMPv6 (58); 0: one that asks, as an echo does. See PassesAlways.
	ICMPType uint8
	// ViaService: From asked a Service, and To is the backend that was chosen. It matters where both are the same pod: only such a
	// flow leaves it.
	ViaService bool
	// Forwarded: From is a node's address, but it stands for that of a client elsewhere (a NodePort with externalTrafficPolicy
	// Cluster). Without it, what comes of an address of the node that To is on, or of a hostNetwork pod there, is that
	// node's own stack, and not judged on ingress.
	Forwarded bool
}

// PassesAlways tells the messages of ICMP that no policy judges: errors, which belong to flows that are judged, and what IPv6 does not work
// without on a link (RFC 4890, section 4.4.1: neighbour discovery, listeners of multicast, SEND, multicast router discovery). Of the latter those that a pod
// sends are judged: pods are on no link with each other, and what is for a link is not to be forwarded (section 4.3.3). Echo requests are judged in
// both families.
func PassesAlways(protocol, icmpType uint8, fromPod bool) bool {
	switch protocol {
	case ICMP:
		return icmpType == 3 || icmpType == 11 || icmpType == 12
	case ICMPv6:
		link := 130 <= icmpType && icmpType <= 137 || 141 <= icmpType && icmpType <= 143 || icmpType == 148 || icmpType == 149 || 151 <= icmpType && icmpType <= 153
		return 1 <= icmpType && icmpType <= 4 || link && !fromPod
	}
	return false
}

// Direction is that of a policy's rules.
type Direction uint8

const (
	Egress  Direction = iota // judged by the policies of who begins the flow
	Ingress                  // judged by the policies of who is asked
)

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Tier is what is judged before what: Admin, then NetworkPolicies, then Baseline.
type Tier string

const (
	TierAdmin         Tier = "Admin"
	TierNetworkPolicy Tier = "NetworkPolicy"
	TierBaseline      Tier = "Baseline"
	TierNone          Tier = "" // no policy says anything: allowed
)

// PolicyRef names a policy.
type PolicyRef struct {
	Kind      string    `json:"kind"` // NetworkPolicy or ClusterNetworkPolicy
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid,omitempty"`
}

func (p PolicyRef) String() string {
	if p.Namespace == "" {
		return p.Name
	}
	return p.Namespace + "/" + p.Name
}

// NoRule is the rule of a verdict that isolation gives: no rule admits the flow.
const NoRule = -1

// Side is the verdict of one direction.
type Side struct {
	Allowed bool `json:"allowed"`
	// Tier is the one that decided.
	Tier Tier `json:"tier,omitempty"`
	// Policy and Rule are what decided: the rule's index in its list (spec.ingress or spec.egress) from 0. With NoRule, Policy is the first (by
	// namespace and name) of those that isolate the pod. Where several rules of NetworkPolicies allow a flow, it is the first rule of
	// the first policy by name.
	Policy *PolicyRef `json:"policy,omitempty"`
	Rule   int        `json:"rule"`
	// Isolating are all policies that isolate the pod in this direction, by name, where that decided. Not to be changed: verdicts share it.
	Isolating []PolicyRef `json:"isolating,omitempty"`
	// Why is one line for people: "rule 0 of default/allow-web", "isolated by default/deny-all; nearest: rule 2 of default/allow-web
	// admits port 8080", "no policy selects it".
	Why string `json:"why"`
}

// Verdict is the answer to a Flow. A side that has no pod in it that policies guard (an address outside, a hostNetwork pod)
// allows.
type Verdict struct {
	Allowed bool `json:"allowed"`
	Egress  Side `json:"egress"`
	Ingress Side `json:"ingress"`
}

// Protocols: those that have ports, and those of PassesAlways.
const (
	TCP    = 6
	UDP    = 17
	SCTP   = 132
	ICMP   = 1
	ICMPv6 = 58
)

// A policy with this annotation and this value is in shadow: it is judged and counted beside what is enforced, and not enforced. Any other value
// of the annotation leaves the policy enforced.
const (
	ModeAnnotation = "strake.io/policy-mode"
	ModeShadow     = "shadow"
)

// FlowsAnnotation on a namespace or a pod (which counts more) tells what becomes of its established flows when policies change: with FlowsKeep
// they go on, with FlowsJudge they are judged anew. Without it the node's setting tells.
const (
	FlowsAnnotation = "strake.io/established-flows"
	FlowsKeep       = "keep"
	FlowsJudge      = "judge"
)

// InShadow tells whether a policy is in shadow.
func InShadow(policy metav1.Object) bool {
	return policy.GetAnnotations()[ModeAnnotation] == ModeShadow
}

// InShadow tells whether any of the policies is in shadow.
func (s State) InShadow() bool {
	return slices.ContainsFunc(s.NetworkPolicies, func(p *networkingv1.NetworkPolicy) bool { return InShadow(p) }) ||
		slices.ContainsFunc(s.ClusterNetworkPolicies, func(p *policyv1alpha2.ClusterNetworkPolicy) bool { return InShadow(p) })
}

// ProtocolNumber is the number of a protocol as the APIs name it.
func ProtocolNumber(p corev1.Protocol) (uint8, error) {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP, nil
	case corev1.ProtocolUDP:
		return UDP, nil
	case corev1.ProtocolSCTP:
		return SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q: TCP, UDP and SCTP are known", p)
}
