package compiler

import (
	"fmt"
	"slices"

	"github.com/strake-io/strake/bpf"
)

// What does not fit into the tables closes: a rule set for which there is no room denies all. A new one has room for half of the tables, so that no
// policy takes all of it; of the rest who comes first has it.

// room is where a rule set began to take room.
type room struct{ answers, ports, answersOut int }

func (c *Compiler) room(out *bpf.PolicyChange) room {
	return room{c.answerRows, c.portRows, len(out.Answers)}
}

// most is how many rows may be taken: some are left for lists that are a little longer than what there is room for.
func (c *Compiler) most() int { return c.options.MaxRules - c.options.MaxRules/64 }

// left is how many rows the rule set may still take; negative: it has taken too many.
func (r room) left(c *Compiler) int {
	most := c.most()
	return min(most-c.answerRows, most-c.portRows, most/2-(c.answerRows-r.answers), most/2-(c.portRows-r.ports))
}

// closeFresh takes back what a rule set that nobody has yet has written, and lets it deny all.
func (c *Compiler) closeFresh(s *ruleSet, out *bpf.PolicyChange, from room) {
	lists := len(out.GonePorts)
	answers := len(out.GoneAnswers)
	for id := range s.answers {
		c.unanswer(s, id, out)
	}
	c.dropList(s.base, out)
	gone := out.GonePorts[lists:]
	slices.Sort(gone)
	out.Ports = slices.DeleteFunc(out.Ports, func(p bpf.PolicyPort) bool { // lists that are in the tables already are not among them
		_, is := slices.BinarySearch(gone, p.Ports)
		return is
	})
	out.Answers, out.GoneAnswers, out.GonePorts = out.Answers[:from.answersOut], out.GoneAnswers[:answers], out.GonePorts[:lists]
	c.shut(s, out)
}

// shut makes a rule set without rows one that denies all.
func (c *Compiler) shut(s *ruleSet, out *bpf.PolicyChange) {
	s.full = true
	c.closed[s] = struct{}{}
	c.wait = min(2*c.wait+1, 63)
	c.patience = c.wait
	s.base = c.list(s.denial(), out)
	out.Answers = append(out.Answers, bpf.PolicyAnswer{RuleSet: s.number, Ports: s.base.number})
}

// denial is what a rule set says for which there is no room.
func (s *ruleSet) denial() *canvas {
	for s.both[0] != nil {
		s = s.both[0]
	}
	first := s.sides[0]
	out := newCanvas()
	out.paintAll(decided, bpf.PolicyVerdict{Policy: first.policy, Rule: bpf.PolicyNoRule, Tier: tiers[first.tier]})
	return out
}

// evict gives pods other rule sets that deny all, in place of those that have no room to answer for new identities. It comes before anybody gets one of these.
func (c *Compiler) evict() (out bpf.PolicyChange) {
	if len(c.overfull) == 0 {
		return out
	}
	for k := range c.localKinds {
		sets := k.sets
		for d := range sets {
			for i, s := range sets[d] {
				if _, full := c.overfull[s]; full {
					sets[d][i] = c.shutOf(s, &out)
				}
			}
		}
		if sets == k.sets {
			continue
		}
		for _, p := range k.pods {
			for _, addr := range p.addrs {
				a := c.addrs[addr]
				if a == nil || a.subject == nil || a.owner() != p {
					continue
				}
				row := *a.subject
				for d := range sets {
					for i, s := range sets[d] {
						if k.sets[d][i] != nil && row.sets[d][i] == k.sets[d][i].number {
							row.sets[d][i] = s.number
						}
					}
				}
				if row != *a.subject {
					out.Subjects = append(out.Subjects, row.of(addr))
					*a.subject = row
				}
			}
		}
		c.setSets(k, sets)
	}
	clear(c.overfull)
	slices.SortFunc(out.Subjects, func(a, b bpf.PolicySubject) int { return a.Addr.Compare(b.Addr) })
	return out
}

// shutOf finds or makes the rule set that denies all in place of another one.
func (c *Compiler) shutOf(s *ruleSet, out *bpf.PolicyChange) *ruleSet {
	key := fmt.Sprint("full ", s.number)
	if shut := c.sets[key]; shut != nil {
		return shut
	}
	shut := c.newSet(key, s.direction)
	c.freshSets = c.freshSets[:len(c.freshSets)-1]
	shut.sides = s.sides
	c.answerRows++
	c.shut(shut, out)
	return shut
}

// tryAgain looks whether there is room for what was closed: at the next Flush, and then less and less often.
func (c *Compiler) tryAgain() {
	if len(c.closed) == 0 {
		c.wait = 0
		return
	}
	if c.patience--; c.patience > 0 {
		return
	}
	c.retry = true
	for k := range c.localKinds {
		for d := range k.sets {
			for _, s := range k.sets[d] {
				if s != nil && s.full {
					c.dirtySets[k] = struct{}{}
				}
			}
		}
	}
}

// roomProblems tell of the policies that are closed for want of room.
func (c *Compiler) roomProblems() []Problem {
	seen := map[uint32]bool{}
	var out []Problem
	for s := range c.closed {
		for _, side := range s.sides {
			if n, is := c.names[side.policy]; is && !seen[side.policy] {
				seen[side.policy] = true
				out = append(out, Problem{Policy: policyRef(n), Reason: "the tables have no room for what it says together with the other policies of its pods, which are closed: --" + bpf.FlagMaxPolicyRules + " makes them larger"})
			}
		}
	}
	return out
}

// limitBlocks lets a policy deny all that names more blocks than the others of its namespace leave: so the policies of one namespace don't take all of the table.
func (c *Compiler) limitBlocks(p, old *policy) {
	scope := c.clusterPolicies
	if p.ref.Namespace != "" {
		scope = c.namespace(p.ref.Namespace).policies
	}
	left := c.options.MaxPeers / 2
	for other := range scope {
		if other != old {
			left -= other.blocks
		}
	}
	for _, side := range p.read.sides {
		for _, r := range side.rules {
			if r.peers != nil {
				p.blocks += len(edges(r.peers.blocks))
			}
		}
	}
	if p.blocks == 0 || p.blocks <= left {
		return
	}
	p.problems = append(p.problems, Problem{Policy: p.ref, Reason: fmt.Sprintf(
		"it names %d blocks, and %d are left of those that the policies of one namespace may name: it denies all until it is written with fewer; --%s makes the tables larger", p.blocks, max(left, 0), bpf.FlagMaxPolicyPeers)})
	p.blocks = 0
	for d := range p.read.sides {
		side := &p.read.sides[d]
		if len(side.rules) == 0 {
			continue
		}
		side.rules = nil
		if !side.isolates {
			side.rules = []parsedRule{{index: bpf.PolicyNoRule, action: deny}}
		}
	}
}
