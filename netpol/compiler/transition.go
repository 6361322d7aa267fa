package compiler

import (
	"fmt"
	"maps"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// How no flow is judged by a mixture.
//
// A flow between a pod of this node and somebody else is judged by one row that changes at a time: the subject's, or the other end's. What is more:
//
//   - A pod changes, or comes, or goes: its row has both what it is to others and what judges it. One write.
//   - Policies change: rule sets that are new ask for new atoms. Everybody gets the identity that has them first (and keeps the old atoms); of that
//     the old rule sets say what they said. Then come the new rule sets, and when the old ones are gone the old atoms go (retire).
//   - Labels of a namespace change: what its pods are changes together. They get identities that have the old atoms for rule sets of generations
//     before, and the new ones for those of this one: and everybody gets rule sets of a new generation.
//   - A flow between two pods of this node is judged by two rule sets. When one of them loosens and the other tightens, then for a moment a flow might
//     be allowed that neither state allows. So first everybody gets what both states allow, and then what the new one does.

// relabel takes the kinds of which labels of the namespace have changed, with the atoms that those have had whose atoms change by it.
func (c *Compiler) relabel(was map[*kind][]*atom) {
	local := false
	for k := range c.relabelled {
		local = local || k.local > 0
	}
	clear(c.relabelled)
	if len(was) == 0 || !local { // flows that are judged here have at most one end that is not what it was
		return
	}
	for k, atoms := range was {
		if atoms == nil {
			atoms = []*atom{}
		}
		k.was = atoms
		c.relabelled[k] = struct{}{}
	}
	c.generation++
	for k := range c.localKinds {
		c.dirtySets[k] = struct{}{}
	}
}

// between gives the rule sets by direction that kinds have in between: those that allow what both states do. nil: nothing is in between.
func (c *Compiler) between(flips map[*kind]subjectSets, change *bpf.PolicyChange) map[*kind][2]*ruleSet {
	type step struct{ old, new *ruleSet }
	var steps [2]map[step]way
	for k, had := range flips {
		for d := range steps {
			if had[d][0] != k.sets[d][0] {
				if steps[d] == nil {
					steps[d] = map[step]way{}
				}
				steps[d][step{had[d][0], k.sets[d][0]}] = 0
			}
		}
	}
	if steps[0] == nil || steps[1] == nil {
		return nil
	}
	var all [2]way
	for d := range steps {
		for s := range steps[d] {
			w := c.way(s.old, s.new)
			steps[d][s] = w
			all[d] |= w
		}
	}
	const e, i = netpol.Egress, netpol.Ingress
	if !(all[e]&loosens != 0 && all[i]&tightens != 0 || all[e]&tightens != 0 && all[i]&loosens != 0) {
		return nil
	}
	out := map[*kind][2]*ruleSet{}
	for k, had := range flips {
		var sets [2]*ruleSet
		for d := range sets {
			sets[d] = k.sets[d][0]
			switch s := (step{had[d][0], k.sets[d][0]}); steps[d][s] {
			case loosens:
				sets[d] = s.old
			case loosens | tightens:
				sets[d] = c.bothSets(s.old, s.new)
			}
		}
		out[k] = sets
	}
	c.answerAll(change)
	return out
}

// way is what a step from one rule set to another does to flows.
type way uint8

const (
	loosens way = 1 << iota
	tightens
)

// way compares what two rule sets, of which nil allows all, say of all identities.
func (c *Compiler) way(old, new *ruleSet) way {
	var out way
	compare := func(id *identity) {
		was, is := allowing(c, old, id), allowing(c, new, id)
		compareCanvas := func(x, y piece) {
			if x.verdict.Allow && !y.verdict.Allow {
				out |= tightens
			}
			if !x.verdict.Allow && y.verdict.Allow {
				out |= loosens
			}
		}
		compareCanvas(was.other, is.other)
		for p := range was.protocols {
			x, y := was.protocols[p], is.protocols[p]
			for len(x) > 0 {
				compareCanvas(x[0], y[0])
				last := min(x[0].last, y[0].last)
				if x[0].last == last {
					x = x[1:]
				}
				if y[0].last == last {
					y = y[1:]
				}
			}
		}
	}
	compare(c.stranger)
	type signs struct{ old, new string }
	seen := map[signs]bool{}
	for _, s := range []*ruleSet{old, new} {
		if s == nil {
			continue
		}
		for id := range s.answers {
			if out == loosens|tightens {
				return out
			}
			var both signs
			if old != nil {
				both.old = old.sign(c, id)
			}
			if new != nil {
				both.new = new.sign(c, id)
			}
			if !seen[both] {
				seen[both] = true
				compare(id)
			}
		}
	}
	return out
}

// allowing is a rule set's canvas; nil allows all.
func allowing(c *Compiler, s *ruleSet, id *identity) *canvas {
	if s != nil {
		return s.canvas(c, id)
	}
	out := newCanvas()
	out.paintAll(decided, bpf.PolicyVerdict{Allow: true, Rule: bpf.PolicyNoRule})
	return out
}

// bothSets finds or makes the rule set of what both allow, which nobody has for longer than a change.
func (c *Compiler) bothSets(a, b *ruleSet) *ruleSet {
	key := fmt.Sprint("both ", a.number, " ", b.number)
	if s := c.sets[key]; s != nil {
		return s
	}
	s := c.newSet(key, a.direction)
	s.both = [2]*ruleSet{a, b}
	for _, part := range s.both {
		for peers := range part.atoms {
			s.atoms[peers] = struct{}{}
			add(&peers.sets, s)
		}
		maps.Copy(s.names, part.names)
	}
	for _, n := range s.names {
		n.sets[s] = struct{}{}
	}
	c.idleSets = append(c.idleSets, s)
	return s
}

func number(s *ruleSet) uint32 {
	if s == nil {
		return 0
	}
	return s.number
}

// refined gives subjects that move in this stage the identity that they had, with the atoms that have come: for rule sets of others that move before
// them and ask for these.
func (c *Compiler) refined() map[*address]*identity {
	if !c.finer {
		return nil
	}
	c.finer = false
	out := map[*address]*identity{}
	for a := range c.movedAddrs {
		if a.subject != nil && a.kind != nil && len(a.nodes) == 0 {
			id := c.kindIdentity(a.kind, c.places.coverOf(a.addr).atoms)
			c.take(id)
			out[a] = id
		}
	}
	return out
}
