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

// Continue takes what the tables hold already, from an agent before. It comes before the first Flush, which then gives the changes that make these rows what the
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

// takeUp gives identities and rule sets the numbers that they had before, and returns the changes from the rows before.
func (c *Compiler) takeUp() []bpf.PolicyChange {
	old := c.before
	c.before = nil
	tables := Interpret(old.rows)
	c.takeUpIdentities(tables)
	c.renumber()
	c.takeUpSets(tables, pairs(old.rows, tables, c.Rows()))
	c.renumber()
	return c.steps(old.rows, tables)
}

// renumber makes the rows have the numbers that identities and rule sets have.
func (c *Compiler) renumber() {
	for _, a := range c.addrs {
		if a.subject != nil {
			a.subject = c.subjectRow(a)
		}
	}
	for prefix := range c.peers {
		c.peers[prefix], _ = c.peerRow(prefix)
	}
}

// pair is who somebody was, and who it is.
type pair struct{ was, is uint32 }

// pairs are all that there are.
func pairs(old bpf.PolicyRows, before *Tables, rows bpf.PolicyRows) map[pair]struct{} {
	now := Interpret(rows)
	out := map[pair]struct{}{{}: {}}
	for _, peers := range [][]bpf.PolicyPeer{old.Peers, rows.Peers} {
		for _, p := range peers {
			out[pair{before.blockIdentity(p.Prefix), now.blockIdentity(p.Prefix)}] = struct{}{}
		}
	}
	for _, subjects := range [][]bpf.PolicySubject{old.Subjects, rows.Subjects} {
		for _, s := range subjects {
			out[pair{before.identity(s.Addr), now.identity(s.Addr)}] = struct{}{}
		}
	}
	return out
}

// steps are the changes from rows of before to those of now. Who is of another identity than before has one in between that is both: to rule sets that
// go it is what it was, to those of now what it is. So the old ones judge as they did until the last pod has a new one.
func (c *Compiler) steps(old bpf.PolicyRows, before *Tables) []bpf.PolicyChange {
	rows := c.Rows()
	if len(old.Subjects) == 0 { // nobody was judged
		return []bpf.PolicyChange{difference(old, rows)}
	}
	now := Interpret(rows)
	both := map[pair]uint32{}
	between := func(was, is uint32) uint32 {
		if was == is {
			return is
		}
		if both[pair{was, is}] == 0 {
			c.lastIdentity++
			both[pair{was, is}] = c.lastIdentity
		}
		return both[pair{was, is}]
	}
	mid := bpf.PolicyRows{Names: merge(rows.Names, old.Names, func(n bpf.PolicyName) uint32 { return n.Policy })}
	ranges := merge(rows.Peers, old.Peers, func(p bpf.PolicyPeer) netip.Prefix { return p.Prefix })
	becomes := map[netip.Prefix]bool{}
	for _, s := range rows.Subjects { // who becomes a subject is a peer until then
		if _, is := before.subjects[s.Addr]; !is {
			p := bpf.PolicyPeer{Prefix: netip.PrefixFrom(s.Addr, s.Addr.BitLen()), Identity: between(before.identity(s.Addr), s.Identity)}
			mid.Peers = append(mid.Peers, p)
			becomes[p.Prefix] = true
		}
	}
	for _, p := range ranges {
		if becomes[p.Prefix] {
			continue
		}
		p.Identity = between(before.blockIdentity(p.Prefix), now.blockIdentity(p.Prefix))
		mid.Peers = append(mid.Peers, p)
	}
	var finer []bpf.PolicySubject
	for _, s := range merge(rows.Subjects, old.Subjects, func(s bpf.PolicySubject) netip.Addr { return s.Addr }) {
		s.Identity = between(before.identity(s.Addr), now.identity(s.Addr))
		mid.Subjects = append(mid.Subjects, s)
		if was, is := before.subjects[s.Addr]; is && was.Identity != s.Identity {
			was.Identity = s.Identity
			finer = append(finer, was)
		}
	}
	sets := map[uint32]*Tables{}
	for key := range before.answers {
		sets[key.set] = before
	}
	for key := range now.answers {
		sets[key.set] = now
	}
	if len(both) == 0 || len(both)*len(sets) > c.options.MaxRules/4 { // no need, or no room
		return []bpf.PolicyChange{difference(old, rows)}
	}
	mid.Ports = merge(rows.Ports, old.Ports, func(p bpf.PolicyPort) portKey { return portKey{p.Ports, p.Protocol, p.Port, p.Bits} })
	mid.Answers = merge(rows.Answers, old.Answers, func(a bpf.PolicyAnswer) answerKey { return answerKey{a.RuleSet, a.Identity} })
	for set, tables := range sets {
		for who, number := range both {
			identity := who.is
			if tables == before {
				identity = who.was
			}
			if list, own := tables.answers[answerKey{set, identity}]; own && identity != 0 {
				mid.Answers = append(mid.Answers, bpf.PolicyAnswer{RuleSet: set, Identity: number, Ports: list})
			}
		}
	}
	first := difference(old, mid)
	first.Subjects = append(finer, first.Subjects...)
	return []bpf.PolicyChange{first, difference(mid, rows)}
}

// merge has all rows of the first, and those of the second with other keys.
func merge[Row any, Key comparable](first, second []Row, key func(Row) Key) []Row {
	there := make(map[Key]bool, len(first))
	for _, r := range first {
		there[key(r)] = true
	}
	out := slices.Clone(first)
	for _, r := range second {
		if !there[key(r)] {
			out = append(out, r)
		}
	}
	return out
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
func (c *Compiler) takeUpSets(tables *Tables, pairs map[pair]struct{}) {
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
		if number == 0 || taken[number] || !c.saysTheSame(s, number, tables, pairs) {
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
}

// saysTheSame tells whether a rule set of the tables says of everybody, as who it was, what a set says of it as who it is.
func (c *Compiler) saysTheSame(s *ruleSet, number uint32, tables *Tables, pairs map[pair]struct{}) bool {
	says := make(map[uint32]uint32, len(s.answers))
	for id, a := range s.answers {
		says[id.number] = a.list.number
	}
	base, there := tables.answers[answerKey{number, 0}]
	if !there {
		return false
	}
	for p := range pairs {
		want, own := says[p.is]
		if !own {
			want = s.base.number
		}
		got, own := tables.answers[answerKey{number, p.was}]
		if !own {
			got = base
		}
		if got != want {
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
