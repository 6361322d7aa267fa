package compiler

import (
	"fmt"
	"maps"
	"slices"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// What does not fit into the tables closes: a rule set for which there is no room denies all. A new one has room for half of the tables, so that no
// policy takes all of it; of the rest who comes first has it.

// MakesRoom tells what opens policies that are closed for want of room.
const MakesRoom = "--" + bpf.FlagMaxPolicyRules + " or --" + bpf.FlagMaxPolicyPeers + " makes room; the policy's Event tells which"

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
	out.paintAll(decided, bpf.PolicyVerdict{Policy: first.policy, Rule: bpf.PolicyNoRoom, Tier: tiers[first.tier]})
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

// Closed are the policies that deny more than they say, for want of room, without their UIDs.
func (c *Compiler) Closed() map[netpol.PolicyRef]bool {
	out := map[netpol.PolicyRef]bool{}
	add := func(number uint32) {
		if n, is := c.names[number]; is {
			out[netpol.PolicyRef{Kind: n.Kind, Namespace: n.Namespace, Name: n.Name}] = true
		}
	}
	for _, p := range c.crowded {
		add(p.number)
	}
	for s := range c.closed {
		add(s.denial().other.verdict.Policy)
	}
	return out
}

// limitBlocks lets a policy deny all that names more blocks than are left: for the policies of its namespace, of which each may take half of the tables, or for all,
// which leave a quarter for pods and nodes. So no tenant takes all of it, and no write fails for want of room. It is opened when there is room: see makeRoom.
func (c *Compiler) limitBlocks(p *policy) {
	for _, side := range p.read.sides {
		for _, r := range side.rules {
			if r.peers != nil {
				p.blocks += len(edges(r.peers.blocks))
			}
		}
	}
	left := c.blocksLeft(p)
	if p.blocks == 0 || p.blocks <= left {
		return
	}
	whole := *p.read
	p.crowded = &whole
	p.problems = append(slices.Clip(p.problems), Problem{Policy: p.ref, Reason: fmt.Sprintf(
		"it names %d blocks, and %d are left of those that the policies of one namespace, or all, may name: it denies all until others, or it, name fewer; --%s makes the tables larger", p.blocks, max(left, 0), bpf.FlagMaxPolicyPeers)})
	p.wants, p.blocks = p.blocks, 0
	read := whole
	for d := range read.sides {
		side := &read.sides[d]
		if len(side.rules) == 0 {
			continue
		}
		side.rules, side.crowded = nil, true
		if !side.isolates {
			side.rules = []parsedRule{{index: bpf.PolicyNoRoom, action: deny}}
		}
	}
	p.read = &read
}

// blocksLeft is how many blocks a policy may name.
func (c *Compiler) blocksLeft(p *policy) int {
	return min(c.options.MaxPeers/2-*c.blocksOf(p), c.options.MaxPeers/4*3-c.allBlocks)
}

// blocksOf is how many blocks the policies of a policy's namespace name, or those of the cluster.
func (c *Compiler) blocksOf(p *policy) *int {
	if p.ref.Namespace == "" {
		return &c.clusterBlocks
	}
	return &c.namespace(p.ref.Namespace).blocks
}

// countBlocks adds the blocks that a policy names, or takes them away.
func (c *Compiler) countBlocks(p *policy, by int) {
	c.allBlocks += by * p.blocks
	*c.blocksOf(p) += by * p.blocks
}

// makeRoom opens policies that were closed because of their blocks and that fit by now, in the order of their names.
func (c *Compiler) makeRoom() {
	for _, key := range slices.SortedFunc(maps.Keys(c.crowded), policyKey.compare) {
		if p := c.crowded[key]; p.wants <= c.blocksLeft(p) {
			c.applyPolicy(key, newPolicy(p.ref, p.shadow, p.crowded))
		}
	}
}
