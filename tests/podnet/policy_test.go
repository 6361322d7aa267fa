package podnet

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
)

// Rule sets, and lists of the same numbers: none but what answers, and all.
const (
	nobody    = 1
	everybody = 2
	onlyNode1 = 3 // all from and to pods of the first node
)

// judged has all pods of a node judged by rule sets.
func judged(ingress, egress uint32) func(*Node) {
	return func(n *Node) {
		const ofNode1 = 1 // identity
		c := &bpf.PolicyChange{
			Ports: []bpf.PolicyPort{
				{Ports: nobody, Verdict: bpf.PolicyVerdict{Policy: 1, Rule: bpf.PolicyNoRule, Tier: bpf.PolicyTierNetworkPolicy}},
				{Ports: everybody, Verdict: bpf.PolicyVerdict{Policy: 1, Allow: true, Tier: bpf.PolicyTierNetworkPolicy}},
			},
			Answers: []bpf.PolicyAnswer{
				{RuleSet: nobody, Ports: nobody}, {RuleSet: everybody, Ports: everybody},
				{RuleSet: onlyNode1, Ports: nobody}, {RuleSet: onlyNode1, Identity: ofNode1, Ports: everybody},
			},
		}
		for family := range 2 {
			node1 := n.lab.Nodes[0]
			c.Peers = append(c.Peers, bpf.PolicyPeer{Prefix: node1.PodCIDRs[family], Identity: ofNode1})
			for pod := range podsOnNode {
				s := bpf.PolicySubject{Addr: podAddr(n, family, pod), Ingress: ingress, Egress: egress}
				if n == node1 {
					s.Identity = ofNode1
				}
				c.Subjects = append(c.Subjects, s)
			}
		}
		n.Policies = c
	}
}

// TestPoliciesThatAllowAll: where policies judge every pod, and allow all, packets take all the ways that they take without.
func TestPoliciesThatAllowAll(t *testing.T) {
	for _, routing := range []cni.Routing{cni.VXLAN, cni.Native} {
		t.Run(fmt.Sprint(routing), func(t *testing.T) {
			c := start(t, 2, routing, everywhere, judged(everybody, everybody))
			paths(t, c)
			unhooked(t, c)
		})
	}
}

// TestPoliciesOfAskers: a pod that nobody may ask asks a Service without a socket hook, of which one backend is another pod of the node, and one itself. The
// answers pass its interface under the Service's address.
func TestPoliciesOfAskers(t *testing.T) {
	c := start(t, 1, cni.VXLAN, func(n *Node) {
		judged(everybody, nobody)(n)
		for family := range 2 {
			s := &n.Policies.Subjects[family*podsOnNode]
			if s.Addr != podAddr(n, family, 0) {
				t.Fatalf("%v is not the first pod's", s.Addr)
			}
			s.Ingress, s.Egress = nobody, everybody
		}
	})
	from := c.pods[0]
	for family := range 2 {
		for _, network := range networks[family] {
			out, err := c.ask(from.Space, "", network, netip.AddrPortFrom(clusterIPs[family], servicePort), enough)
			c.spread(t, out, err, network, from.ID, "Service")
			out, err = from.Ask(network, netip.AddrPortFrom(OutsideIPs[family], serverPort), 1)
			answered(t, out, err, "outside "+c.Nodes[0].Addrs[family].String(), network, from.ID, "outside")
		}
		silent(t, c.pods[1].Space, from.Addrs[family])
	}
}

// TestPoliciesBetweenNodes: who is judged by the other end's address is judged the same on both nodes, by whatever way the packets come, and nodes reach
// their own pods. What is closed while somebody is connected is cut; a node's agent restarts for it.
func TestPoliciesBetweenNodes(t *testing.T) {
	for _, routing := range []cni.Routing{cni.VXLAN, cni.Native} {
		t.Run(fmt.Sprint(routing), func(t *testing.T) {
			c := start(t, 2, routing, judged(onlyNode1, everybody))
			for family := range 2 {
				for _, network := range networks[family] {
					for _, to := range c.pods {
						at := netip.AddrPortFrom(to.Addrs[family], serverPort)
						for _, from := range c.pods {
							if from.Node == c.Nodes[0] || from == to {
								out, err := from.Ask(network, at, 1)
								answered(t, out, err, to.ID+" "+from.Addrs[family].String(), network, from.ID, to.ID)
							}
						}
						own, err := to.Node.Ask(network, at, 1)
						answered(t, own, err, to.ID+" "+to.Node.Addrs[family].String(), network, "its node", to.ID)
					}
				}
			}
			from, to := c.pods[podsOnNode], c.pods[0] // of the second node, of the first
			denied := c.Nodes[0].counter(t, "drop_policy_ingress")
			silent(t, from.Space, to.Addrs[0])
			silent(t, c.Nodes[1].Space, to.Addrs[1])
			if c.Nodes[0].counter(t, "drop_policy_ingress") < denied+2 {
				t.Error("no packet was counted as denied")
			}
			// Agents come and go; then the first node's pods may not send.
			for _, n := range c.Nodes {
				must(t, n.Kill())
			}
			silent(t, from.Space, to.Addrs[0])
			judged(onlyNode1, nobody)(c.Nodes[0])
			must(t, c.Start())
			silent(t, to.Space, from.Addrs[0])
			silent(t, to.Space, c.pods[1].Addrs[1])
			out, err := c.Nodes[0].Ask("tcp", netip.AddrPortFrom(to.Addrs[0], serverPort), 1)
			answered(t, out, err, to.ID+" "+c.Nodes[0].Addrs[0].String(), "tcp", "its node", to.ID)
		})
	}
}

// silent fails if an address answers.
func silent(t *testing.T, from Space, to netip.Addr) {
	t.Helper()
	must(t, from.In(func() error {
		family, sa := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: serverPort, Addr: [4]byte(to.AsSlice()[:4])})
		if to.Is6() {
			family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: serverPort, Addr: to.As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, sa); err != unix.EINPROGRESS {
			return fmt.Errorf("connect: %w", err)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 500)
		if n != 0 || err != nil {
			return fmt.Errorf("%v answered (%d, %v)", to, n, err)
		}
		return nil
	}))
}
