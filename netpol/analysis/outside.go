package analysis

import (
	"cmp"
	"net/netip"
	"slices"
)

// atom is a part of the addresses that no block tells apart: a prefix without those within it.
type atom struct {
	prefix netip.Prefix // of length 0: what no other prefix covers
	sample netip.Addr   // one of its addresses, and no pod's or node's
}

// samples of the world, looked at first: addresses for examples, then one that everybody knows to be far away.
var samples = []netip.Addr{
	netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("192.0.2.1"),
	netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:ffff::1"),
}

// atomsOf takes a family's addresses apart by prefixes. Prefixes none of whose addresses is left, because others within them or
// pods have all, have no atom.
func atomsOf(family int, prefixes map[netip.Prefix]bool, taken map[netip.Addr]bool) []atom {
	root := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if family == 6 {
		root = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	list := []netip.Prefix{root}
	for p := range prefixes {
		if p.Addr().Is4() == (family == 4) && p.Bits() > 0 {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []atom
	next := 0
	var walk func() netip.Addr // takes list[next] with all within it; the address after it, invalid after the last one of all
	walk = func() netip.Addr {
		p := list[next]
		next++
		a := atom{prefix: p}
		at := p.Addr() // from here on nothing within p is covered by another
		begun := next
		for next < len(list) && p.Contains(list[next].Addr()) {
			a.free(at, list[next].Addr(), taken)
			at = walk()
		}
		end := lastOf(p)
		if at.IsValid() && at.Compare(end) <= 0 {
			a.free(at, end.Next(), taken)
		}
		for _, s := range samples {
			if p.Bits() == 0 && a.sample.IsValid() && s.Is4() == p.Addr().Is4() && !taken[s] && !slices.ContainsFunc(list[begun:next], func(q netip.Prefix) bool { return q.Contains(s) }) {
				a.sample = s
				break
			}
		}
		if a.sample.IsValid() {
			out = append(out, a)
		}
		return end.Next()
	}
	walk()
	return out
}

// free looks for a sample from an address on, up to another (invalid: to the last of all).
func (a *atom) free(from, to netip.Addr, taken map[netip.Addr]bool) {
	for ; !a.sample.IsValid() && from.IsValid() && from != to; from = from.Next() {
		if !taken[from] && !from.IsUnspecified() {
			a.sample = from
		}
	}
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b) // of 4 or 16 bytes
	return a
}

// cover are the prefixes that cover an address.
type cover map[int]map[netip.Prefix]bool // by length; of both families

func coverOf(prefixes map[netip.Prefix]bool) cover {
	c := cover{}
	for p := range prefixes {
		if c[p.Bits()] == nil {
			c[p.Bits()] = map[netip.Prefix]bool{}
		}
		c[p.Bits()][p] = true
	}
	return c
}

// of tells which prefixes cover an address, as a key.
func (c cover) of(a netip.Addr) string {
	var out []string
	for bits, list := range c {
		if p, err := a.Prefix(bits); err == nil && list[p] {
			out = append(out, p.String())
		}
	}
	slices.Sort(out)
	key := ""
	for _, p := range out {
		key += p + " "
	}
	return key
}
