package reference

import (
	"k8s.io/apimachinery/pkg/labels"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
)

const (
	networkKind = "NetworkPolicy"
	clusterKind = "ClusterNetworkPolicy"
)

// clusterPolicy is a ClusterNetworkPolicy, read.
type clusterPolicy struct {
	ref      netpol.PolicyRef
	shadow   bool
	priority int32
	subject  *podPeer // nil: the subject is none; every pod is guarded
	rules    [2][]clusterRuleRead
}

type clusterRuleRead struct {
	rule
	name     string
	action   policyv1alpha2.ClusterNetworkPolicyRuleAction
	unknown  bool // the rule can't be read whole: it fails closed
	noAccept bool // the policy can't be read whole: it opens nothing
}

// selects: CNP: "Namespaces is used to select pods via namespace selectors. Pods is used to select pods via namespace AND pod selectors."
func (p *clusterPolicy) selects(s *pod) bool {
	return p.subject == nil || p.subject.selects(s)
}

// clusterRule tells whether a rule matches, and what it then does. CNP: "For "Accept" rules, "fail closed" means: "treat the rule as matching no traffic". For "Deny" and
// "Pass" rules, "fail closed" means: "treat the rule as a 'Deny all' rule"."
func clusterRule(r *clusterRuleRead, other party, q question) (policyv1alpha2.ClusterNetworkPolicyRuleAction, bool) {
	const accept, deny = policyv1alpha2.ClusterNetworkPolicyRuleActionAccept, policyv1alpha2.ClusterNetworkPolicyRuleActionDeny
	if r.unknown {
		return deny, r.action != accept
	}
	// CNP: "If any element matches the source of incoming traffic then the specified action is applied." "If unspecified, protocol-specific attributes will not be used to
	// match traffic."
	if !matchesPorts(&r.rule, q) || !matchesPeers(&r.rule, other) {
		return "", false
	}
	if r.noAccept {
		return deny, r.action != accept
	}
	return r.action, true
}

// nodeOf: CNP: "Nodes defines a way to select a set of nodes in the cluster (based on the node's labels)", by their addresses.
func (p party) nodeOf(nodes labels.Selector) bool {
	for _, n := range p.nodes {
		if nodes.Matches(n.labels) {
			return true
		}
	}
	return false
}

// guards are the policies that guard a pod, each kind in its order.
type guards struct {
	isolating       [2][2]isolating // by direction, and by whether policies in shadow take part
	admin, baseline []*clusterPolicy
}

// guardsOf asks every policy whether it guards a pod, once.
func (e *Evaluator) guardsOf(s *pod) *guards {
	s.once.Do(func() {
		for _, p := range e.networkPolicies {
			if p.selects(s) {
				s.guards.isolate(p)
			}
		}
		s.guards.admin = clusterGuards(e.admin, s)
		s.guards.baseline = clusterGuards(e.baseline, s)
	})
	return &s.guards
}

func clusterGuards(policies []*clusterPolicy, s *pod) []*clusterPolicy {
	var out []*clusterPolicy
	for _, p := range policies {
		if p.selects(s) {
			out = append(out, p)
		}
	}
	return out
}

// anyJudges tells whether any policy of a pod has something to say in a direction. CNP: "CNPs with no ingress rules do not affect ingress traffic."
func anyJudges(g *guards, d netpol.Direction, shadow bool) bool {
	for _, list := range [][]*clusterPolicy{g.admin, g.baseline} {
		for _, p := range list {
			if len(p.rules[d]) > 0 && (shadow || !p.shadow) {
				return true
			}
		}
	}
	return false
}
