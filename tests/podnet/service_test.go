package podnet

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
)

const (
	nodesPort   = 81 // of a Service of the nodes' own processes
	outsidePort = 82 // of one of a server outside of the cluster
)

// TestServicesWithoutHooks is every way that packets take which no socket hook saw, from pods to backends of all kinds, themselves included.
func TestServicesWithoutHooks(t *testing.T) {
	t.Run("one node", func(t *testing.T) { unhooked(t, start(t, 1, cni.VXLAN, everywhere)) })
	for _, routing := range []cni.Routing{cni.VXLAN, cni.Native} {
		t.Run(fmt.Sprint("two nodes, ", routing), func(t *testing.T) { unhooked(t, start(t, 2, routing, everywhere)) })
	}
}

// everywhere gives a node a Service for each kind of backend that is no pod.
func everywhere(n *Node) {
	for family := range 2 {
		for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			for port, addrs := range map[uint16][]netip.Addr{nodesPort: nodeAddrs(n.lab, family), outsidePort: {OutsideIPs[family]}} {
				lb := bpf.LoadBalancer{Owner: "svc", Name: fmt.Sprintf("default/svc:%d-%d-%d", port, family, protocol), Protocol: protocol,
					Frontends: []bpf.Frontend{{Addr: netip.AddrPortFrom(clusterIPs[family], port)}, {Addr: netip.AddrPortFrom(n.Addrs[family], 30000+port), Kind: bpf.NodePort}}}
				for _, a := range addrs {
					lb.Backends = append(lb.Backends, bpf.Backend{Addr: netip.AddrPortFrom(a, serverPort), All: true, Local: a == n.Addrs[family]})
				}
				n.LoadBalancers = append(n.LoadBalancers, lb)
			}
		}
	}
}

func nodeAddrs(l *Lab, family int) (out []netip.Addr) {
	for _, n := range l.Nodes {
		out = append(out, n.Addrs[family])
	}
	return out
}

func unhooked(t *testing.T, c *cluster) {
	for family := range 2 {
		for _, network := range networks[family] {
			for _, from := range c.pods {
				ask := func(to netip.Addr, port uint16, times int) (string, error) {
					return c.ask(from.Space, "", network, netip.AddrPortFrom(to, port), times)
				}
				out, err := ask(clusterIPs[family], servicePort, enough)
				c.spread(t, out, err, network, from.ID, "Service")
				out, err = ask(from.Node.Addrs[family], nodePort, enough)
				c.spread(t, out, err, network, from.ID, "its node's NodePort")
				out, err = ask(clusterIPs[family], nodesPort, enough)
				nodes(t, c, out, err, network, from.ID, from.Addrs[family].String())
				out, err = ask(clusterIPs[family], outsidePort, 1)
				answered(t, out, err, "outside "+from.Node.Addrs[family].String(), network, from.ID, "outside, as a Service")
			}
			for i, n := range c.Nodes {
				node := fmt.Sprint("node", i+1)
				out, err := c.AskOutside(network, netip.AddrPortFrom(n.Addrs[family], 30000+nodesPort), enough)
				nodes(t, c, out, err, network, "outside", "")
				out, err = c.AskOutside(network, netip.AddrPortFrom(n.Addrs[family], 30000+outsidePort), 1)
				answered(t, out, err, "outside "+n.Addrs[family].String(), network, "outside", node+"'s NodePort of outside")
			}
		}
	}
}

// nodes wants all answers of the nodes themselves, some from each, to a client with an address.
func nodes(t *testing.T, c *cluster, out string, err error, network, from, client string) {
	t.Helper()
	seen, n := map[string]bool{}, 0
	for line := range strings.Lines(out) {
		var name, asked string
		fmt.Sscan(line, &name, &asked)
		seen[name] = true
		if client != "" && asked != client {
			t.Errorf("%s from %s: %s was asked by %s, want %s", network, from, name, asked, client)
		}
		n++
	}
	if err != nil || n != enough || len(seen) != len(c.Nodes) {
		t.Errorf("%s from %s to the nodes' Service: %d answers from %v, %v\n%s", network, from, n, seen, err, out)
	}
}
