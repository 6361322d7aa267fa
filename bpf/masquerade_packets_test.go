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
func masqueraded(t testing.TB, first, last uint32) *Datapath {
	return withPods(t, func(c *Config) {
		c.NodeAddrs = []netip.Addr{netip.MustParseAddr(nodeIP), netip.MustParseAddr(nodeIP6)}
		c.NoMasquerade = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/56")}
		c.masqPorts = portRange{first, last}
	})
}

// Both ways through the programs, with all checksums, for each protocol and for datagrams without a checksum.
func TestMasqueradedPackets(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	out, in := d.net.Programs[egressProgram], d.net.Programs[uplinkProgram]
	plain := frame(17, ap(pod+":40001"), ap("198.51.100.1:54"), []byte("odd"))
	binary.BigEndian.PutUint16(plain[40:], 0)
	for name, sent := range map[string][]byte{
		"TCP": frame(6, ap(pod+":40000"), ap("198.51.100.1:443"), []byte("hi")), "UDP": frame(17, ap(pod+":40000"), ap("198.51.100.1:53"), []byte("odd")),
		"UDP without a checksum": plain,
	} {
		verdict, got := run(t, out, sent)
		got = got[:len(sent)]
		src, dst := ends(got)
		_, to := ends(sent)
		if verdict != actOK || src != ap(nodeIP+":62000") || dst != to {
			t.Fatalf("%s: verdict %d, from %s to %s", name, verdict, src, dst)
		}
		checkSums(t, got)
		reply := frame(sent[23], to, src, []byte("answer"))
		if sent[23] == 6 {
			reply[47] = 0x12 // SYN, ACK
			binary.BigEndian.PutUint16(reply[50:], binary.BigEndian.Uint16(reply[50:])-0x10)
		}
		checkSums(t, reply)
		verdict, got = run(t, in, reply)
		got = got[:len(reply)]
		was, _ := ends(sent)
		if src, dst := ends(got); verdict != actRedirect || src != to || dst != was {
			t.Errorf("%s: the answer: verdict %d, from %s to %s", name, verdict, src, dst)
		}
		checkSums(t, got)
		if sent[23] == 6 { // a connection that the outside opens is none either
			if verdict, _ := run(t, in, frame(6, to, src, nil)); verdict != actOK {
				t.Errorf("a SYN: verdict %d", verdict)
			}
		}
		// The same from another port of the outside is no answer.
		stranger := frame(sent[23], netip.AddrPortFrom(to.Addr(), 1), ap(nodeIP+":62000"), nil)
		if verdict, got := run(t, in, stranger); verdict != actOK || string(got[:len(stranger)]) != string(stranger) {
			t.Errorf("%s: a stranger: verdict %d", name, verdict)
		}
	}
	ping := icmp(pod, "198.51.100.1", 8, 0, 77<<16|1, []byte("data"))
	verdict, got := run(t, out, ping)
	if src, _ := ends(got); verdict != actOK || src.Addr().String() != nodeIP || binary.BigEndian.Uint16(got[38:]) != 77 {
		t.Errorf("echo: verdict %d, %x", verdict, got[:42])
	}
	checkSums(t, got[:len(ping)])
	_, got = run(t, out, icmp(other, "198.51.100.1", 8, 0, 77<<16|1, []byte("data")))
	if id := binary.BigEndian.Uint16(got[38:]); id != 62000 {
		t.Errorf("two pods' echos: identifier %d", id)
	}
	verdict, got = run(t, in, icmp("198.51.100.1", nodeIP, 0, 0, 62000<<16|1, []byte("data")))
	if _, dst := ends(got); verdict != actRedirect || dst.Addr().String() != other || binary.BigEndian.Uint16(got[38:]) != 77 {
		t.Errorf("echo's answer: verdict %d, %x", verdict, got[:42])
	}
	checkSums(t, got[:len(ping)])
}

// What can't be translated does not leave, and what is none of a pod's does.
func TestWhatEgressLetsPass(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	short := frame(17, ap(pod+":1"), ap("198.51.100.1:1"), nil)
	for name, c := range map[string]struct {
		in   []byte
		want uint32
	}{
		"the node":                 {frame(17, ap(nodeIP+":40000"), ap("198.51.100.1:53"), nil), actOK},
		"another node's pod":       {frame(17, ap(pod+":40000"), ap("10.244.7.1:53"), nil), actOK},
		"no pod of this node":      {frame(17, ap("10.244.9.9:40000"), ap("198.51.100.1:53"), nil), actOK},
		"a protocol without ports": {frame(47, ap(pod+":1"), ap("198.51.100.1:1"), nil), actShot},
		"an echo reply":            {icmp(pod, "198.51.100.1", 0, 0, 5<<16, nil), actShot},
		"a redirect":               {icmp(pod, "198.51.100.1", 5, 0, 0, make([]byte, 28)), actShot},
		"an error of no flow":      {icmp(pod, "198.51.100.1", 3, 3, 0, frame(17, ap("198.51.100.1:53"), ap(pod+":9"), nil)[14:]), actShot},
		"a cut header":             {short[:14+20+3], actShot},
		"half a header":            {short[:14+20+6], actShot},
	} {
		got, out := run(t, d.net.Programs[egressProgram], c.in)
		if got != c.want || got == actOK && string(out[:len(c.in)]) != string(c.in) {
			t.Errorf("%s: verdict %d, want %d", name, got, c.want)
		}
	}
}

// Errors about both directions of a flow, as RFC 792 quotes: the header and eight bytes.
func TestMasqueradedErrors(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	out, in := d.net.Programs[egressProgram], d.net.Programs[uplinkProgram]
	for _, proto := range []byte{6, 17, 1} {
		sent := frame(proto, ap(pod+":40000"), ap("198.51.100.1:53"), []byte("data"))
		if proto == 1 {
			sent = icmp(pod, "198.51.100.1", 8, 0, 40000<<16|1, []byte("data"))
			run(t, out, icmp(other, "198.51.100.1", 8, 0, 40000<<16|1, []byte("data"))) // has the identifier first
		}
		verdict, wire := run(t, out, sent)
		if verdict != actOK {
			t.Fatalf("protocol %d: verdict %d", proto, verdict)
		}
		for _, kind := range []byte{3, 11, 12} {
			e := icmp("203.0.113.9", nodeIP, kind, 4, 1300, wire[14:14+28])
			verdict, got := run(t, in, e)
			got = got[:len(e)]
			checkSums(t, got)
			quoted, was := got[42:], sent[14:14+28]
			if s := sum(quoted[:20], 0); s != 0xffff {
				t.Errorf("quoted IP checksum is off: %04x", s)
			}
			port := 20
			if proto == 1 {
				port = 24
			}
			if verdict != actRedirect || netip.AddrFrom4([4]byte(got[30:34])).String() != pod || string(quoted[12:20]) != string(was[12:20]) || string(quoted[port:port+2]) != string(was[port:port+2]) {
				t.Errorf("protocol %d, type %d: verdict %d, %x", proto, kind, verdict, got)
			}
			if binary.BigEndian.Uint32(got[38:]) != 1300 {
				t.Error("the MTU changed")
			}
			for n := 14 + 20; n < len(e); n++ { // cut anywhere
				run(t, in, e[:n])
			}
		}
		strange := icmp("203.0.113.9", nodeIP, 3, 4, 1300, frame(17, ap(nodeIP+":9999"), ap("198.51.100.1:53"), nil)[14:])
		if verdict, got := run(t, in, strange); verdict != actOK || string(got[:len(strange)]) != string(strange) {
			t.Errorf("an error of no flow: verdict %d", verdict)
		}
	}
	// A pod refuses an answer that comes late.
	late := icmp(pod, "198.51.100.1", 3, 3, 0, frame(17, ap("198.51.100.1:53"), ap(pod+":40000"), nil)[14:])
	verdict, got := run(t, out, late)
	got = got[:len(late)]
	checkSums(t, got)
	if s := sum(got[42:62], 0); s != 0xffff {
		t.Errorf("quoted IP checksum is off: %04x", s)
	}
	if src := netip.AddrFrom4([4]byte(got[26:30])); verdict != actOK || src.String() != nodeIP || netip.AddrFrom4([4]byte(got[58:62])) != src || binary.BigEndian.Uint16(got[64:]) != 62000 {
		t.Errorf("verdict %d, %x", verdict, got)
	}
}

// A flow's port is another's once the flow is over, and not before.
func TestFlowsExpire(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	const replied, finOut, finIn, reset = 1, 2, 4, 8
	for _, c := range []struct {
		proto, state byte
		age          uint32
		over         bool
	}{
		{17, 0, 55, false}, {17, 0, 65, true}, {17, replied, 170, false}, {17, replied, 190, true},
		{6, 0, 230, false}, {6, 0, 250, true}, {6, replied, 7400, false}, {6, replied, 7500, true},
		{6, replied | finOut, 230, false}, {6, replied | finIn, 250, true},
		{6, replied | finOut | finIn, 5, false}, {6, replied | finOut | finIn, 15, true}, {6, replied | reset, 15, true},
	} {
		var now unix.Timespec
		must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
		back := netFlowKey{Saddr: addr16(netip.MustParseAddr("198.51.100.1")), Daddr: addr16(netip.MustParseAddr(nodeIP)), Sport: port16(53), Dport: port16(62000), Proto: c.proto, Reply: 1}
		must(t, d.net.Maps["masq_flows"].Put(back, netMasq{Addr: addr16(netip.MustParseAddr(other)), Port: port16(1), State: c.state, Seen: uint32(now.Sec) - c.age}))
		want := uint32(actShot)
		if c.over {
			want = actOK
			if verdict, _ := run(t, d.net.Programs[uplinkProgram], frame(c.proto, ap("198.51.100.1:53"), ap(nodeIP+":62000"), nil)); verdict != actOK {
				t.Errorf("%+v: an answer that is late: verdict %d", c, verdict)
			}
		}
		if verdict, _ := run(t, d.net.Programs[egressProgram], frame(c.proto, ap(pod+":40000"), ap("198.51.100.1:53"), nil)); verdict != want {
			t.Errorf("%+v: verdict %d, want %d", c, verdict, want)
		}
		var k netFlowKey
		var v netMasq
		for it := d.net.Maps["masq_flows"].Iterate(); it.Next(&k, &v); {
			must(t, d.net.Maps["masq_flows"].Delete(k))
		}
	}
}

// The programs see how a connection ends.
func TestConnectionsEnd(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	out, in := d.net.Programs[egressProgram], d.net.Programs[uplinkProgram]
	flags := func(b []byte, f byte) []byte { b[47] = f; return b }
	back := netFlowKey{Saddr: addr16(netip.MustParseAddr("198.51.100.1")), Daddr: addr16(netip.MustParseAddr(nodeIP)), Sport: port16(443), Dport: port16(62000), Proto: 6, Reply: 1}
	for i, step := range []struct {
		out   bool
		flags byte
		want  uint8
	}{
		{true, 2, 0}, {false, 0x12, 1}, {true, 0x10, 1}, {true, 0x11, 3}, {false, 0x11, 7}, {true, 0x10, 7}, {true, 2, 0}, {false, 0x12, 1}, {false, 4, 9}, {true, 0x10, 1},
	} {
		p, f := in, frame(6, ap("198.51.100.1:443"), ap(nodeIP+":62000"), nil)
		if step.out {
			p, f = out, frame(6, ap(pod+":40000"), ap("198.51.100.1:443"), nil)
		}
		run(t, p, flags(f, step.flags))
		var m netMasq
		must(t, d.net.Maps["masq_flows"].Lookup(back, &m))
		if m.State != step.want {
			t.Fatalf("step %d: state %d, want %d", i, m.State, step.want)
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
	c := testConfig(t)
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
