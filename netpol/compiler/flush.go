package compiler

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/strake-io/strake/bpf"
)

// subjectRow is a subject's row in the tables.
type subjectRow struct {
	identity uint32
	sets     [2][2]uint32
	keep     bool
}

func (r subjectRow) of(addr netip.Addr) bpf.PolicySubject {
	return bpf.PolicySubject{
		Addr: addr, Identity: r.identity, Egress: r.sets[0][0], Ingress: r.sets[1][0], ShadowEgress: r.sets[0][1], ShadowIngress: r.sets[1][1], KeepFlows: r.keep,
	}
}

// Flush gives the writes that make the tables what the objects say, one change after the other: each begins where the one before has been applied.
// There are none if nothing has changed. First come changes of pods and nodes, then of namespaces, then of policies: between two of these
// steps the tables say what the objects said meanwhile.
func (c *Compiler) Flush() []bpf.PolicyChange {
	var out []bpf.PolicyChange
	c.tryAgain()
	c.stage(&out)
	c.retry = false
	if len(c.changedNamespaces) > 0 {
		c.applyNamespaces()
		c.stage(&out)
	}
	if len(c.changedPolicies) > 0 {
		for _, key := range slices.SortedFunc(maps.Keys(c.changedPolicies), policyKey.compare) {
			c.applyPolicy(key, c.changedPolicies[key])
		}
		c.makeRoom()
		clear(c.changedPolicies)
		c.stage(&out)
	}
	if c.before != nil {
		out = nil
		for _, change := range c.takeUp() {
			c.emit(&out, change)
		}
	}
	return out
}

// stage makes changes of what was touched since the last one.
func (c *Compiler) stage(out *[]bpf.PolicyChange) {
	var change bpf.PolicyChange
	for k := range c.dirtyKinds {
		c.selectKind(k)
	}
	c.activate()
	c.beginAtoms()
	c.giveAddrs()
	was := map[*kind][]*atom{}
	for k := range c.dirtyKinds {
		if len(k.pods) == 0 {
			delete(c.kinds, k.key)
			delete(k.namespace.kinds, k)
			delete(c.dirtySets, k)
			c.forgetNamespace(k.namespace)
			c.setSets(k, subjectSets{})
			continue
		}
		if atoms := c.kindAtoms(k); !slices.Equal(atoms, k.atoms) {
			if _, relabelled := c.relabelled[k]; relabelled {
				was[k] = k.atoms
			}
			c.setAtoms(k, atoms)
		}
	}
	clear(c.dirtyKinds)
	c.relabel(was)
	flips := map[*kind]subjectSets{}
	for k := range c.dirtySets {
		had := k.sets
		c.setSets(k, c.setsOf(k))
		if k.sets != had {
			flips[k] = had
			c.dirtySubjects(k)
		}
	}
	clear(c.dirtySets)
	c.emit(out, c.settle(&change, flips))
	c.nameAll(&change)
	c.emit(out, change)
	if c.retire() {
		change = bpf.PolicyChange{}
		c.emit(out, c.settle(&change, nil))
		c.emit(out, change)
	}
}

func (c *Compiler) emit(out *[]bpf.PolicyChange, change bpf.PolicyChange) {
	sortChange(&change)
	if len(change.Names)+len(change.Ports)+len(change.Answers)+len(change.Peers)+len(change.Subjects)+
		len(change.GoneSubjects)+len(change.GonePeers)+len(change.GoneAnswers)+len(change.GonePorts)+len(change.GoneNames) > 0 {
		*out = append(*out, change)
	}
}

// setSets gives a kind other rule sets.
func (c *Compiler) setSets(k *kind, sets subjectSets) {
	for d := range sets {
		for i, s := range sets[d] {
			if s != nil {
				s.refs++
			}
			if was := k.sets[d][i]; was != nil {
				if was.refs--; was.refs == 0 {
					c.idleSets = append(c.idleSets, was)
				}
			}
		}
	}
	k.sets = sets
}

// setAtoms gives a kind other atoms.
func (c *Compiler) setAtoms(k *kind, atoms []*atom) {
	k.atoms = atoms
	k.identities = nil
	for _, p := range k.pods {
		for _, addr := range p.addrs {
			c.dirtyAddrs[c.addrs[addr]] = struct{}{}
		}
	}
}

// dirtySubjects lets the rows of a kind's subjects be looked at.
func (c *Compiler) dirtySubjects(k *kind) {
	for _, p := range k.pods {
		if p.local {
			for _, addr := range p.addrs {
				c.dirtyAddrs[c.addrs[addr]] = struct{}{}
			}
		}
	}
}

// beginAtoms lets atoms count that policies begin to ask for.
func (c *Compiler) beginAtoms() {
	c.finer = len(c.freshAtoms)+len(c.freshNames) > 0
	for _, a := range c.freshAtoms {
		c.selectors.add(a)
		seen := map[*kind]struct{}{}
		for _, s := range a.pods {
			c.eachKind(s, func(k *kind) {
				if c.looksAnew(k) {
					return
				}
				if _, again := seen[k]; !again && s.pods.Matches(k.labels) {
					seen[k] = struct{}{}
					c.setAtoms(k, insertAtom(k.atoms, a))
				}
			})
		}
		if len(a.nodes) > 0 {
			c.nodeAtoms[a] = struct{}{}
			c.dirtyNodes()
		}
		c.touchPlaces(c.places.cover(a))
	}
	c.freshAtoms = c.freshAtoms[:0]
	for _, n := range c.freshNames {
		for _, k := range c.kinds {
			if c.looksAnew(k) {
				continue
			}
			for _, p := range k.ports {
				if p.name == n.name {
					c.setAtoms(k, insertAtom(k.atoms, n.atom(c, p)))
				}
			}
		}
	}
	c.freshNames = c.freshNames[:0]
}

// looksAnew tells whether all atoms of a kind are looked for later in this stage. For those that have lost their pods they are not: see refined.
func (c *Compiler) looksAnew(k *kind) bool {
	_, dirty := c.dirtyKinds[k]
	return dirty && len(k.pods) > 0
}

// eachKind calls f with the kinds of all namespaces that a selector selects.
func (c *Compiler) eachKind(s podSelector, f func(*kind)) {
	if s.namespaces == nil {
		if n := c.namespaces[s.namespace]; n != nil {
			for k := range n.kinds {
				f(k)
			}
		}
		return
	}
	for _, n := range c.namespaces {
		if s.namespaces.Matches(n.labels) {
			for k := range n.kinds {
				f(k)
			}
		}
	}
}

func (c *Compiler) dirtyNodes() {
	for _, n := range c.nodes {
		for _, addr := range n.addrs {
			c.dirtyAddrs[c.addrs[addr]] = struct{}{}
		}
	}
}

// touchPlaces lets be looked at what lies in places that are new, gone, or covered otherwise.
func (c *Compiler) touchPlaces(touched []*place) {
	for _, at := range touched {
		c.dirtyPlaces[at.prefix] = at
		c.places.within(at.prefix, func(a *address) { c.dirtyAddrs[a] = struct{}{} })
	}
}

// retire lets atoms go that nobody asks for any more, and what relabelled kinds were before; it tells whether there was any. It comes after the rule
// sets that asked for them are gone.
func (c *Compiler) retire() bool {
	any := false
	for _, a := range c.idleAtoms {
		if a.uses > 0 || !a.active {
			continue
		}
		any = true
		a.active = false
		c.selectors.remove(a)
		c.touchPlaces(c.places.uncover(a))
		if len(a.nodes) > 0 {
			delete(c.nodeAtoms, a)
			c.dirtyNodes()
		}
	}
	for _, n := range c.idleNames {
		if n.uses > 0 || !n.active {
			continue
		}
		any = true
		n.active = false
		for _, a := range n.atoms {
			a.active = false
		}
		delete(c.portNames, n.name)
	}
	c.idleAtoms, c.idleNames = c.idleAtoms[:0], c.idleNames[:0]
	for k := range c.relabelled {
		k.was = nil
		c.setAtoms(k, k.atoms)
	}
	if !any {
		any = len(c.relabelled) > 0
		clear(c.relabelled)
		return any
	}
	clear(c.relabelled)
	for _, k := range c.kinds {
		if slices.ContainsFunc(k.atoms, func(a *atom) bool { return !a.active }) {
			c.setAtoms(k, slices.DeleteFunc(slices.Clone(k.atoms), func(a *atom) bool { return !a.active }))
		}
	}
	return true
}

// settle gives what was touched its identities and rows. flips are the kinds with other rule sets, and those that they had. It returns what is to be written before.
func (c *Compiler) settle(change *bpf.PolicyChange, flips map[*kind]subjectSets) bpf.PolicyChange {
	prefixes := map[netip.Prefix]struct{}{}
	if len(c.dirtyPlaces) > 0 {
		touched := newPrefixSet(maps.Keys(c.dirtyPlaces))
		for prefix := range c.places.byPrefix { // what they stand in has changed
			if touched.holds(prefix) {
				prefixes[prefix] = struct{}{}
			}
		}
	}
	for prefix, at := range c.dirtyPlaces {
		prefixes[prefix] = struct{}{}
		was := at.identity
		if at.uses > 0 {
			at.identity = c.identity(at.cover.atoms, nil)
			c.take(at.identity)
		} else {
			at.identity = nil
		}
		c.drop(was)
	}
	clear(c.dirtyPlaces)
	refined := c.refined()
	subjects := make([]*address, 0, len(c.dirtyAddrs))
	for a := range c.dirtyAddrs {
		prefixes[netip.PrefixFrom(a.addr, a.addr.BitLen())] = struct{}{}
		was := a.identity
		a.kind = nil
		if len(a.pods)+len(a.nodes) > 0 {
			a.identity = c.identify(a)
			c.take(a.identity)
			if p := a.owner(); p != nil {
				a.kind = p.kind
			}
		} else {
			a.identity = nil
			delete(c.addrs, a.addr)
			c.places.remove(a)
		}
		c.drop(was)
		if a.subject != nil || c.isSubject(a.owner()) {
			subjects = append(subjects, a)
		}
	}
	slices.SortFunc(subjects, func(a, b *address) int { return a.addr.Compare(b.addr) })
	c.answerAll(change)
	first := c.evict() // before what is in between: that is made of the rule sets that pods have then
	between := c.between(flips, change)
	for prefix := range prefixes {
		want, needed := c.peerRow(prefix)
		have, there := c.peers[prefix]
		switch {
		case needed && (!there || have != want):
			c.peers[prefix] = want
			change.Peers = append(change.Peers, bpf.PolicyPeer{Prefix: prefix, Identity: want})
		case !needed && there:
			delete(c.peers, prefix)
			change.GonePeers = append(change.GonePeers, prefix)
		}
	}
	for _, a := range subjects { // until they have a row of their own, as what their namespace's labels make of them
		prefix := netip.PrefixFrom(a.addr, a.addr.BitLen())
		if _, moved := c.movedAddrs[a]; a.subject == nil && !moved && c.places.byPrefix[prefix] == nil {
			change.Peers = append(change.Peers, bpf.PolicyPeer{Prefix: prefix, Identity: a.identity.number})
			if !slices.Contains(change.GonePeers, prefix) {
				change.GonePeers = append(change.GonePeers, prefix)
			}
		}
	}
	slices.SortFunc(change.Peers, func(a, b bpf.PolicyPeer) int { return comparePrefixes(a.Prefix, b.Prefix) })
	slices.SortFunc(change.GonePeers, comparePrefixes)
	write := func(a *address, row subjectRow) {
		if *a.subject != row {
			change.Subjects = append(change.Subjects, row.of(a.addr))
			*a.subject = row
		}
	}
	// The finer identities of those that others' new rule sets will ask for: the old ones say the same of them.
	for _, a := range subjects {
		if a.subject == nil {
			continue
		}
		row := *a.subject
		if id := refined[a]; id != nil {
			row.identity = id.number
		} else if _, moved := c.movedAddrs[a]; !moved {
			row.identity = a.identity.number
		}
		write(a, row)
	}
	// What both states allow, then what the new one does.
	if between != nil {
		for _, a := range subjects {
			if sets, flips := between[a.kind]; flips && a.subject != nil {
				row := *a.subject
				row.sets[0][0], row.sets[1][0] = number(sets[0]), number(sets[1])
				write(a, row)
			}
		}
	}
	for _, a := range subjects {
		row := c.subjectRow(a)
		switch {
		case row == nil:
			change.GoneSubjects = append(change.GoneSubjects, a.addr)
			a.subject = nil
			continue
		case a.subject == nil:
			change.Subjects = append(change.Subjects, row.of(a.addr))
			a.subject = row
		case a.of != a.owner().uid:
			change.Reborn = append(change.Reborn, a.addr)
			change.Subjects = append(change.Subjects, row.of(a.addr))
			a.subject = row
		default:
			write(a, *row)
		}
		a.of = a.owner().uid
	}
	if len(c.dirtyAddrs) > 1024 { // a map keeps the room that it once took
		c.dirtyAddrs, c.movedAddrs = map[*address]struct{}{}, map[*address]struct{}{}
	}
	clear(c.dirtyAddrs)
	clear(c.movedAddrs)
	for _, id := range refined {
		c.drop(id)
	}
	c.sweep(change)
	return first
}

// isSubject tells whether a pod has rows of its own. On a node it has none while its namespace's labels are not known: it is closed.
func (c *Compiler) isSubject(p *pod) bool {
	return p != nil && p.local && (p.kind.namespace.known || c.options.NodeName == "")
}

// subjectRow is the row that a subject's address wants; nil: none.
func (c *Compiler) subjectRow(a *address) *subjectRow {
	p := a.owner()
	if !c.isSubject(p) {
		return nil
	}
	row := &subjectRow{identity: a.identity.number, sets: p.kind.sets.numbers(), keep: c.options.KeepFlows}
	said := p.keep
	if said == keepUnsaid {
		said = p.kind.namespace.keep
	}
	if said != keepUnsaid {
		row.keep = said == keepYes
	}
	return row
}

// peerRow is the row that a range of addresses wants: none if what it stands in says the same already.
func (c *Compiler) peerRow(prefix netip.Prefix) (number uint32, needed bool) {
	var id *identity
	if at := c.places.byPrefix[prefix]; at != nil {
		id = at.identity
	}
	if prefix.IsSingleIP() {
		if a := c.addrs[prefix.Addr()]; a != nil {
			if !c.isSubject(a.owner()) {
				id = a.identity
			}
		}
	}
	if id == nil {
		return 0, false
	}
	outer := c.stranger
	if at := c.places.at(prefix.Addr(), prefix.Bits()-1); at != nil {
		outer = at.identity
	}
	return id.number, id != outer
}

// nameAll gives policies that judge somebody a name in the tables, and takes those of others back.
func (c *Compiler) nameAll(change *bpf.PolicyChange) {
	wanted := map[uint32]*policy{}
	for p := range c.renamed {
		if p.active && c.policies[policyKey{p.ref.Namespace, p.ref.Name}] == p {
			wanted[p.number] = p
		} else if _, is := wanted[p.number]; !is {
			wanted[p.number] = nil
		}
	}
	clear(c.renamed)
	for _, number := range slices.Sorted(maps.Keys(wanted)) {
		p := wanted[number]
		have, there := c.names[number]
		switch {
		case p == nil && there:
			delete(c.names, number)
			change.GoneNames = append(change.GoneNames, number)
		case p != nil:
			name := bpf.PolicyName{Policy: number, UID: string(p.ref.UID), Kind: p.ref.Kind, Namespace: p.ref.Namespace, Name: p.ref.Name}
			if !there || have != name {
				c.names[number] = name
				change.Names = append(change.Names, name)
			}
		}
	}
}
