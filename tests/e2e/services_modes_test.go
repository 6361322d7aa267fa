package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/tests/podnet"
)

// directReturn: a client outside asks a node that has none of the pods, in each mode to which `up` can bring the cluster. Where pods' nodes answer directly they see
// the client, else the node that was asked; at the driver, packets go on by a program there.
func directReturn(t *testing.T, c *threeNodes, m neighbour) {
	c.kubectl("label", "pod", "third", "app-")
	c.kubectl("label", "pod", "second-a", "app=web")
	asked := c.nodes[2]
	l, err := layout.New(asked.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	counter := func(name string) uint64 {
		s, err := bpf.ReadStatus(l.BPF())
		if err != nil {
			t.Fatal(err)
		}
		return s.Counters[name]
	}
	// The ends of the nodes' links take what a driver sends back, and the client makes its checksums itself: virtual links do neither by themselves.
	if err := podnet.Space("/run/netns/" + c.Net).In(func() error { return podnet.TakeFrames(bridgePorts(t)...) }); err != nil {
		t.Fatal(err)
	}
	if err := m.In(func() error { return podnet.SumItself("eth0") }); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []struct {
		flags  []string
		direct bool
		driver bool
	}{
		{flags: []string{"--lb-mode", "dsr", "--service-node-port-range", "30000-30999"}, direct: true},
		{flags: []string{"--routing", "native", "--xdp", "native"}, direct: true, driver: true},
		{flags: []string{"--lb-mode", "snat", "--routing", "vxlan", "--xdp", "off"}},
	} {
		t.Run(strings.Join(mode.flags, " "), func(t *testing.T) {
			if out, err := c.Strake(append([]string{"up", "--wait", "120s"}, mode.flags...)...); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for family, own := range m.addrs {
				client := own
				if !mode.direct {
					client = asked.Addresses[family]
				}
				to := netip.AddrPortFrom(asked.Addresses[family], 30381)
				for _, network := range []string{"tcp", "udp"} {
					eventually(t, 6*time.Minute, func() string { // each agent follows in its own time
						for range 10 {
							answer, err := asks(m.Space, network, 0, to, 2*time.Second)
							if err != nil || pod(answer) != "second-a" || !strings.Contains(answer, client.String()) {
								return fmt.Sprintf("%s to %s: %q, %v; the pod is to see %s", network, to, answer, err, client)
							}
						}
						return ""
					})
				}
				eventually(t, 4*time.Minute, func() string { // routing and drivers are followed later than the Service is served
					before := counter("xdp_forwarded")
					for range 20 {
						if answer, err := asks(m.Space, "tcp", 0, to, 10*time.Second); err != nil || pod(answer) != "second-a" {
							return fmt.Sprintf("%s: %q, %v", to, answer, err)
						}
					}
					if n := counter("xdp_forwarded") - before; (n >= 20) != mode.driver {
						return fmt.Sprintf("%s: %d packets went on at the driver", to, n)
					}
					return ""
				})
			}
		})
	}
	if out, err := c.try("create", "service", "nodeport", "far", "--tcp=80", "--node-port=31000"); err == nil || !strings.Contains(out, "30000-30999") {
		t.Errorf("a NodePort that is none any more: %v\n%s", err, out)
	}
}

// bridgePorts are the interfaces at the lab's bridge in the calling thread's namespace.
func bridgePorts(t *testing.T) (names []string) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Error(err)
	}
	for _, l := range links {
		if l.Type() == "veth" && l.Attrs().MasterIndex != 0 {
			names = append(names, l.Attrs().Name)
		}
	}
	return names
}
