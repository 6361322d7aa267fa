package podnet

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/strake-io/strake/cni"
)

// TestSCTP: associations between pods of one node and of two, between pods and nodes, with Services, and with the outside both ways.
func TestSCTP(t *testing.T) {
	if !HasSCTP() {
		t.Skip("NOT TESTED: this kernel has no SCTP; make test-kernels runs it on some that do")
	}
	for _, routing := range []cni.Routing{cni.VXLAN, cni.Native} {
		t.Run(string(routing), func(t *testing.T) { associations(t, start(t, 2, routing)) })
	}
}

func associations(t *testing.T, c *cluster) {
	for family, network := range []string{"sctp4", "sctp6"} {
		for _, from := range c.pods {
			own := from.Addrs[family].String()
			for _, to := range c.pods {
				out, err := from.Ask(network, netip.AddrPortFrom(to.Addrs[family], serverPort), 3)
				answered(t, out, err, fmt.Sprintf("%[1]s %[2]s\n%[1]s %[2]s\n%[1]s %[2]s", to.ID, own), network, from.ID, to.ID)
			}
			for i, n := range c.Nodes {
				node := fmt.Sprint("node", i+1)
				out, err := from.Ask(network, netip.AddrPortFrom(n.Addrs[family], serverPort), 1)
				answered(t, out, err, node+" "+own, network, from.ID, node)
				out, err = n.Ask(network, netip.AddrPortFrom(from.Addrs[family], serverPort), 1)
				answered(t, out, err, from.ID+" "+n.Addrs[family].String(), network, node, from.ID)
			}
			out, err := from.Ask(network, netip.AddrPortFrom(OutsideIPs[family], serverPort), 1)
			answered(t, out, err, "outside "+from.Node.Addrs[family].String(), network, from.ID, "outside")
			out, err = from.Ask(network, netip.AddrPortFrom(clusterIPs[family], servicePort), enough)
			c.spread(t, out, err, network, from.ID, "Service")
		}
		for i, n := range c.Nodes {
			out, err := c.AskOutside(network, netip.AddrPortFrom(n.Addrs[family], nodePort), enough)
			c.spread(t, out, err, network, "outside", fmt.Sprintf("node%d's NodePort", i+1))
		}
	}
}
