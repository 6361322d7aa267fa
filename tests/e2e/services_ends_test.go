package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/strake-io/strake/tests/podnet"
)

// ends are Services of a pod that asks itself, of a process of a node, of nobody, and of one who may ask; and those pods.
func ends(nodes []labNode) string {
	as := func(app, manifest string, more ...string) string {
		return strings.NewReplacer(append([]string{"app: web", "app: " + app}, more...)...).Replace(manifest)
	}
	return strings.Join([]string{
		as("mirror", server("mirror", nodes[1].Name)), as("mirror", webService("mirror", 30391, "type: NodePort")),
		as("hosted", server("hosted", nodes[1].Name), "spec:", "spec:\n  hostNetwork: true", ":8080", ":18080"), as("hosted", webService("hosted", 30392, "type: NodePort"), "8080", "18080"),
		as("nobody", webService("nobody", 30393, "type: NodePort")),
		webService("ranged", 0, "type: LoadBalancer", "allocateLoadBalancerNodePorts: false"),
	}, "---\n")
}

// caller is somebody who asks.
type caller struct {
	what string
	ask  func(network string, to netip.AddrPort, patience time.Duration) (string, error)
}

// callerIn asks from a namespace. In a node's, hooks serve the test's sockets as all of the node's; in a pod's they don't, for the test is no process of it: its packets
// tell what it asks for.
func callerIn(what string, s podnet.Space) caller {
	return caller{what, func(network string, to netip.AddrPort, patience time.Duration) (string, error) {
		return asks(s, network, 0, to, patience)
	}}
}

// processOf asks as a process of a pod.
func (c *threeNodes) processOf(pod string, more ...string) caller {
	return caller{"pod " + pod, func(network string, to netip.AddrPort, _ time.Duration) (string, error) {
		url := map[string]string{"tcp": "http://", "udp": "udp://"}[network] + to.String()
		out, err := c.try(append(append([]string{"exec", pod}, more...), "--", "/strake", "demo", "client", "--count", "1", "--url", url)...)
		if strings.Contains(out, syscall.ECONNREFUSED.Error()) {
			err = syscall.ECONNREFUSED
		}
		if f := strings.SplitN(out, " ", 3); len(f) == 3 {
			out = f[2] // behind its number and time
		}
		return out, err
	}}
}

// packetsOf asks as a pod on a node whose sockets no hook serves.
func (c *threeNodes) packetsOf(pod string, node int) caller {
	c.t.Helper()
	return callerIn("packets of pod "+pod, podnet.Space(c.nodes[node].allocation(c.t, c.podAddrs(pod)[0]).Netns))
}

func (c *threeNodes) node(i int) caller {
	return callerIn("node "+c.nodes[i].Name, podnet.Space(c.nodes[i].netns))
}

// clusterIP is a Service's, of the family of the nodes' addresses with this number.
func (c *threeNodes) clusterIP(service string, family int) netip.AddrPort {
	c.t.Helper()
	for text := range strings.FieldsSeq(c.kubectl("get", "service", service, "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		if a := netip.MustParseAddr(text); a.Is4() == c.nodes[0].Addresses[family].Is4() {
			return netip.AddrPortFrom(a, 80)
		}
	}
	c.t.Fatalf("Service %s has no address of the family of %s", service, c.nodes[0].Addresses[family])
	return netip.AddrPort{}
}

// nodePorts are a NodePort's addresses, node by node.
func (c *threeNodes) nodePorts(port uint16, family int) (to []netip.AddrPort) {
	for _, n := range c.nodes {
		to = append(to, netip.AddrPortFrom(n.Addresses[family], port))
	}
	return to
}

// each waits until all of these, asked by TCP and UDP, end so.
func each(t *testing.T, callers []caller, places []netip.AddrPort, patience time.Duration, want func(answer string, err error) bool) {
	t.Helper()
	for _, k := range callers {
		for _, network := range []string{"tcp", "udp"} {
			for _, to := range places {
				eventually(t, 80*time.Second, func() string {
					answer, err := k.ask(network, to, patience)
					if want(answer, err) {
						return ""
					}
					return fmt.Sprintf("%s to %s by %s: %q, %v", k.what, to, network, answer, err)
				})
			}
		}
	}
}

func refuses(_ string, err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// isSilent is what a packet that is dropped comes to; of a socket that is served, the call is not permitted.
func isSilent(_ string, err error) bool {
	return err != nil && (errors.Is(err, errTimeout(err)) || errors.Is(err, os.ErrPermission))
}

func answersAs(name string) func(string, error) bool {
	return func(answer string, err error) bool { return err == nil && pod(answer) == name }
}

const patient, brief = 5 * time.Second, 700 * time.Millisecond

// hairpin: a pod gets itself, by its Service's ClusterIP and by NodePorts of its own node and of others.
func hairpin(t *testing.T, c *threeNodes, m neighbour) {
	for family := range m.addrs {
		ports := c.nodePorts(30391, family)
		each(t, []caller{c.packetsOf("mirror", 1)}, append(ports, c.clusterIP("mirror", family)), patient, answersAs("mirror"))
		each(t, []caller{c.processOf("mirror")}, []netip.AddrPort{c.clusterIP("mirror", family), ports[1]}, patient, answersAs("mirror"))
	}
}

// hostNetwork: processes with a node's network ask, and are asked, from and by every node.
func hostNetwork(t *testing.T, c *threeNodes, m neighbour) {
	host := c.nodes[1].Name // such a pod is called as its node
	inside := []caller{c.node(0), c.node(1), c.node(2), c.packetsOf("client-0", 0), c.packetsOf("client-1", 1)}
	for family := range m.addrs {
		ports := c.nodePorts(30392, family)
		own := c.clusterIP("hosted", family)
		each(t, inside, append(ports, own), patient, answersAs(host))
		each(t, []caller{callerIn("outside", m.Space)}, ports, patient, answersAs(host))
		each(t, []caller{c.processOf("client-0", "-c", "echo"), c.processOf("hosted")}, []netip.AddrPort{own}, patient, answersAs(host))
		each(t, []caller{c.processOf("hosted")}, []netip.AddrPort{c.clusterIP("mirror", family)}, patient, answersAs("mirror"))
		each(t, []caller{c.node(0), c.node(1), c.node(2)}, append(c.nodePorts(30391, family), c.clusterIP("mirror", family)), patient, answersAs("mirror"))
	}
}

// noEndpoints: a Service without any refuses at once, a connection and a datagram alike.
func noEndpoints(t *testing.T, c *threeNodes, m neighbour) {
	for family := range m.addrs {
		ports := c.nodePorts(30393, family)
		own := c.clusterIP("nobody", family)
		each(t, []caller{c.node(0), c.packetsOf("client-0", 0)}, append(ports, own), patient, refuses)
		each(t, []caller{callerIn("outside", m.Space)}, ports, patient, refuses)
		each(t, []caller{c.processOf("client-0", "-c", "echo")}, []netip.AddrPort{own}, patient, refuses)
	}
}

// internalPolicy: internalTrafficPolicy Local gives clients what their own node has, and where that is nothing drops what they ask, by either path.
func internalPolicy(t *testing.T, c *threeNodes, m neighbour) {
	for family := range m.addrs {
		to := c.clusterIP("inner", family)
		each(t, []caller{c.node(0), c.packetsOf("client-0", 0)}, []netip.AddrPort{to}, brief, isSilent)
		for i, pods := range [][]string{1: {"second-a", "second-b"}, 2: {"third"}} {
			if pods == nil {
				continue
			}
			for _, k := range []caller{c.node(i), c.packetsOf(fmt.Sprint("client-", i), i)} {
				for _, network := range []string{"tcp", "udp"} {
					seen := map[string]int{}
					for range 24 {
						answer, err := k.ask(network, to, patient)
						if err != nil {
							t.Fatalf("%s to %s by %s: %v", k.what, to, network, err)
						}
						seen[pod(answer)]++
					}
					if !only(seen, pods...) {
						t.Errorf("%s to %s by %s: %v answer, want %v", k.what, to, network, seen, pods)
					}
				}
			}
		}
	}
}

// sourceRanges: a load balancer's address is for those that its Service names, and for the nodes, whichever node is asked.
func sourceRanges(t *testing.T, c *threeNodes, m neighbour) {
	at := []netip.Addr{netip.MustParseAddr("203.0.113.82"), netip.MustParseAddr("2001:db8:113::82")}
	if c.nodes[0].Addresses[0].Is6() {
		at[0], at[1] = at[1], at[0]
	}
	c.kubectl("patch", "service", "ranged", "--subresource=status", "--type=merge", "-p", fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":"%s"},{"ip":"%s"}]}}}`, at[0], at[1]))
	outside, inside := []caller{callerIn("outside", m.Space)}, []caller{c.packetsOf("client-0", 0)}
	answers := func(answer string, err error) bool { return err == nil && strings.Contains(answer, " answers ") }
	ranges := func(of ...netip.Addr) {
		t.Helper()
		var texts []string
		for _, a := range of {
			texts = append(texts, fmt.Sprintf("%q", netip.PrefixFrom(a, a.BitLen())))
		}
		c.kubectl("patch", "service", "ranged", "-p", fmt.Sprintf(`{"spec":{"loadBalancerSourceRanges":[%s]}}`, strings.Join(texts, ",")))
	}
	for _, allowed := range []struct {
		who             []netip.Addr
		outside, inside func(string, error) bool
	}{{m.addrs, answers, isSilent}, {c.podAddrs("client-0"), isSilent, answers}} {
		ranges(allowed.who...)
		for family, a := range at {
			to := []netip.AddrPort{netip.AddrPortFrom(a, 80)}
			each(t, inside, to, brief, allowed.inside)
			each(t, []caller{c.node(0)}, to, patient, answers)
			for _, by := range []netip.Addr{m.gateways[family], c.nodes[2].Addresses[family]} { // without endpoints of its own, and with one
				if err := m.route(netip.PrefixFrom(a, a.BitLen()), by); err != nil {
					t.Fatal(err)
				}
				each(t, outside, to, brief, allowed.outside)
			}
		}
	}
}
