package podnet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/strake-io/strake/cni/plugin"
)

// TestBandwidth: a limited pod gets and sends no more than it may, to and from pods of its node, those of another, and its node, in either
// family; also when it has taken away the queue on its own side, while no agent runs, and under the next one. That it gets as much is
// logged: a busy machine may have less to give.
func TestBandwidth(t *testing.T) {
	const rate = 20_000_000 // bit/s
	l, err := New(2)
	must(t, err)
	t.Cleanup(func() { must(t, l.Close()) })
	must(t, l.Start())
	pod := func(n *Node, name string, b plugin.Bandwidth) *Pod {
		p := &Pod{Node: n, ID: name}
		p.Space, err = l.Space(name)
		must(t, err)
		r, err := n.Call(plugin.Request{Verb: "ADD", ContainerID: name, Netns: string(p.Space), Ifname: "eth0", Bandwidth: b})
		must(t, err)
		for _, ip := range r.IPs {
			a, _ := netip.AddrFromSlice(ip.Address.IP)
			p.Addrs = append(p.Addrs, a.Unmap())
		}
		return p
	}
	slow := pod(l.Nodes[0], "slow", plugin.Bandwidth{Ingress: rate, Egress: rate})
	local, remote := pod(l.Nodes[0], "local", plugin.Bandwidth{}), pod(l.Nodes[1], "remote", plugin.Bandwidth{})

	transfer := func(what string, from, to Space, addr netip.Addr) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		at := netip.AddrPortFrom(addr, 9000).String()
		var sink net.Listener
		must(t, to.In(func() (err error) {
			sink, err = net.Listen("tcp", at)
			return err
		}))
		const size = 4 << 20
		start := time.Now() // what comes before it is read counts, too
		go func() {
			conn, err := from.Dial(ctx, "tcp", at)
			if err != nil {
				sink.Close()
				return
			}
			defer conn.Close()
			conn.Write(make([]byte, size))
		}()
		conn, err := sink.Accept()
		sink.Close()
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		n, err := io.Copy(io.Discard, conn)
		took := time.Since(start)
		conn.Close()
		ratio := float64(n*8) / took.Seconds() / rate
		line := fmt.Sprintf("%s, %s: %.0f %% of the limit (%d bytes in %v, %v)", what, addr, 100*ratio, n, took, err)
		if t.Log(line); n != size || ratio > 1.15 {
			t.Error(line)
		}
	}
	dropped := func() uint64 { return l.Nodes[0].counter(t, "drop_bandwidth") }
	for family := range 2 {
		transfer("to it from its node's pod", local.Space, slow.Space, slow.Addrs[family])
		transfer("to it from another node's", remote.Space, slow.Space, slow.Addrs[family])
		transfer("to it from its node", l.Nodes[0].Space, slow.Space, slow.Addrs[family])
		transfer("from it to its node's pod", slow.Space, local.Space, local.Addrs[family])
		transfer("from it to another node's", slow.Space, remote.Space, remote.Addrs[family])
	}
	if n := dropped(); n > 0 {
		t.Logf("%d packets were dropped though a queue stands before the limit: the machine is busy", n)
	}
	must(t, slow.In(func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.QdiscDel(&netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth0.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}})
	}))
	before := dropped()
	must(t, l.Nodes[0].Kill())
	transfer("without its queue, to its node's pod", slow.Space, local.Space, local.Addrs[0])
	transfer("without its queue, to another node's", slow.Space, remote.Space, remote.Addrs[1])
	if dropped() == before {
		t.Error("drop_bandwidth counts nothing")
	}
	must(t, l.Start())
	transfer("after a restart", slow.Space, local.Space, local.Addrs[1])
}
