// Package lab makes the network of a cluster of several nodes on one machine. The first node is the network namespace that the
// cluster was started in; each further one has a namespace of its own, named after the cluster's id so that it outlives the
// command that makes it, and a veth to a bridge in the first node's namespace.
//
//	outside ── uplink [node 1] stkbr-ID ── stk2-ID ── eth0 [strake-ID-2]
//	                                  └─── stk3-ID ── eth0 [strake-ID-3]
//
// The first node routes for the others. All functions but Choose make or remove what is missing or left, and may be repeated.
package lab

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cni"
)

// Network is the lab of one cluster.
type Network struct {
	First     layout.Layout  // of the first node
	Ranges    []netip.Prefix // of the nodes' addresses, one of each family; node N has the address with the number N
	NodeAddrs []netip.Addr   // the first node's own
}

// MaxNodes is the highest number of a node, by the IPv4 range's length.
const MaxNodes = 250

// uplinkName is a lab node's way out, in its own namespace.
const uplinkName = "eth0"

// Bridge names the bridge in the first node's namespace.
func Bridge(first layout.Layout) string { return "stkbr-" + first.ID }

func port(first layout.Layout, n int) string { return fmt.Sprintf("stk%d-%s", n, first.ID) }

// Addrs are the addresses of node n; number 1 is the bridge's own.
func (w Network) Addrs(n int) []netip.Addr {
	list := make([]netip.Addr, len(w.Ranges))
	for i, r := range w.Ranges {
		bytes := r.Masked().Addr().AsSlice()
		bytes[len(bytes)-1] = byte(n)
		list[i], _ = netip.AddrFromSlice(bytes)
	}
	return list
}

// Choose finds ranges for the nodes of a lab, one for each family wanted, that meet none of taken and nothing that this
// namespace has an address in or a route to.
func Choose(v6 []bool, taken []netip.Prefix) ([]netip.Prefix, error) {
	routes, err := cni.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("lab: routes: %w", err)
	}
	for _, r := range routes {
		if p, ok := prefix(r.Dst); ok && p.Bits() > 0 {
			taken = append(taken, p)
		}
	}
	addrs, err := cni.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("lab: addresses: %w", err)
	}
	for _, a := range addrs {
		if p, ok := prefix(a.IPNet); ok {
			taken = append(taken, p)
		}
	}
	return choose(v6, taken)
}

func choose(v6 []bool, taken []netip.Prefix) ([]netip.Prefix, error) {
next:
	for x := range 256 {
		var ranges []netip.Prefix
		for _, six := range v6 {
			r := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, byte(x), 0}), 24)
			if six {
				r = netip.MustParsePrefix(fmt.Sprintf("fd00:172:31:%d::/64", x))
			}
			for _, t := range taken {
				if t.Overlaps(r) {
					continue next
				}
			}
			ranges = append(ranges, r)
		}
		return ranges, nil
	}
	return nil, errors.New("lab: each range of 172.31.0.0/16 and fd00:172:31::/48 that nodes could have is in use on this machine")
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ip, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones).Masked(), ok
}

// EnsureBridge makes the bridge. Its MTU is that of the first node's uplink.
func (w Network) EnsureBridge() error {
	name := Bridge(w.First)
	fail := func(err error) error { return fmt.Errorf("lab: bridge %s: %w", name, err) }
	mtu, err := w.mtu()
	if err != nil {
		return fail(err)
	}
	// An address of its own: a bridge without one takes the lowest of its ports', and nodes come and go.
	sum := sha256.Sum256([]byte(name))
	mac := net.HardwareAddr(append([]byte{0x02}, sum[:5]...))
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu, HardwareAddr: mac, TxQLen: -1}}
	if err := netlink.LinkAdd(br); err != nil && !errors.Is(err, unix.EEXIST) {
		return fail(err)
	}
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fail(err)
	}
	for i, a := range w.Addrs(1) {
		// Without the kernel's own route: by ours, what the first node sends has the address that it is known by.
		bits := w.Ranges[i].Bits()
		addr := &netlink.Addr{IPNet: ipNet(a, bits), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fail(fmt.Errorf("address %s: %w", a, err))
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(w.Ranges[i].Addr(), bits), Scope: netlink.SCOPE_LINK, Src: w.source(a)}
		if err := netlink.RouteReplace(route); err != nil {
			return fail(fmt.Errorf("route to %s: %w", w.Ranges[i], err))
		}
	}
	return nil
}

// source is the first node's address of a's family.
func (w Network) source(a netip.Addr) net.IP {
	for _, own := range w.NodeAddrs {
		if own.Is6() == a.Is6() && !own.IsLoopback() {
			return own.AsSlice()
		}
	}
	return nil
}

// mtu is that of the interface with the first node's address, at most what a veth can have.
func (w Network) mtu() (int, error) {
	links, err := cni.Whole(netlink.LinkList)
	if err != nil {
		return 0, err
	}
	for _, link := range links {
		addrs, err := cni.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
		if err != nil {
			return 0, err
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == w.NodeAddrs[0] && link.Attrs().Flags&net.FlagLoopback == 0 {
				return link.Attrs().MTU, nil
			}
		}
	}
	return 1500, nil // the node's address is on lo
}

// EnsureNode makes the namespace and the link of node n, and tells whether something of them was not there.
func (w Network) EnsureNode(n int) (made bool, err error) {
	fail := func(err error) (bool, error) { return made, fmt.Errorf("lab: network of node %d: %w", n, err) }
	bridge, err := netlink.LinkByName(Bridge(w.First))
	if err != nil {
		return fail(err)
	}
	made, err = ensureNamespace(w.First.Node(n).Netns())
	if err != nil {
		return fail(err)
	}
	ns, err := os.Open(w.First.Node(n).Netns())
	if err != nil {
		return fail(err)
	}
	defer ns.Close()
	name := port(w.First, n)
	link, err := netlink.LinkByName(name)
	if made && err == nil { // its other end was in a namespace that is gone
		if err := netlink.LinkDel(link); err != nil {
			return fail(err)
		}
	}
	if made || err != nil {
		made = true
		link = &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name, MTU: bridge.Attrs().MTU, TxQLen: -1}, PeerName: uplinkName, PeerNamespace: netlink.NsFd(int(ns.Fd())), PeerMTU: uint32(bridge.Attrs().MTU),
		}
		if err := netlink.LinkAdd(link); err != nil {
			return fail(err)
		}
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return fail(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fail(err)
	}
	if err := in(ns, func() error { return w.configure(n) }); err != nil {
		return fail(err)
	}
	return made, nil
}

// configure gives node n its addresses and its way out, from within its namespace.
func (w Network) configure(n int) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return err
	}
	link, err := netlink.LinkByName(uplinkName)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return err
	}
	gateways := w.Addrs(1)
	for i, a := range w.Addrs(n) {
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(a, w.Ranges[i].Bits()), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
		everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if a.Is6() {
			everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(everything.Addr(), 0), Gw: gateways[i].AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("default route via %s: %w", gateways[i], err)
		}
	}
	return nil
}

// RemoveNode takes the namespace and the link of node n away. Nothing may run in it any more.
func (w Network) RemoveNode(n int) error {
	var errs []error
	if err := deleteLink(port(w.First, n)); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, removeNamespace(w.First.Node(n).Netns()))...)
}

// Remove takes everything of the lab away, that of nodes without a data folder as well.
func (w Network) Remove() error {
	var errs []error
	found, err := filepath.Glob(w.First.Netns() + "-*")
	if err != nil {
		errs = append(errs, err)
	}
	for _, path := range found {
		errs = append(errs, removeNamespace(path))
	}
	links, err := cni.Whole(netlink.LinkList)
	if err != nil {
		errs = append(errs, fmt.Errorf("interfaces: %w", err))
	}
	for _, l := range links {
		var n int
		if _, err := fmt.Sscanf(l.Attrs().Name, "stk%d-", &n); err == nil && l.Attrs().Name == port(w.First, n) {
			errs = append(errs, deleteLink(l.Attrs().Name))
		}
	}
	return errors.Join(append(errs, deleteLink(Bridge(w.First)))...)
}

func deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) { // a veth goes with its other end
		return fmt.Errorf("lab: remove %s: %w", name, err)
	}
	return nil
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

// Exists tells whether the namespace of a lab node is there.
func Exists(node layout.Layout) bool {
	_, err := os.Stat(node.Netns())
	return !errors.Is(err, fs.ErrNotExist)
}
