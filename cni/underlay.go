package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Underlay is what a node's own links are like.
type Underlay struct {
	Uplinks []int // indices of the interfaces that lead to other nodes and to the outside, sorted; lo is none
	MTU     int   // of packets of pods, to wherever they go

	mtu     int // the smallest of the uplinks
	onLinks []onLink
	missing []netip.Addr // addresses of the node that no interface has
}

// defaultMTU is taken for an address that is on lo: it is reached by whatever the routing says.
const defaultMTU = 1500

// readUnderlay looks for the interfaces that have the node's addresses, and those that are uplinks by name, as far as there are any.
func readUnderlay(addrs []netip.Addr, names []string) (Underlay, error) {
	u := Underlay{missing: slices.Clone(addrs)}
	list, err := Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return u, fmt.Errorf("cni: addresses: %w", err)
	}
	found := map[int]bool{}
	for _, a := range list {
		if i := slices.Index(u.missing, toAddr(a.IP)); i >= 0 {
			u.missing = slices.Delete(u.missing, i, i+1)
			found[a.LinkIndex] = true
		}
	}
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue // it may come
		}
		if err != nil {
			return u, fmt.Errorf("cni: uplink %s: %w", name, err)
		}
		found[l.Attrs().Index] = true
	}
	for index := range found {
		l, err := netlink.LinkByIndex(index)
		if err != nil {
			return u, fmt.Errorf("cni: uplink %d: %w", index, err)
		}
		mtu := l.Attrs().MTU
		if l.Attrs().RawFlags&unix.IFF_LOOPBACK != 0 {
			mtu = defaultMTU
		} else {
			u.Uplinks = append(u.Uplinks, index)
		}
		if u.mtu == 0 || mtu < u.mtu {
			u.mtu = mtu
		}
	}
	slices.Sort(u.Uplinks)
	for _, a := range list {
		p := netPrefix(a.IPNet)
		if a.Peer != nil {
			p = netPrefix(a.Peer)
		}
		if slices.Contains(u.Uplinks, a.LinkIndex) && p.IsValid() && !p.Addr().IsLinkLocalUnicast() {
			u.onLinks = append(u.onLinks, onLink{p.Masked(), a.LinkIndex})
		}
	}
	return u, nil
}

// pathMTU is that of packets to other nodes, by that of the uplinks; over6 tells of tunnels to some over IPv6.
func pathMTU(uplink int, routing Routing, addrs []netip.Addr, over6 bool) int {
	if routing != VXLAN {
		return uplink
	}
	if _, has4 := ofFamily(addrs, true); !has4 || over6 {
		return uplink - overhead6
	}
	return uplink - overhead4
}

func (u Underlay) equal(o Underlay) bool {
	return u.mtu == o.mtu && slices.Equal(u.Uplinks, o.Uplinks) && slices.Equal(u.onLinks, o.onLinks) && slices.Equal(u.missing, o.missing)
}

// withoutMissing are routes without sources that no interface has: the kernel takes none with it, and the source is whatever there is.
func (u Underlay) withoutMissing(routes []nodeRoute) []nodeRoute {
	for i, r := range routes {
		if slices.Contains(u.missing, r.Src) {
			routes[i].Src = netip.Addr{}
		}
	}
	return routes
}
