package bpf

import "net/netip"

// The rows by which the programs judge the flows of pods. A flow is judged once in each direction that has a pod of this node in
// it, by three looks:
//
//	subject  by the pod's address: which rule set judges it in each direction
//	answer   by (rule set, identity of the other end): which ports' list answers; that of identity 0 where there is no such row
//	port     by (ports' list, protocol, port), longest prefix: the verdict, and who gave it
//
// An identity is a class of addresses that no policy can tell apart; 0 is all that no row of PolicyPeer covers. Rule sets and ports'
// lists are never changed but by answers for new identities: what changes gets a new number, and the subject's row, one write,
// takes it up. So no packet is judged by a mixture of old and new.

// PolicySubject is a pod of this node, by one of its addresses. A pod without a row sends and gets nothing.
type PolicySubject struct {
	Addr     netip.Addr
	Identity uint32 // that it has as the other end of others
	// Rule sets; 0: not judged in that direction.
	Ingress, Egress uint32
	// Rule sets that are asked besides, and counted, but not followed; 0: none.
	ShadowIngress, ShadowEgress uint32
	// KeepFlows: what was allowed once goes on when policies change. Its flows are followed even while nothing judges it.
	KeepFlows bool
}

// PolicyPeer gives a range of addresses an identity: of a single address (a pod or a node) or a block. The longest prefix counts.
type PolicyPeer struct {
	Prefix   netip.Prefix
	Identity uint32
}

// PolicyAnswer is what a rule set says of an identity; identity 0: of all that have no answer of their own.
type PolicyAnswer struct {
	RuleSet, Identity uint32
	Ports             uint32 // the list that answers
}

// PolicyPort is a row of a ports' list: 1<<(16-Bits) ports of a protocol, from Port on. A list has a row for Protocol 0 with Bits 0: what
// no other row says, other protocols included.
type PolicyPort struct {
	Ports    uint32
	Protocol uint8 // 0: every one; then Port and Bits are 0
	Port     uint16
	Bits     uint8 // of Port that count: 0 to 16
	Verdict  PolicyVerdict
}

// PolicyVerdict is a verdict and who gave it.
type PolicyVerdict struct {
	Allow  bool
	Policy uint32 // number of the policy, see PolicyName; 0: none had a say
	Rule   uint16 // its index in the policy's list of the direction; PolicyNoRule: isolation; PolicyNoRoom: want of room
	// Tier is that of who decided. What NetworkPolicies deny is allowed all the same where a pod gets itself by a Service: they let a pod
	// have itself, which no row can say, for an identity is a class of addresses. What other tiers deny stays denied.
	Tier PolicyTier
}

// PolicyTier is what is judged before what.
type PolicyTier uint8

const (
	PolicyTierNone          PolicyTier = iota // no policy says anything
	PolicyTierAdmin                           // ClusterNetworkPolicies before NetworkPolicies
	PolicyTierNetworkPolicy                   // NetworkPolicies
	PolicyTierBaseline                        // ClusterNetworkPolicies behind them
)

// PolicyNoRule stands for the rule where isolation decided.
const PolicyNoRule = 0xffff

// PolicyNoRoom stands for the rule of a policy that denies more than it says, as the tables have no room for it.
const PolicyNoRoom = PolicyNoRule - 1

// PolicyName tells what a policy's number stands for, so that the tables explain themselves without an agent.
type PolicyName struct {
	Policy          uint32
	UID             string // of the object
	Kind            string // NetworkPolicy or ClusterNetworkPolicy
	Namespace, Name string
}
