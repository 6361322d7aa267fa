package cni

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// hostPrefix begins the names of our host-side interfaces; the alias tells whose they are.
const hostPrefix = "stk"

// errExists is the answer to an ADD for an interface that is there (CNI 1.1, section ADD).
var errExists = errors.New("the pod has that interface already")

// hostName is the name of the host's side: it follows from the pod, so that a repeated call finds it.
func hostName(container, ifname string) string {
	sum := sha256.Sum256([]byte(key(container, ifname)))
	return hostPrefix + hex.EncodeToString(sum[:6])
}

// macs are the Ethernet addresses of a pair. They are given rather than left to the kernel because udev replaces those
// that the kernel made up (systemd.link(5), MACAddressPolicy=persistent), after the fixed neighbour entries were made
// of them. As they follow from the pod, the neighbour entries can be made anew at any time.
func macs(a Allocation) (pod, host net.HardwareAddr) {
	sum := sha256.Sum256([]byte("mac " + a.key()))
	for i := range 2 {
		sum[6*i] = sum[6*i]&^1 | 2 // unicast, locally administered (IEEE 802)
	}
	return sum[0:6:6], sum[6:12:12]
}

// podLink is a pod's interface, both sides.
type podLink struct {
	ifindex         int // host side
	podMAC, hostMAC net.HardwareAddr
}

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func permanent(ifindex int, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: ifindex, Family: netlink.FAMILY_V4, IP: a.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
}

// openNetns opens a pod's network namespace. What is no namespace is not even opened: a FIFO would wait for its other
// end. The node's own is refused: a pod's default route in it would cut the node off.
func openNetns(path string) (netns.NsHandle, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return netns.None(), types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_NETNS %q: %v", path, err), "")
	}
	none := types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_NETNS %q is no network namespace", path), "")
	if fs.Type != unix.NSFS_MAGIC {
		return netns.None(), none
	}
	own, err := netns.Get()
	if err != nil {
		return netns.None(), fmt.Errorf("the node's network namespace: %w", err)
	}
	defer own.Close()
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return ns, fmt.Errorf("network namespace %q: %w", path, err)
	}
	if kind, err := unix.IoctlRetInt(int(ns), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		ns.Close()
		return netns.None(), none
	}
	if ns.Equal(own) {
		ns.Close()
		return netns.None(), types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("CNI_NETNS %q is the node's own namespace", path), "")
	}
	return ns, nil
}

// inPod opens the pod's network namespace for netlink.
func inPod(path string) (netns.NsHandle, *netlink.Handle, error) {
	ns, err := openNetns(path)
	if err != nil {
		return ns, nil, err
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return ns, nil, fmt.Errorf("network namespace %q: %w", path, err)
	}
	return ns, h, nil
}

// present tells whether the pod has the interface.
func present(netnsPath, ifname string) (bool, error) {
	ns, pod, err := inPod(netnsPath)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	defer pod.Close()
	_, err = pod.LinkByName(ifname)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	return err == nil, err
}

// connect makes the veth pair, its addresses and routes. On failure nothing of it is left.
func connect(a Allocation, netnsPath, alias string, mtu int, node netip.Addr) (link podLink, err error) {
	ns, pod, err := inPod(netnsPath)
	if err != nil {
		return link, err
	}
	defer ns.Close()
	defer pod.Close()
	if _, err := pod.LinkByName(a.Ifname); err == nil {
		return link, fmt.Errorf("%w: %s", errExists, a.Ifname)
	}
	if err := disconnect(a.Host); err != nil { // what a former, unfinished call left
		return link, err
	}
	podMAC, hostMAC := macs(a)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = a.Host, mtu, hostMAC
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace, veth.PeerMTU, veth.PeerHardwareAddr = a.Ifname, netlink.NsFd(int(ns)), uint32(mtu), podMAC
	if err := netlink.LinkAdd(veth); err != nil {
		return link, fmt.Errorf("make %s: %w", a.Host, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, disconnect(a.Host))
		}
	}()
	outside, err := netlink.LinkByName(a.Host)
	if err != nil {
		return link, fmt.Errorf("find %s: %w", a.Host, err)
	}
	if err := netlink.LinkSetAlias(outside, alias); err != nil {
		return link, fmt.Errorf("alias of %s: %w", a.Host, err)
	}
	if err := podSide(pod, a, hostMAC); err != nil {
		return link, err
	}
	return hostSide(outside, a, node)
}

// podSide gives the pod its address and routes.
func podSide(pod *netlink.Handle, a Allocation, hostMAC net.HardwareAddr) error {
	if lo, err := pod.LinkByName("lo"); err == nil {
		if err := pod.LinkSetUp(lo); err != nil {
			return fmt.Errorf("lo of the pod: %w", err)
		}
	}
	inside, err := pod.LinkByName(a.Ifname)
	if err != nil {
		return fmt.Errorf("find %s in the pod: %w", a.Ifname, err)
	}
	index := inside.Attrs().Index
	if err := pod.AddrAdd(inside, &netlink.Addr{IPNet: ipNet(a.Addr)}); err != nil {
		return fmt.Errorf("address %s of the pod: %w", a.Addr, err)
	}
	if err := pod.LinkSetUp(inside); err != nil {
		return fmt.Errorf("%s of the pod up: %w", a.Ifname, err)
	}
	if err := pod.NeighSet(permanent(index, Gateway, hostMAC)); err != nil {
		return fmt.Errorf("the pod's neighbour entry of its gateway: %w", err)
	}
	for _, r := range []*netlink.Route{
		{LinkIndex: index, Dst: ipNet(Gateway), Scope: netlink.SCOPE_LINK},
		{LinkIndex: index, Gw: Gateway.AsSlice(), Src: a.Addr.AsSlice()},
	} {
		if err := pod.RouteAdd(r); err != nil {
			return fmt.Errorf("route of the pod (%s): %w", r, err)
		}
	}
	return nil
}

// hostSide makes the host's side right, whatever of it is there.
func hostSide(outside netlink.Link, a Allocation, node netip.Addr) (podLink, error) {
	podMAC, _ := macs(a)
	link := podLink{ifindex: outside.Attrs().Index, podMAC: podMAC, hostMAC: outside.Attrs().HardwareAddr}
	if err := quiet(a.Host); err != nil {
		return link, err
	}
	if err := netlink.LinkSetUp(outside); err != nil {
		return link, fmt.Errorf("%s up: %w", a.Host, err)
	}
	if err := netlink.NeighSet(permanent(link.ifindex, a.Addr, podMAC)); err != nil {
		return link, fmt.Errorf("neighbour entry of %s: %w", a.Addr, err)
	}
	route := &netlink.Route{LinkIndex: link.ifindex, Dst: ipNet(a.Addr), Scope: netlink.SCOPE_LINK}
	if node.IsValid() {
		route.Src = node.AsSlice()
	}
	if err := netlink.RouteReplace(route); err != nil {
		return link, fmt.Errorf("route to %s: %w", a.Addr, err)
	}
	return link, nil
}

// quiet sets what the kernel should not do by itself on the host's side of a pod's interface.
func quiet(name string) error {
	for _, s := range [][2]string{
		{"net/ipv4/conf/" + name + "/rp_filter", "0"},    // the BPF program checks sources, by exact address
		{"net/ipv6/conf/" + name + "/accept_ra", "0"},    // a pod is no router
		{"net/ipv6/conf/" + name + "/disable_ipv6", "1"}, // nor does the host speak IPv6 with it: no address, no multicast reports
	} {
		err := os.WriteFile("/proc/sys/"+s[0], []byte(s[1]), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return fmt.Errorf("sysctl %s: %w", s[0], err)
		}
	}
	return nil
}

// verify tells what is damaged of an attachment (the verb CHECK), or nothing.
func verify(a Allocation, netnsPath string) (podLink, error) {
	podMAC, hostMAC := macs(a)
	link := podLink{podMAC: podMAC, hostMAC: hostMAC}
	outside, err := netlink.LinkByName(a.Host)
	if err != nil {
		return link, fmt.Errorf("host interface %s: %w", a.Host, err)
	}
	link.ifindex = outside.Attrs().Index
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return link, err
	}
	defer host.Close()
	ns, pod, err := inPod(netnsPath)
	if err != nil {
		return link, err
	}
	defer ns.Close()
	defer pod.Close()
	inside, err := pod.LinkByName(a.Ifname)
	if err != nil {
		return link, fmt.Errorf("interface %s of the pod: %w", a.Ifname, err)
	}
	for _, side := range []struct {
		h        *netlink.Handle
		link     netlink.Link
		mac      net.HardwareAddr
		neigh    netip.Addr
		neighMAC net.HardwareAddr
		routes   []route
	}{
		{host, outside, hostMAC, a.Addr, podMAC, []route{{dst: netip.PrefixFrom(a.Addr, 32)}}},
		{pod, inside, podMAC, Gateway, hostMAC, []route{{dst: netip.PrefixFrom(Gateway, 32)}, {dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), gw: Gateway}}},
	} {
		attrs := side.link.Attrs()
		if attrs.RawFlags&unix.IFF_UP == 0 {
			return link, fmt.Errorf("interface %s is down", attrs.Name)
		}
		if !bytes.Equal(attrs.HardwareAddr, side.mac) {
			return link, fmt.Errorf("interface %s has the address %s, not %s", attrs.Name, attrs.HardwareAddr, side.mac)
		}
		if err := hasNeigh(side.h, attrs.Index, side.neigh, side.neighMAC); err != nil {
			return link, fmt.Errorf("interface %s: %w", attrs.Name, err)
		}
		if err := hasRoutes(side.h, side.link, side.routes); err != nil {
			return link, fmt.Errorf("interface %s: %w", attrs.Name, err)
		}
	}
	addrs, err := pod.AddrList(inside, netlink.FAMILY_V4)
	if err != nil {
		return link, err
	}
	for _, x := range addrs {
		if toAddr(x.IP) == a.Addr {
			return link, nil
		}
	}
	return link, fmt.Errorf("interface %s of the pod has lost its address %s", a.Ifname, a.Addr)
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
	list, err := h.RouteList(l, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("routes: %w", err)
	}
	have := map[route]bool{}
	for _, r := range list {
		dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if r.Dst != nil {
			bits, _ := r.Dst.Mask.Size()
			dst = netip.PrefixFrom(toAddr(r.Dst.IP), bits)
		}
		have[route{dst, toAddr(r.Gw)}] = true
	}
	for _, w := range want {
		if !have[w] {
			return fmt.Errorf("the route to %s is gone", w.dst)
		}
	}
	return nil
}

func hasNeigh(h *netlink.Handle, ifindex int, a netip.Addr, mac net.HardwareAddr) error {
	list, err := h.NeighList(ifindex, netlink.FAMILY_V4)
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

// ours lists the host's sides that carry the alias.
func ours(alias string) ([]netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("interfaces: %w", err)
	}
	var out []netlink.Link
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, hostPrefix) && l.Attrs().Alias == alias {
			out = append(out, l)
		}
	}
	return out, nil
}
