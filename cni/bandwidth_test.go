package cni

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/strake-io/strake/cni/plugin"
)

// Limits stand at both sides of a pod's link, CHECK misses them, and a restart puts them back.
func TestBandwidthLimits(t *testing.T) {
	n := newNode(t, "10.244.0.0/24", "fd00::/64")
	for _, c := range []struct {
		name string
		b    plugin.Bandwidth
	}{{"to", plugin.Bandwidth{Ingress: 1_000_000}}, {"from", plugin.Bandwidth{Egress: maxRate}}, {"both", plugin.Bandwidth{Ingress: minRate, Egress: 40_000_000_000}}} {
		ns := newNetns(t)
		if _, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: c.name, Netns: ns, Ifname: "eth0", Bandwidth: c.b}); err != nil {
			t.Fatal(err)
		}
		must(t, n.check(c.name, ns))
		for _, row := range n.fake.rows {
			if row.Owner == owner(c.name, "eth0") && (row.Queued != (c.b.Ingress != 0) || row.Egress.Rate != c.b.Egress/8) {
				t.Errorf("%s: row %+v", c.name, row)
			}
		}
		host, err := netlink.LinkByName(hostName(c.name, "eth0"))
		must(t, err)
		if c.b.Ingress != 0 {
			must(t, netlink.QdiscDel(bucket(host.Attrs().Index, c.b.Ingress)))
			if err := n.check(c.name, ns); err == nil || !strings.Contains(err.Error(), host.Attrs().Name+": its limit") {
				t.Errorf("%s, without the limit of what it gets: %v", c.name, err)
			}
			n.restart(t)
			must(t, n.check(c.name, ns))
		}
		if c.b.Egress != 0 {
			must(t, within(t, ns, func() error {
				eth0, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.QdiscDel(bucket(eth0.Attrs().Index, c.b.Egress))
			}))
			if err := n.check(c.name, ns); err == nil || !strings.Contains(err.Error(), "of the pod: its limit") {
				t.Errorf("%s, without the limit of what it sends: %v", c.name, err)
			}
			n.restart(t)
			must(t, n.check(c.name, ns))
		}
		n.del(t, c.name, ns)
	}
	n.wantNothing(t)
}

func TestBandwidthThatIsNone(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	for _, b := range []plugin.Bandwidth{{Ingress: 999}, {Egress: 1}, {Ingress: maxRate + 1}, {Ingress: minRate, Egress: 1 << 63}} {
		_, err := n.Handle(plugin.Request{Verb: "ADD", ContainerID: "a", Netns: newNetns(t), Ifname: "eth0", Bandwidth: b})
		if err == nil || err.Code != types.ErrInvalidNetworkConfig || !strings.Contains(err.Msg, "1k to 1P") {
			t.Errorf("%+v: %v", b, err)
		}
	}
	n.wantNothing(t)
}
