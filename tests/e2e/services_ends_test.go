package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
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
