package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestProgramCosts takes the time that the programs need for a packet, as the kernel counts it, on whatever kernel it runs; `go test -v`
// prints it, and so does tests/kernel with -run TestProgramCosts. No time is asserted, but that each packet goes the way that is named. The
// first packet of a flow makes its rows, those that follow find them.
func TestProgramCosts(t *testing.T) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	must(t, err)
	t.Cleanup(func() { stats.Close() })
	l := newServiceLab(t)
	const packets = 2000
	// spent adds up what a program has used since before.
	spent := func(t *testing.T, program string, p *ebpf.Program, before *ebpf.ProgramStats) {
		t.Helper()
		after, err := p.Stats()
		must(t, err)
		n := after.RunCount - before.RunCount
		if n < packets {
			t.Fatalf("%s ran %d times", program, n)
		}
		t.Logf("cost of %s: %s: %d ns", t.Name(), program, uint64((after.Runtime-before.Runtime).Nanoseconds())/n)
	}
	cost := func(t *testing.T, program string, ifindex int, verdict uint32, in func(i int) []byte) {
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
				t.Fatalf("%s: verdict %d, want %d", program, got, verdict)
			}
		}
		spent(t, program, p, before)
	}
	same := func(b []byte) func(int) []byte { return func(int) []byte { return b } }
	// flows are first packets of flows that differ by the client's port.
	flows := func(proto byte, client netip.Addr, to netip.AddrPort) func(int) []byte {
		return func(i int) []byte { return frame(proto, netip.AddrPortFrom(client, uint16(10000+i)), to, []byte("hi")) }
	}
	for _, f := range families {
		vip, nodePort := at(f.service, 80), at(f.node, 30080)
		l.service(t, LoadBalancer{Name: "ns/web:http", Protocol: 17, Backends: backs(at(f.other, 8080)), Frontends: slices.Concat(fronts(ClusterIP, vip), fronts(NodePort, nodePort))})
		client, far := netip.MustParseAddr(f.pod), netip.MustParseAddr(f.far)
		t.Run(f.name+", pod to a pod of the node", func(t *testing.T) {
			cost(t, podProgram, l.podVeth, actRedirect, same(frame(17, at(f.pod, 1), at(f.other, 2), []byte("hi"))))
		})
		t.Run(f.name+", pod to a pod of another node", func(t *testing.T) {
			cost(t, podProgram, l.podVeth, actRedirect, same(frame(17, at(f.pod, 1), at(f.remote(), 2), []byte("hi"))))
		})
		t.Run(f.name+", pod to a ClusterIP, first packets", func(t *testing.T) {
			cost(t, podProgram, l.podVeth, actRedirect, flows(17, client, vip))
		})
		t.Run(f.name+", pod to a ClusterIP, a known flow", func(t *testing.T) {
			cost(t, podProgram, l.podVeth, actRedirect, same(flows(17, client, vip)(0)))
		})
		t.Run(f.name+", outside to a NodePort, first packets", func(t *testing.T) {
			cost(t, uplinkProgram, l.uplink, actRedirect, flows(17, far, nodePort))
		})
		t.Run(f.name+", outside to a NodePort, a known flow", func(t *testing.T) {
			cost(t, uplinkProgram, l.uplink, actRedirect, same(flows(17, far, nodePort)(0)))
		})
		t.Run(f.name+", the backend's answer to outside", func(t *testing.T) {
			_, in, _ := l.at(t, uplinkProgram, l.uplink, flows(17, far, nodePort)(0))
			cost(t, podProgram, l.otherVeth, actRedirect, same(reply(in[:len(flows(17, far, nodePort)(0))])))
		})
		t.Run(f.name+", a socket's connect to a ClusterIP", func(t *testing.T) {
			program := f.of("strake_connect4", "strake_connect6")
			p := l.d.sock.Programs[program]
			before, err := p.Stats()
			must(t, err)
			for range packets { // this thread is in the node's namespace
				c, err := net.Dial("udp", vip.String())
				must(t, err)
				c.Close()
			}
			spent(t, program, p, before)
		})
		t.Run(f.name+", pod to outside, a known flow", func(t *testing.T) {
			cost(t, egressProgram, l.uplink, actOK, same(frame(17, at(f.pod, 40000), at(f.far, 53), []byte("hi"))))
		})
	}
}
