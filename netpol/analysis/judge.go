package analysis

import (
	"fmt"
	"slices"
	"strings"

	"github.com/strake-io/strake/netpol"
)

// reason is a verdict of one direction and who gave it.
type reason struct {
	allowed bool
	tier    netpol.Tier
	policy  int32 // in Analysis.policies; -1: none had a say
	rule    int32 // netpol.NoRule: isolation
}

var unguarded = reason{allowed: true, policy: -1, rule: netpol.NoRule}

// said is a range of ports with the number of its reason.
type said struct {
	Ports
	reason int32
}

// answer is what a rule set says of one class: by protocol and port. The first answer of all is that of no rule set.
type answer struct {
	of   [3][]said // they cover all ports
	rest int32     // other protocols
	set  int32     // number of what it allows, in Analysis.setsOf
}

// ruleSet is what judges the pods that the same policies select, in one direction. Policies are in their order.
type ruleSet struct {
	policies []*policy
	rules    []*rule
	isolated int // the first policy that isolates; -1: none
	named    bool
	views    map[string][]int32 // by the names' key of the subject, if the direction is ingress and names matter
}

func (a *Analysis) reason(r reason) int32 {
	id, ok := a.reasonIDs[r]
	if !ok {
		id = int32(len(a.reasons))
		a.reasons = append(a.reasons, r)
		a.reasonIDs[r] = id
	}
	return id
}

// answer numbers an answer; an empty one is that of no rule set.
func (a *Analysis) answer(v answer) int32 {
	if v.of[0] == nil {
		free := a.reason(unguarded)
		for i := range v.of {
			v.of[i] = []said{{everyPort, free}}
		}
		v.rest = free
	}
	var b []byte
	for _, list := range v.of {
		for _, s := range list {
			b = append(b, byte(s.To), byte(s.To>>8), byte(s.reason), byte(s.reason>>8), byte(s.reason>>16), byte(s.reason>>24))
		}
		b = append(b, '/')
	}
	key := string(append(b, byte(v.rest), byte(v.rest>>8), byte(v.rest>>16), byte(v.rest>>24)))
	id, ok := a.answerIDs[key]
	if !ok {
		id = int32(len(a.answers))
		v.set = a.set(a.allowed(v))
		a.answers = append(a.answers, v)
		a.answerIDs[key] = id
	}
	return id
}

// guard finds the rule sets of a class.
func (a *Analysis) guard(c *class) {
	if !c.subject {
		return
	}
	for _, d := range []netpol.Direction{netpol.Egress, netpol.Ingress} {
		s := &ruleSet{isolated: -1, views: map[string][]int32{}}
		var key strings.Builder
		for _, p := range a.policies {
			if !p.subjects.has(c.id) || p.np == nil && len(p.rules[d]) == 0 || p.np != nil && !p.isolates[d] {
				continue
			}
			s.policies = append(s.policies, p)
			s.rules = append(s.rules, p.rules[d]...)
			if p.np != nil && s.isolated < 0 {
				s.isolated = p.number
			}
			fmt.Fprintf(&key, "%d ", p.number)
		}
		if len(s.policies) == 0 {
			continue
		}
		if have, ok := a.sets[d][key.String()]; ok {
			c.sets[d] = have
			continue
		}
		for _, r := range s.rules {
			s.named = s.named || len(r.names) > 0
		}
		a.sets[d][key.String()], c.sets[d] = s, s
	}
}

// view gives the answers of a class's policies in a direction, by the class of the other end. nil: nobody guards it.
func (a *Analysis) view(c *class, d netpol.Direction) []int32 {
	if c.views[d] != nil || c.sets[d] == nil {
		return c.views[d]
	}
	s := c.sets[d]
	key := ""
	if d == netpol.Ingress && s.named {
		key = c.names
	}
	v, ok := s.views[key]
	if !ok {
		v = a.look(s, d, c)
		s.views[key] = v
	}
	c.views[d] = v
	return v
}

func (a *Analysis) look(s *ruleSet, d netpol.Direction, subject *class) []int32 {
	matching := make([][]int32, len(a.classes))
	for i, r := range s.rules {
		r.classes.each(func(c int) bool { matching[c] = append(matching[c], int32(i)); return true })
	}
	out := make([]int32, len(a.classes))
	known := map[string]int32{}
	var key []byte
	for c, list := range matching {
		key = key[:0]
		dest, names := subject, false
		if d == netpol.Egress {
			dest = a.classes[c]
		}
		for _, i := range list {
			key = append(key, byte(i), byte(i>>8), byte(i>>16), byte(i>>24))
			names = names || len(s.rules[i].names) > 0
		}
		if names {
			key = append(key, '/')
			key = append(key, dest.names...)
		}
		id, ok := known[string(key)]
		if !ok {
			id = a.answer(a.judge(s, list, dest))
			known[string(key)] = id
		}
		out[c] = id
	}
	return out
}

// portsOf is what a rule asks of a destination.
func (r *rule) portsOf(dest *class) PortSet {
	out := r.ports
	for _, n := range r.names {
		for _, p := range dest.ports[n.name] {
			if n.protocol < 0 || n.protocol == p.protocol {
				var s PortSet
				s.Of[p.protocol] = []Ports{{p.port, p.port}}
				out = out.or(s)
			}
		}
	}
	return out
}

// judge goes through the rules that match a peer, in the order of policies.
func (a *Analysis) judge(s *ruleSet, matching []int32, dest *class) answer {
	rules := make([]*rule, len(matching))
	sets := make([]PortSet, len(matching))
	for i, n := range matching {
		rules[i] = s.rules[n]
		sets[i] = rules[i].portsOf(dest)
	}
	var out answer
	for p := range protocols {
		lists := make([][]Ports, len(sets))
		for i := range sets {
			lists[i] = sets[i].Of[p]
		}
		cuts := cutsOf(lists...)
		for i, from := range cuts[:len(cuts)-1] {
			id := a.reason(a.decide(s, rules, func(r int) bool { return contains(lists[r], uint16(from)) }))
			to := uint16(cuts[i+1] - 1)
			if n := len(out.of[p]); n > 0 && out.of[p][n-1].reason == id {
				out.of[p][n-1].To = to
			} else {
				out.of[p] = append(out.of[p], said{Ports{uint16(from), to}, id})
			}
		}
	}
	out.rest = a.reason(a.decide(s, rules, func(r int) bool { return sets[r].Other }))
	return out
}

// decide is the verdict of one port: tier by tier, the rules of which match the peer; asks tells whether a rule is about the port.
func (a *Analysis) decide(s *ruleSet, rules []*rule, asks func(int) bool) reason {
	tierOf := func(t netpol.Tier) (reason, bool) {
		for i, r := range rules {
			if r.policy.tier != t || !asks(i) {
				continue
			}
			if r.action == pass {
				return reason{}, false
			}
			return reason{r.action == allow, t, int32(r.policy.number), int32(r.index)}, true
		}
		return reason{}, false
	}
	if out, ok := tierOf(netpol.TierAdmin); ok {
		return out
	}
	if out, ok := tierOf(netpol.TierNetworkPolicy); ok {
		return out
	}
	if s.isolated >= 0 {
		return reason{false, netpol.TierNetworkPolicy, int32(s.isolated), netpol.NoRule}
	}
	if out, ok := tierOf(netpol.TierBaseline); ok {
		return out
	}
	return unguarded
}

// Cell is what is allowed between two classes.
type Cell struct {
	Allowed PortSet
	Text    string // Allowed for people
	shape   int32  // equal for equal sets
}

// Range is a part of what can be asked for, with who decided.
type Range struct {
	Protocol string `json:"protocol"` // TCP, UDP, SCTP, or * for all others
	Ports    *Ports `json:"ports,omitempty"`
	Allowed  bool   `json:"allowed"`
	Egress   string `json:"egress,omitempty"` // the rule that decided, in words; none where no policy has a say
	Ingress  string `json:"ingress,omitempty"`
	// EgressRule and IngressRule say the same for programs.
	EgressRule  *RuleRef `json:"egressRule,omitempty"`
	IngressRule *RuleRef `json:"ingressRule,omitempty"`
	egress      reason
	ingress     reason
}

// RuleRef is a rule of a policy, by its index in spec.egress or spec.ingress; netpol.NoRule: the policy isolates.
type RuleRef struct {
	Policy netpol.PolicyRef `json:"policy"`
	Rule   int              `json:"rule"`
}

// pair is what the policies of both sides say, by numbers of answers; none: the classes are of different families.
type pair struct{ egress, ingress int32 }

var none = pair{-1, -1}

// asked gives the answers for flows from one class to another.
func (a *Analysis) asked(from, to int) pair {
	f, t := a.classes[from], a.classes[to]
	if f.family != t.family {
		return none
	}
	var p pair
	if v := a.view(f, netpol.Egress); v != nil {
		p.egress = v[to]
	}
	if v := a.view(t, netpol.Ingress); v != nil {
		p.ingress = v[from]
	}
	return p
}

// cell is what both sides allow; nil of none.
func (a *Analysis) cell(p pair) *Cell {
	if p == none {
		return nil
	}
	e, i := a.answers[p.egress].set, a.answers[p.ingress].set
	key := pair{e, i}
	c, ok := a.cells[key]
	if !ok {
		set := a.setsOf[e].and(a.setsOf[i])
		c = &Cell{Allowed: set, Text: set.String(), shape: a.set(set)}
		a.cells[key] = c
	}
	return c
}

// set numbers a set of ports.
func (a *Analysis) set(s PortSet) int32 {
	key := fmt.Sprint(s.Of, s.Other)
	id, ok := a.setIDs[key]
	if !ok {
		id = int32(len(a.setsOf))
		a.setsOf = append(a.setsOf, s)
		a.setIDs[key] = id
	}
	return id
}

// allowed is the set that an answer allows.
func (a *Analysis) allowed(v answer) (out PortSet) {
	for p, list := range v.of {
		for _, s := range list {
			if a.reasons[s.reason].allowed {
				out.Of[p] = appendPorts(out.Of[p], s.Ports)
			}
		}
	}
	out.Other = a.reasons[v.rest].allowed
	return out
}

// ranges tell who decides what.
func (a *Analysis) ranges(of pair) []Range {
	if of == none {
		return nil
	}
	e, i := a.answers[of.egress], a.answers[of.ingress]
	var out []Range
	for p, name := range protocolNames {
		x, y := 0, 0
		for from := 0; from <= lastPort; {
			to := min(e.of[p][x].To, i.of[p][y].To)
			out = append(out, a.rangeOf(name, &Ports{uint16(from), to}, e.of[p][x].reason, i.of[p][y].reason))
			if e.of[p][x].To == to {
				x++
			}
			if i.of[p][y].To == to {
				y++
			}
			from = int(to) + 1
		}
	}
	return append(out, a.rangeOf("*", nil, e.rest, i.rest))
}

func (a *Analysis) rangeOf(protocol string, ports *Ports, e, i int32) Range {
	out := Range{Protocol: protocol, Ports: ports, egress: a.reasons[e], ingress: a.reasons[i]}
	out.Allowed = out.egress.allowed && out.ingress.allowed
	out.Egress, out.Ingress = a.words(out.egress, netpol.Egress), a.words(out.ingress, netpol.Ingress)
	out.EgressRule, out.IngressRule = a.ruleOf(out.egress), a.ruleOf(out.ingress)
	return out
}

// ruleOf is who gave a reason; nil where no policy has a say.
func (a *Analysis) ruleOf(r reason) *RuleRef {
	if r.policy < 0 {
		return nil
	}
	return &RuleRef{Policy: a.policies[r.policy].ref, Rule: int(r.rule)}
}

// words tell a reason; nothing where no policy has a say.
func (a *Analysis) words(r reason, d netpol.Direction) string {
	if r.policy < 0 {
		return ""
	}
	p := a.policies[r.policy]
	if r.rule == netpol.NoRule {
		return "isolated by " + p.ref.String()
	}
	verb := "denied"
	if r.allowed {
		verb = "allowed"
	}
	kind := ""
	if p.cnp != nil {
		kind = string(p.tier) + " "
	}
	return fmt.Sprintf("%s by %s%s spec.%s[%d]", verb, kind, p.ref, d, r.rule)
}

// explain gives the reasons of both directions for a port.
func (a *Analysis) explain(of pair, protocol uint8, port uint16) (egress, ingress reason) {
	e, i := a.answers[of.egress], a.answers[of.ingress]
	p := slices.Index(protocols[:], protocol)
	if p < 0 {
		return a.reasons[e.rest], a.reasons[i.rest]
	}
	find := func(list []said) reason {
		for _, s := range list {
			if port <= s.To {
				return a.reasons[s.reason]
			}
		}
		return unguarded
	}
	return find(e.of[p]), find(i.of[p])
}
