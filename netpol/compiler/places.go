package compiler

import (
	"iter"
	"net/netip"
	"slices"
)

// places are the blocks of the rules that count, and what is excepted of them: as many as the table of blocks has rows, or more. The longest that
// holds an address tells all blocks that cover it.
type places struct {
	byPrefix map[netip.Prefix]*place
	lengths  [2][129]int // how many have that length, of IPv4 and IPv6
	// addrs are the known addresses by ranges of 256, so that those within a place are found.
	addrs map[netip.Prefix]map[*address]struct{}
}

// place is a range of addresses that an end of a block makes one of its own.
type place struct {
	prefix   netip.Prefix
	uses     int // how many blocks begin or end with it
	cover    *cover
	identity *identity // of an address that is in it and has nothing else
}

// cover is a set of atoms whose blocks cover the same addresses. It does not change.
type cover struct{ atoms []*atom }

var nothing = &cover{}

func newPlaces() *places {
	return &places{byPrefix: map[netip.Prefix]*place{}, addrs: map[netip.Prefix]map[*address]struct{}{}}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// neighbourhood is the range of 256 addresses of an address.
func neighbourhood(a netip.Addr) netip.Prefix {
	p, _ := a.Prefix(a.BitLen() - 8)
	return p
}

func (p *places) add(a *address) {
	n := neighbourhood(a.addr)
	if p.addrs[n] == nil {
		p.addrs[n] = map[*address]struct{}{}
	}
	p.addrs[n][a] = struct{}{}
}

func (p *places) remove(a *address) {
	n := neighbourhood(a.addr)
	delete(p.addrs[n], a)
	if len(p.addrs[n]) == 0 {
		delete(p.addrs, n)
	}
}

// within calls f with all known addresses in a range.
func (p *places) within(r netip.Prefix, f func(*address)) {
	if r.Bits() >= r.Addr().BitLen()-8 {
		for a := range p.addrs[neighbourhood(r.Addr())] {
			if r.Contains(a.addr) {
				f(a)
			}
		}
		return
	}
	for n, addrs := range p.addrs {
		if r.Contains(n.Addr()) {
			for a := range addrs {
				f(a)
			}
		}
	}
}

// at finds the longest place of at most so many bits that holds an address; nil: none does.
func (p *places) at(a netip.Addr, bits int) *place {
	lengths := &p.lengths[family(a)]
	for ; bits >= 0; bits-- {
		if lengths[bits] == 0 {
			continue
		}
		prefix, _ := a.Prefix(bits)
		if found := p.byPrefix[prefix]; found != nil {
			return found
		}
	}
	return nil
}

// coverOf tells what covers an address.
func (p *places) coverOf(a netip.Addr) *cover {
	if at := p.at(a, a.BitLen()); at != nil {
		return at.cover
	}
	return nothing
}

// edges are the prefixes at which an atom's blocks begin or end.
func edges(blocks []block) []netip.Prefix {
	var out []netip.Prefix
	for _, b := range blocks {
		out = append(out, b.cidr)
		out = append(out, b.except...)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// cover makes an atom's blocks count, and gives the places that are new or covered otherwise than before.
func (p *places) cover(a *atom) []*place {
	ends := edges(a.blocks)
	touched := map[*place]struct{}{}
	for _, e := range ends {
		at := p.byPrefix[e]
		if at == nil {
			at = &place{prefix: e, cover: nothing}
			if above := p.at(e.Addr(), e.Bits()); above != nil {
				at.cover = above.cover
			}
			p.byPrefix[e] = at
			p.lengths[family(e.Addr())][e.Bits()]++
			touched[at] = struct{}{}
		}
		at.uses++
	}
	covers := a.coverer()
	next := map[*cover]*cover{} // places with one cover go on having one
	p.inside(a.blocks, func(at *place) {
		if !covers(at.prefix) {
			return
		}
		if next[at.cover] == nil {
			next[at.cover] = &cover{insertAtom(at.cover.atoms, a)}
		}
		at.cover = next[at.cover]
		touched[at] = struct{}{}
	})
	return sortedPlaces(touched)
}

// uncover is the reverse. Places that it gives with uses 0 are gone.
func (p *places) uncover(a *atom) []*place {
	touched := map[*place]struct{}{}
	next := map[*cover]*cover{}
	p.inside(a.blocks, func(at *place) {
		if !slices.Contains(at.cover.atoms, a) {
			return
		}
		if next[at.cover] == nil {
			next[at.cover] = nothing
			if len(at.cover.atoms) > 1 {
				next[at.cover] = &cover{slices.DeleteFunc(slices.Clone(at.cover.atoms), func(b *atom) bool { return b == a })}
			}
		}
		at.cover = next[at.cover]
		touched[at] = struct{}{}
	})
	for _, e := range edges(a.blocks) {
		at := p.byPrefix[e]
		if at.uses--; at.uses == 0 {
			delete(p.byPrefix, e)
			p.lengths[family(e.Addr())][e.Bits()]--
			touched[at] = struct{}{}
		}
	}
	return sortedPlaces(touched)
}

func sortedPlaces(set map[*place]struct{}) []*place {
	out := make([]*place, 0, len(set))
	for at := range set {
		out = append(out, at)
	}
	slices.SortFunc(out, func(x, y *place) int { return x.prefix.Compare(y.prefix) })
	return out
}

// inside calls f with every place that lies in any of the blocks' ranges, once.
func (p *places) inside(blocks []block, f func(*place)) {
	if len(blocks) == 0 {
		return
	}
	cidrs := newPrefixSet(func(yield func(netip.Prefix) bool) {
		for _, b := range blocks {
			if !yield(b.cidr) {
				return
			}
		}
	})
	for prefix, at := range p.byPrefix {
		if cidrs.holds(prefix) {
			f(at)
		}
	}
}

// prefixSet finds whether a prefix lies in any of many.
type prefixSet struct {
	prefixes map[netip.Prefix]struct{}
	lengths  [2][129]bool
}

func newPrefixSet(of iter.Seq[netip.Prefix]) *prefixSet {
	s := &prefixSet{prefixes: map[netip.Prefix]struct{}{}}
	for p := range of {
		s.prefixes[p] = struct{}{}
		s.lengths[family(p.Addr())][p.Bits()] = true
	}
	return s
}

func (s *prefixSet) holds(p netip.Prefix) bool {
	for bits := p.Bits(); bits >= 0; bits-- {
		if s.lengths[family(p.Addr())][bits] {
			outer, _ := p.Addr().Prefix(bits)
			if _, is := s.prefixes[outer]; is {
				return true
			}
		}
	}
	return false
}

// coverer tells of prefixes whether the atom's blocks cover them: by few looks, however many blocks and exceptions there are.
func (a *atom) coverer() func(netip.Prefix) bool {
	type exceptions []*prefixSet // of each block with a cidr; nil: none
	byCIDR := make(map[netip.Prefix]exceptions, len(a.blocks))
	var lengths [2][129]bool
	for _, b := range a.blocks {
		var except *prefixSet
		if len(b.except) > 0 {
			except = newPrefixSet(slices.Values(b.except))
		}
		byCIDR[b.cidr] = append(byCIDR[b.cidr], except)
		lengths[family(b.cidr.Addr())][b.cidr.Bits()] = true
	}
	return func(p netip.Prefix) bool {
		for bits := p.Bits(); bits >= 0; bits-- {
			if !lengths[family(p.Addr())][bits] {
				continue
			}
			cidr, _ := p.Addr().Prefix(bits)
			for _, except := range byCIDR[cidr] {
				if except == nil || !except.holds(p) {
					return true
				}
			}
		}
		return false
	}
}
