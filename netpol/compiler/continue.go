package compiler

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// before is what the tables held when a compiler began.
type before struct {
	rows     bpf.PolicyRows
	policies map[bpf.PolicyName]uint32 // by all but the number
	lists    map[string]uint32         // by what they say
}

// Continue takes what the tables hold already, from an agent before. It comes before the first Flush, which then gives one change that makes these rows what the
// objects say: rows whose content is still right keep their numbers and are not written again.
func (c *Compiler) Continue(rows bpf.PolicyRows) {
	b := &before{rows: rows, policies: map[bpf.PolicyName]uint32{}, lists: map[string]uint32{}}
	for _, n := range rows.Names {
		c.lastPolicy = max(c.lastPolicy, n.Policy)
		number := n.Policy
		n.Policy = 0
		b.policies[n] = number
	}
	for list, ports := range byList(rows.Ports) {
		c.lastList = max(c.lastList, list)
		b.lists[portsKey(ports)] = list
	}
	for _, r := range rows.Ports {
		c.lastPolicy = max(c.lastPolicy, r.Verdict.Policy)
	}
	for _, a := range rows.Answers {
		c.lastSet, c.lastIdentity = max(c.lastSet, a.RuleSet), max(c.lastIdentity, a.Identity)
	}
	for _, p := range rows.Peers {
		c.lastIdentity = max(c.lastIdentity, p.Identity)
	}
	for _, s := range rows.Subjects {
		c.lastIdentity = max(c.lastIdentity, s.Identity)
		c.lastSet = max(c.lastSet, s.Ingress, s.Egress, s.ShadowIngress, s.ShadowEgress)
	}
	c.before = b
}

func byList(rows []bpf.PolicyPort) map[uint32][]bpf.PolicyPort {
	out := map[uint32][]bpf.PolicyPort{}
	for _, r := range rows {
		out[r.Ports] = append(out[r.Ports], r)
	}
	return out
}

func (c *Compiler) policyNumber(ref netpol.PolicyRef) uint32 {
	if c.before != nil {
		if n := c.before.policies[bpf.PolicyName{UID: string(ref.UID), Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name}]; n != 0 {
			return n
		}
	}
	c.lastPolicy++
	return c.lastPolicy
}

func (c *Compiler) listNumber(key string) uint32 {
	if c.before != nil {
		if n := c.before.lists[key]; n != 0 {
			return n
		}
	}
	c.lastList++
	return c.lastList
}

// takeUp gives identities and rule sets the numbers that they had before, and returns the change from the rows before.
func (c *Compiler) takeUp() bpf.PolicyChange {
	old := c.before
	c.before = nil
	tables := Interpret(old.rows)
	known := map[uint32]bool{}
	for _, p := range old.rows.Peers {
		known[p.Identity] = true
	}
	for _, s := range old.rows.Subjects {
		known[s.Identity] = true
	}
	c.takeUpIdentities(tables)
	c.takeUpSets(tables, known)
	return difference(old.rows, c.Rows())
}

// takeUpIdentities: an identity gets the number that most of its members had, unless another one has more of them.
func (c *Compiler) takeUpIdentities(tables *Tables) {
	members := map[*identity]map[uint32]int{}
	add := func(id *identity, had uint32) {
		if id == nil || id == c.stranger {
			return
		}
		if members[id] == nil {
			members[id] = map[uint32]int{}
		}
		members[id][had]++
	}
	for _, a := range c.addrs {
		add(a.identity, tables.identity(a.addr))
	}
	for prefix, at := range c.places.byPrefix {
		if a := c.addrs[prefix.Addr()]; prefix.IsSingleIP() && a != nil && a.subject == nil {
			continue // the row is the address'
		}
		add(at.identity, tables.blockIdentity(prefix))
	}
	type vote struct {
		id     *identity
		number uint32
		count  int
	}
	var votes []vote
	for id, numbers := range members {
		for number, count := range numbers {
			if number != 0 {
				votes = append(votes, vote{id, number, count})
			}
		}
	}
	slices.SortFunc(votes, func(a, b vote) int {
		return cmp.Or(cmp.Compare(b.count, a.count), cmp.Compare(a.number, b.number), cmp.Compare(a.id.number, b.id.number))
	})
	taken, given := map[uint32]bool{}, map[*identity]bool{}
	for _, v := range votes {
		if !taken[v.number] && !given[v.id] {
			taken[v.number], given[v.id] = true, true
			v.id.number = v.number
		}
	}
}

// takeUpSets: a rule set gets the number of one that says the same of all identities: of that which its subjects had, if it does.
func (c *Compiler) takeUpSets(tables *Tables, known map[uint32]bool) {
	had := map[*ruleSet]uint32{}
	for _, a := range c.addrs {
		row, there := tables.subjects[a.addr]
		if a.subject == nil || !there {
			continue
		}
		numbers := [2][2]uint32{{row.Egress, row.ShadowEgress}, {row.Ingress, row.ShadowIngress}}
		sets := a.owner().kind.sets
		for d := range sets {
			for i, s := range sets[d] {
				if s != nil && had[s] == 0 {
					had[s] = numbers[d][i]
				}
			}
		}
	}
	byBase := map[uint32][]uint32{} // sets by their list for everybody
	for key, list := range tables.answers {
		if key.identity == 0 {
			byBase[list] = append(byBase[list], key.set)
		}
	}
	taken := map[uint32]bool{}
	try := func(s *ruleSet, number uint32) bool {
		if number == 0 || taken[number] || !c.saysTheSame(s, number, tables, known) {
			return false
		}
		taken[number] = true
		s.number = number
		return true
	}
	sets := slices.SortedFunc(maps.Values(c.sets), func(a, b *ruleSet) int { return cmp.Compare(a.number, b.number) })
	sets = slices.DeleteFunc(sets, func(s *ruleSet) bool { return try(s, had[s]) })
	for _, s := range sets {
		numbers := byBase[s.base.number]
		slices.Sort(numbers)
		for _, n := range numbers {
			if try(s, n) {
				break
			}
		}
	}
	for _, a := range c.addrs {
		if a.subject != nil {
			a.subject = c.subjectRow(a)
		}
	}
	for prefix := range c.peers {
		c.peers[prefix], _ = c.peerRow(prefix)
	}
}

// saysTheSame tells whether a rule set of the tables answers as a set does: for every identity that the tables know, and that there still is.
func (c *Compiler) saysTheSame(s *ruleSet, number uint32, tables *Tables, known map[uint32]bool) bool {
	if tables.answers[answerKey{number, 0}] != s.base.number {
		return false
	}
	for _, id := range c.identities {
		want := s.base
		if a := s.answers[id]; a != nil {
			want = a.list
		}
		got, there := tables.answers[answerKey{number, id.number}]
		if !there {
			got = s.base.number
		}
		if got != want.number && (there || known[id.number]) {
			return false
		}
	}
	return true
}

// difference is the change that makes the tables hold other rows.
func difference(old, new bpf.PolicyRows) bpf.PolicyChange {
	var out bpf.PolicyChange
	out.Names, out.GoneNames = differ(old.Names, new.Names, func(n bpf.PolicyName) uint32 { return n.Policy })
	out.Peers, out.GonePeers = differ(old.Peers, new.Peers, func(p bpf.PolicyPeer) netip.Prefix { return p.Prefix })
	out.Subjects, out.GoneSubjects = differ(old.Subjects, new.Subjects, func(s bpf.PolicySubject) netip.Addr { return s.Addr })
	was, now := map[answerKey]uint32{}, map[answerKey]uint32{}
	for _, a := range old.Answers {
		was[answerKey{a.RuleSet, a.Identity}] = a.Ports
	}
	for _, a := range new.Answers {
		now[answerKey{a.RuleSet, a.Identity}] = a.Ports
		if was[answerKey{a.RuleSet, a.Identity}] != a.Ports {
			out.Answers = append(out.Answers, a)
		}
	}
	for _, a := range old.Answers {
		if _, there := now[answerKey{a.RuleSet, a.Identity}]; !there {
			out.GoneAnswers = append(out.GoneAnswers, a)
		}
	}
	oldLists, newLists := byList(old.Ports), byList(new.Ports)
	for number, rows := range newLists {
		if oldLists[number] == nil {
			out.Ports = append(out.Ports, rows...)
		}
	}
	for number := range oldLists {
		if newLists[number] == nil {
			out.GonePorts = append(out.GonePorts, number)
		}
	}
	return out
}

// differ finds what of new is not in old, and the keys of old that are not in new.
func differ[Row comparable, Key comparable](old, new []Row, key func(Row) Key) (changed []Row, gone []Key) {
	was := make(map[Key]Row, len(old))
	for _, r := range old {
		was[key(r)] = r
	}
	for _, r := range new {
		if had, there := was[key(r)]; !there || had != r {
			changed = append(changed, r)
		}
		delete(was, key(r))
	}
	for _, r := range old {
		if _, left := was[key(r)]; left {
			gone = append(gone, key(r))
		}
	}
	return changed, gone
}
