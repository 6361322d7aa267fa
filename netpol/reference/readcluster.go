package reference

import (
	"net/netip"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
)

// clusterPolicy reads a ClusterNetworkPolicy, and tells whether it is one of the Baseline tier.
func (r *reader) clusterPolicy(p *policyv1alpha2.ClusterNetworkPolicy) (*clusterPolicy, bool) {
	spec := field.NewPath("spec")
	out := &clusterPolicy{ref: r.policy, shadow: r.shadow(p), priority: p.Spec.Priority}
	known := p.Spec.Tier == policyv1alpha2.AdminTier || p.Spec.Tier == policyv1alpha2.BaselineTier
	if !known {
		r.wrong(spec.Child("tier"), "%q is neither Admin nor Baseline; the policy counts as one of Admin, and opens nothing", p.Spec.Tier)
	}
	if p.Spec.Priority < 0 || p.Spec.Priority > 1000 {
		r.wrong(spec.Child("priority"), "%d is not between 0 and 1000; it counts as it is", p.Spec.Priority)
	}
	if out.subject = r.subject(&p.Spec.Subject, spec.Child("subject")); out.subject == nil {
		known = false
	}
	for i := range p.Spec.Ingress {
		from := &p.Spec.Ingress[i]
		at := spec.Child("ingress").Index(i)
		read := clusterRuleRead{name: from.Name, action: from.Action, noAccept: !known}
		for j := range from.From {
			f := &from.From[j]
			r.clusterPeer(&read, clusterPeerFields{namespaces: f.Namespaces, pods: f.Pods}, at.Child("from").Index(j))
		}
		r.clusterRule(&read, from.Protocols, len(from.From), at, "from")
		out.rules[netpol.Ingress] = append(out.rules[netpol.Ingress], read)
	}
	for i := range p.Spec.Egress {
		to := &p.Spec.Egress[i]
		at := spec.Child("egress").Index(i)
		read := clusterRuleRead{name: to.Name, action: to.Action, noAccept: !known}
		outside := false
		for j := range to.To {
			t := &to.To[j]
			r.clusterPeer(&read, clusterPeerFields{t.Namespaces, t.Pods, t.Nodes, t.Networks, t.DomainNames}, at.Child("to").Index(j))
			outside = outside || t.Nodes != nil || len(t.Networks) > 0
		}
		r.clusterRule(&read, to.Protocols, len(to.To), at, "to")
		// CNP: "You can't use this in a rule that targets resources without named ports (e.g. Nodes or Networks)."
		for j, proto := range to.Protocols {
			if outside && proto.DestinationNamedPort != "" {
				r.closes(&read, at.Child("protocols").Index(j).Child("destinationNamedPort"), "nodes and networks have no named ports")
			}
		}
		out.rules[netpol.Egress] = append(out.rules[netpol.Egress], read)
	}
	return out, p.Spec.Tier == policyv1alpha2.BaselineTier
}

// closes notes why a rule fails closed.
func (r *reader) closes(rule *clusterRuleRead, at *field.Path, why string) {
	rule.unknown = true
	if rule.action == policyv1alpha2.ClusterNetworkPolicyRuleActionAccept {
		r.wrong(at, "%s; the rule matches nothing", why)
	} else {
		r.wrong(at, "%s; the rule denies all", why)
	}
}

// subject is nil if it is none. CNP: "Exactly one field must be set."
func (r *reader) subject(s *policyv1alpha2.ClusterNetworkPolicySubject, at *field.Path) *podPeer {
	const closed = "the policy guards every pod, and opens nothing"
	if (s.Namespaces == nil) == (s.Pods == nil) {
		r.wrong(at, "exactly one of namespaces and pods must be set; "+closed)
		return nil
	}
	p, bad, err := r.clusterPods(s.Namespaces, s.Pods, at)
	if err != nil {
		r.wrong(bad, "%v; "+closed, err)
		return nil
	}
	return p
}

// clusterPods reads namespaces or pods, whichever there is. The path is that of the error.
func (r *reader) clusterPods(namespaces *metav1.LabelSelector, pods *policyv1alpha2.NamespacedPod, at *field.Path) (*podPeer, *field.Path, error) {
	if namespaces != nil {
		s, err := metav1.LabelSelectorAsSelector(namespaces)
		return &podPeer{namespaces: s, pods: labels.Everything(), known: answers{pods: r.pods}}, at.Child("namespaces"), err
	}
	// CNP: "NamespaceSelector follows standard label selector semantics; if empty, it selects all Namespaces." "PodSelector ... if empty, it selects all Pods."
	spaces, err := metav1.LabelSelectorAsSelector(&pods.NamespaceSelector)
	if err != nil {
		return nil, at.Child("pods", "namespaceSelector"), err
	}
	selected, err := metav1.LabelSelectorAsSelector(&pods.PodSelector)
	return &podPeer{namespaces: spaces, pods: selected, known: answers{pods: r.pods}}, at.Child("pods", "podSelector"), err
}

// clusterPeerFields are those of a peer of either direction.
type clusterPeerFields struct {
	namespaces  *metav1.LabelSelector
	pods        *policyv1alpha2.NamespacedPod
	nodes       *metav1.LabelSelector
	networks    []policyv1alpha2.CIDR
	domainNames []policyv1alpha2.DomainName
}

// clusterPeer: CNP: "Exactly one of the fields must be set for a given peer ... If an implementation sees no fields are set then it can infer that the deployed CRD is of an
// incompatible version with an unknown field. In that case it should fail closed."
func (r *reader) clusterPeer(rule *clusterRuleRead, f clusterPeerFields, at *field.Path) {
	set := 0
	for _, there := range []bool{f.namespaces != nil, f.pods != nil, f.nodes != nil, len(f.networks) > 0, len(f.domainNames) > 0} {
		if there {
			set++
		}
	}
	switch {
	case set != 1:
		r.closes(rule, at, "not exactly one field that is known")
	case len(f.domainNames) > 0:
		r.closes(rule, at.Child("domainNames"), "peers by domain name are not supported")
	case f.nodes != nil:
		s, err := metav1.LabelSelectorAsSelector(f.nodes)
		if err != nil {
			r.closes(rule, at.Child("nodes"), err.Error())
			return
		}
		rule.peers = append(rule.peers, peer{nodes: s, text: selected("nodes", s)})
	case len(f.networks) > 0:
		var p peer
		var texts []string
		for i, text := range f.networks {
			cidr, err := netip.ParsePrefix(string(text))
			if err != nil || cidr.Addr().Is4In6() {
				r.closes(rule, at.Child("networks").Index(i), `"`+string(text)+`" is no CIDR`)
				return
			}
			p.blocks = append(p.blocks, block{cidr: cidr.Masked()})
			texts = append(texts, string(text))
		}
		p.text = strings.Join(texts, ", ")
		rule.peers = append(rule.peers, p)
	default:
		pods, bad, err := r.clusterPods(f.namespaces, f.pods, at)
		if err != nil {
			r.closes(rule, bad, err.Error())
			return
		}
		rule.peers = append(rule.peers, peer{pods: pods, text: podPeerText(pods)})
	}
}

// clusterRule reads what rules of both directions have beside their peers.
func (r *reader) clusterRule(rule *clusterRuleRead, protocols []policyv1alpha2.ClusterNetworkPolicyProtocol, peers int, at *field.Path, peersField string) {
	switch rule.action {
	case policyv1alpha2.ClusterNetworkPolicyRuleActionAccept, policyv1alpha2.ClusterNetworkPolicyRuleActionDeny, policyv1alpha2.ClusterNetworkPolicyRuleActionPass:
	default:
		r.closes(rule, at.Child("action"), `"`+string(rule.action)+`" is none of Accept, Deny and Pass`)
	}
	if peers == 0 { // CNP: "This field must be defined and contain at least one item."
		r.closes(rule, at.Child(peersField), "empty")
	}
	rule.anyPort = len(protocols) == 0 // CNP: "If unspecified, protocol-specific attributes will not be used to match traffic."
	for i := range protocols {
		r.clusterProtocol(rule, &protocols[i], at.Child("protocols").Index(i))
	}
}

// clusterProtocol: CNP: "Exactly one field must be set."
func (r *reader) clusterProtocol(rule *clusterRuleRead, p *policyv1alpha2.ClusterNetworkPolicyProtocol, at *field.Path) {
	set, kind := 0, ""
	var number *policyv1alpha2.Port
	out := port{valid: true}
	if p.TCP != nil {
		set, out.protocol, number, kind = set+1, netpol.TCP, p.TCP.DestinationPort, "tcp"
	}
	if p.UDP != nil {
		set, out.protocol, number, kind = set+1, netpol.UDP, p.UDP.DestinationPort, "udp"
	}
	if p.SCTP != nil {
		set, out.protocol, number, kind = set+1, netpol.SCTP, p.SCTP.DestinationPort, "sctp"
	}
	if p.DestinationNamedPort != "" {
		// CNP: "selects a destination port on a pod based on the ContainerPort name", of whatever protocol that is.
		set, out.name = set+1, p.DestinationNamedPort
	}
	if set != 1 {
		r.closes(rule, at, "not exactly one field that is known")
		return
	}
	if out.name == "" && !r.clusterPort(rule, &out, number, at.Child(kind, "destinationPort")) {
		return
	}
	rule.ports = append(rule.ports, out)
}

// clusterPort: CNP: "You must specify either Port or Range." "PortRange defines an inclusive range of ports"; "the Start value must be less than End".
func (r *reader) clusterPort(rule *clusterRuleRead, out *port, p *policyv1alpha2.Port, at *field.Path) bool {
	switch {
	case p == nil || (p.Number == 0) == (p.Range == nil):
		r.closes(rule, at, "exactly one of number and range must be set")
	case p.Range == nil:
		if p.Number < 1 || p.Number > 65535 {
			r.closes(rule, at.Child("number"), "not between 1 and 65535")
			return false
		}
		out.first, out.last = uint16(p.Number), uint16(p.Number)
		return true
	default:
		if p.Range.Start < 1 || p.Range.Start >= p.Range.End || p.Range.End > 65535 {
			r.closes(rule, at.Child("range"), "start and end must be between 1 and 65535, and start less than end")
			return false
		}
		out.first, out.last = uint16(p.Range.Start), uint16(p.Range.End)
		return true
	}
	return false
}
