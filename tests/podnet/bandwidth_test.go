package podnet

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/strake-io/strake/cni/plugin"
)

// TestBandwidth: a limited pod gets and sends no more than it may, to and from pods of its node, those of another, and its node. That it
// gets as much is logged: a busy machine may have less to give.
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
	for i, c := range []struct {
		what     string
		from, to Space
		addrs    []netip.Addr // of to
	}{
		{"to it from its node's pod", local.Space, slow.Space, slow.Addrs},
		{"to it from another node's", remote.Space, slow.Space, slow.Addrs},
		{"to it from its node", l.Nodes[0].Space, slow.Space, slow.Addrs},
		{"from it to its node's pod", slow.Space, local.Space, local.Addrs},
		{"from it to another node's", slow.Space, remote.Space, remote.Addrs},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		to := netip.AddrPortFrom(c.addrs[i%2], 9000)
		var sink net.Listener
		must(t, c.to.In(func() (err error) {
			sink, err = net.Listen("tcp", to.String())
			return err
		}))
		const size = 4 << 20
		go func() {
			conn, err := c.from.Dial(ctx, "tcp", to.String())
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
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		start := time.Now()
		n, err := io.Copy(io.Discard, conn)
		took := time.Since(start)
		conn.Close()
		ratio := float64(n*8) / took.Seconds() / rate
		line := fmt.Sprintf("%s: %.0f %% of the limit (%d bytes in %v, %v)", c.what, 100*ratio, n, took, err)
		if t.Log(line); n != size || ratio > 1.15 {
			t.Error(line)
		}
	}
}
