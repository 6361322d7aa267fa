package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteProtocol marks the routes to other nodes as ours (`ip route show proto 83`): no other is changed.
const RouteProtocol = 83

func prefixNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func netPrefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, ok := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	if a = a.Unmap(); !ok || a.BitLen() != size {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, bits)
}

// routePriority is a metric of our own: an administrator's route to the same range comes before ours, and the kernel, which puts a route into
// the place of one with the same metric, replaces no other's.
const routePriority = 8300

func (r nodeRoute) netlink(tunnel int) *netlink.Route {
	out := &netlink.Route{Dst: prefixNet(r.Dst), Protocol: RouteProtocol, Priority: routePriority, Table: unix.RT_TABLE_MAIN}
	if r.Src.IsValid() {
		out.Src = r.Src.AsSlice()
	}
	switch {
	case r.Unreachable:
		out.Type = unix.RTN_UNREACHABLE
	case r.Tunnel:
		// One next hop for all: the host needs one neighbour entry then, rather than one for each pod.
		out.LinkIndex, out.Gw, out.Flags = tunnel, gateway(r.Dst.Addr().Is4()).AsSlice(), int(netlink.FLAG_ONLINK)
	default:
		out.LinkIndex, out.Gw = r.Ifindex, r.Gw.AsSlice()
	}
	return out
}

// routeOf reads one back. What is no route of our making gives one that equals none.
func routeOf(r *netlink.Route, tunnel int) nodeRoute {
	out := nodeRoute{Dst: netPrefix(r.Dst), Src: toAddr(r.Src), Gw: toAddr(r.Gw), Ifindex: r.LinkIndex, Unreachable: r.Type == unix.RTN_UNREACHABLE}
	if out.Unreachable {
		out.Ifindex = 0 // IPv6 tells lo
	} else if tunnel != 0 && r.LinkIndex == tunnel && out.Gw == gateway(out.Dst.Addr().Is4()) {
		out.Tunnel, out.Gw, out.Ifindex = true, netip.Addr{}, 0
	}
	return out
}

// ourRoutes lists what the kernel has of ours.
func ourRoutes() ([]netlink.Route, error) {
	filter := &netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_MAIN}
	list, err := Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("cni: routes: %w", err)
	}
	return list, nil
}

// syncRoutes makes our routes those of want.
func syncRoutes(want map[netip.Prefix]nodeRoute, tunnel int) error {
	list, err := ourRoutes()
	if err != nil {
		return err
	}
	var errs []error
	have := map[netip.Prefix]bool{}
	for i := range list {
		r := routeOf(&list[i], tunnel)
		if w, ok := want[r.Dst]; ok && w == r {
			have[r.Dst] = true
		} else if !ok || list[i].Priority != routePriority {
			errs = append(errs, deleteRoute(&list[i]))
		}
	}
	for dst, w := range want {
		if !have[dst] {
			errs = append(errs, putRoute(w, tunnel))
		}
	}
	return errors.Join(errs...)
}

// putRoute writes a route, in the place of an old one.
func putRoute(r nodeRoute, tunnel int) error {
	if err := netlink.RouteReplace(r.netlink(tunnel)); err != nil {
		return fmt.Errorf("cni: route to %s: %w", r.Dst, err)
	}
	return nil
}

func deleteRoute(r *netlink.Route) error {
	if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("cni: delete the route to %s: %w", r.Dst, err)
	}
	return nil
}

// removeRouting removes the routes to other nodes and the tunnel. What is gone already is no error.
func removeRouting() error {
	list, err := ourRoutes()
	errs := []error{err}
	for i := range list {
		errs = append(errs, deleteRoute(&list[i]))
	}
	return errors.Join(append(errs, removeTunnel())...)
}
