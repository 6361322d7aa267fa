package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/tests/podnet"
)

// nodePath compares pod → pod on another node with what the kernel does by itself, set up by hand: its VXLAN device with a fixed
// neighbour and routes, and routes alone.
func (b *bench) nodePath(ctx context.Context) error {
	for _, r := range []struct {
		routing cni.Routing
		rival   string
	}{{cni.VXLAN, "the kernel's VXLAN"}, {cni.Native, "the kernel's routing"}} {
		if err := b.routedPath(ctx, r.routing, r.rival); err != nil {
			return fmt.Errorf("%s: %w", r.routing, err)
		}
	}
	return nil
}

func (b *bench) routedPath(ctx context.Context, routing cni.Routing, name string) (err error) {
	l, err := podnet.New(2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	for _, n := range l.Nodes {
		n.Routing = routing
	}
	if err := l.Start(); err != nil {
		return err
	}
	ours, err := ourPods(l.Nodes[0], l.Nodes[1])
	if err != nil {
		return err
	}
	rival, err := routedPair(l, routing)
	if err != nil {
		return err
	}
	rival.name = name
	if err := sameMTU(ours, rival); err != nil {
		return err
	}
	return b.compareWays(ctx, fmt.Sprintf("pod → pod on another node, %s", routing), ours, rival, 0.95)
}

// routedPair is a pod on each of two nodes that the kernel alone routes between.
func routedPair(l *podnet.Lab, routing cni.Routing) (way, error) {
	const port = 8472
	w := way{addr: rivalPod(2)}
	mtu := 1500
	if routing == cni.VXLAN {
		mtu -= 50 // IPv4, UDP, VXLAN and Ethernet headers
	}
	for i, pod := range []*podnet.Space{&w.client, &w.server} {
		this, other := i+1, 2-i
		node, err := l.Joined(fmt.Sprint("rival", this))
		if err != nil {
			return w, err
		}
		if *pod, err = l.Space(fmt.Sprint("rival-pod", this)); err != nil {
			return w, err
		}
		if err := errors.Join(
			node.Address(podnet.Uplink, rivalNode(this).String()+"/24"),
			node.Connect("pod", *pod, "eth0"), node.Address("pod", rivalGateway(this).String()+"/24"), pod.Address("eth0", rivalPod(this).String()+"/24"),
		); err != nil {
			return w, err
		}
		if err := node.In(func() error {
			if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
				return err
			}
			if err := setMTU("pod", mtu); err != nil {
				return err
			}
			up, err := netlink.LinkByName(podnet.Uplink)
			if err != nil {
				return err
			}
			route := &netlink.Route{LinkIndex: up.Attrs().Index, Dst: prefix(netip.PrefixFrom(rivalPod(other), 24)), Gw: rivalNode(other).AsSlice()}
			if routing == cni.VXLAN {
				// As flannel does: the remote tunnel device's address is the next hop, its neighbour and forwarding entries are fixed.
				mac := func(i int) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, byte(i)} }
				attrs := netlink.NewLinkAttrs()
				attrs.Name, attrs.HardwareAddr, attrs.MTU = "vxlan", mac(this), mtu
				if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 42, VtepDevIndex: up.Attrs().Index, SrcAddr: rivalNode(this).AsSlice(), Port: port}); err != nil {
					return fmt.Errorf("vxlan: %w", err)
				}
				tunnel, err := netlink.LinkByName("vxlan")
				if err != nil {
					return err
				}
				index := tunnel.Attrs().Index
				route.LinkIndex, route.Gw, route.Flags = index, rivalGateway(other).AsSlice(), int(netlink.FLAG_ONLINK)
				if err := errors.Join(
					netlink.LinkSetUp(tunnel),
					netlink.NeighSet(&netlink.Neigh{LinkIndex: index, IP: route.Gw, HardwareAddr: mac(other), State: netlink.NUD_PERMANENT}),
					netlink.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: rivalNode(other).AsSlice(), HardwareAddr: mac(other), State: netlink.NUD_PERMANENT}),
				); err != nil {
					return fmt.Errorf("neighbours of the tunnel: %w", err)
				}
			}
			return netlink.RouteAdd(route)
		}); err != nil {
			return w, err
		}
		if err := pod.In(func() error {
			return errors.Join(setMTU("eth0", mtu), netlink.RouteAdd(&netlink.Route{Gw: rivalGateway(this).AsSlice()}))
		}); err != nil {
			return w, err
		}
	}
	return w, nil
}

func rivalNode(i int) netip.Addr    { return netip.AddrFrom4([4]byte{198, 18, 0, byte(20 + i)}) }
func rivalGateway(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 89, byte(i), 1}) }
func rivalPod(i int) netip.Addr     { return netip.AddrFrom4([4]byte{10, 89, byte(i), 2}) }

func prefix(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func setMTU(name string, mtu int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetMTU(link, mtu)
}
