package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
)

// A link that leads elsewhere than to the other nodes, such as to storage, comes while the node runs. Pods' packets leave by it with its own addresses,
// as nobody behind it knows a way to the node's; Services answer there, too. Then it goes.
func TestOtherUplink(t *testing.T) {
	own := [2]netip.Addr{netip.MustParseAddr("198.19.0.2"), netip.MustParseAddr("2001:db8:19::2")}
	there := [2]netip.Addr{netip.MustParseAddr("198.19.0.1"), netip.MustParseAddr("2001:db8:19::1")}
	c := start(t, 1, cni.VXLAN, func(n *Node) {
		for i := range n.LoadBalancers {
			lb := &n.LoadBalancers[i]
			for _, a := range own {
				if a.Is4() == lb.Frontends[0].Addr.Addr().Is4() {
					lb.Frontends = append(lb.Frontends, bpf.Frontend{Addr: netip.AddrPortFrom(a, nodePort), Kind: bpf.NodePort})
				}
			}
		}
	})
	n := c.Nodes[0]
	storage, err := c.Space("storage")
	must(t, err)
	must(t, storage.In(trustAddresses))
	must(t, storage.Connect("link", n.Space, "wire"))
	must(t, storage.Address("link", onLink(there[:])...))
	c.serve(t, storage, "storage")
	var index int
	err = n.Space.In(func() error {
		wire, err := netlink.LinkByName("wire")
		if err != nil {
			return err
		}
		// The kind is what counts: a veth alone may lead to anything on this machine.
		l := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "storage", ParentIndex: wire.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE}
		if err := netlink.LinkAdd(l); err != nil {
			return err
		}
		index = l.Index
		return netlink.LinkSetUp(l)
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("NOT TESTED: this kernel has no macvlan")
	}
	must(t, err)
	must(t, n.Space.Address("storage", onLink(own[:])...))
	hasProgram := func() bool {
		pins, err := filepath.Glob(filepath.Join(n.pins(), fmt.Sprintf("*strake_egress_%d", index)))
		must(t, err)
		return len(pins) > 0
	}
	await(t, "programs at the other link", func() error {
		if !hasProgram() {
			return errors.New("there are none")
		}
		return nil
	})
	from := c.pods[0]
	for family, list := range networks {
		for _, network := range list {
			out, err := from.Ask(network, netip.AddrPortFrom(there[family], serverPort), 1)
			answered(t, out, err, "storage "+own[family].String(), network, from.ID, "storage")
			out, err = from.Ask(network, netip.AddrPortFrom(OutsideIPs[family], serverPort), 1)
			answered(t, out, err, "outside "+n.Addrs[family].String(), network, from.ID, "outside")
			out, err = n.Ask(network, netip.AddrPortFrom(there[family], serverPort), 1)
			answered(t, out, err, "storage "+own[family].String(), network, "the node", "storage")
			out, err = c.ask(storage, "", network, netip.AddrPortFrom(own[family], nodePort), enough)
			c.spread(t, out, err, network, "storage", "a NodePort there")
		}
	}
	must(t, n.Space.In(func() error {
		l, err := netlink.LinkByIndex(index)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	}))
	await(t, "no programs at a link that is gone", func() error {
		if hasProgram() {
			return errors.New("their pins are there")
		}
		return nil
	})
}
