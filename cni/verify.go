package cni

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// verify tells what is damaged of an attachment (the verb CHECK), or nothing. It returns the index of the host's side. A zero MTU may be any;
// a plugin behind this one may have lowered the pod's.
func verify(a Allocation, netnsPath string, mtu int) (ifindex int, err error) {
	podMAC, hostMAC := macs(a)
	outside, err := netlink.LinkByName(a.Host)
	if err != nil {
		return 0, fmt.Errorf("host interface %s: %w", a.Host, err)
	}
	ifindex = outside.Attrs().Index
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return 0, err
	}
	defer host.Close()
	p, err := inPod(netnsPath)
	if err != nil {
		return 0, err
	}
	defer p.close()
	inside, err := p.LinkByName(a.Ifname)
	if err != nil {
		return 0, fmt.Errorf("interface %s of the pod: %w", a.Ifname, err)
	}
	out := side{h: host, link: outside, what: "host interface " + a.Host, mac: hostMAC, rate: a.Bandwidth.Ingress}
	in := side{h: p.Handle, link: inside, what: "interface " + a.Ifname + " of the pod", mac: podMAC, rate: a.Bandwidth.Egress}
	for _, addr := range a.Addrs {
		gw := gateway(addr.Is4())
		out.neighs = append(out.neighs, neigh{addr, podMAC})
		out.routes = append(out.routes, route{dst: netip.PrefixFrom(addr, addr.BitLen())})
		in.addrs = append(in.addrs, addr)
		in.neighs = append(in.neighs, neigh{gw, hostMAC})
		in.routes = append(in.routes, route{dst: everything(addr.Is4()), gw: gw})
		if addr.Is4() {
			in.routes = append(in.routes, route{dst: netip.PrefixFrom(gw, gw.BitLen())})
		}
	}
	if have := outside.Attrs().MTU; mtu != 0 && have != mtu {
		return 0, fmt.Errorf("%s: its MTU is %d, not %d", out.what, have, mtu)
	}
	if have := inside.Attrs().MTU; have > outside.Attrs().MTU {
		return 0, fmt.Errorf("%s: its MTU is %d, more than the path's %d", in.what, have, outside.Attrs().MTU)
	}
	for _, s := range []side{out, in} {
		if err := s.verify(); err != nil {
			return 0, fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return ifindex, nil
}

// side is one end of a pod's link, as it should be.
type side struct {
	h      *netlink.Handle
	link   netlink.Link
	what   string
	mac    net.HardwareAddr
	addrs  []netip.Addr
	neighs []neigh
	routes []route
	rate   uint64 // of what leaves by it
}

func (s side) verify() error {
	attrs := s.link.Attrs()
	if attrs.RawFlags&unix.IFF_UP == 0 {
		return errors.New("it is down")
	}
	if !bytes.Equal(attrs.HardwareAddr, s.mac) {
		return fmt.Errorf("its Ethernet address is %s, not %s", attrs.HardwareAddr, s.mac)
	}
	list, err := Whole(func() ([]netlink.Addr, error) { return s.h.AddrList(s.link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for _, want := range s.addrs {
		if !slices.ContainsFunc(list, func(have netlink.Addr) bool { return toAddr(have.IP) == want }) {
			return fmt.Errorf("its address %s is gone", want)
		}
	}
	for _, n := range s.neighs {
		if err := hasNeigh(s.h, attrs.Index, n.addr, n.mac); err != nil {
			return err
		}
	}
	if err := hasRoutes(s.h, s.link, s.routes); err != nil {
		return err
	}
	return hasLimit(s.h, s.link, s.rate)
}

type neigh struct {
	addr netip.Addr
	mac  net.HardwareAddr
}

// everything is the destination of a default route.
func everything(is4 bool) netip.Prefix {
	if is4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// route is what matters of a route over one interface.
type route struct {
	dst netip.Prefix
	gw  netip.Addr
}

func toAddr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func hasRoutes(h *netlink.Handle, l netlink.Link, want []route) error {
	have := map[route]bool{}
	for _, is4 := range []bool{true, false} {
		list, err := Whole(func() ([]netlink.Route, error) { return h.RouteList(l, family(is4)) })
		if err != nil {
			return fmt.Errorf("routes: %w", err)
		}
		for _, r := range list {
			dst := everything(is4)
			if r.Dst != nil {
				bits, _ := r.Dst.Mask.Size()
				dst = netip.PrefixFrom(toAddr(r.Dst.IP), bits)
			}
			have[route{dst, toAddr(r.Gw)}] = true
		}
	}
	for _, w := range want {
		if !have[w] {
			return fmt.Errorf("the route to %s is gone", w.dst)
		}
	}
	return nil
}

func hasNeigh(h *netlink.Handle, ifindex int, a netip.Addr, mac net.HardwareAddr) error {
	list, err := Whole(func() ([]netlink.Neigh, error) { return h.NeighList(ifindex, family(a.Is4())) })
	if err != nil {
		return fmt.Errorf("neighbours: %w", err)
	}
	for _, n := range list {
		if toAddr(n.IP) == a && bytes.Equal(n.HardwareAddr, mac) && n.State&netlink.NUD_PERMANENT != 0 {
			return nil
		}
	}
	return fmt.Errorf("the fixed neighbour entry of %s is gone", a)
}
