package podnet

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

const (
	serverPort  = 8080
	servicePort = 80
	nodePort    = 30080
)

var clusterIPs = [2]netip.Addr{netip.MustParseAddr("10.96.1.1"), netip.MustParseAddr("fd00:10:96::1:1")}

// cluster is two nodes with two pods each, and servers everywhere.
type cluster struct {
	*Lab
	pods []*Pod // node 1's, then node 2's
}

func start(t *testing.T, nodes int, routing cni.Routing, change ...func(*Node)) *cluster {
	t.Helper()
	l, err := New(nodes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, n := range l.Nodes {
		n.Routing = routing
		n.LoadBalancers = service(l, n)
		n.Names = []bpf.Name{{Owner: "svc", Name: "svc.default.svc.cluster.local.", Addrs: clusterIPs[:]}}
		for _, f := range change {
			f(n)
		}
	}
	c := &cluster{Lab: l}
	must(t, l.Start())
	c.serve(t, l.Outside, "outside")
	for i, n := range l.Nodes {
		c.serve(t, n.Space, fmt.Sprint("node", i+1))
		for pod := range podsOnNode {
			p, err := n.NewPod(string(rune('a' + pod)))
			must(t, err)
			for family, addr := range p.Addrs {
				if want := podAddr(n, family, pod); addr != want {
					t.Fatalf("%s has %s, want %s: what is desired names it", p.ID, addr, want)
				}
			}
			c.serve(t, p.Space, p.ID)
			c.pods = append(c.pods, p)
		}
	}
	return c
}

const podsOnNode = 2

// podAddr is what a pod of a node gets: addresses are given in order, behind those of the network and of a gateway.
func podAddr(n *Node, family, pod int) netip.Addr {
	a := n.PodCIDRs[family].Addr().Next().Next()
	for range pod {
		a = a.Next()
	}
	return a
}

// service is one of all the pods.
func service(l *Lab, n *Node) []bpf.LoadBalancer {
	var all []bpf.LoadBalancer
	for family := range 2 {
		for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
			lb := bpf.LoadBalancer{Owner: "svc", Name: fmt.Sprintf("default/svc:%d-%d", family, protocol), Protocol: protocol,
				Frontends: []bpf.Frontend{{Addr: netip.AddrPortFrom(clusterIPs[family], servicePort)}, {Addr: netip.AddrPortFrom(n.Addrs[family], nodePort), Kind: bpf.NodePort}}}
			for _, backend := range l.Nodes {
				for pod := range podsOnNode {
					lb.Backends = append(lb.Backends, bpf.Backend{Addr: netip.AddrPortFrom(podAddr(backend, family, pod), serverPort), All: true, Local: backend == n})
				}
			}
			all = append(all, lb)
		}
	}
	return all
}

func (c *cluster) serve(t *testing.T, s Space, name string) {
	t.Helper()
	v, err := s.Serve(name, serverPort)
	must(t, err)
	t.Cleanup(func() { v.Close() })
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// networks are those of each family.
var networks = [2][]string{{"tcp4", "udp4"}, {"tcp6", "udp6"}}

// TestPaths is every way that a packet takes between pods, nodes, Services and the outside.
func TestPaths(t *testing.T) {
	t.Run("one node", func(t *testing.T) { paths(t, start(t, 1, cni.VXLAN)) })
	for _, routing := range []cni.Routing{cni.VXLAN, cni.Native} {
		t.Run(fmt.Sprint("two nodes, ", routing), func(t *testing.T) { paths(t, start(t, 2, routing)) })
	}
}

func paths(t *testing.T, c *cluster) {
	for family := range 2 {
		for _, network := range networks[family] {
			for _, from := range c.pods {
				own := from.Addrs[family].String()
				ask := func(to netip.Addr, port uint16, times int) (string, error) {
					return from.Ask(network, netip.AddrPortFrom(to, port), times)
				}
				for _, to := range c.pods {
					out, err := ask(to.Addrs[family], serverPort, 1)
					answered(t, out, err, to.ID+" "+own, network, from.ID, to.ID)
				}
				for i, n := range c.Nodes {
					node := fmt.Sprint("node", i+1)
					out, err := ask(n.Addrs[family], serverPort, 1)
					answered(t, out, err, node+" "+own, network, from.ID, node)
					out, err = n.Ask(network, netip.AddrPortFrom(from.Addrs[family], serverPort), 1)
					answered(t, out, err, from.ID+" "+n.Addrs[family].String(), network, node, from.ID)
				}
				out, err := ask(OutsideIPs[family], serverPort, 1)
				answered(t, out, err, "outside "+from.Node.Addrs[family].String(), network, from.ID, "outside")
				out, err = ask(clusterIPs[family], servicePort, enough)
				c.spread(t, out, err, network, from.ID, "Service")
			}
			for i, n := range c.Nodes {
				node := fmt.Sprint("node", i+1)
				out, err := n.Ask(network, netip.AddrPortFrom(clusterIPs[family], servicePort), enough)
				c.spread(t, out, err, network, node, "Service")
				out, err = c.AskOutside(network, netip.AddrPortFrom(n.Addrs[family], nodePort), enough)
				c.spread(t, out, err, network, "outside", node+"'s NodePort")
			}
		}
	}
}

func answered(t *testing.T, out string, err error, want, network, from, to string) {
	t.Helper()
	if err != nil || strings.TrimSpace(out) != want {
		t.Errorf("%s from %s to %s: %q, want %q (%v)", network, from, to, out, want, err)
	}
}

// enough questions leave none of four pods out, but once in 25 million times; forty did once in 25 000, and a run asks so some 300 times.
const enough = 64

// spread wants all answers, and some from every pod.
func (c *cluster) spread(t *testing.T, out string, err error, network, from, to string) {
	t.Helper()
	seen, n := map[string]bool{}, 0
	for line := range strings.Lines(out) {
		name, _, _ := strings.Cut(line, " ")
		seen[name] = true
		n++
	}
	if err != nil || n != enough || len(seen) != len(c.pods) {
		t.Errorf("%s from %s to %s: %d answers, from %v (%v):\n%s", network, from, to, n, seen, err, out)
	}
}

// TestNames asks the kernel; the node has no other DNS server.
func TestNames(t *testing.T) {
	c := start(t, 1, cni.VXLAN)
	for _, p := range c.pods {
		for _, server := range DNSAddrs {
			for i, q := range []struct {
				name  string
				qtype uint16
				code  int
				addrs string
			}{
				{"svc.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, clusterIPs[0].String()},
				{"Svc.Default.svc.Cluster.local.", dns.TypeA, dns.RcodeSuccess, clusterIPs[0].String()},
				{"svc.default.svc.cluster.local.", dns.TypeAAAA, dns.RcodeSuccess, clusterIPs[1].String()},
				{"svc.default.svc.cluster.local.default.svc.cluster.local.", dns.TypeA, dns.RcodeNameError, ""},
			} {
				code, addrs, err := p.Lookup(server, q.name, q.qtype)
				if err != nil || code != q.code || strings.Join(addrs, " ") != q.addrs {
					t.Errorf("question %d of %s to %s: %s %v (%v)", i, p.ID, server, dns.RcodeToString[code], addrs, err)
				}
			}
		}
	}
}

// TestKilledNode: what is in the kernel carries on without the process, and the next process takes it over.
func TestKilledNode(t *testing.T) {
	c := start(t, 2, cni.VXLAN)
	for _, n := range c.Nodes {
		must(t, n.Kill())
	}
	paths := func(when string) {
		t.Helper()
		for family := range 2 {
			for _, from := range c.pods {
				for _, to := range c.pods {
					out, err := from.Ask("tcp", netip.AddrPortFrom(to.Addrs[family], serverPort), 1)
					answered(t, out, err, to.ID+" "+from.Addrs[family].String(), when, from.ID, to.ID)
				}
				out, err := from.Ask("udp", netip.AddrPortFrom(clusterIPs[family], servicePort), enough)
				c.spread(t, out, err, when, from.ID, "Service")
			}
		}
	}
	paths("without a process")
	must(t, c.Start())
	paths("after a restart")
	if p, err := c.Nodes[0].NewPod("late"); err != nil {
		t.Error(err)
	} else if out, err := p.Ask("tcp", netip.AddrPortFrom(c.pods[0].Addrs[0], serverPort), 1); err != nil {
		t.Errorf("a new pod: %v: %s", err, out)
	}
}
