package compiler

import "net/netip"

// giveAddrs gives pods without an address one of each family that no block covers but those of length 0. Only offline: there each pod is a subject,
// and subjects are found by their addresses.
func (c *Compiler) giveAddrs() {
	for p := range c.homeless {
		if c.pods[p.uid] != p || p.kind == nil {
			delete(c.homeless, p)
			continue
		}
		if len(p.addrs) == 0 {
			p.addrs = []netip.Addr{c.freeAddr(0), c.freeAddr(1)}
			for _, addr := range p.addrs {
				c.claim(p, addr)
			}
			continue
		}
		for i, addr := range p.addrs {
			if c.narrow(addr) != nil {
				c.unclaim(p, addr)
				p.addrs[i] = c.freeAddr(i)
				c.claim(p, p.addrs[i])
			}
		}
	}
}

// narrow is the place that holds an address, if it is not everything.
func (c *Compiler) narrow(addr netip.Addr) *place {
	if at := c.places.at(addr, addr.BitLen()); at != nil && at.prefix.Bits() > 0 {
		return at
	}
	return nil
}

// freeAddr finds an address that nobody has, and if it can be, that no block covers.
func (c *Compiler) freeAddr(family int) netip.Addr {
	a := c.lastGiven[family]
	for around := 0; ; {
		if a = a.Next(); !a.IsValid() {
			a = [...]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[family]
			around++
		}
		if at := c.narrow(a); at != nil && around < 2 {
			a = last(at.prefix)
			continue
		}
		if c.addrs[a] == nil {
			c.lastGiven[family] = a
			return a
		}
	}
}

// last is the last address of a range.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
