package compiler

import (
	"cmp"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
)

// Kinds of policies, as netpol.PolicyRef has them.
const (
	networkPolicy        = "NetworkPolicy"
	clusterNetworkPolicy = "ClusterNetworkPolicy"
)

type policyKey struct{ namespace, name string } // a ClusterNetworkPolicy has no namespace

func (k policyKey) compare(o policyKey) int {
	return cmp.Or(strings.Compare(k.namespace, o.namespace), strings.Compare(k.name, o.name))
}

// policy is what is kept of a policy.
type policy struct {
	ref      netpol.PolicyRef
	number   uint32
	shadow   bool
	tier     tier
	priority int32
	subject  podSelector
	sides    [2]*side
	kinds    int     // that have subjects and that it selects
	active   bool    // its atoms count
	blocks   int     // that its rules name, with their exceptions
	wants    int     // blocks that it would name if there were room
	crowded  *parsed // what it says, while there is not
	problems []Problem
	read     *parsed // until it is applied
}

// side is a policy's rules in a direction. It does not change.
type side struct {
	id       uint32
	policy   uint32
	tier     tier
	isolates bool
	crowded  bool // its rules are not there, for want of room
	rules    []rule
}

type rule struct {
	index  uint16
	action action
	peers  *atom      // nil: everybody
	ports  *rulePorts // nil: every port of every protocol
}

type rulePorts struct {
	spans [len(ported)][]span
	names []port
}

func (p *rulePorts) equal(q *rulePorts) bool {
	if p == nil || q == nil {
		return p == q
	}
	return slices.Equal(p.names, q.names) && slices.EqualFunc(p.spans[:], q.spans[:], slices.Equal)
}

// names are those of ports.
func (r *rule) names() []port {
	if r.ports == nil {
		return nil
	}
	return r.ports.names
}

func (s *side) says() bool { return s.isolates || len(s.rules) > 0 }

func (s *side) equal(t *side) bool {
	return s.policy == t.policy && s.tier == t.tier && s.isolates == t.isolates && slices.EqualFunc(s.rules, t.rules, func(a, b rule) bool {
		return a.index == b.index && a.action == b.action && a.peers == b.peers && a.ports.equal(b.ports)
	})
}

func (p *policy) selects(k *kind) bool { return p.subject.selects(k) }

func (s podSelector) selects(k *kind) bool {
	if s.namespaces == nil {
		return s.namespace == k.namespace.name && s.pods.Matches(k.labels)
	}
	return s.namespaces.Matches(k.namespace.labels) && s.pods.Matches(k.labels)
}

// before is the order in which policies are asked.
func (p *policy) before(q *policy) int {
	return cmp.Or(cmp.Compare(p.tier, q.tier), cmp.Compare(p.priority, q.priority), strings.Compare(p.ref.Namespace, q.ref.Namespace), strings.Compare(p.ref.Name, q.ref.Name))
}

// SetNetworkPolicy takes a NetworkPolicy that is new or has changed.
func (c *Compiler) SetNetworkPolicy(o *networkingv1.NetworkPolicy) {
	ref := netpol.PolicyRef{Kind: networkPolicy, Namespace: word(o.Namespace), Name: o.Name, UID: o.UID}
	c.changePolicy(policyKey{ref.Namespace, ref.Name}, ref, netpol.InShadow(o), parseNetworkPolicy(ref, o))
}

// DeleteNetworkPolicy takes the end of a NetworkPolicy.
func (c *Compiler) DeleteNetworkPolicy(namespace, name string) {
	c.changePolicy(policyKey{namespace, name}, netpol.PolicyRef{}, false, nil)
}

// SetClusterNetworkPolicy takes a ClusterNetworkPolicy that is new or has changed.
func (c *Compiler) SetClusterNetworkPolicy(o *policyv1alpha2.ClusterNetworkPolicy) {
	ref := netpol.PolicyRef{Kind: clusterNetworkPolicy, Name: o.Name, UID: o.UID}
	c.changePolicy(policyKey{"", ref.Name}, ref, netpol.InShadow(o), parseClusterNetworkPolicy(ref, o))
}

// ClusterNetworkPolicyProblems are what is wrong with a ClusterNetworkPolicy, whatever else there is.
func ClusterNetworkPolicyProblems(o *policyv1alpha2.ClusterNetworkPolicy) []Problem {
	return parseClusterNetworkPolicy(netpol.PolicyRef{Kind: clusterNetworkPolicy, Name: o.Name, UID: o.UID}, o).problems
}

// DeleteClusterNetworkPolicy takes the end of a ClusterNetworkPolicy.
func (c *Compiler) DeleteClusterNetworkPolicy(name string) {
	c.changePolicy(policyKey{"", name}, netpol.PolicyRef{}, false, nil)
}

// changePolicy notes what becomes of a policy at the next Flush; nil: it goes.
func (c *Compiler) changePolicy(key policyKey, ref netpol.PolicyRef, shadow bool, read *parsed) {
	if read == nil {
		if c.policies[key] == nil {
			delete(c.changedPolicies, key)
			return
		}
		c.changedPolicies[key] = nil
		return
	}
	c.changedPolicies[key] = newPolicy(ref, shadow, read)
}

func newPolicy(ref netpol.PolicyRef, shadow bool, read *parsed) *policy {
	return &policy{ref: ref, shadow: shadow, tier: read.tier, priority: read.priority, subject: intern(read.subject), problems: read.problems, read: read}
}

func (c *Compiler) side(t tier, read *parsedSide) *side {
	s := &side{tier: t, isolates: read.isolates, crowded: read.crowded, rules: make([]rule, 0, len(read.rules))}
	for i := range read.rules {
		from := &read.rules[i]
		r := rule{index: from.index, action: from.action}
		if from.peers != nil {
			r.peers = c.atomOf(from.peers)
		}
		if from.ports == nil {
			s.rules = append(s.rules, r)
			continue
		}
		r.ports = &rulePorts{}
		for _, p := range from.ports {
			if p.name != "" {
				p.name = word(p.name)
				r.ports.names = append(r.ports.names, p)
				continue
			}
			of := slices.Index(ported[:], p.protocol)
			r.ports.spans[of] = append(r.ports.spans[of], p.span)
		}
		for of, spans := range r.ports.spans {
			r.ports.spans[of] = slices.Clip(join(spans))
		}
		s.rules = append(s.rules, r)
	}
	return s
}

// applyPolicy makes a change of a policy count.
func (c *Compiler) applyPolicy(key policyKey, p *policy) {
	old := c.policies[key]
	delete(c.crowded, key)
	if old != nil {
		c.countBlocks(old, -1)
	}
	if p == nil {
		delete(c.policies, key)
	} else {
		c.policies[key] = p
		if old != nil && old.ref.UID == p.ref.UID {
			p.number = old.number
		} else {
			p.number = c.policyNumber(p.ref)
		}
		c.limitBlocks(p)
		c.countBlocks(p, 1)
		if p.crowded != nil {
			c.crowded[key] = p
		}
		for d := range p.sides {
			s := c.side(p.tier, &p.read.sides[d])
			s.policy = p.number
			p.sides[d] = s
			if old != nil && old.sides[d].equal(s) {
				p.sides[d] = old.sides[d]
				continue
			}
			c.lastSide++
			s.id = c.lastSide
		}
		p.read = nil
		c.refer(p, 1)
	}
	scope := c.clusterPolicies
	kinds := c.localKinds
	if key.namespace != "" {
		n := c.namespace(key.namespace)
		scope, kinds = n.policies, n.kinds
		defer c.forgetNamespace(n)
	}
	if old != nil {
		delete(scope, old)
		if len(old.problems) > 0 {
			delete(c.faulty, old)
		}
	}
	if p != nil {
		scope[p] = struct{}{}
		if len(p.problems) > 0 {
			c.faulty[p] = struct{}{}
		}
	}
	for k := range kinds {
		if k.local == 0 {
			continue
		}
		had := old != nil && slices.Contains(k.selected, old)
		has := p != nil && p.selects(k)
		if !had && !has {
			continue
		}
		selected := slices.DeleteFunc(slices.Clone(k.selected), func(q *policy) bool { return q == old })
		if has {
			at, _ := slices.BinarySearchFunc(selected, p, (*policy).before)
			selected = slices.Insert(selected, at, p)
		}
		c.setSelected(k, selected)
	}
	if old != nil {
		c.refer(old, -1)
	}
}

// selectKind looks anew for the policies that select a kind.
func (c *Compiler) selectKind(k *kind) {
	var selected []*policy
	if k.local == 0 && k.selected == nil {
		delete(c.localKinds, k)
		return
	}
	if k.local > 0 {
		c.localKinds[k] = struct{}{}
		for _, scope := range []map[*policy]struct{}{k.namespace.policies, c.clusterPolicies} {
			for p := range scope {
				if p.selects(k) {
					selected = append(selected, p)
				}
			}
		}
		slices.SortFunc(selected, (*policy).before)
	} else {
		delete(c.localKinds, k)
	}
	c.setSelected(k, selected)
}

func (c *Compiler) setSelected(k *kind, selected []*policy) {
	for _, p := range selected {
		if p.kinds++; p.kinds == 1 {
			c.touchedPolicies[p] = struct{}{}
		}
	}
	for _, p := range k.selected {
		if p.kinds--; p.kinds == 0 {
			c.touchedPolicies[p] = struct{}{}
		}
	}
	k.selected = selected
	c.dirtySets[k] = struct{}{}
}

// activate makes the atoms of policies that begin to select subjects count, and lets those go that nobody needs any more: see retire.
func (c *Compiler) activate() {
	for p := range c.touchedPolicies {
		c.renamed[p] = struct{}{}
		if p.kinds > 0 && !p.active {
			p.active = true
			c.use(p, 1)
		}
	}
	for p := range c.touchedPolicies {
		if p.kinds == 0 && p.active {
			p.active = false
			c.use(p, -1)
		}
	}
	clear(c.touchedPolicies)
}

// use counts the uses of a policy's atoms.
func (c *Compiler) use(p *policy, by int) {
	for d, s := range p.sides {
		for i := range s.rules {
			r := &s.rules[i]
			if a := r.peers; a != nil {
				switch a.uses += by; {
				case a.uses == 1 && by > 0 && !a.active:
					c.freshAtoms = append(c.freshAtoms, a)
					a.active = true
				case a.uses == 0:
					c.idleAtoms = append(c.idleAtoms, a)
				}
			}
			if netpol.Direction(d) == netpol.Ingress {
				continue // names of ports are those of the subject, and part of the rule set
			}
			for _, n := range r.names() {
				name := c.portName(n.name)
				switch name.uses += by; {
				case name.uses == 1 && by > 0 && !name.active:
					c.freshNames = append(c.freshNames, name)
					name.active = true
				case name.uses == 0:
					c.idleNames = append(c.idleNames, name)
				}
			}
		}
	}
}

// Problems are what is wrong with the policies, and which of them don't fit, by policy and field.
func (c *Compiler) Problems() []Problem {
	var out []Problem
	for p := range c.faulty {
		out = append(out, p.problems...)
	}
	out = append(out, c.roomProblems()...)
	slices.SortStableFunc(out, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Policy.Kind, b.Policy.Kind), strings.Compare(a.Policy.Namespace, b.Policy.Namespace), strings.Compare(a.Policy.Name, b.Policy.Name))
	})
	return out
}
