package reference

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/netpol"
)

// reader reads one policy, and notes what is wrong with it.
type reader struct {
	policy   netpol.PolicyRef
	pods     int // how many there are
	problems []Problem
}

func (r *reader) wrong(at *field.Path, format string, args ...any) {
	r.problems = append(r.problems, Problem{Policy: r.policy, Field: at.String(), Reason: fmt.Sprintf(format, args...)})
}

func (e *Evaluator) readPolicies(s netpol.State) error {
	for _, p := range s.NetworkPolicies {
		if p == nil {
			return errors.New("a NetworkPolicy is nil")
		}
		r := &reader{pods: e.count, policy: netpol.PolicyRef{Kind: networkKind, Namespace: p.Namespace, Name: p.Name, UID: p.UID}}
		e.networkPolicies = append(e.networkPolicies, r.networkPolicy(p))
		e.problems = append(e.problems, r.problems...)
	}
	slices.SortStableFunc(e.networkPolicies, func(a, b *networkPolicy) int {
		return cmp.Or(strings.Compare(a.ref.Namespace, b.ref.Namespace), strings.Compare(a.ref.Name, b.ref.Name))
	})
	for _, p := range s.ClusterNetworkPolicies {
		if p == nil {
			return errors.New("a ClusterNetworkPolicy is nil")
		}
		r := &reader{pods: e.count, policy: netpol.PolicyRef{Kind: clusterKind, Name: p.Name, UID: p.UID}}
		read, baseline := r.clusterPolicy(p)
		if baseline {
			e.baseline = append(e.baseline, read)
		} else {
			e.admin = append(e.admin, read)
		}
		e.problems = append(e.problems, r.problems...)
	}
	// CNP: "Policies with lower priority values have higher precedence". Of equal ones "the implementation can apply any": by name, the same everywhere.
	byPrecedence := func(a, b *clusterPolicy) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), strings.Compare(a.ref.Name, b.ref.Name))
	}
	slices.SortStableFunc(e.admin, byPrecedence)
	slices.SortStableFunc(e.baseline, byPrecedence)
	slices.SortStableFunc(e.problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Policy.Kind, b.Policy.Kind), strings.Compare(a.Policy.Namespace, b.Policy.Namespace), strings.Compare(a.Policy.Name, b.Policy.Name))
	})
	return nil
}

func (r *reader) networkPolicy(p *networkingv1.NetworkPolicy) *networkPolicy {
	spec := field.NewPath("spec")
	out := &networkPolicy{ref: r.policy, shadow: r.shadow(p)}
	out.isolates = r.policyTypes(p, spec.Child("policyTypes"))
	for i, rule := range p.Spec.Ingress {
		out.rules[netpol.Ingress] = append(out.rules[netpol.Ingress], r.networkRule(p.Namespace, rule.From, rule.Ports, spec.Child("ingress").Index(i), "from"))
	}
	for i, rule := range p.Spec.Egress {
		out.rules[netpol.Egress] = append(out.rules[netpol.Egress], r.networkRule(p.Namespace, rule.To, rule.Ports, spec.Child("egress").Index(i), "to"))
	}
	if out.pods = r.selector(&p.Spec.PodSelector, spec.Child("podSelector")); out.pods == nil {
		out.rules = [2][]rule{}
	}
	for _, d := range []netpol.Direction{netpol.Egress, netpol.Ingress} {
		if !appliesTo(p, d) {
			out.rules[d] = nil
		}
	}
	return out
}

// shadow reads the mode. Another word than that for shadow leaves the policy enforced.
func (r *reader) shadow(p metav1.Object) bool {
	if mode, ok := p.GetAnnotations()[netpol.ModeAnnotation]; ok && mode != netpol.ModeShadow {
		r.wrong(field.NewPath("metadata", "annotations").Key(netpol.ModeAnnotation), "%q: only %q is known; the policy is enforced", mode, netpol.ModeShadow)
	}
	return netpol.InShadow(p)
}

// appliesTo: NP: "If this field is not specified, it will default based on the existence of ingress or egress rules; policies that contain an egress section are assumed
// to affect egress, and all policies (whether or not they contain an ingress section) are assumed to affect ingress."
func appliesTo(p *networkingv1.NetworkPolicy, d netpol.Direction) bool {
	if len(p.Spec.PolicyTypes) == 0 {
		return d == netpol.Ingress || len(p.Spec.Egress) > 0
	}
	if d == netpol.Ingress {
		return slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
	}
	return slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
}

// policyTypes: in which directions a policy isolates: those that it applies to, and both if a word in policyTypes is none of the API's.
func (r *reader) policyTypes(p *networkingv1.NetworkPolicy, at *field.Path) [2]bool {
	out := [2]bool{netpol.Egress: appliesTo(p, netpol.Egress), netpol.Ingress: appliesTo(p, netpol.Ingress)}
	for i, t := range p.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			r.wrong(at.Index(i), "%q is neither Ingress nor Egress; the policy isolates in both directions", t)
			out = [2]bool{true, true}
		}
	}
	return out
}

func (r *reader) networkRule(namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, at *field.Path, peersField string) rule {
	out := rule{anyPeer: len(peers) == 0, anyPort: len(ports) == 0} // nil and empty are the same (facts 10)
	for i := range peers {
		out.peers = append(out.peers, r.networkPeer(namespace, &peers[i], at.Child(peersField).Index(i)))
	}
	for i := range ports {
		out.ports = append(out.ports, r.networkPort(&ports[i], at.Child("ports").Index(i)))
	}
	return out
}

func (r *reader) networkPeer(namespace string, p *networkingv1.NetworkPolicyPeer, at *field.Path) peer {
	switch {
	case p.IPBlock != nil:
		// NP: "If this field is set then neither of the other fields can be."
		if p.PodSelector != nil || p.NamespaceSelector != nil {
			r.wrong(at, "ipBlock beside a selector; the peer matches nothing")
			return peer{text: "nothing"}
		}
		b, ok := r.ipBlock(p.IPBlock, at.Child("ipBlock"))
		if !ok {
			return peer{text: "nothing"}
		}
		return peer{blocks: []block{b}, text: blockText(b)}
	case p.PodSelector == nil && p.NamespaceSelector == nil:
		r.wrong(at, "has neither a selector nor an ipBlock; the peer matches nothing")
		return peer{text: "nothing"}
	}
	out := &podPeer{own: namespace, pods: labels.Everything(), known: answers{pods: r.pods}}
	if p.NamespaceSelector != nil { // nil: the policy's own namespace (facts 11)
		if out.namespaces = r.selector(p.NamespaceSelector, at.Child("namespaceSelector")); out.namespaces == nil {
			return peer{text: "nothing"}
		}
	}
	if p.PodSelector != nil {
		if out.pods = r.selector(p.PodSelector, at.Child("podSelector")); out.pods == nil {
			return peer{text: "nothing"}
		}
	}
	return peer{pods: out, text: podPeerText(out)}
}

func (r *reader) ipBlock(b *networkingv1.IPBlock, at *field.Path) (block, bool) {
	cidr, ok := r.cidr(b.CIDR, at.Child("cidr"))
	out := block{cidr: cidr}
	for i, text := range b.Except {
		x, good := r.cidr(text, at.Child("except").Index(i))
		// NP: "Except values will be rejected if they are outside the cidr range". Of the other family, they are (facts 43).
		if good && ok && (x.Addr().Is6() != cidr.Addr().Is6() || !cidr.Contains(x.Addr()) || x.Bits() <= cidr.Bits()) {
			r.wrong(at.Child("except").Index(i), "%s is not strictly within %s; the block matches nothing", text, b.CIDR)
			good = false
		}
		ok = ok && good
		out.except = append(out.except, x)
	}
	return out, ok
}

func (r *reader) cidr(text string, at *field.Path) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		r.wrong(at, "%q is no CIDR; what it is in matches nothing", text)
		return p, false
	}
	if p.Addr().Is4In6() {
		r.wrong(at, "%q is IPv4 written as IPv6; what it is in matches nothing", text)
		return p, false
	}
	return p.Masked(), true
}

// selector is nil if s is none.
func (r *reader) selector(s *metav1.LabelSelector, at *field.Path) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		r.wrong(at, "%v", err)
		return nil
	}
	return out
}

func (r *reader) networkPort(p *networkingv1.NetworkPolicyPort, at *field.Path) port {
	out := port{protocol: netpol.TCP, first: 0, last: 65535} // NP: "If not specified, this field defaults to TCP."
	if p.Protocol != nil {
		n, err := netpol.ProtocolNumber(corev1.Protocol(*p.Protocol))
		if err != nil || *p.Protocol == "" {
			r.wrong(at.Child("protocol"), "%q is none of TCP, UDP and SCTP; the port matches nothing", *p.Protocol)
			return port{}
		}
		out.protocol = n
	}
	out.valid = true
	switch {
	case p.Port == nil:
		// NP: "This field cannot be defined if the port field is not defined or if the port field is defined as a named (string) port."
		if p.EndPort != nil {
			r.wrong(at.Child("endPort"), "there is no port that it is the end of; the port matches nothing")
			return port{}
		}
	case p.Port.Type == intstr.String:
		if p.EndPort != nil {
			r.wrong(at.Child("endPort"), "port is a name; the port matches nothing")
			return port{}
		}
		if why := validation.IsValidPortName(p.Port.StrVal); len(why) > 0 {
			r.wrong(at.Child("port"), "%q is no name of a port: %s; it matches nothing", p.Port.StrVal, why[0])
			return port{}
		}
		out.name = p.Port.StrVal
	default:
		last := p.Port.IntVal
		if p.EndPort != nil {
			last = *p.EndPort
		}
		if !r.numbers(p.Port.IntVal, last, at.Child("port"), at.Child("endPort")) {
			return port{}
		}
		out.first, out.last = uint16(p.Port.IntVal), uint16(last)
	}
	return out
}

func (r *reader) numbers(first, last int32, firstAt, lastAt *field.Path) bool {
	if first < 1 || first > 65535 {
		r.wrong(firstAt, "%d is not between 1 and 65535; the port matches nothing", first)
		return false
	}
	if last < first || last > 65535 {
		r.wrong(lastAt, "%d is not between %d and 65535; the port matches nothing", last, first)
		return false
	}
	return true
}
