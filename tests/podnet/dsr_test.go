package podnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
)

// vips are a load balancer's addresses, which no interface has; echoNodePort is of one pod of the last node, at echoPort.
var vips = [2]netip.Addr{netip.MustParseAddr("203.0.113.50"), netip.MustParseAddr("2001:db8:fe::50")}

const echoNodePort = 30090

// direct makes a node answer clients outside by itself, and gives it load balancers' addresses.
func direct(n *Node) {
	n.DSR = true
	for i := range n.LoadBalancers {
		lb := &n.LoadBalancers[i]
		lb.Frontends = append(lb.Frontends, bpf.Frontend{Addr: netip.AddrPortFrom(vips[familyOf(lb)], servicePort)})
	}
	for family := range 2 {
		last := n.lab.Nodes[len(n.lab.Nodes)-1]
		n.LoadBalancers = append(n.LoadBalancers, bpf.LoadBalancer{Owner: "svc", Name: fmt.Sprint("default/echo:", family), Protocol: unix.IPPROTO_TCP,
			Frontends: []bpf.Frontend{{Addr: netip.AddrPortFrom(n.Addrs[family], echoNodePort), Kind: bpf.NodePort}},
			Backends:  []bpf.Backend{{Addr: netip.AddrPortFrom(podAddr(last, family, 0), echoPort), All: true, Local: n == last}}})
	}
}

func familyOf(lb *bpf.LoadBalancer) int {
	if lb.Frontends[0].Addr.Addr().Is4() {
		return 0
	}
	return 1
}

// TestAtTheDriver: what only passes a node does so at its driver, and what does not finds its way as ever.
func TestAtTheDriver(t *testing.T) {
	c := start(t, 2, cni.Native, direct, func(n *Node) { n.XDP = bpf.XDPNative })
	must(t, c.ServeDrivers(c.Nodes...))
	asked := c.Nodes[0]
	for family := range 2 {
		for _, network := range networks[family] {
			out, err := c.AskOutside(network, netip.AddrPortFrom(asked.Addrs[family], nodePort), enough)
			c.spread(t, out, err, network, "outside", "a NodePort")
		}
		forwarded := asked.counter(t, "xdp_forwarded")
		transfer(t, family, c.Outside, c.pods[2].Space, netip.AddrPortFrom(asked.Addrs[family], echoNodePort), 1<<20)
		if asked.counter(t, "xdp_forwarded") < forwarded+100 {
			t.Errorf("%s: %d packets went on at the driver", networks[family][0], asked.counter(t, "xdp_forwarded")-forwarded)
		}
	}
}

// TestDirectReturn: clients outside ask one node, pods of all nodes answer, and each sees the client's own address. The node that is asked gets
// none of the others' answers, and nobody's checks of the way back matter.
func TestDirectReturn(t *testing.T) {
	for _, routing := range []cni.Routing{cni.VXLAN, cni.Native} {
		t.Run(string(routing), func(t *testing.T) {
			c := start(t, 2, routing, direct, judged(everybody, everybody))
			for _, n := range c.Nodes {
				must(t, n.Space.In(func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0) }))
			}
			for family := range 2 {
				must(t, c.Outside.In(func() error {
					bits := 8 * len(vips[family].AsSlice())
					return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: vips[family].AsSlice(), Mask: net.CIDRMask(bits, bits)}, Gw: c.Nodes[0].Addrs[family].AsSlice()})
				}))
				kinds := networks[family]
				if HasSCTP() {
					kinds = append(kinds[:2:2], []string{"sctp4", "sctp6"}[family])
				}
				for _, network := range kinds {
					for i, to := range []netip.AddrPort{
						netip.AddrPortFrom(c.Nodes[0].Addrs[family], nodePort), netip.AddrPortFrom(c.Nodes[1].Addrs[family], nodePort), netip.AddrPortFrom(vips[family], servicePort),
					} {
						asked, other := c.Nodes[i%2], c.Nodes[1-i%2]
						sent, passed, answered := asked.counter(t, "dsr_to_remote"), asked.counter(t, "remote_to_uplink"), other.counter(t, "dsr_to_client")
						out, err := c.AskOutside(network, to, enough)
						c.spread(t, out, err, network, "outside", to.String())
						for line := range strings.Lines(out) {
							if _, client, _ := strings.Cut(strings.TrimSpace(line), " "); client != OutsideIPs[family].String() {
								t.Fatalf("%s to %s: a pod was asked by %s", network, to, client)
							}
						}
						if asked.counter(t, "dsr_to_remote") == sent || other.counter(t, "dsr_to_client") == answered || asked.counter(t, "remote_to_uplink") != passed {
							t.Errorf("%s to %s: answers came back by the node that was asked", network, to)
						}
					}
				}
				// More than fits, if the client were not told that a header is to come.
				transfer(t, family, c.Outside, c.pods[2].Space, netip.AddrPortFrom(c.Nodes[0].Addrs[family], echoNodePort), 8<<20)
			}
			for i, n := range c.Nodes {
				for _, name := range []string{"path_too_big", "drop_dsr", "drop_rewrite", "drop_malformed"} {
					if got := n.counter(t, name); got != 0 {
						t.Errorf("node %d: %s is %d", i+1, name, got)
					}
				}
			}
		})
	}
}
