package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
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

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

func family(is4 bool) int {
	if is4 {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func permanent(ifindex int, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: ifindex, Family: family(a.Is4()), IP: a.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
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
func inPod(path string) (*pod, error) {
	ns, err := openNetns(path)
	if err != nil {
		return nil, err
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("network namespace %q: %w", path, err)
	}
	return &pod{h, ns}, nil
}

// present tells whether the pod has the interface.
func present(netnsPath, ifname string) (bool, error) {
	p, err := inPod(netnsPath)
	if err != nil {
		return false, err
	}
	defer p.close()
	_, err = p.LinkByName(ifname)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	return err == nil, err
}

// pod is the network namespace of a pod, and a way to ask for what is in it.
type pod struct {
	*netlink.Handle
	ns netns.NsHandle
}

func (p *pod) close() {
	p.Handle.Close()
	p.ns.Close()
}

// makeLink makes the veth pair, both sides down. What a former, unfinished call left is removed.
func makeLink(p *pod, a Allocation, alias string, mtu int) (netlink.Link, error) {
	if _, err := p.LinkByName(a.Ifname); err == nil {
		return nil, fmt.Errorf("%w: %s", errExists, a.Ifname)
	}
	podMAC, hostMAC := macs(a)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = a.Host, mtu, hostMAC
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace, veth.PeerMTU, veth.PeerHardwareAddr = a.Ifname, netlink.NsFd(int(p.ns)), uint32(mtu), podMAC
	err := netlink.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		if err = disconnect(a.Host); err == nil {
			err = netlink.LinkAdd(veth)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", a.Host, err)
	}
	outside, err := netlink.LinkByName(a.Host)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", a.Host, err)
	}
	if err := netlink.LinkSetAlias(outside, alias); err != nil {
		return nil, fmt.Errorf("alias of %s: %w", a.Host, err)
	}
	return outside, nil
}

// podSide gives the pod its addresses and routes.
func podSide(p *pod, a Allocation) error {
	_, hostMAC := macs(a)
	if lo, err := p.LinkByName("lo"); err == nil {
		if err := p.LinkSetUp(lo); err != nil {
			return fmt.Errorf("lo of the pod: %w", err)
		}
	}
	inside, err := p.LinkByName(a.Ifname)
	if err != nil {
		return fmt.Errorf("find %s in the pod: %w", a.Ifname, err)
	}
	index := inside.Attrs().Index
	_, ipv6 := a.addr(false)
	if err := onThreadIn(p.ns, func() error { return setSysctls(podSysctls(a.Ifname, ipv6)) }); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	for _, addr := range a.Addrs {
		x := &netlink.Addr{IPNet: ipNet(addr)}
		if !addr.Is4() {
			x.Flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
		}
		if err := p.AddrAdd(inside, x); err != nil {
			return fmt.Errorf("address %s of the pod: %w", addr, err)
		}
	}
	if err := limit(p.Handle, inside, a.Bandwidth.Egress); err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	if err := p.LinkSetUp(inside); err != nil {
		return fmt.Errorf("%s of the pod up: %w", a.Ifname, err)
	}
	for _, addr := range a.Addrs {
		gw := gateway(addr.Is4())
		if err := p.NeighSet(permanent(index, gw, hostMAC)); err != nil {
			return fmt.Errorf("the pod's neighbour entry of its gateway: %w", err)
		}
		routes := []*netlink.Route{{LinkIndex: index, Gw: gw.AsSlice(), Src: addr.AsSlice()}}
		if addr.Is4() { // an IPv6 gateway is link-local by its address
			routes = append([]*netlink.Route{{LinkIndex: index, Dst: ipNet(gw), Scope: netlink.SCOPE_LINK}}, routes...)
		}
		for _, r := range routes {
			if err := p.RouteAdd(r); err != nil {
				return fmt.Errorf("route of the pod (%s): %w", r, err)
			}
		}
	}
	return nil
}

// hostSide makes the host's side right, whatever of it is there. Node addresses are the sources of host processes that talk to the pod.
func hostSide(outside netlink.Link, a Allocation, nodeAddrs []netip.Addr) error {
	podMAC, _ := macs(a)
	index := outside.Attrs().Index
	_, ipv6 := a.addr(false)
	if err := setSysctls(hostSysctls(a.Host, ipv6)); err != nil {
		return err
	}
	if err := limit(&netlink.Handle{}, outside, a.Bandwidth.Ingress); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(outside); err != nil {
		return fmt.Errorf("%s up: %w", a.Host, err)
	}
	for _, addr := range a.Addrs {
		if err := netlink.NeighSet(permanent(index, addr, podMAC)); err != nil {
			return fmt.Errorf("neighbour entry of %s: %w", addr, err)
		}
		route := &netlink.Route{LinkIndex: index, Dst: ipNet(addr), Scope: netlink.SCOPE_LINK}
		for _, node := range nodeAddrs {
			if node.Is4() == addr.Is4() {
				route.Src = node.AsSlice()
			}
		}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route to %s: %w", addr, err)
		}
	}
	return nil
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
	links, err := Whole(netlink.LinkList)
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
