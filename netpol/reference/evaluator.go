package reference

import (
	"fmt"
	"net/netip"
	"strconv"

	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
)

// Evaluator judges flows by a State as it was when New read it. It may be used by many at once.
type Evaluator struct {
	cluster
	networkPolicies []*networkPolicy // by namespace and name
	admin, baseline []*clusterPolicy // in the order in which they are asked
	problems        []Problem
}

// Problem is a fault of a policy, which the API would have refused today. What has a problem admits nothing: see the package netpol.
type Problem struct {
	Policy netpol.PolicyRef `json:"policy"`
	Field  string           `json:"field"` // spec.ingress[0].from[1].ipBlock.cidr
	Reason string           `json:"reason"`
}

func (p Problem) String() string {
	return fmt.Sprintf("%s %s: %s: %s", p.Policy.Kind, p.Policy, p.Field, p.Reason)
}

// New reads a State. It does not fail on policies that are invalid: they close, and Problems tells of them. It fails on a State that holds
// no cluster: a nil object.
func New(s netpol.State) (*Evaluator, error) {
	c, err := readCluster(s)
	if err != nil {
		return nil, err
	}
	e := &Evaluator{cluster: *c}
	if err := e.readPolicies(s); err != nil {
		return nil, err
	}
	return e, nil
}

// Problems are the faults of the policies, in the order of policies and fields.
func (e *Evaluator) Problems() []Problem { return e.problems }

// Judge tells what becomes of a flow. Policies in shadow have no part in it. Its errors are those of the question: a pod that is not there or has ended, ends
// that have no address of one family, an end that is neither pod nor address.
func (e *Evaluator) Judge(f netpol.Flow) (netpol.Verdict, error) { return e.judge(f, false) }

// JudgeShadow tells what would become of a flow if the policies in shadow were enforced like the others.
func (e *Evaluator) JudgeShadow(f netpol.Flow) (netpol.Verdict, error) { return e.judge(f, true) }

// question is a flow with its ends looked up.
type question struct {
	netpol.Flow
	from, to party
	shadow   bool // policies in shadow take part
}

func (e *Evaluator) judge(f netpol.Flow, shadow bool) (netpol.Verdict, error) {
	from, to, err := e.parties(f)
	if err != nil {
		return netpol.Verdict{}, err
	}
	q := question{Flow: f, from: from, to: to, shadow: shadow}
	if why := unjudged(q); why != "" {
		return netpol.Verdict{Allowed: true, Egress: undecided(why), Ingress: undecided(why)}, nil
	}
	v := netpol.Verdict{Egress: e.egress(q), Ingress: e.ingress(q)}
	v.Allowed = v.Egress.Allowed && v.Ingress.Allowed
	return v, nil
}

// unjudged tells why no policy has a say in a flow; empty: they have.
func unjudged(q question) string {
	if netpol.PassesAlways(q.Protocol, q.ICMPType, q.from.guarded()) { // facts 38
		return "ICMP errors, and what IPv6 does not work without, always pass"
	}
	// Facts 24: a pod reaches itself at its own address, and the packets never leave it. Through a Service they do.
	if q.from.guarded() && q.from.pod == q.to.pod && !q.ViaService {
		return "the pod's own address: it does not leave the pod"
	}
	if q.from.guarded() && q.to.addr.IsLoopback() {
		return "a loopback address: it does not leave the pod"
	}
	return ""
}

func (e *Evaluator) egress(q question) netpol.Side {
	if why := unguarded(q.from); why != "" {
		return undecided(why)
	}
	return e.tiers(netpol.Egress, q.from.pod, q.to, q)
}

func (e *Evaluator) ingress(q question) netpol.Side {
	if why := unguarded(q.to); why != "" {
		return undecided(why)
	}
	if e.ownNode(q) {
		return undecided("the pod's own node sends it")
	}
	return e.tiers(netpol.Ingress, q.to.pod, q.from, q)
}

// unguarded tells why no policy guards an end; empty: they may.
func unguarded(p party) string {
	switch {
	case p.host != nil: // facts 19; CNP: "Note that host-networked pods are not included in subject selection."
		return "a hostNetwork pod: no policy selects it"
	case p.pod == nil:
		return "not a pod: no policy selects it"
	case p.pod.dns:
		return "the cluster's DNS, which nodes answer: no policy selects it"
	}
	return ""
}

// ownNode: NP: "Traffic is allowed to a pod ... OR if the traffic source is the pod's local node". Only what the node's own stack sends: what it forwards in its own
// name is judged as its address (facts 20, 21, 40).
func (e *Evaluator) ownNode(q question) bool {
	home := q.to.pod.node
	if q.Forwarded || home == "" {
		return false
	}
	if q.from.host != nil && q.from.host.node == home {
		return true
	}
	return q.from.pod == nil && e.hasAddress(home, q.from.addr)
}

// tiers: CNP: "Policy tiers are evaluated in the following order: Admin tier, NetworkPolicy tier, Baseline tier". "If a given connection wasn't allowed or denied by
// any of the tiers, the default kubernetes policy is applied, which says that all pods can communicate with each other."
func (e *Evaluator) tiers(d netpol.Direction, subject *pod, peer party, q question) netpol.Side {
	guards := e.guardsOf(subject)
	var passed string
	side, pass := clusterTier(netpol.TierAdmin, guards.admin, d, peer, q)
	if side != nil {
		return *side
	}
	passed += pass
	withShadow := 0
	if q.shadow {
		withShadow = 1
	}
	if isolating := &guards.isolating[d][withShadow]; len(isolating.policies) > 0 {
		// CNP: "v1.NetworkPolicy always makes a final decision for selected pods. Further evaluation only happens for Pods not selected by a v1.NetworkPolicy."
		s := networkPolicyTier(isolating, d, peer, q)
		s.Why = passed + s.Why
		return s
	}
	side, pass = clusterTier(netpol.TierBaseline, guards.baseline, d, peer, q)
	if side != nil {
		side.Why = passed + side.Why
		return *side
	}
	passed += pass
	switch {
	case passed != "":
		return undecided(passed + "no policy after it decides")
	case anyJudges(guards, d, q.shadow):
		return undecided("no rule of the policies that select it says anything of this")
	}
	return undecided("no policy selects it")
}

// clusterTier asks the ClusterNetworkPolicies of a tier in their order. The side is nil if they leave the flow to the next tier; the text then says who passed it there.
func clusterTier(tier netpol.Tier, policies []*clusterPolicy, d netpol.Direction, peer party, q question) (*netpol.Side, string) {
	for _, p := range policies {
		if p.shadow && !q.shadow {
			continue
		}
		// CNP: "a rule that appears at the top of the ingress rules would take the highest precedence."
		for i := range p.rules[d] {
			r := &p.rules[d][i]
			action, matches := clusterRule(r, peer, q)
			if !matches {
				continue
			}
			name := ruleName(p.ref, i, r.name)
			if action == policyv1alpha2.ClusterNetworkPolicyRuleActionPass {
				// CNP: "Skips all further ClusterNetworkPolicy rules in the current tier for the selected traffic, and passes evaluation to the next tier."
				return nil, name + " passes it; "
			}
			side := &netpol.Side{Tier: tier, Policy: &p.ref, Rule: i}
			if action == policyv1alpha2.ClusterNetworkPolicyRuleActionAccept {
				side.Allowed, side.Why = true, name+" accepts it"
			} else {
				side.Why = name + " denies it"
			}
			return side, ""
		}
	}
	return nil, ""
}

// networkPolicyTier: NP: traffic is allowed "if the traffic matches at least one ingress rule across all of the NetworkPolicy objects whose podSelector matches the
// pod"; of egress the same.
func networkPolicyTier(isolating *isolating, d netpol.Direction, peer party, q question) netpol.Side {
	side := netpol.Side{Tier: netpol.TierNetworkPolicy, Policy: &isolating.policies[0].ref, Rule: netpol.NoRule, Isolating: isolating.refs}
	for _, p := range isolating.policies {
		for i := range p.rules[d] {
			if networkPolicyRule(&p.rules[d][i], peer, q) {
				side.Allowed, side.Policy, side.Rule, side.Why = true, &p.ref, i, ruleName(p.ref, i, "")
				return side
			}
		}
	}
	if q.ViaService && q.from.guarded() && q.from.pod == q.to.pod { // facts 24
		side.Allowed, side.Why = true, "itself by way of a Service: NetworkPolicies always allow that"
		return side
	}
	side.Why = isolated(isolating.policies, d, peer, q)
	return side
}

// undecided is a side that no policy decides: it allows.
func undecided(why string) netpol.Side {
	return netpol.Side{Allowed: true, Tier: netpol.TierNone, Rule: netpol.NoRule, Why: why}
}

func ruleName(p netpol.PolicyRef, rule int, name string) string {
	s := "rule " + strconv.Itoa(rule)
	if name != "" {
		s += " (" + name + ")"
	}
	s += " of "
	if p.Kind == clusterKind {
		s += clusterKind + " "
	}
	return s + p.String()
}

// party is an end of a flow, looked up.
type party struct {
	pod  *pod       // that it is as a peer; nil: only an address
	host *pod       // the hostNetwork pod that was named
	addr netip.Addr // invalid: a pod that has none yet; no CIDR covers it but those of length 0
	v6   bool       // which family is spoken
	// nodes have the address.
	nodes []*node
}

// guarded tells whether policies may select the end.
func (p party) guarded() bool { return p.pod != nil && !p.pod.dns }
