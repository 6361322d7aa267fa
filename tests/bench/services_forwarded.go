package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/tests/bench/turns"
	"github.com/strake-io/strake/tests/podnet"
)

// forwarded compares the ways of a machine outside to a pod by a NodePort of a node that the pod is not on: ours by each mode, and nftables'.
func (b *bench) forwarded(ctx context.Context) (err error) {
	ways := []struct {
		name string
		set  func(*podnet.Node)
	}{
		{"snat", func(*podnet.Node) {}},
		{"dsr", func(n *podnet.Node) { n.DSR = true }},
		{"dsr at the driver", func(n *podnet.Node) { n.DSR, n.XDP = true, bpf.XDPNative }},
	}
	l := &servicesLab{ctx: ctx}
	if l.Lab, err = podnet.New(1 + len(ways)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	// The first node has the pod, each of the others is asked.
	for _, n := range l.Nodes {
		n.Routing = cni.Native
	}
	if err := l.Nodes[0].Start(); err != nil {
		return err
	}
	server, err := l.Nodes[0].NewPod("server")
	if err != nil {
		return err
	}
	if err := errors.Join(l.serve(server.Space), l.Nodes[0].Stop()); err != nil {
		return err
	}
	for i, n := range l.Nodes {
		n.LoadBalancers = serviceRows(1, server.Addrs[0], n.Addrs[0])
		if i > 0 {
			ways[i-1].set(n)
		}
		if err := n.Start(); err != nil {
			return err
		}
	}
	// What takes frames that a driver sends back is slower than what needn't: of the nodes only those with a program there have it. Whoever asks makes his
	// checksums himself, whatever way he asks.
	var drivers []*podnet.Node
	for _, n := range l.Nodes {
		if n.XDP == bpf.XDPNative {
			drivers = append(drivers, n)
		}
	}
	if err := l.ServeDrivers(drivers...); err != nil {
		return err
	}
	if err := settled(l.Nodes...); err != nil {
		return err
	}
	rival, routed, err := l.rivalForwards()
	if err != nil {
		return err
	}
	outside, err := l.worker(l.Outside, "")
	if err != nil {
		return err
	}
	port := benchService(0, server.Addrs[0]).NodePort
	for _, m := range []measure{
		{"connections, 8 at a time", modeConnect, 8, 10 * time.Millisecond, 160, leasts{nftables: 1.5}},
		{"TCP_RR", modeRequest, 1, 5 * time.Millisecond, 120, leasts{}},
	} {
		what := "outside → NodePort → another node, " + m.name
		var rotation []turns.Way
		for i, w := range ways {
			rotation = append(rotation, outside.way(what+", "+w.name, order{Mode: m.mode, To: netip.AddrPortFrom(l.Nodes[i+1].Addrs[0], port), Ports: 1, AtOnce: m.atOnce}))
		}
		rotation = append(rotation, outside.way(what+", "+kindNFTables, order{Mode: m.mode, To: netip.AddrPortFrom(rival, port), Ports: 1, AtOnce: m.atOnce}))
		rotation = append(rotation, outside.way(what+", routed alone", order{Mode: m.mode, To: routed, Ports: 1, AtOnce: m.atOnce}))
		series, err := turns.Rotate(rotation, m.turn, b.times(m.rounds))
		if err != nil {
			return err
		}
		compare := func(name string, way int, least float64) {
			b.report.rates(fmt.Sprintf("%s, %s, against %s", what, name, kindNFTables), series[way].Against(series[len(ways)]), "1/s", 1, least)
		}
		for i, w := range ways {
			compare(w.name, i, m.least.nftables)
		}
		compare("routed alone", len(ways)+1, 0)
	}
	return nil
}

// rivalForwards makes machines: one with a pod, one with nftables rules for that, which is asked, and one that only routes to it. They tell where they
// are asked; by the last one, no more can be done for a packet's way than nothing, and the answers go past it.
func (l *servicesLab) rivalForwards() (asked netip.Addr, routed netip.AddrPort, err error) {
	behind, err := l.machine("behind", 0, "server")
	if err != nil {
		return asked, routed, err
	}
	server := behind.pods[0]
	for i, name := range []string{"asked", "router"} {
		m, err := l.machine(name, byte(1+i))
		if err != nil {
			return asked, routed, err
		}
		if err := m.way(server.addr, behind.addr); err != nil {
			return asked, routed, err
		}
		if i == 0 {
			asked = m.addr
			err = l.rules(m, kindNFTables, 1, server.addr)
		} else {
			err = machine{Space: l.Outside}.way(server.addr, m.addr)
		}
		if err != nil {
			return asked, routed, err
		}
	}
	return asked, benchService(0, server.addr).Endpoints[0], l.serve(server.Space)
}

// way leads to an address by another machine.
func (m machine) way(to, by netip.Addr) error {
	return m.In(func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: by.AsSlice()})
	})
}
