package bpf

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestPolicyCosts takes the time that strake_pod needs for a packet from pod to pod, as the kernel counts it, whatever judges them; `go test -v` prints
// it. No time is asserted, but that each packet goes the way that is named.
func TestPolicyCosts(t *testing.T) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	must(t, err)
	t.Cleanup(func() { stats.Close() })
	const packets = 1000
	measure := func(l *serviceLab, what string, in func(i int) []byte, counted string) {
		t.Helper()
		if _, _, got := l.at(t, podProgram, l.podVeth, in(0)); got != counted {
			t.Fatalf("%s: counted %q, want %q", what, got, counted)
		}
		p := l.d.net.Programs[podProgram]
		before, err := p.Stats()
		must(t, err)
		for i := range packets {
			l.run(t, podProgram, l.podVeth, in(i))
		}
		after, err := p.Stats()
		must(t, err)
		t.Logf("%s: %d ns", what, uint64((after.Runtime-before.Runtime).Nanoseconds())/(after.RunCount-before.RunCount))
	}
	// connections are short ones, each of which is reset in the end. What a hundred take is least where nothing else ran meanwhile.
	connections := func(l *serviceLab, what string, client, server netip.AddrPort, first uint16) {
		t.Helper()
		p := l.d.net.Programs[podProgram]
		const batch = 100
		least := time.Duration(math.MaxInt64)
		for done := 0; done < packets; done += batch {
			before, err := p.Stats()
			must(t, err)
			for i := range batch {
				client := netip.AddrPortFrom(client.Addr(), first+uint16(done+i))
				for j, flags := range []byte{syn, syn | ack, ack, ack, ack, ack, rst} {
					if j == 1 || j > 3 && j%2 == 0 {
						l.run(t, podProgram, l.otherVeth, segment(server, client, flags))
					} else {
						l.run(t, podProgram, l.podVeth, segment(client, server, flags))
					}
				}
			}
			after, err := p.Stats()
			must(t, err)
			least = min(least, (after.Runtime-before.Runtime)/batch)
		}
		t.Logf("%s: %v", what, least)
	}
	off, on := newServiceLab(t), newPolicyLab(t)
	judged := PolicySubject{Egress: web, Ingress: nobody}
	for _, f := range families {
		known := func(proto byte) func(int) []byte {
			b := frame(proto, at(f.pod, 9000), at(f.other, 8080), []byte("hi"))
			if proto == 6 {
				b = segment(at(f.pod, 9000), at(f.other, 8080), ack)
			}
			return func(int) []byte { return b }
		}
		fresh := func(i int) []byte { return frame(17, at(f.pod, uint16(10000+i)), at(f.other, 8080), []byte("hi")) }
		measure(off, f.name+", off", known(17), "pod_to_pod")
		measure(on.serviceLab, f.name+", nobody is judged", known(17), "pod_to_pod")
		connections(on.serviceLab, f.name+", nobody is judged, connections of seven packets", at(f.pod, 0), at(f.other, 8080), 20000)
		on.judge(t, judged, PolicySubject{Ingress: web, Egress: nobody})
		measure(on.serviceLab, f.name+", a known flow of datagrams", known(17), "pod_to_pod")
		for _, flags := range []byte{syn, ack} {
			on.run(t, podProgram, on.podVeth, segment(at(f.pod, 9000), at(f.other, 8080), flags))
			on.run(t, podProgram, on.otherVeth, segment(at(f.other, 8080), at(f.pod, 9000), flags|ack))
		}
		measure(on.serviceLab, f.name+", a known connection", known(6), "pod_to_pod")
		measure(on.serviceLab, f.name+", first packets", fresh, "pod_to_pod")
		for i := range 3 {
			connections(on.serviceLab, f.name+", connections of seven packets", at(f.pod, 0), at(f.other, 8080), 20000+uint16(i)*packets)
		}
		on.judge(t, PolicySubject{Egress: nobody}, PolicySubject{})
		measure(on.serviceLab, f.name+", denied", fresh, "drop_policy_egress")
		on.judge(t, PolicySubject{}, PolicySubject{})
	}
}
