package compiler

import (
	"cmp"
	"encoding/binary"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// atom is what classes are made of: peers of rules, or a number that a name of a port stands for.
type atom struct {
	id     uint32
	key    string // of peers
	refs   int    // rules of the policies that are there
	uses   int    // rules of policies that select subjects
	active bool   // it is in classes

	pods   []podSelector
	nodes  []labels.Selector
	blocks []block

	port *portName // nil: peers
	namedPort

	sets       map[*ruleSet]struct{} // that ask for these peers
	identities map[*identity]struct{}
	mark       uint64 // see ruleSet.canvas
}

// portName is a name of ports that rules ask for on the way out.
type portName struct {
	name   string
	uses   int
	active bool
	atoms  map[namedPort]*atom
	sets   map[*ruleSet]struct{}
}

// asking are the rule sets that tell an atom from others.
func (a *atom) asking() map[*ruleSet]struct{} {
	if a.port != nil {
		return a.port.sets
	}
	return a.sets
}

func compareAtoms(a, b *atom) int { return cmp.Compare(a.id, b.id) }

// insertAtom gives a new slice.
func insertAtom(atoms []*atom, a *atom) []*atom {
	at, found := slices.BinarySearchFunc(atoms, a, compareAtoms)
	if found {
		return atoms
	}
	out := make([]*atom, 0, len(atoms)+1)
	return append(append(append(out, atoms[:at]...), a), atoms[at:]...)
}

// atomOf finds or makes the atom of a rule's peers.
func (c *Compiler) atomOf(p *parsedPeers) *atom {
	key := p.key()
	a := c.atoms[key]
	if a == nil {
		a = c.newAtom()
		a.key, a.nodes, a.blocks = key, p.nodes, p.blocks
		for _, s := range p.pods {
			a.pods = append(a.pods, intern(s))
		}
		c.atoms[key] = a
	}
	return a
}

func (c *Compiler) newAtom() *atom {
	c.lastAtom++
	return &atom{id: c.lastAtom}
}

// add puts something into a set that may not be there yet: most atoms are in policies of other nodes' pods, and have nothing.
func add[T comparable](to *map[T]struct{}, v T) {
	if *to == nil {
		*to = map[T]struct{}{}
	}
	(*to)[v] = struct{}{}
}

// refer counts the rules that name atoms, so that those go that none does.
func (c *Compiler) refer(p *policy, by int) {
	for _, s := range p.sides {
		for i := range s.rules {
			if a := s.rules[i].peers; a != nil {
				if a.refs += by; a.refs == 0 {
					delete(c.atoms, a.key)
				}
			}
		}
	}
}

func (c *Compiler) portName(name string) *portName {
	n := c.portNames[name]
	if n == nil {
		n = &portName{name: name, atoms: map[namedPort]*atom{}, sets: map[*ruleSet]struct{}{}}
		c.portNames[name] = n
	}
	return n
}

func (n *portName) atom(c *Compiler, p namedPort) *atom {
	a := n.atoms[p]
	if a == nil {
		a = c.newAtom()
		a.port, a.namedPort, a.active = n, p, true
		n.atoms[p] = a
	}
	return a
}

// selectorIndex finds the atoms with a selector that may select a kind, by one label of its namespace and one of its pods that the selector wants.
type selectorIndex struct {
	byLabels map[wanted][]selecting
}

type wanted struct{ namespaceKey, namespaceValue, key, value string }

// selecting is one of an atom's selectors.
type selecting struct {
	podSelector
	atom *atom
}

func newSelectorIndex() *selectorIndex {
	return &selectorIndex{byLabels: map[wanted][]selecting{}}
}

// intern gives equal selectors the same parts.
func intern(s podSelector) podSelector {
	s.namespace = word(s.namespace)
	return s
}

const byName = "\x00" // in place of a label's key: the namespace's name

func wantedBy(s podSelector) wanted {
	var w wanted
	if s.namespaces == nil {
		w.namespaceKey, w.namespaceValue = byName, s.namespace
	} else {
		w.namespaceKey, w.namespaceValue = wantedLabel(s.namespaces)
	}
	w.key, w.value = wantedLabel(s.pods)
	return w
}

// wantedLabel is a label that a selector selects nothing without; empty: there is none that has only one value.
func wantedLabel(s labels.Selector) (string, string) {
	requirements, _ := s.Requirements()
	for _, r := range requirements {
		switch r.Operator() {
		case selection.Equals, selection.In:
			if v := r.ValuesUnsorted(); len(v) == 1 {
				return r.Key(), v[0]
			}
		}
	}
	return "", ""
}

func (x *selectorIndex) add(a *atom) {
	for _, s := range a.pods {
		w := wantedBy(s)
		x.byLabels[w] = append(x.byLabels[w], selecting{s, a})
	}
}

func (x *selectorIndex) remove(a *atom) {
	for _, s := range a.pods {
		w := wantedBy(s)
		left := slices.DeleteFunc(x.byLabels[w], func(s selecting) bool { return s.atom == a })
		if len(left) == 0 {
			delete(x.byLabels, w)
		} else {
			x.byLabels[w] = left
		}
	}
}

// atoms are those with a selector that selects a kind, unsorted and maybe more than once.
func (x *selectorIndex) atoms(k *kind) []*atom {
	var out []*atom
	look := func(w wanted) {
		for _, s := range x.byLabels[w] {
			if s.selects(k) {
				out = append(out, s.atom)
			}
		}
	}
	inNamespace := func(key, value string) {
		look(wanted{key, value, "", ""})
		for _, l := range k.labels {
			look(wanted{key, value, l.key, l.value})
		}
	}
	inNamespace(byName, k.namespace.name)
	inNamespace("", "")
	for _, l := range k.namespace.labels {
		inNamespace(l.key, l.value)
	}
	return out
}

// identity is a class of addresses: those with the same atoms.
type identity struct {
	number uint32
	key    string
	atoms  []*atom // by number
	// was is what the rule sets of generations before take for its atoms; nil: the same.
	was  []*atom
	refs int // addresses and places
	gone bool
}

// to are the identity's atoms as a rule set sees it.
func (id *identity) to(s *ruleSet, c *Compiler) []*atom {
	if id.was != nil && s.generation < c.generation {
		return id.was
	}
	return id.atoms
}

// all are the atoms that any rule set sees.
func (id *identity) all() []*atom { return union(id.atoms, id.was) }

func identityKey(atoms, was []*atom) string {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 4+4*len(atoms)), uint32(len(atoms)))
	for _, a := range atoms {
		b = binary.BigEndian.AppendUint32(b, a.id)
	}
	if was != nil {
		b = append(b, 0)
		for _, a := range was {
			b = binary.BigEndian.AppendUint32(b, a.id)
		}
	}
	return string(b)
}

// identity finds or makes the identity of sets of atoms, which are sorted. was is nil where it is the same.
func (c *Compiler) identity(atoms, was []*atom) *identity {
	if len(atoms) == 0 && was == nil {
		return c.stranger
	}
	key := identityKey(atoms, was)
	id := c.identities[key]
	if id == nil {
		c.lastIdentity++
		id = &identity{number: c.lastIdentity, key: key, atoms: atoms, was: was}
		for _, a := range id.all() {
			add(&a.identities, id)
		}
		c.identities[key] = id
		c.freshIdentities = append(c.freshIdentities, id)
	}
	return id
}

// take and drop count who has an identity.
func (c *Compiler) take(id *identity) {
	if id != nil {
		id.refs++
	}
}

func (c *Compiler) drop(id *identity) {
	if id != nil && id != c.stranger {
		if id.refs--; id.refs == 0 {
			c.idleIdentities = append(c.idleIdentities, id)
		}
	}
}

// identify tells the identity of an address that somebody has.
func (c *Compiler) identify(a *address) *identity {
	by := c.places.coverOf(a.addr)
	var k *kind
	if owner := a.owner(); owner != nil {
		k = owner.kind
	}
	if len(a.nodes) == 0 && k != nil {
		at := slices.IndexFunc(k.identities, func(had covered) bool { return had.by == by })
		if at >= 0 && !k.identities[at].identity.gone {
			return k.identities[at].identity
		}
		id := c.kindIdentity(k, by.atoms)
		if at >= 0 {
			k.identities[at].identity = id
		} else {
			k.identities = append(k.identities, covered{by, id})
		}
		return id
	}
	atoms := by.atoms
	for n := range c.nodeAtoms {
		if slices.ContainsFunc(n.nodes, func(s labels.Selector) bool {
			return slices.ContainsFunc(a.nodes, func(n *node) bool { return s.Matches(n.labels) })
		}) {
			atoms = insertAtom(atoms, n)
		}
	}
	if k != nil {
		return c.kindIdentity(k, atoms)
	}
	return c.identity(atoms, nil)
}

// kindIdentity is that of an address of a kind which has other atoms besides.
func (c *Compiler) kindIdentity(k *kind, covered []*atom) *identity {
	atoms := union(k.atoms, covered)
	if k.was == nil {
		return c.identity(atoms, nil)
	}
	was := union(k.was, covered)
	if slices.Equal(was, atoms) {
		was = nil
	} else if was == nil {
		was = []*atom{}
	}
	return c.identity(atoms, was)
}

// union is that of two sorted sets.
func union(a, b []*atom) []*atom {
	if len(a) == 0 {
		return b
	}
	if len(b) == 0 {
		return a
	}
	out := append(slices.Clone(a), b...)
	slices.SortFunc(out, compareAtoms)
	return slices.Compact(out)
}

// kindAtoms tells the atoms of a kind.
func (c *Compiler) kindAtoms(k *kind) []*atom {
	out := c.selectors.atoms(k)
	for _, p := range k.ports {
		if n := c.portNames[p.name]; n != nil && n.active {
			out = append(out, n.atom(c, p))
		}
	}
	slices.SortFunc(out, compareAtoms)
	return slices.Clip(slices.Compact(out))
}
