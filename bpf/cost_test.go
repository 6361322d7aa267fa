package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestProgramCosts takes the time that the programs need for a packet, as the kernel counts it, on whatever kernel it runs; `go test -v`
// prints it. tests/kernel, where a nanosecond is an instruction, holds it against a table. No time is asserted, but that each packet goes the way that is named. The
// first packet of a flow makes its rows, those that follow find them.
func TestProgramCosts(t *testing.T) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	must(t, err)
	t.Cleanup(func() { stats.Close() })
	l := newServiceLab(t)
	up(t, "lo")
	for _, f := range families { // without a way out nothing connects
		everything := &net.IPNet{IP: net.ParseIP(f.of("0.0.0.0", "::")), Mask: net.CIDRMask(0, f.of32(32, 128))}
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: device(t, "lo").Attrs().Index, Dst: everything}))
	}
	const packets = 2000
	// spent adds up what a program has used since before.
	spent := func(what, program string, p *ebpf.Program, before *ebpf.ProgramStats) {
		t.Helper()
		after, err := p.Stats()
		must(t, err)
		n := after.RunCount - before.RunCount
		if n < packets {
			t.Fatalf("%s: %s ran %d times", what, program, n)
		}
		t.Logf("cost of %s/%s: %s: %d ns", t.Name(), strings.ReplaceAll(what, " ", "_"), program, uint64((after.Runtime-before.Runtime).Nanoseconds())/n)
	}
	cost := func(what, program string, ifindex int, verdict uint32, in func(i int) []byte) {
		t.Helper()
		p := l.d.net.Programs[program]
		before, err := p.Stats()
		must(t, err)
		context := make([]byte, 192) // struct __sk_buff
		binary.NativeEndian.PutUint32(context[40:], uint32(ifindex))
		for i := range packets {
			b := in(i)
			got, err := p.Run(&ebpf.RunOptions{Data: b, DataOut: make([]byte, len(b)+512), Context: context})
			must(t, err)
			if got != verdict {
				t.Fatalf("%s: %s: verdict %d, want %d", what, program, got, verdict)
			}
		}
		spent(what, program, p, before)
	}
	// part stays on this thread, which is in the node's namespace: t.Run would not.
	part := func(what string, f func(what string)) { f(what) }
	same := func(b []byte) func(int) []byte { return func(int) []byte { return b } }
	// flows are first packets of flows that differ by the client's port.
	flows := func(proto byte, client netip.Addr, to netip.AddrPort) func(int) []byte {
		return func(i int) []byte { return frame(proto, netip.AddrPortFrom(client, uint16(10000+i)), to, []byte("hi")) }
	}
	for _, f := range families {
		vip, nodePort := at(f.service, 80), at(f.node, 30080)
		l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Backends: backs(at(f.other, 8080)), Frontends: slices.Concat(fronts(ClusterIP, vip), fronts(NodePort, nodePort))})
		client, far := netip.MustParseAddr(f.pod), netip.MustParseAddr(f.far)
		part(f.name+", pod to a pod of the node", func(what string) {
			cost(what, podProgram, l.podVeth, actRedirect, same(frame(17, at(f.pod, 1), at(f.other, 2), []byte("hi"))))
		})
		part(f.name+", pod to a pod of another node", func(what string) {
			cost(what, podProgram, l.podVeth, actRedirect, same(frame(17, at(f.pod, 1), at(f.remote(), 2), []byte("hi"))))
		})
		part(f.name+", pod to a ClusterIP, first packets", func(what string) {
			cost(what, podProgram, l.podVeth, actRedirect, flows(17, client, vip))
		})
		part(f.name+", pod to a ClusterIP, a known flow", func(what string) {
			cost(what, podProgram, l.podVeth, actRedirect, same(flows(17, client, vip)(0)))
		})
		part(f.name+", outside to a NodePort, first packets", func(what string) {
			cost(what, uplinkProgram, l.uplink, actRedirect, flows(17, far, nodePort))
		})
		part(f.name+", outside to a NodePort, a known flow", func(what string) {
			cost(what, uplinkProgram, l.uplink, actRedirect, same(flows(17, far, nodePort)(0)))
		})
		part(f.name+", the backend's answer to outside", func(what string) {
			_, in, _ := l.at(t, uplinkProgram, l.uplink, flows(17, far, nodePort)(0))
			cost(what, podProgram, l.otherVeth, actRedirect, same(reply(in[:len(flows(17, far, nodePort)(0))])))
		})
		part(f.name+", a socket's connect to a ClusterIP", func(what string) {
			program := f.of("strake_connect4", "strake_connect6")
			p := l.d.sock.Programs[program]
			before, err := p.Stats()
			must(t, err)
			for range packets {
				c, err := net.Dial("udp", vip.String())
				must(t, err)
				c.Close()
			}
			spent(what, program, p, before)
		})
		part(f.name+", pod to outside, a known flow", func(what string) {
			cost(what, egressProgram, l.uplink, actOK, same(frame(17, at(f.pod, 40000), at(f.far, 53), []byte("hi"))))
		})
	}
}
