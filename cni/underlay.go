package cni

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Underlay is what a node's own links are like.
type Underlay struct {
	Uplinks []int // indices of the interfaces that lead to other nodes and to the outside, sorted; lo is none
	MTU     int   // of packets of pods, to wherever they go
	// Others are the links that lead out of the cluster and have none of the node's addresses, by index, with their own: the first of each family.
	// Pods' packets leave by them with these, and Services are served there as at the uplinks.
	Others map[int][]netip.Addr

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
	u.Others, err = otherLinks(list, found)
	return u, err
}

// outward are the kinds of links that lead away from the machine; hardware has none. What else has an address leads to containers and machines on this
// one (bridge, veth, tun), is a way of its own to other nodes (vxlan), or has no MAC addresses. Who is behind such a link and knows no way to pods can
// be given one here.
var outward = []string{"device", "bond", "team", "vlan", "macvlan"}

// otherLinks are the links that lead out of the cluster, without those that are uplinks anyway.
func otherLinks(addrs []netlink.Addr, uplinks map[int]bool) (map[int][]netip.Addr, error) {
	links, err := Whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("cni: links: %w", err)
	}
	out := map[int][]netip.Addr{}
	for _, l := range links {
		at := l.Attrs()
		if uplinks[at.Index] || at.RawFlags&unix.IFF_LOOPBACK != 0 || at.EncapType != "ether" || !slices.Contains(outward, l.Type()) {
			continue
		}
		var own []netip.Addr
		for _, a := range addrs {
			ip := toAddr(a.IP)
			if _, has := ofFamily(own, ip.Is4()); a.LinkIndex == at.Index && !has && leavesAs(a) {
				own = append(own, ip)
			}
		}
		if len(own) > 0 {
			out[at.Index] = own
		}
	}
	return out, nil
}

// leavesAs tells whether an address is one to send from: of more than the link, in use, and not one of those that soon change (secondary in IPv4,
// temporary in IPv6).
func leavesAs(a netlink.Addr) bool {
	const not = unix.IFA_F_SECONDARY | unix.IFA_F_TENTATIVE | unix.IFA_F_DEPRECATED | unix.IFA_F_DADFAILED
	ip := toAddr(a.IP)
	return ip.IsValid() && a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&not == 0 && ip.IsGlobalUnicast()
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
	return u.mtu == o.mtu && slices.Equal(u.Uplinks, o.Uplinks) && slices.Equal(u.onLinks, o.onLinks) && slices.Equal(u.missing, o.missing) &&
		maps.EqualFunc(u.Others, o.Others, slices.Equal[[]netip.Addr])
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
