package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
)

// tunnelDevice is the node's VXLAN device.
const tunnelDevice = "strake-vxlan"

// overhead is what VXLAN adds to a packet: outer IP, UDP and VXLAN headers and the inner Ethernet header (RFC 7348).
func overhead(node netip.Addr) int {
	if node.Is6() {
		return 40 + 8 + 8 + 14
	}
	return 20 + 8 + 8 + 14
}

// tunnelOverhead is what the tunnel's ends, as the table of other nodes has them, cost at most; without other nodes IPv4 will carry it, if
// this one has that.
func tunnelOverhead(own []netip.Addr, remotes []bpf.Remote) int {
	most := 0
	for _, r := range remotes {
		most = max(most, overhead(r.Node))
	}
	if most == 0 && len(own) > 0 {
		most = overhead(slices.MinFunc(own, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() }))
	}
	return most
}

// uplinks are the interfaces that have an address of the node.
func (e *examination) uplinks() []string {
	var out []string
	links, err := cni.Whole(netlink.LinkList)
	if err != nil {
		return nil
	}
	for _, l := range links {
		addrs, err := cni.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && slices.Contains(e.Addrs, ip.Unmap()) && !slices.Contains(out, l.Attrs().Name) {
				out = append(out, l.Attrs().Name)
			}
		}
	}
	return out
}

func (e *examination) uplink(ctx context.Context, g group, o *objects) {
	names := e.uplinks()
	if len(names) == 0 {
		g.fail("uplink", "give an interface the address that the node has in the API, or make the node anew", "no interface has an address of the node (%v)", e.Addrs)
		return
	}
	mtu := 0
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if err != nil {
			g.unknown("uplink "+name, err, "")
			continue
		}
		a := l.Attrs()
		if mtu == 0 || a.MTU < mtu {
			mtu = a.MTU
		}
		if state := a.OperState; state != netlink.OperUp && state != netlink.OperUnknown {
			g.fail("uplink "+name, "look at its cable, or its peer: `ip link show "+name+"`", "it is %s", state)
			continue
		}
		g.ok("uplink "+name, "up, MTU %d", a.MTU)
	}
	rows, err := bpf.ReadRows(e.Layout.BPF())
	tunnel := 0
	if l, lerr := netlink.LinkByName(tunnelDevice); lerr == nil && !e.Native {
		tunnel = l.Attrs().MTU
		g.judgeTunnelMTU(tunnel, mtu, tunnelOverhead(e.Addrs, rows.Remotes))
	}
	if err != nil {
		g.unknown("pods' MTU", err, "")
	} else {
		pods := map[string]int{}
		for _, ep := range rows.Endpoints {
			if l, err := netlink.LinkByIndex(ep.Ifindex); err == nil {
				pods[l.Attrs().Name] = l.Attrs().MTU
			}
		}
		limit := mtu
		if tunnel > 0 {
			limit = tunnel
		}
		g.judgePodMTU(pods, limit)
	}
	if o != nil {
		e.paths(ctx, g, o, mtu, tunnel)
	}
}

func (g group) judgeTunnelMTU(tunnel, uplink, overhead int) {
	if tunnel+overhead > uplink {
		g.fail("tunnel MTU", fmt.Sprintf("restart the agent, which follows the uplink: the device %s should have %d", tunnelDevice, uplink-overhead),
			"%d: with %d bytes of headers a full packet does not fit into the uplink's %d", tunnel, overhead, uplink)
		return
	}
	g.ok("tunnel MTU", "%d, and %d of headers, within the uplink's %d", tunnel, overhead, uplink)
}

// judgePodMTU compares the MTU of pods' interfaces with what a packet may have on its way to other nodes.
func (g group) judgePodMTU(pods map[string]int, limit int) {
	var large, small []string
	for name, mtu := range pods {
		if mtu > limit {
			large = append(large, fmt.Sprintf("%s %d", name, mtu))
		} else if mtu < limit {
			small = append(small, fmt.Sprintf("%s %d", name, mtu))
		}
	}
	slices.Sort(large)
	slices.Sort(small)
	switch {
	case len(large) > 0:
		g.fail("pods' MTU", "restart the agent, which follows the uplink, or these pods", "more than the way's %d: %s", limit, shorten(large))
	case len(small) > 0:
		g.warn("pods' MTU", "restart these pods to use the whole of it", "less than the way's %d: %s", limit, shorten(small))
	case len(pods) == 0:
		g.ok("pods' MTU", "no pod here; new ones have at most %d", limit)
	default:
		g.ok("pods' MTU", "%d for all %d", limit, len(pods))
	}
}

// way is one path to another node that is probed with packets of full size.
type way struct {
	name string
	to   netip.Addr
	size int
}

// ways lists the addresses of other nodes, and for each node one pod of each family: the former by the uplink, the latter as pods' packets go.
func ways(self string, o *objects, uplink, tunnel int) []way {
	pod := uplink
	if tunnel > 0 {
		pod = tunnel
	}
	var out []way
	for _, n := range o.nodes {
		if n.Name == self {
			continue
		}
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
				out = append(out, way{fmt.Sprintf("path to node %s (%s)", n.Name, ip), ip, uplink})
			}
		}
		seen := map[bool]bool{}
		for _, p := range o.pods {
			if p.Spec.NodeName != n.Name || p.Spec.HostNetwork || p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil {
				continue
			}
			for _, a := range p.Status.PodIPs {
				if ip, err := netip.ParseAddr(a.IP); err == nil && !seen[ip.Is4()] {
					seen[ip.Is4()] = true
					out = append(out, way{fmt.Sprintf("path to pods of node %s (%s, %s/%s)", n.Name, ip, p.Namespace, p.Name), ip, pod})
				}
			}
		}
	}
	return out
}

// paths probes all ways at once.
func (e *examination) paths(ctx context.Context, g group, o *objects, uplink, tunnel int) {
	list := ways(e.Name, o, uplink, tunnel)
	results := make([]func(), len(list))
	var wg sync.WaitGroup
	for i, w := range list {
		wg.Go(func() {
			fits, err := pathMTU(ctx, w.to, w.size)
			results[i] = func() { g.judgePath(w, fits, err, e.TunnelPort) }
		})
	}
	wg.Wait()
	for _, tell := range results {
		tell()
	}
	if len(list) == 0 {
		g.ok("path MTU", "there is no other node")
	}
}

func (g group) judgePath(w way, fits int, err error, tunnelPort int) {
	switch {
	case err != nil:
		g.unknown(w.name, err, "")
	case fits == 0:
		g.fail(w.name, fmt.Sprintf("is that node up, and does nothing between the nodes drop ICMP or the tunnel's UDP port %d?", tunnelPort), "no echo comes back, of any size")
	case fits < w.size:
		g.fail(w.name, fmt.Sprintf("set the uplink's MTU to what the network between the nodes carries, or raise that: the difference is %d bytes", w.size-fits),
			"packets of %d bytes are lost on the way, up to %d pass", w.size, fits)
	default:
		g.ok(w.name, "%d bytes pass unfragmented, both ways", w.size)
	}
}
