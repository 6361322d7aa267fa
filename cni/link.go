package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// hostPrefix begins the names of our host-side interfaces; the alias tells whose they are.
const hostPrefix = "stk"

// hostName is the name of the host's side: it follows from the pod, so that a repeated call finds it.
func hostName(container, ifname string) string {
	sum := sha256.Sum256([]byte(key(container, ifname)))
	return hostPrefix + hex.EncodeToString(sum[:6])
}

// podLink is a pod's interface, both sides.
type podLink struct {
	ifindex         int // host side
	podMAC, hostMAC net.HardwareAddr
}

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// connect makes the veth pair, its addresses and routes. On failure nothing of it is left.
func connect(a Allocation, netnsPath, alias string, mtu int, node netip.Addr) (link podLink, err error) {
	ns, err := netns.GetFromPath(netnsPath)
	if err != nil {
		return link, fmt.Errorf("network namespace %s: %w", netnsPath, err)
	}
	defer ns.Close()
	pod, err := netlink.NewHandleAt(ns)
	if err != nil {
		return link, fmt.Errorf("network namespace %s: %w", netnsPath, err)
	}
	defer pod.Close()
	host, err := netlink.NewHandle()
	if err != nil {
		return link, err
	}
	defer host.Close()
	if _, err := pod.LinkByName(a.Ifname); err == nil {
		return link, fmt.Errorf("the namespace has an interface %s already", a.Ifname)
	}
	// What a former, unfinished call left.
	if old, err := host.LinkByName(a.Host); err == nil {
		if err := host.LinkDel(old); err != nil {
			return link, fmt.Errorf("remove old %s: %w", a.Host, err)
		}
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a.Host, MTU: mtu}, PeerName: a.Ifname, PeerNamespace: netlink.NsFd(int(ns))}
	if err := host.LinkAdd(veth); err != nil {
		return link, fmt.Errorf("make %s: %w", a.Host, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, host.LinkDel(veth))
		}
	}()
	inside, err := pod.LinkByName(a.Ifname)
	if err != nil {
		return link, fmt.Errorf("find %s in the pod: %w", a.Ifname, err)
	}
	outside, err := host.LinkByName(a.Host)
	if err != nil {
		return link, fmt.Errorf("find %s: %w", a.Host, err)
	}
	link = podLink{ifindex: outside.Attrs().Index, podMAC: inside.Attrs().HardwareAddr, hostMAC: outside.Attrs().HardwareAddr}
	if err := host.LinkSetAlias(outside, alias); err != nil {
		return link, fmt.Errorf("alias of %s: %w", a.Host, err)
	}
	if err := quiet(a.Host); err != nil {
		return link, err
	}
	if lo, err := pod.LinkByName("lo"); err == nil {
		if err := pod.LinkSetUp(lo); err != nil {
			return link, fmt.Errorf("lo of the pod: %w", err)
		}
	}
	if err := pod.AddrAdd(inside, &netlink.Addr{IPNet: ipNet(a.Addr)}); err != nil {
		return link, fmt.Errorf("address %s: %w", a.Addr, err)
	}
	if err := pod.LinkSetUp(inside); err != nil {
		return link, fmt.Errorf("%s up: %w", a.Ifname, err)
	}
	if err := host.LinkSetUp(outside); err != nil {
		return link, fmt.Errorf("%s up: %w", a.Host, err)
	}
	gw := net.IP(Gateway.AsSlice())
	for _, n := range []struct {
		h  *netlink.Handle
		n  *netlink.Neigh
		of string
	}{
		{pod, &netlink.Neigh{LinkIndex: inside.Attrs().Index, IP: gw, HardwareAddr: link.hostMAC, State: netlink.NUD_PERMANENT}, "the gateway"},
		{host, &netlink.Neigh{LinkIndex: link.ifindex, IP: a.Addr.AsSlice(), HardwareAddr: link.podMAC, State: netlink.NUD_PERMANENT}, "the pod"},
	} {
		n.n.Family = netlink.FAMILY_V4
		if err := n.h.NeighSet(n.n); err != nil {
			return link, fmt.Errorf("neighbour entry of %s: %w", n.of, err)
		}
	}
	for _, r := range []*netlink.Route{
		{LinkIndex: inside.Attrs().Index, Dst: ipNet(Gateway), Scope: netlink.SCOPE_LINK},
		{LinkIndex: inside.Attrs().Index, Gw: gw, Src: a.Addr.AsSlice()},
	} {
		if err := pod.RouteAdd(r); err != nil {
			return link, fmt.Errorf("route %s of the pod: %w", r, err)
		}
	}
	route := &netlink.Route{LinkIndex: link.ifindex, Dst: ipNet(a.Addr), Scope: netlink.SCOPE_LINK}
	if node.IsValid() {
		route.Src = node.AsSlice()
	}
	if err := host.RouteReplace(route); err != nil {
		return link, fmt.Errorf("route %s: %w", a.Addr, err)
	}
	return link, nil
}

// quiet sets what the kernel should not do by itself on a pod's interface.
func quiet(name string) error {
	for path, v := range map[string]string{
		"net/ipv4/conf/" + name + "/rp_filter": "0", // the BPF program checks sources, by exact address
		"net/ipv6/conf/" + name + "/accept_ra": "0",
	} {
		err := os.WriteFile("/proc/sys/"+path, []byte(v), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return fmt.Errorf("sysctl %s: %w", path, err)
		}
	}
	return nil
}

// find returns the link of an allocation, if it is there.
func find(a Allocation, netnsPath string) (podLink, error) {
	outside, err := netlink.LinkByName(a.Host)
	if err != nil {
		return podLink{}, fmt.Errorf("host interface %s: %w", a.Host, err)
	}
	link := podLink{ifindex: outside.Attrs().Index, hostMAC: outside.Attrs().HardwareAddr}
	neighs, err := netlink.NeighList(link.ifindex, netlink.FAMILY_V4)
	if err != nil {
		return link, fmt.Errorf("neighbours of %s: %w", a.Host, err)
	}
	for _, n := range neighs {
		if got, ok := netip.AddrFromSlice(n.IP.To4()); ok && got == a.Addr {
			link.podMAC = n.HardwareAddr
		}
	}
	if link.podMAC == nil {
		return link, fmt.Errorf("no neighbour entry of %s on %s", a.Addr, a.Host)
	}
	if netnsPath == "" {
		return link, nil
	}
	ns, err := netns.GetFromPath(netnsPath)
	if err != nil {
		return link, fmt.Errorf("network namespace %s: %w", netnsPath, err)
	}
	defer ns.Close()
	pod, err := netlink.NewHandleAt(ns)
	if err != nil {
		return link, fmt.Errorf("network namespace %s: %w", netnsPath, err)
	}
	defer pod.Close()
	inside, err := pod.LinkByName(a.Ifname)
	if err != nil {
		return link, fmt.Errorf("interface %s of the pod: %w", a.Ifname, err)
	}
	addrs, err := pod.AddrList(inside, netlink.FAMILY_V4)
	if err != nil {
		return link, err
	}
	for _, x := range addrs {
		if got, ok := netip.AddrFromSlice(x.IP.To4()); ok && got == a.Addr {
			routes, err := pod.RouteList(inside, netlink.FAMILY_V4)
			if err != nil {
				return link, err
			}
			for _, r := range routes {
				if r.Gw != nil && r.Gw.Equal(Gateway.AsSlice()) {
					return link, nil
				}
			}
			return link, fmt.Errorf("interface %s of the pod has no default route", a.Ifname)
		}
	}
	return link, fmt.Errorf("interface %s of the pod has lost its address %s", a.Ifname, a.Addr)
}

// disconnect removes the veth; one that is gone is no error.
func disconnect(host string) error {
	link, err := netlink.LinkByName(host)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", host, err)
	}
	return nil
}
