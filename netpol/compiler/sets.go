package compiler

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// subjectSets are the rule sets of a kind: by direction, those that are enforced (0) and those with the policies in shadow as well (1).
type subjectSets [2][2]*ruleSet

func (s subjectSets) numbers() (out [2][2]uint32) {
	for d := range s {
		for i, set := range s[d] {
			if set != nil {
				out[d][i] = set.number
			}
		}
	}
	return out
}

// ruleSet is what judges pods in a direction. It does not change, but for answers to identities that are new.
type ruleSet struct {
	number     uint32
	key        string
	refs       int // kinds
	direction  netpol.Direction
	sides      []*side     // in their order
	named      []namedPort // of ingress: those of the subject that rules name
	both       [2]*ruleSet // in place of sides: what both allow
	generation uint32
	atoms      map[*atom]struct{}
	names      map[string]*portName // of egress
	base       *portList            // for who has no answer of its own
	answers    map[*identity]*answer
	bySigns    map[string]*answer
	full       bool // there is no room for what it says: it denies all, see room.go
	gone       bool
}

// answer is what a rule set says of all identities that have the same of its atoms.
type answer struct {
	list *portList
	refs int // identities
	sign string
}

// portList is a list of ports with its verdicts.
type portList struct {
	number uint32
	key    string
	rows   []bpf.PolicyPort
	refs   int
}

var tiers = [...]bpf.PolicyTier{tierAdmin: bpf.PolicyTierAdmin, tierNetworkPolicy: bpf.PolicyTierNetworkPolicy, tierBaseline: bpf.PolicyTierBaseline}

// setsOf finds or makes the rule sets of a kind.
func (c *Compiler) setsOf(k *kind) subjectSets {
	var out subjectSets
	for d := range out {
		var enforced, all []*side
		for _, p := range k.selected {
			if s := p.sides[d]; s.says() {
				all = append(all, s)
				if !p.shadow {
					enforced = append(enforced, s)
				}
			}
		}
		out[d][0] = c.ruleSet(netpol.Direction(d), enforced, k)
		if len(all) > len(enforced) {
			out[d][1] = c.ruleSet(netpol.Direction(d), all, k)
		}
	}
	return out
}

func (c *Compiler) ruleSet(d netpol.Direction, sides []*side, k *kind) *ruleSet {
	if len(sides) == 0 {
		return nil
	}
	key := binary.BigEndian.AppendUint32([]byte{byte(d)}, c.generation)
	var named []namedPort
	for _, s := range sides {
		key = binary.BigEndian.AppendUint32(key, s.id)
		if d == netpol.Egress || len(k.ports) == 0 {
			continue
		}
		for i := range s.rules {
			for _, n := range s.rules[i].names() {
				for _, p := range k.ports {
					if p.name == n.name && (n.protocol == 0 || n.protocol == p.protocol) && !slices.Contains(named, p) {
						named = append(named, p)
					}
				}
			}
		}
	}
	if len(named) > 0 {
		slices.SortFunc(named, comparePorts)
		key = append(append(key, 0), kindContent(nil, named)...)
	}
	if s := c.sets[string(key)]; s != nil && !(s.full && c.retry) {
		return s
	}
	s := c.newSet(string(key), d)
	s.sides, s.named = sides, named
	for _, side := range sides {
		for i := range side.rules {
			r := &side.rules[i]
			if r.peers != nil {
				s.atoms[r.peers] = struct{}{}
				add(&r.peers.sets, s)
			}
			if d == netpol.Egress {
				for _, n := range r.names() {
					name := c.portName(n.name)
					s.names[n.name] = name
					name.sets[s] = struct{}{}
				}
			}
		}
	}
	return s
}

func (c *Compiler) newSet(key string, d netpol.Direction) *ruleSet {
	c.lastSet++
	s := &ruleSet{
		number: c.lastSet, key: key, direction: d, generation: c.generation,
		atoms: map[*atom]struct{}{}, names: map[string]*portName{}, answers: map[*identity]*answer{}, bySigns: map[string]*answer{},
	}
	c.sets[s.key] = s
	c.freshSets = append(c.freshSets, s)
	return s
}

// knows tells whether an atom makes a difference to a rule set.
func (s *ruleSet) knows(a *atom) bool {
	if a.port != nil {
		return s.names[a.port.name] != nil
	}
	_, ok := s.atoms[a]
	return ok
}

// sign is what of an identity makes a difference to a rule set.
func (s *ruleSet) sign(c *Compiler, id *identity) string {
	b := make([]byte, 4) // how many atoms come first: then those of before
	for _, a := range id.to(s, c) {
		if s.knows(a) {
			b = binary.BigEndian.AppendUint32(b, a.id)
		}
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)/4-1))
	if s.both[0] != nil && id.was != nil { // one of them sees it otherwise
		b = append(b, 0)
		for _, a := range id.was {
			if s.knows(a) {
				b = binary.BigEndian.AppendUint32(b, a.id)
			}
		}
	}
	return string(b)
}

// canvas is what a rule set says of an identity.
func (s *ruleSet) canvas(c *Compiler, id *identity) *canvas {
	if s.full {
		return s.denial()
	}
	if s.both[0] != nil {
		return both(s.both[0].canvas(c, id), s.both[1].canvas(c, id))
	}
	atoms := id.to(s, c)
	c.mark++
	for _, a := range atoms {
		a.mark = c.mark
	}
	out := newCanvas()
	tier := tierAdmin
	var isolating *side
	finish := func() {
		if tier == tierNetworkPolicy && isolating != nil {
			v := bpf.PolicyVerdict{Policy: isolating.policy, Rule: bpf.PolicyNoRule, Tier: bpf.PolicyTierNetworkPolicy}
			if isolating.crowded {
				v.Rule = bpf.PolicyNoRoom
			}
			out.paintAll(decided, v)
		}
		out.nextTier()
	}
	for _, side := range s.sides {
		for tier < side.tier {
			finish()
			tier++
		}
		if side.isolates && (isolating == nil || side.crowded && !isolating.crowded) { // who would admit more if there were room is named before others
			isolating = side
		}
		for i := range side.rules {
			r := &side.rules[i]
			if r.peers != nil && r.peers.mark != c.mark {
				continue
			}
			state, v := uint8(decided), bpf.PolicyVerdict{Allow: r.action == accept, Policy: side.policy, Rule: r.index, Tier: tiers[side.tier]}
			if r.action == pass {
				state, v = passed, bpf.PolicyVerdict{}
			}
			if r.ports == nil {
				out.paintAll(state, v)
				continue
			}
			named := s.portsNamed(r.ports.names, atoms)
			for of := range ported {
				spans := r.ports.spans[of]
				if len(named[of]) > 0 {
					spans = join(append(slices.Clone(spans), named[of]...))
				}
				if len(spans) > 0 {
					out.paint(of, spans, state, v)
				}
			}
		}
	}
	finish()
	out.paintAll(decided, bpf.PolicyVerdict{Allow: true, Rule: bpf.PolicyNoRule})
	return out
}

// portsNamed are the numbers of names: at the subject, or at who is asked.
func (s *ruleSet) portsNamed(names []port, atoms []*atom) (out [len(ported)][]span) {
	for _, n := range names {
		add := func(p namedPort) {
			if p.name == n.name && (n.protocol == 0 || n.protocol == p.protocol) {
				of := slices.Index(ported[:], p.protocol)
				out[of] = append(out[of], span{p.number, p.number})
			}
		}
		if s.direction == netpol.Ingress {
			for _, p := range s.named {
				add(p)
			}
			continue
		}
		for _, a := range atoms {
			if a.port != nil {
				add(a.namedPort)
			}
		}
	}
	return out
}

// list finds or makes the list of a canvas.
func (c *Compiler) list(of *canvas, out *bpf.PolicyChange) *portList {
	rows := of.rows()
	key := portsKey(rows)
	l := c.lists[key]
	if l == nil {
		l = &portList{number: c.listNumber(key), key: key, rows: rows}
		for i := range l.rows {
			l.rows[i].Ports = l.number
		}
		c.lists[key] = l
		c.portRows += len(l.rows)
		out.Ports = append(out.Ports, l.rows...)
	}
	l.refs++
	return l
}

func (c *Compiler) dropList(l *portList, out *bpf.PolicyChange) {
	if l.refs--; l.refs == 0 {
		delete(c.lists, l.key)
		c.portRows -= len(l.rows)
		out.GonePorts = append(out.GonePorts, l.number)
	}
}

// answerAll lets new rule sets answer for all identities, and all rule sets for new identities.
func (c *Compiler) answerAll(out *bpf.PolicyChange) {
	for _, s := range c.freshSets {
		before := c.room(out)
		s.base = c.list(s.canvas(c, c.stranger), out)
		c.answerRows++
		out.Answers = append(out.Answers, bpf.PolicyAnswer{RuleSet: s.number, Ports: s.base.number})
		c.answerKnown(s, out, before)
		if before.left(c) < 0 {
			c.closeFresh(s, out, before)
		}
	}
	c.freshSets = c.freshSets[:0]
	for _, id := range c.freshIdentities {
		for _, a := range id.all() {
			for s := range a.asking() {
				if s.full || s.answers[id] != nil {
					continue
				}
				if max(c.answerRows, c.portRows) >= c.most() {
					c.overfull[s] = struct{}{}
					continue
				}
				c.answer(s, id, out)
			}
		}
	}
	c.freshIdentities = c.freshIdentities[:0]
}

// answerKnown lets a new rule set answer for the identities that there are, as long as there is room.
func (c *Compiler) answerKnown(s *ruleSet, out *bpf.PolicyChange, room room) {
	some := func(a *atom) {
		for id := range a.identities {
			if room.left(c) < 0 {
				return
			}
			c.answer(s, id, out)
		}
	}
	for a := range s.atoms {
		some(a)
	}
	for _, n := range s.names {
		for _, a := range n.atoms {
			some(a)
		}
	}
}

func (c *Compiler) answer(s *ruleSet, id *identity, out *bpf.PolicyChange) {
	if s.answers[id] != nil || id.gone || s.full {
		return
	}
	sign := s.sign(c, id)
	a := s.bySigns[sign]
	if a == nil {
		a = &answer{list: c.list(s.canvas(c, id), out), sign: sign}
		s.bySigns[sign] = a
	}
	a.refs++
	s.answers[id] = a
	if a.list != s.base {
		c.answerRows++
		out.Answers = append(out.Answers, bpf.PolicyAnswer{RuleSet: s.number, Identity: id.number, Ports: a.list.number})
	}
}

// unanswer takes an answer back.
func (c *Compiler) unanswer(s *ruleSet, id *identity, out *bpf.PolicyChange) {
	a := s.answers[id]
	delete(s.answers, id)
	if a.list != s.base {
		c.answerRows--
		out.GoneAnswers = append(out.GoneAnswers, bpf.PolicyAnswer{RuleSet: s.number, Identity: id.number, Ports: a.list.number})
	}
	if a.refs--; a.refs == 0 {
		delete(s.bySigns, a.sign)
		c.dropList(a.list, out)
	}
}

// sweep lets rule sets and identities go that nobody has any more.
func (c *Compiler) sweep(out *bpf.PolicyChange) {
	for _, s := range c.idleSets {
		if s.refs > 0 || s.gone {
			continue
		}
		s.gone = true
		delete(c.closed, s)
		for id := range s.answers {
			c.unanswer(s, id, out)
		}
		c.answerRows--
		out.GoneAnswers = append(out.GoneAnswers, bpf.PolicyAnswer{RuleSet: s.number, Ports: s.base.number})
		c.dropList(s.base, out)
		for a := range s.atoms {
			delete(a.sets, s)
		}
		for _, n := range s.names {
			delete(n.sets, s)
		}
		if c.sets[s.key] == s {
			delete(c.sets, s.key)
		}
	}
	c.idleSets = c.idleSets[:0]
	for _, id := range c.idleIdentities {
		if id.refs > 0 || id.gone {
			continue
		}
		id.gone = true
		for _, a := range id.all() {
			for s := range a.asking() {
				if s.answers[id] != nil {
					c.unanswer(s, id, out)
				}
			}
			delete(a.identities, id)
		}
		delete(c.identities, id.key)
	}
	c.idleIdentities = c.idleIdentities[:0]
}

func sortChange(out *bpf.PolicyChange) {
	byAnswer := func(a, b bpf.PolicyAnswer) int {
		return cmp.Or(cmp.Compare(a.RuleSet, b.RuleSet), cmp.Compare(a.Identity, b.Identity))
	}
	slices.SortFunc(out.Answers, byAnswer)
	slices.SortFunc(out.GoneAnswers, byAnswer)
	slices.Sort(out.GonePorts)
	slices.Sort(out.GoneNames)
}
