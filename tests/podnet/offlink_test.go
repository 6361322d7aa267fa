package podnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/cni"
)

// Nodes that share no link leave their pods' packets to the fabric, which knows the ways: here a router, the outside.
func TestNativeOffLink(t *testing.T) {
	c := start(t, 2, cni.Native, func(n *Node) {
		must(t, n.Space.In(func() error {
			up, err := netlink.LinkByName(Uplink)
			if err != nil {
				return err
			}
			for i, addr := range n.Addrs {
				if err := netlink.AddrDel(up, &netlink.Addr{IPNet: prefixNet(addr, linkBits[i])}); err != nil {
					return fmt.Errorf("%s: %w", addr, err)
				}
				if err := netlink.AddrAdd(up, &netlink.Addr{IPNet: prefixNet(addr, addr.BitLen()), Flags: unix.IFA_F_NODAD}); err != nil {
					return fmt.Errorf("%s: %w", addr, err)
				}
				gw := OutsideIPs[i]
				for _, r := range []*netlink.Route{
					{LinkIndex: up.Attrs().Index, Dst: prefixNet(gw, gw.BitLen()), Scope: netlink.SCOPE_LINK}, {LinkIndex: up.Attrs().Index, Gw: gw.AsSlice()},
				} {
					if err := netlink.RouteReplace(r); err != nil {
						return fmt.Errorf("%s: %w", r, err)
					}
				}
			}
			return nil
		}))
		must(t, n.lab.Outside.In(func() error {
			for i, sysctl := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
				if err := os.WriteFile("/proc/sys/"+sysctl, []byte("1"), 0); err != nil {
					return err
				}
				if err := netlink.RouteReplace(&netlink.Route{Dst: prefixNet(n.PodCIDRs[i].Addr(), n.PodCIDRs[i].Bits()), Gw: n.Addrs[i].AsSlice()}); err != nil {
					return err
				}
			}
			// Every packet goes back by the interface that it came from: the router would tell the nodes of a shorter way.
			for _, name := range []string{"all", "link"} {
				if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/send_redirects", []byte("0"), 0); err != nil {
					return err
				}
			}
			return nil
		}))
	})
	c.between(t)
	n := c.Nodes[0]
	for _, p := range ourRoutes(t, n) {
		if slices.Contains(c.Nodes[1].PodCIDRs, p) {
			t.Errorf("node 1 has a route to %s, which no link of its reaches", p)
		}
	}
	if n.counter(t, "pod_to_remote") == 0 {
		t.Error("pod_to_remote counts nothing")
	}
}

// Nodes that can't reach each other meet at the one between them: pods, nodes and Services. Nobody else passes by there.
func TestRelay(t *testing.T) {
	const relay, beyond, hidden = 0, 1, 2
	c := start(t, 3, cni.VXLAN, func(n *Node) {
		n.Relay = cni.Relay{Node: n.Nodes[relay].Name}
		for _, a := range n.Nodes[hidden].Addrs {
			n.Relay.Behind = append(n.Relay.Behind, netip.PrefixFrom(a, a.BitLen()))
		}
		other := map[string]int{n.Nodes[beyond].Name: hidden, n.Nodes[hidden].Name: beyond}
		if i, ok := other[filepath.Base(n.Dir)]; ok {
			must(t, n.Space.In(func() error { return unreachable(n.Nodes[i].Addrs) }))
		}
	})
	c.between(t)
	for _, ends := range [][2]int{{beyond, hidden}, {hidden, beyond}} {
		from, to := c.Nodes[ends[0]], c.Nodes[ends[1]]
		name := fmt.Sprint("node", ends[1]+1)
		pod := c.pods[podsOnNode*ends[0]]
		for family, addr := range to.Addrs {
			for _, network := range networks[family] {
				out, err := from.Ask(network, netip.AddrPortFrom(addr, serverPort), 1)
				answered(t, out, err, name+" "+from.Addrs[family].String(), network, "a node", name)
				out, err = pod.Ask(network, netip.AddrPortFrom(addr, serverPort), 1)
				answered(t, out, err, name+" "+pod.Addrs[family].String(), network, pod.ID, name)
			}
		}
	}
	n := c.Nodes[relay]
	passed := n.counter(t, "tunnel_to_remote")
	if passed == 0 {
		t.Error("tunnel_to_remote counts nothing")
	}
	// Without its rows of who is behind it, the node in between drops what is for others.
	n.Relay = cni.Relay{}
	must(t, n.Stop())
	must(t, n.Start())
	if out, err := c.pods[podsOnNode*beyond].Ask("udp4", netip.AddrPortFrom(c.pods[podsOnNode*hidden].Addrs[0], serverPort), 1); err == nil {
		t.Errorf("an answer by a node that is no relay: %s", out)
	}
	if n.counter(t, "drop_no_pod") == 0 || n.counter(t, "tunnel_to_remote") != passed {
		t.Error("a node that is no relay passes packets on")
	}
}

// unreachable leads the way to neighbours on the uplink to nobody.
func unreachable(addrs []netip.Addr) error {
	up, err := netlink.LinkByName(Uplink)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		nobody := &netlink.Neigh{LinkIndex: up.Attrs().Index, IP: a.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}, State: netlink.NUD_PERMANENT}
		if err := netlink.NeighSet(nobody); err != nil {
			return fmt.Errorf("neighbour %s: %w", a, err)
		}
	}
	return nil
}

// What is wrong with the routes is told by name.
func TestCompareRoutes(t *testing.T) {
	for _, routing := range []cni.Routing{cni.VXLAN, cni.Native} {
		t.Run(string(routing), func(t *testing.T) {
			c := start(t, 2, routing)
			n := c.Nodes[0]
			var nodes []corev1.Node
			for _, info := range n.Nodes {
				node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: info.Name, UID: types.UID(info.UID)}}
				for _, p := range info.PodCIDRs {
					node.Spec.PodCIDRs = append(node.Spec.PodCIDRs, p.String())
				}
				for _, a := range info.Addrs {
					node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
				}
				nodes = append(nodes, node)
			}
			compare := func(nodes []corev1.Node) (have int, drift []string) {
				t.Helper()
				must(t, n.Space.In(func() (err error) {
					have, drift, err = cni.CompareRoutes(cni.NodeView{Name: "node1", Addrs: n.Addrs, Routing: routing}, nodes)
					return err
				}))
				return have, drift
			}
			if have, drift := compare(nodes); have != 4 || len(drift) > 0 {
				t.Errorf("%d routes, %q", have, drift)
			}
			if _, drift := compare(nodes[:1]); len(drift) != 2 || !strings.Contains(drift[0], "of no node") {
				t.Errorf("of a node that is gone: %q", drift)
			}
			must(t, n.Stop())
			gone := c.Nodes[1].PodCIDRs[1]
			must(t, n.Space.In(func() error {
				return netlink.RouteDel(&netlink.Route{Dst: prefixNet(gone.Addr(), gone.Bits()), Protocol: cni.RouteProtocol})
			}))
			if _, drift := compare(nodes); len(drift) != 1 || drift[0] != fmt.Sprintf("the route to %s is missing", gone) {
				t.Errorf("without one: %q", drift)
			}
		})
	}
}

func prefixNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}

// ourRoutes are the destinations of a node's routes that the agent made.
func ourRoutes(t *testing.T, n *Node) (to []netip.Prefix) {
	t.Helper()
	must(t, n.Space.In(func() error {
		list, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: cni.RouteProtocol}, netlink.RT_FILTER_PROTOCOL)
		for _, r := range list {
			to = append(to, netip.MustParsePrefix(r.Dst.String()))
		}
		return err
	}))
	return to
}
