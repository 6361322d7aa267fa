package reference

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/strake-io/strake/netpol"
)

// networkPolicy is a NetworkPolicy, read.
type networkPolicy struct {
	ref      netpol.PolicyRef
	shadow   bool
	pods     labels.Selector // nil: podSelector is none; every pod of the namespace is isolated, and no rule counts
	isolates [2]bool         // by direction
	rules    [2][]rule
}

// rule is what a rule of either API says of peers and ports.
type rule struct {
	anyPeer bool // no list, or an empty one
	peers   []peer
	anyPort bool
	ports   []port
}

// peer is an item of from or to. Exactly one of its kinds is set; none of them: it is invalid, and matches nothing.
type peer struct {
	pods   *podPeer
	blocks []block
	nodes  labels.Selector // CNP only
	text   string          // for people
}

type podPeer struct {
	own        string          // NP without namespaceSelector: the policy's own namespace
	namespaces labels.Selector // nil: see own
	pods       labels.Selector
	known      answers
}

// block is a CIDR with what is excepted.
type block struct {
	cidr   netip.Prefix
	except []netip.Prefix
}

// port is an item of ports or protocols. With valid false it matches nothing.
type port struct {
	valid       bool
	protocol    uint8  // 0: any that has ports (CNP's destinationNamedPort)
	first, last uint16 // 0, 65535: all of the protocol
	name        string // instead of numbers
}

// selects: NP: "An empty selector matches all pods in the policy's namespace."
func (p *networkPolicy) selects(s *pod) bool {
	if p.ref.Namespace != s.Namespace {
		return false
	}
	return p.pods == nil || p.pods.Matches(s.labels)
}

// isolating are the policies that isolate a pod in a direction.
type isolating struct {
	policies []*networkPolicy
	refs     []netpol.PolicyRef
}

// isolate notes in which directions a policy isolates: "policies that contain an egress section are assumed to affect egress, and all policies (whether or not they contain
// an ingress section) are assumed to affect ingress", unless policyTypes says otherwise.
func (g *guards) isolate(p *networkPolicy) {
	for d := range p.isolates {
		if !p.isolates[d] {
			continue
		}
		for withShadow := range g.isolating[d] {
			if p.shadow && withShadow == 0 {
				continue
			}
			i := &g.isolating[d][withShadow]
			i.policies, i.refs = append(i.policies, p), append(i.refs, p.ref)
		}
	}
}

// networkPolicyRule: NP: "The traffic must match both ports and from", or "both ports and to".
func networkPolicyRule(r *rule, other party, q question) bool {
	return matchesPorts(r, q) && matchesPeers(r, other)
}

// matchesPeers: NP: "If this field is empty or missing, this rule matches all sources ... If this field is present and contains at least one item, this rule allows
// traffic only if the traffic matches at least one item in the from list." "Items in this list are combined using a logical OR operation."
func matchesPeers(r *rule, other party) bool {
	if r.anyPeer {
		return true
	}
	for i := range r.peers {
		if matchesPeer(&r.peers[i], other) {
			return true
		}
	}
	return false
}

func matchesPeer(p *peer, other party) bool {
	switch {
	case p.pods != nil:
		return selectsPeerPod(p.pods, other)
	case p.blocks != nil:
		return inBlocks(p.blocks, other)
	case p.nodes != nil:
		return other.nodeOf(p.nodes)
	}
	return false
}

// selectsPeerPod: NP: "If namespaceSelector is also set, then the NetworkPolicyPeer as a whole selects the pods matching podSelector in the Namespaces selected by
// NamespaceSelector. Otherwise it selects the pods matching podSelector in the policy's own namespace." "if present but empty, it selects all pods", "all namespaces".
// hostNetwork pods are addresses, not pods (facts 19).
func selectsPeerPod(s *podPeer, other party) bool {
	if other.pod == nil {
		return false
	}
	return s.known.of(other.pod, s.selects)
}

func (s *podPeer) selects(p *pod) bool {
	if s.namespaces == nil {
		if p.Namespace != s.own {
			return false
		}
	} else if !s.namespaces.Matches(p.namespace) {
		return false
	}
	return s.pods.Matches(p.labels)
}

// inBlocks: NP: "The except entry describes CIDRs that should not be included within this rule." A block covers pods' addresses too (facts 7), and an except takes nothing
// away from other blocks or rules (facts 8).
func inBlocks(blocks []block, other party) bool {
	for _, b := range blocks {
		if b.covers(other) {
			return true
		}
	}
	return false
}

func (b block) covers(other party) bool {
	if !other.addr.IsValid() { // a pod without an address: some address of the family
		return b.cidr.Bits() == 0 && b.cidr.Addr().Is6() == other.v6
	}
	if !b.cidr.Contains(other.addr) {
		return false
	}
	return !slices.ContainsFunc(b.except, func(x netip.Prefix) bool { return x.Contains(other.addr) })
}

// matchesPorts: NP: "If this field is empty or missing, this rule matches all ports (traffic not restricted by port). If this field is present and contains at least one
// item, then this rule allows traffic only if the traffic matches at least one port in the list." The protocols of ports are TCP, UDP and SCTP, so that others only match the former.
func matchesPorts(r *rule, q question) bool {
	if r.anyPort {
		return true
	}
	return slices.ContainsFunc(r.ports, func(p port) bool { return matchesPort(p, q) })
}

// matchesPort: NP: "If present, only traffic on the specified protocol AND port will be matched." "If this field is not provided, this matches all port names and numbers."
// "endPort indicates that the range of ports from port to endPort if set, inclusive, should be allowed".
func matchesPort(p port, q question) bool {
	if !p.valid {
		return false
	}
	if p.protocol != 0 && p.protocol != q.Protocol {
		return false
	}
	if p.name != "" {
		return namedPort(p.name, q)
	}
	return p.first <= q.Port && q.Port <= p.last
}

// namedPort: a name is looked up at the pod that is asked, with the protocol; on the way out too (facts 2, 3). What is not a pod has no names (facts 4).
func namedPort(name string, q question) bool {
	if q.to.pod == nil {
		return false
	}
	return slices.ContainsFunc(q.to.pod.ports, func(c containerPort) bool {
		return c.name == name && c.protocol == q.Protocol && c.number == int32(q.Port)
	})
}
