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
	key := fmt.Sprint(v)
	id, ok := a.answerIDs[key]
	if !ok {
		id = int32(len(a.answers))
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

// Cell is the answer for two classes.
type Cell struct {
	Allowed PortSet
	Text    string // Allowed for people
	Ranges  []Range
	shape   int32 // equal for equal sets
}

// Range is a part of a Cell, with who decided.
type Range struct {
	Protocol string `json:"protocol"` // TCP, UDP, SCTP, or * for all others
	Ports    *Ports `json:"ports,omitempty"`
	Allowed  bool   `json:"allowed"`
	Egress   string `json:"egress,omitempty"` // the rule that decided, in words
	Ingress  string `json:"ingress,omitempty"`
	egress   int32
	ingress  int32
}

// cell is the answer for flows from one class to another; nil if they are of different families.
func (a *Analysis) cell(from, to int) *Cell {
	f, t := a.classes[from], a.classes[to]
	if f.family != t.family {
		return nil
	}
	var e, i int32
	if v := a.view(f, netpol.Egress); v != nil {
		e = v[to]
	}
	if v := a.view(t, netpol.Ingress); v != nil {
		i = v[from]
	}
	key := [2]int32{e, i}
	c, ok := a.pairs[key]
	if !ok {
		c = a.combine(a.answers[e], a.answers[i])
		a.pairs[key] = c
	}
	return c
}

func (a *Analysis) combine(e, i answer) *Cell {
	c := &Cell{}
	for p, name := range protocolNames {
		cuts := []int{lastPort + 1}
		for _, list := range [][]said{e.of[p], i.of[p]} {
			for _, s := range list {
				cuts = append(cuts, int(s.From))
			}
		}
		slices.Sort(cuts)
		cuts = slices.Compact(cuts)
		x, y := 0, 0
		for n, from := range cuts[:len(cuts)-1] {
			for int(e.of[p][x].To) < from {
				x++
			}
			for int(i.of[p][y].To) < from {
				y++
			}
			ports := Ports{uint16(from), uint16(cuts[n+1] - 1)}
			r := a.rangeOf(name, &ports, e.of[p][x].reason, i.of[p][y].reason)
			if r.Allowed {
				c.Allowed.Of[p] = appendPorts(c.Allowed.Of[p], ports)
			}
			c.Ranges = append(c.Ranges, r)
		}
	}
	rest := a.rangeOf("*", nil, e.rest, i.rest)
	c.Allowed.Other = rest.Allowed
	c.Ranges = append(c.Ranges, rest)
	c.Text = c.Allowed.String()
	id, ok := a.shapes[c.Text]
	if !ok {
		id = int32(len(a.shapes))
		a.shapes[c.Text] = id
	}
	c.shape = id
	return c
}

func (a *Analysis) rangeOf(protocol string, ports *Ports, e, i int32) Range {
	return Range{
		Protocol: protocol, Ports: ports, Allowed: a.reasons[e].allowed && a.reasons[i].allowed,
		Egress: a.words(e, netpol.Egress), Ingress: a.words(i, netpol.Ingress), egress: e, ingress: i,
	}
}

// words tell a reason; nothing where no policy has a say.
func (a *Analysis) words(id int32, d netpol.Direction) string {
	r := a.reasons[id]
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

// explain gives the reasons of both directions for a port of a cell.
func (a *Analysis) explain(c *Cell, protocol uint8, port uint16) (egress, ingress reason) {
	name := "*"
	if i := slices.Index(protocols[:], protocol); i >= 0 {
		name = protocolNames[i]
	}
	for _, r := range c.Ranges {
		if r.Protocol == name && (r.Ports == nil || r.Ports.From <= port && port <= r.Ports.To) {
			return a.reasons[r.egress], a.reasons[r.ingress]
		}
	}
	return unguarded, unguarded
}
