package bpf

import (
	"encoding/binary"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// masqueraded is withPods with one port for all flows, so that it is known which one a flow gets.
func masqueraded(t testing.TB, first, last uint32, change ...func(*Config)) *Datapath {
	return withPods(t, append([]func(*Config){func(c *Config) {
		c.NodeAddrs = []netip.Addr{netip.MustParseAddr(nodeIP), netip.MustParseAddr(nodeIP6)}
		c.NoMasquerade = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}
		c.masqPorts = portRange{first, last}
	}}, change...)...)
}

// Both ways through the programs, with all checksums, for each protocol and for datagrams without a checksum.
func TestMasqueradedPackets(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	out, in := d.net.Programs[egressProgram], d.net.Programs[uplinkProgram]
	for _, f := range families {
		sent := map[string][]byte{
			"TCP": frame(6, at(f.pod, 40000), at(f.far, 443), []byte("hi")), "UDP": frame(17, at(f.pod, 40000), at(f.far, 53), []byte("odd")),
		}
		if f.name == "IPv4" {
			plain := frame(17, at(f.pod, 40001), at(f.far, 54), []byte("odd"))
			binary.BigEndian.PutUint16(plain[40:], 0)
			sent["UDP without a checksum"] = plain
		}
		for name, sent := range sent {
			t.Run(f.name+" "+name, func(t *testing.T) {
				verdict, got := run(t, out, sent)
				got = got[:len(sent)]
				src, dst := ends(got)
				_, to := ends(sent)
				if verdict != actOK || src != at(f.node, 62000) || dst != to {
					t.Fatalf("verdict %d, from %s to %s", verdict, src, dst)
				}
				checkSums(t, got)
				proto, l4, _ := transport(sent)
				reply := frame(proto, to, src, []byte("answer"))
				if proto == 6 {
					reply[l4+13] = 0x12 // SYN, ACK
					binary.BigEndian.PutUint16(reply[l4+16:], binary.BigEndian.Uint16(reply[l4+16:])-0x10)
				}
				checkSums(t, reply)
				verdict, got = run(t, in, reply)
				got = got[:len(reply)]
				was, _ := ends(sent)
				if src, dst := ends(got); verdict != actRedirect || src != to || dst != was {
					t.Errorf("the answer: verdict %d, from %s to %s", verdict, src, dst)
				}
				checkSums(t, got)
				if proto == 6 { // a connection that the outside opens is none either
					if verdict, _ := run(t, in, frame(6, to, src, nil)); verdict != actOK {
						t.Errorf("a SYN: verdict %d", verdict)
					}
				}
				// The same from another port of the outside is no answer.
				stranger := frame(proto, netip.AddrPortFrom(to.Addr(), 1), at(f.node, 62000), nil)
				if verdict, got := run(t, in, stranger); verdict != actOK || string(got[:len(stranger)]) != string(stranger) {
					t.Errorf("a stranger: verdict %d", verdict)
				}
			})
		}
		t.Run(f.name+" echo", func(t *testing.T) {
			id := func(b []byte) uint16 {
				_, l4, _ := transport(b)
				return binary.BigEndian.Uint16(b[l4+4:])
			}
			ping := icmp(f.pod, f.far, f.echo, 0, 77<<16|1, []byte("data"))
			verdict, got := run(t, out, ping)
			if src, _ := addrs(got); verdict != actOK || src.String() != f.node || id(got) != 77 {
				t.Errorf("verdict %d, %x", verdict, got[:62])
			}
			checkSums(t, got[:len(ping)])
			_, got = run(t, out, icmp(f.other, f.far, f.echo, 0, 77<<16|1, []byte("data")))
			if id(got) != 62000 {
				t.Errorf("two pods' echos: identifier %d", id(got))
			}
			checkSums(t, got[:len(ping)])
			verdict, got = run(t, in, icmp(f.far, f.node, f.echoReply, 0, 62000<<16|1, []byte("data")))
			if _, dst := addrs(got); verdict != actRedirect || dst.String() != f.other || id(got) != 77 {
				t.Errorf("the answer: verdict %d, %x", verdict, got[:62])
			}
			checkSums(t, got[:len(ping)])
		})
		// The first fragment says whose the others are, both ways.
		t.Run(f.name+" fragments", func(t *testing.T) {
			first := cut(frame(17, at(f.pod, 41000), at(f.far, 5000), make([]byte, 8)), 7, 0, true)
			verdict, got := run(t, out, first)
			if src, _ := addrs(got); verdict != actOK || src.String() != f.node {
				t.Errorf("the first one out: verdict %d, from %s", verdict, src)
			}
			rest := later(17, f.pod, f.far, 7, 16)
			verdict, got = run(t, out, rest)
			if src, dst := addrs(got); verdict != actOK || src.String() != f.node || dst.String() != f.far {
				t.Errorf("the last one out: verdict %d, from %s to %s", verdict, src, dst)
			}
			if _, ok := counterOf(t, d, "masqueraded_out"); !ok {
				t.Error("not counted")
			}
			answer := cut(frame(17, at(f.far, 5000), at(f.node, 62000), make([]byte, 8)), 9, 0, true)
			if verdict, got = run(t, in, answer); verdict != actRedirect {
				t.Errorf("the first one in: verdict %d", verdict)
			}
			if _, dst := addrs(got); dst.String() != f.pod {
				t.Errorf("the first one in: to %s", dst)
			}
			verdict, got = run(t, in, later(17, f.far, f.node, 9, 16))
			if _, dst := addrs(got); verdict != actRedirect || dst.String() != f.pod {
				t.Errorf("the last one in: verdict %d, to %s", verdict, dst)
			}
			strange := later(17, f.far, f.node, 10, 16)
			if verdict, got = run(t, in, strange); verdict != actOK || string(got[:len(strange)]) != string(strange) {
				t.Errorf("one of another packet: verdict %d", verdict)
			}
		})
	}
	// What has extension headers before its ports is translated as well.
	sent := extended(frame(17, at(pod6, 42000), at("2001:db8:ff::1", 6000), []byte("odd")), extension(60, 2))
	verdict, got := run(t, out, sent)
	if src, _ := addrs(got); verdict != actOK || src.String() != nodeIP6 || binary.BigEndian.Uint16(got[70:]) != 62000 {
		t.Errorf("behind headers: verdict %d, from %s: %x", verdict, src, got[:80])
	}
	bare := frame(17, at(nodeIP6, 62000), at("2001:db8:ff::1", 6000), []byte("odd"))
	if string(got[70:78]) != string(bare[54:62]) {
		t.Errorf("%x, want %x", got[70:78], bare[54:62])
	}
}

func counterOf(t testing.TB, d *Datapath, name string) (uint64, bool) {
	t.Helper()
	s, err := d.Status()
	must(t, err)
	return s.Counters[name], s.Counters[name] > 0
}

// What can't be translated does not leave, and what is none of a pod's does.
func TestWhatEgressLetsPass(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	for _, f := range families {
		remote, stranger := "10.244.7.1", "10.244.9.9"
		if f.name == "IPv6" {
			remote, stranger = "fd00:10:244:7::1", "fd00:10:244:9::9"
		}
		short := frame(17, at(f.pod, 1), at(f.far, 1), nil)
		for name, c := range map[string]struct {
			in   []byte
			want uint32
		}{
			"the node":                 {frame(17, at(f.node, 40000), at(f.far, 53), nil), actOK},
			"another node's pod":       {frame(17, at(f.pod, 40000), at(remote, 53), nil), actOK},
			"no pod of this node":      {frame(17, at(stranger, 40000), at(f.far, 53), nil), actOK},
			"a protocol without ports": {frame(47, at(f.pod, 1), at(f.far, 1), nil), actShot},
			"an echo reply":            {icmp(f.pod, f.far, f.echoReply, 0, 5<<16, nil), actShot},
			"a redirect":               {icmp(f.pod, f.far, 5, 0, 0, make([]byte, 28)), actShot},
			"an error of no flow":      {icmp(f.pod, f.far, f.unreachable, 3, 0, frame(17, at(f.far, 53), at(f.pod, 9), nil)[14:]), actShot},
			"a cut header":             {short[:len(short)-5], actShot},
			"half a header":            {short[:len(short)-2], actShot},
		} {
			got, out := run(t, d.net.Programs[egressProgram], c.in)
			if got != c.want || got == actOK && string(out[:len(c.in)]) != string(c.in) {
				t.Errorf("%s %s: verdict %d, want %d", f.name, name, got, c.want)
			}
		}
	}
}

// Errors about both directions of a flow, as RFC 792 quotes: the header and eight bytes. RFC 4443 quotes more, which does not matter.
func TestMasqueradedErrors(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	out, in := d.net.Programs[egressProgram], d.net.Programs[uplinkProgram]
	for _, f := range families {
		kinds, at8 := []byte{3, 11, 12}, 14+20+8
		if f.name == "IPv6" {
			kinds, at8 = []byte{1, 2, 3, 4}, 14+40+8
		}
		inner := at8 - 8 - 14 // length of an IP header
		// quote is the packet within an error, with room before it for the Ethernet header that the tests' functions expect.
		quote := func(b []byte) []byte { return append(append([]byte(nil), b[:14]...), b[at8:]...) }
		for _, proto := range []byte{6, 17, f.icmp} {
			sent := frame(proto, at(f.pod, 40000), at(f.far, 53), []byte("data"))
			if proto == f.icmp {
				sent = icmp(f.pod, f.far, f.echo, 0, 40000<<16|1, []byte("data"))
				run(t, out, icmp(f.other, f.far, f.echo, 0, 40000<<16|1, []byte("data"))) // has the identifier first
			}
			verdict, wire := run(t, out, sent)
			if verdict != actOK {
				t.Fatalf("protocol %d: verdict %d", proto, verdict)
			}
			for _, kind := range kinds {
				e := icmp(f.hop, f.node, kind, 4, 1300, wire[14:14+inner+8])
				verdict, got := run(t, in, e)
				got = got[:len(e)]
				checkSums(t, got)
				quoted := quote(got)
				if f.name == "IPv4" {
					if s := sum(quoted[14:34], 0); s != 0xffff {
						t.Errorf("quoted IP checksum is off: %04x", s)
					}
				}
				port := 14 + inner
				if proto == f.icmp {
					port += 4
				}
				_, dst := addrs(got)
				src, to := addrs(quoted)
				if verdict != actRedirect || dst.String() != f.pod || src != dst || to.String() != f.far || string(quoted[port:port+2]) != string(sent[port:port+2]) {
					t.Errorf("protocol %d, type %d: verdict %d, %x", proto, kind, verdict, got)
				}
				if binary.BigEndian.Uint32(got[at8-4:]) != 1300 {
					t.Error("the MTU changed")
				}
				for n := shortest(e); n < len(e); n++ { // cut anywhere
					run(t, in, e[:n])
				}
			}
			strange := icmp(f.hop, f.node, kinds[0], 4, 1300, frame(17, at(f.node, 9999), at(f.far, 53), nil)[14:])
			if verdict, got := run(t, in, strange); verdict != actOK || string(got[:len(strange)]) != string(strange) {
				t.Errorf("an error of no flow: verdict %d", verdict)
			}
		}
		// A pod refuses an answer that comes late.
		late := icmp(f.pod, f.far, f.unreachable, 3, 0, frame(17, at(f.far, 53), at(f.pod, 40000), nil)[14:])
		verdict, got := run(t, out, late)
		got = got[:len(late)]
		checkSums(t, got)
		quoted := quote(got)
		if f.name == "IPv4" {
			if s := sum(quoted[14:34], 0); s != 0xffff {
				t.Errorf("quoted IP checksum is off: %04x", s)
			}
		}
		src, _ := addrs(got)
		if _, to := addrs(quoted); verdict != actOK || src.String() != f.node || to != src || binary.BigEndian.Uint16(quoted[14+inner+2:]) != 62000 {
			t.Errorf("verdict %d, %x", verdict, got)
		}
	}
	// A fragment was too big: its header is quoted between.
	first := cut6(frame(17, at(pod6, 43000), at("2001:db8:ff::1", 5353), make([]byte, 64)), 7, 0, true)
	if verdict, wire := run(t, out, first); verdict != actOK {
		t.Errorf("verdict %d", verdict)
	} else {
		e := icmp("2001:db8:fe::9", nodeIP6, 2, 0, 1300, wire[14:len(first)])
		verdict, got := run(t, in, e)
		got = got[:len(e)]
		checkSums(t, got)
		if verdict != actRedirect || string(got[14+40+8+8:14+40+8+24]) != string(first[22:38]) || string(got[14+40+8+48:14+40+8+50]) != string(first[62:64]) {
			t.Errorf("verdict %d, %x", verdict, got)
		}
	}
}

// A flow's port is another's once the flow is over, and not before.
func TestFlowsExpire(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	const replied, finOut, finIn, reset, agreed = 1, 2, 4, 8, 16
	for _, c := range []struct {
		proto, state byte
		age          uint32
		over         bool
	}{
		{17, 0, 55, false}, {17, 0, 65, true}, {17, replied, 170, false}, {17, replied, 190, true},
		{6, 0, 230, false}, {6, 0, 250, true}, {6, replied | agreed, 86000, false}, {6, replied | agreed, 86500, true},
		{6, replied, 230, false}, {6, replied | agreed | finOut, 3500, false}, {6, replied | agreed | finIn, 3700, true},
		{6, replied | agreed | finOut | finIn, 5, false}, {6, replied | agreed | finOut | finIn, 15, true}, {6, replied | agreed | reset, 15, true},
	} {
		for _, table := range []string{"flows_open", "flows_passing"} {
			far, taken, was := addr16(netip.MustParseAddr("198.51.100.1")), addr16(netip.MustParseAddr(nodeIP)), addr16(netip.MustParseAddr(other))
			back := netFlowKey{Saddr: far, Daddr: taken, Sport: port16(53), Dport: port16(62000), Proto: c.proto, Reply: 1}
			must(t, d.net.Maps[table].Put(back, netFlow{Saddr: far, Sport: port16(53), Daddr: was, Dport: port16(1), State: c.state, Flags: 1, Seen: monotonic(t) - c.age}))
			want := uint32(actShot)
			if c.over {
				want = actOK
				if verdict, _ := run(t, d.net.Programs[uplinkProgram], frame(c.proto, ap("198.51.100.1:53"), ap(nodeIP+":62000"), nil)); verdict != actOK {
					t.Errorf("%+v: an answer that is late: verdict %d", c, verdict)
				}
			}
			if verdict, _ := run(t, d.net.Programs[egressProgram], frame(c.proto, ap(pod+":40000"), ap("198.51.100.1:53"), nil)); verdict != want {
				t.Errorf("%+v in %s: verdict %d, want %d", c, table, verdict, want)
			}
			forget(t, d)
		}
	}
}

// monotonic is what the programs call now, in seconds.
func monotonic(t testing.TB) uint32 {
	t.Helper()
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
	return uint32(now.Sec)
}

// forget takes all flows away.
func forget(t testing.TB, d *Datapath) {
	t.Helper()
	for _, table := range []string{"flows_open", "flows_passing"} {
		m := d.net.Maps[table]
		var k netFlowKey
		for m.NextKey(nil, &k) == nil {
			must(t, m.Delete(k))
		}
	}
}

// A kernel that chooses ports up to the last leaves some to pods all the same.
func TestMasqRange(t *testing.T) {
	for local, want := range map[portRange]portRange{{32768, 60999}: {61000, 65535}, {1024, 65535}: {64512, 65535}, {32768, 64000}: {64001, 65535}} {
		if got := masqRange(local); got != want {
			t.Errorf("%v: %v, want %v", local, got, want)
		}
	}
}

// A release with other reasons takes the counts over.
func TestCountersChangeSize(t *testing.T) {
	c := tablesConfig(t)
	for _, n := range []uint32{3, uint32(len(reasons)) + 2} {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Name: countersPin, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: n})
		must(t, err)
		defer m.Close()
		per := make([]uint64, ebpf.MustPossibleCPU())
		per[0] = 7
		must(t, m.Put(uint32(1), per))
		must(t, m.Pin(filepath.Join(c.PinDir, countersPin)))
		d := open(t, c)
		s, err := d.Status()
		must(t, err)
		if len(s.Counters) != len(reasons) || s.Counters[reasons[1]] != 7 || s.Counters[reasons[2]] != 0 {
			t.Errorf("%d before: %v", n, s.Counters)
		}
		must(t, d.Close())
		must(t, Remove(c.PinDir))
	}
}

// A packet that claims to call the pod directly, with the addresses and ports of a flow that the pod began, does not unmask it.
func TestStrangersUnmaskNoFlow(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	sent := frame(17, ap(pod+":40000"), ap("198.51.100.1:53"), nil)
	run(t, d.net.Programs[egressProgram], sent)
	run(t, d.net.Programs[uplinkProgram], frame(17, ap("198.51.100.1:53"), ap(pod+":40000"), nil))
	_, got := run(t, d.net.Programs[egressProgram], sent)
	if src, _ := ends(got); src != ap(nodeIP+":62000") {
		t.Errorf("it leaves as %s", src)
	}
}

// Fragments of datagrams to a frontend, and of the answers, go where the first one does; errors about both directions as well.
func TestFragmentsAndErrorsOfFrontends(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	out, in, up := d.net.Programs[egressProgram], d.net.Programs[uplinkProgram], d.net.Programs[podProgram]
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			_, err := d.LoadBalancers().Replace("u", []LoadBalancer{{Name: "ns/web:dns", Protocol: 17, Frontends: fronts(NodePort, at(f.node, 30080)), Backends: backs(at(f.pod, 8080))}})
			must(t, err)
			id := uint16(20)
			step := func(what string, p *ebpf.Program, packet []byte, verdict uint32, src, dst string) []byte {
				t.Helper()
				got, b := run(t, p, packet)
				b = b[:len(packet)]
				if s, d := addrs(b); got != verdict || s.String() != src || d.String() != dst {
					t.Errorf("%s: verdict %d, from %s to %s", what, got, s, d)
				}
				return b
			}
			port := func(b []byte, at int) uint16 {
				l4 := 14 + 20
				if isV6(b) {
					l4 = 14 + 40 + 8
				}
				return binary.BigEndian.Uint16(b[l4+at:])
			}
			b := step("a first fragment", in, cut(frame(17, at(f.far, 5555), at(f.node, 30080), make([]byte, 8)), id, 0, true), actRedirect, f.far, f.pod)
			if port(b, 2) != 8080 {
				t.Errorf("to port %d", port(b, 2))
			}
			step("a later one", in, later(17, f.far, f.node, id, 16), actRedirect, f.far, f.pod)
			answer := cut(frame(17, at(f.pod, 8080), at(f.far, 5555), make([]byte, 8)), id, 0, true)
			b = step("an answer's first fragment", up, answer, actRedirect, f.node, f.far)
			if port(b, 0) != 30080 {
				t.Errorf("from port %d", port(b, 0))
			}
			step("an answer's later one", up, later(17, f.pod, f.far, id, 16), actRedirect, f.node, f.far)

			answer = frame(17, at(f.node, 30080), at(f.far, 5555), nil)
			e := icmp(f.hop, f.node, f.unreachable, 4, 1300, answer[14:])
			b = step("an error about an answer", in, e, actRedirect, f.hop, f.pod)
			checkSums(t, b)
			head := len(answer) - 8
			quoted := append(append([]byte(nil), b[:14]...), b[head+8:]...)
			if src, dst := ends(quoted); src != at(f.pod, 8080) || dst != at(f.far, 5555) {
				t.Errorf("about a packet from %s to %s", src, dst)
			}
			e = icmp(f.pod, f.far, f.unreachable, 3, 0, frame(17, at(f.far, 5555), at(f.pod, 8080), nil)[14:])
			b = step("an error about a question", out, e, actOK, f.node, f.far)
			checkSums(t, b)
			quoted = append(append([]byte(nil), b[:14]...), b[head+8:]...)
			if src, dst := ends(quoted); src != at(f.far, 5555) || dst != at(f.node, 30080) {
				t.Errorf("about a packet from %s to %s", src, dst)
			}
		})
	}
}
