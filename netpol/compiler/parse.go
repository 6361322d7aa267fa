package compiler

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// tier is when a policy is asked.
type tier uint8

const (
	tierAdmin tier = iota
	tierNetworkPolicy
	tierBaseline
)

type action uint8

const (
	accept action = iota
	deny
	pass
)

// parsed is a policy as it is read: what is in it that closes is here closed already (see package netpol, "What is invalid closes").
type parsed struct {
	subject  podSelector
	tier     tier
	priority int32
	sides    [2]parsedSide // by netpol.Direction
	problems []Problem
}

type parsedSide struct {
	isolates bool // of NetworkPolicies: what no rule accepts is denied
	crowded  bool // its rules are not there, for want of room
	rules    []parsedRule
}

type parsedRule struct {
	index  uint16
	action action
	peers  *parsedPeers // nil: everybody
	ports  []port       // nil: all, of all protocols
}

// port is what a rule says of ports.
type port struct {
	protocol uint8 // 0, only with a name: any
	span
	name string // of the port, in place of the span
}

// podSelector selects pods by their namespace and labels.
type podSelector struct {
	namespace  string          // exactly that one, if namespaces is nil
	namespaces labels.Selector // of those whose labels it selects
	pods       labels.Selector
}

func (s podSelector) key() string {
	if s.namespaces == nil {
		return "n " + s.namespace + "\x00" + s.pods.String()
	}
	return "s " + s.namespaces.String() + "\x00" + s.pods.String()
}

// block is a range of addresses but for what is excepted.
type block struct {
	cidr   netip.Prefix
	except []netip.Prefix
}

func (b block) key() string { return fmt.Sprint("b ", b.cidr, b.except) }

// parsedPeers are the other ends of a rule: who is any of it.
type parsedPeers struct {
	pods   []podSelector
	nodes  []labels.Selector
	blocks []block
}

// key is the same for lists that have the same in them.
func (p *parsedPeers) key() string {
	var keys []string
	for _, s := range p.pods {
		keys = append(keys, s.key())
	}
	for _, s := range p.nodes {
		keys = append(keys, "h "+s.String())
	}
	for _, b := range p.blocks {
		keys = append(keys, b.key())
	}
	slices.Sort(keys)
	return strings.Join(slices.Compact(keys), "\x01")
}

// reader collects what is wrong with a policy.
type reader struct {
	ref      netpol.PolicyRef
	problems []Problem
}

func (r *reader) wrong(field, format string, args ...any) {
	r.problems = append(r.problems, Problem{Policy: r.ref, Field: field, Reason: fmt.Sprintf(format, args...)})
}

// selector reads a label selector. nil if it is none.
func (r *reader) selector(s *metav1.LabelSelector, field string) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		r.wrong(field, "%v", err)
		return nil
	}
	return once(selector)
}

func (r *reader) prefix(s, field string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		r.wrong(field, "%v", err)
	case p.Addr().Is4In6():
		r.wrong(field, "%q is an IPv4 address written as an IPv6 one", s)
	default:
		return p.Masked(), true
	}
	return netip.Prefix{}, false
}

// ruleIndexes is how many rules a list may have: the rows have 16 bits for a rule's index, and two values of them mean isolation and want of room.
const ruleIndexes = bpf.PolicyNoRoom

func parseNetworkPolicy(ref netpol.PolicyRef, p *networkingv1.NetworkPolicy) *parsed {
	r := &reader{ref: ref}
	out := &parsed{tier: tierNetworkPolicy, subject: podSelector{namespace: p.Namespace, pods: labels.Everything()}}
	var directions, known [2]bool
	for i, t := range p.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			known[netpol.Ingress] = true
		case networkingv1.PolicyTypeEgress:
			known[netpol.Egress] = true
		default:
			r.wrong(fmt.Sprintf("spec.policyTypes[%d]", i), "%q is neither Ingress nor Egress: the policy isolates in both directions", t)
			directions = [2]bool{true, true}
		}
	}
	if len(p.Spec.PolicyTypes) == 0 {
		known[netpol.Ingress] = true
		known[netpol.Egress] = len(p.Spec.Egress) > 0
	}
	for d := range known {
		directions[d] = directions[d] || known[d]
		out.sides[d].isolates = directions[d]
	}
	pods := r.selector(&p.Spec.PodSelector, "spec.podSelector")
	if pods == nil {
		out.problems = r.problems
		return out
	}
	out.subject.pods = pods
	if known[netpol.Ingress] {
		side := &out.sides[netpol.Ingress]
		for i, rule := range p.Spec.Ingress {
			field := fmt.Sprintf("spec.ingress[%d]", i)
			side.add(r, i, field, r.networkPeers(p.Namespace, rule.From, field+".from"), r.networkPorts(rule.Ports, field+".ports"))
		}
	}
	if known[netpol.Egress] {
		side := &out.sides[netpol.Egress]
		for i, rule := range p.Spec.Egress {
			field := fmt.Sprintf("spec.egress[%d]", i)
			side.add(r, i, field, r.networkPeers(p.Namespace, rule.To, field+".to"), r.networkPorts(rule.Ports, field+".ports"))
		}
	}
	out.problems = r.problems
	return out
}

// add adds a NetworkPolicy's rule, unless nothing can match it.
func (s *parsedSide) add(r *reader, index int, field string, peers *parsedPeers, ports []port) {
	switch {
	case index >= ruleIndexes:
		if index == ruleIndexes {
			r.wrong(field, "rules from this one on (the %dth) match nothing: there are too many", index)
		}
	case peers != nil && len(peers.pods)+len(peers.blocks) == 0:
	case ports != nil && len(ports) == 0:
	default:
		s.rules = append(s.rules, parsedRule{index: uint16(index), action: accept, peers: peers, ports: ports})
	}
}

func (r *reader) networkPeers(namespace string, list []networkingv1.NetworkPolicyPeer, field string) *parsedPeers {
	if len(list) == 0 {
		return nil
	}
	peers := &parsedPeers{}
	for i, peer := range list {
		field := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case peer.IPBlock != nil && (peer.PodSelector != nil || peer.NamespaceSelector != nil):
			r.wrong(field, "ipBlock beside a selector: it matches nothing")
		case peer.IPBlock != nil:
			if b, ok := r.block(peer.IPBlock, field+".ipBlock"); ok {
				peers.blocks = append(peers.blocks, b)
			}
		case peer.PodSelector == nil && peer.NamespaceSelector == nil:
			r.wrong(field, "nothing is in it: it matches nothing")
		default:
			s := podSelector{namespace: namespace, pods: labels.Everything()}
			ok := true
			if peer.NamespaceSelector != nil {
				s.namespaces = r.selector(peer.NamespaceSelector, field+".namespaceSelector")
				s.namespace, ok = "", s.namespaces != nil
			}
			if peer.PodSelector != nil {
				s.pods = r.selector(peer.PodSelector, field+".podSelector")
				ok = ok && s.pods != nil
			}
			if ok {
				peers.pods = append(peers.pods, s)
			}
		}
	}
	return peers
}

func (r *reader) block(b *networkingv1.IPBlock, field string) (block, bool) {
	cidr, ok := r.prefix(b.CIDR, field+".cidr")
	out := block{cidr: cidr}
	for i, e := range b.Except {
		field := fmt.Sprintf("%s.except[%d]", field, i)
		except, valid := r.prefix(e, field)
		if valid && ok && (except.Bits() <= cidr.Bits() || !cidr.Contains(except.Addr())) {
			r.wrong(field, "%s is not strictly within %s", e, b.CIDR)
			valid = false
		}
		ok = ok && valid
		out.except = append(out.except, except)
	}
	slices.SortFunc(out.except, netip.Prefix.Compare)
	out.except = slices.Compact(out.except)
	return out, ok
}

func (r *reader) networkPorts(list []networkingv1.NetworkPolicyPort, field string) []port {
	if len(list) == 0 {
		return nil
	}
	ports := []port{}
	for i, p := range list {
		field := fmt.Sprintf("%s[%d]", field, i)
		protocol := uint8(netpol.TCP)
		if p.Protocol != nil {
			var err error
			if protocol, err = netpol.ProtocolNumber(*p.Protocol); err != nil || *p.Protocol == "" {
				r.wrong(field+".protocol", "%q is none of TCP, UDP and SCTP", *p.Protocol)
				continue
			}
		}
		switch {
		case p.Port == nil && p.EndPort != nil:
			r.wrong(field+".endPort", "there is no port that it could be the end of")
		case p.Port == nil:
			ports = append(ports, port{protocol: protocol, span: span{0, 65535}})
		case p.Port.Type == intstr.String && p.EndPort != nil:
			r.wrong(field+".endPort", "a port with a name has no end")
		case p.Port.Type == intstr.String:
			if bad := validation.IsValidPortName(p.Port.StrVal); bad != nil {
				r.wrong(field+".port", "%q: %s", p.Port.StrVal, strings.Join(bad, ", "))
				continue
			}
			ports = append(ports, port{protocol: protocol, name: p.Port.StrVal})
		default:
			end := p.Port.IntVal
			if p.EndPort != nil {
				end = *p.EndPort
			}
			if p.Port.IntVal < 1 || p.Port.IntVal > end || end > 65535 {
				r.wrong(field+".port", "%d to %d is no range of ports from 1 to 65535", p.Port.IntVal, end)
				continue
			}
			ports = append(ports, port{protocol: protocol, span: span{uint16(p.Port.IntVal), uint16(end)}})
		}
	}
	return ports
}

func parseClusterNetworkPolicy(ref netpol.PolicyRef, p *policyv1alpha2.ClusterNetworkPolicy) *parsed {
	r := &reader{ref: ref}
	out := &parsed{tier: tierAdmin, priority: p.Spec.Priority}
	var broken bool // Accept rules match nothing, Pass rules deny
	switch p.Spec.Tier {
	case policyv1alpha2.AdminTier:
	case policyv1alpha2.BaselineTier:
		out.tier = tierBaseline
	default:
		r.wrong("spec.tier", "%q is neither Admin nor Baseline: the policy counts as Admin, accepts nothing, and denies what it should pass", p.Spec.Tier)
		broken = true
	}
	subject, ok := r.clusterPods(p.Spec.Subject.Namespaces, p.Spec.Subject.Pods, "spec.subject")
	if (p.Spec.Subject.Namespaces != nil) == (p.Spec.Subject.Pods != nil) {
		r.wrong("spec.subject", "exactly one of namespaces and pods is wanted")
		ok = false
	}
	if !ok {
		subject, broken = podSelector{namespaces: labels.Everything(), pods: labels.Everything()}, true
	}
	out.subject = subject
	for i, rule := range p.Spec.Ingress {
		field := fmt.Sprintf("spec.ingress[%d]", i)
		peers, ok := &parsedPeers{}, len(rule.From) > 0
		if !ok {
			r.wrong(field+".from", "nothing is in it")
		}
		for j, peer := range rule.From {
			field := fmt.Sprintf("%s.from[%d]", field, j)
			if (peer.Namespaces != nil) == (peer.Pods != nil) {
				r.wrong(field, "exactly one of namespaces and pods is wanted")
				ok = false
				continue
			}
			s, valid := r.clusterPods(peer.Namespaces, peer.Pods, field)
			peers.pods = append(peers.pods, s)
			ok = ok && valid
		}
		ports, valid := r.clusterPorts(rule.Protocols, field+".protocols", false)
		out.sides[netpol.Ingress].addCluster(r, i, field, rule.Action, ok && valid, broken, peers, ports)
	}
	for i, rule := range p.Spec.Egress {
		field := fmt.Sprintf("spec.egress[%d]", i)
		peers, ok := &parsedPeers{}, len(rule.To) > 0
		if !ok {
			r.wrong(field+".to", "nothing is in it")
		}
		for j, peer := range rule.To {
			ok = r.clusterPeer(peers, &peer, fmt.Sprintf("%s.to[%d]", field, j)) && ok
		}
		ports, valid := r.clusterPorts(rule.Protocols, field+".protocols", len(peers.nodes)+len(peers.blocks) > 0)
		out.sides[netpol.Egress].addCluster(r, i, field, rule.Action, ok && valid, broken, peers, ports)
	}
	out.problems = r.problems
	return out
}

func (r *reader) clusterPeer(peers *parsedPeers, peer *policyv1alpha2.ClusterNetworkPolicyEgressPeer, field string) bool {
	set := 0
	for _, is := range []bool{peer.Namespaces != nil, peer.Pods != nil, peer.Nodes != nil, len(peer.Networks) > 0, len(peer.DomainNames) > 0} {
		if is {
			set++
		}
	}
	if set != 1 {
		r.wrong(field, "exactly one of namespaces, pods, nodes and networks is wanted")
		return false
	}
	ok := true
	switch {
	case len(peer.DomainNames) > 0:
		r.wrong(field+".domainNames", "not supported")
		return false
	case peer.Nodes != nil:
		nodes := r.selector(peer.Nodes, field+".nodes")
		if nodes == nil {
			return false
		}
		peers.nodes = append(peers.nodes, nodes)
	case len(peer.Networks) > 0:
		for i, network := range peer.Networks {
			cidr, valid := r.prefix(string(network), fmt.Sprintf("%s.networks[%d]", field, i))
			peers.blocks = append(peers.blocks, block{cidr: cidr})
			ok = ok && valid
		}
	default:
		s, valid := r.clusterPods(peer.Namespaces, peer.Pods, field)
		peers.pods = append(peers.pods, s)
		ok = valid
	}
	return ok
}

func (r *reader) clusterPods(namespaces *metav1.LabelSelector, pods *policyv1alpha2.NamespacedPod, field string) (podSelector, bool) {
	s := podSelector{pods: labels.Everything()}
	if pods != nil {
		s.namespaces = r.selector(&pods.NamespaceSelector, field+".pods.namespaceSelector")
		s.pods = r.selector(&pods.PodSelector, field+".pods.podSelector")
	} else {
		s.namespaces = r.selector(namespaces, field+".namespaces")
	}
	return s, s.namespaces != nil && s.pods != nil
}

func (r *reader) clusterPorts(list []policyv1alpha2.ClusterNetworkPolicyProtocol, field string, nameless bool) ([]port, bool) {
	if len(list) == 0 {
		return nil, true
	}
	ports := []port{}
	ok := true
	for i, p := range list {
		field := fmt.Sprintf("%s[%d]", field, i)
		number := func(protocol uint8, p *policyv1alpha2.Port, name string) (port, bool) {
			switch {
			case p == nil:
				r.wrong(field+"."+name, "destinationPort is missing")
			case p.Range == nil && 1 <= p.Number && p.Number <= 65535:
				return port{protocol: protocol, span: span{uint16(p.Number), uint16(p.Number)}}, true
			case p.Range != nil && p.Number == 0 && 1 <= p.Range.Start && p.Range.Start < p.Range.End && p.Range.End <= 65535:
				return port{protocol: protocol, span: span{uint16(p.Range.Start), uint16(p.Range.End)}}, true
			default:
				r.wrong(field+"."+name+".destinationPort", "either a number or a range of ports from 1 to 65535 is wanted")
			}
			ok = false
			return port{}, false
		}
		set := 0
		if p.TCP != nil {
			set++
			if one, valid := number(netpol.TCP, p.TCP.DestinationPort, "tcp"); valid {
				ports = append(ports, one)
			}
		}
		if p.UDP != nil {
			set++
			if one, valid := number(netpol.UDP, p.UDP.DestinationPort, "udp"); valid {
				ports = append(ports, one)
			}
		}
		if p.SCTP != nil {
			set++
			if one, valid := number(netpol.SCTP, p.SCTP.DestinationPort, "sctp"); valid {
				ports = append(ports, one)
			}
		}
		if p.DestinationNamedPort != "" {
			set++
			if nameless {
				r.wrong(field+".destinationNamedPort", "nodes and networks have no names of ports")
				ok = false
			}
			ports = append(ports, port{name: p.DestinationNamedPort})
		}
		if set != 1 {
			r.wrong(field, "exactly one of tcp, udp, sctp and destinationNamedPort is wanted")
			ok = false
		}
	}
	return ports, ok
}

// addCluster adds a ClusterNetworkPolicy's rule, which fails closed if it is not valid.
func (s *parsedSide) addCluster(r *reader, index int, field string, word policyv1alpha2.ClusterNetworkPolicyRuleAction, valid, broken bool, peers *parsedPeers, ports []port) {
	if index >= ruleIndexes {
		if index == ruleIndexes {
			s.rules = append(s.rules, parsedRule{index: ruleIndexes - 1, action: deny})
			r.wrong(field, "rules from this one on (the %dth) deny all: there are too many", index)
		}
		return
	}
	rule := parsedRule{index: uint16(index), peers: peers, ports: ports}
	closed := "all is denied"
	switch word {
	case policyv1alpha2.ClusterNetworkPolicyRuleActionAccept:
		rule.action = accept
		closed = "it matches nothing"
	case policyv1alpha2.ClusterNetworkPolicyRuleActionDeny:
		rule.action = deny
	case policyv1alpha2.ClusterNetworkPolicyRuleActionPass:
		rule.action = pass
		if broken {
			rule.action = deny
		}
	default:
		r.wrong(field+".action", "%q is none of Accept, Deny and Pass", word)
		rule.action, valid = deny, false
	}
	if !valid {
		r.wrong(field, "fails closed: %s", closed)
		rule.peers, rule.ports = nil, nil
		if rule.action == pass {
			rule.action = deny
		}
	}
	if rule.action != accept || valid && !broken {
		s.rules = append(s.rules, rule)
	}
}
