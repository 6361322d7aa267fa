package bpf

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/miekg/dns"
)

const (
	actOK       = 0
	actShot     = 2
	actRedirect = 7
)

var (
	podMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	hostMAC = net.HardwareAddr{2, 0, 0, 0, 0, 2}
)

// frame builds an Ethernet frame with an IPv4 packet.
func frame(proto byte, src, dst netip.AddrPort, payload []byte) []byte {
	l4 := 8
	if proto == 6 {
		l4 = 20
	}
	b := make([]byte, 14+20+l4+len(payload))
	copy(b, hostMAC)
	copy(b[6:], podMAC)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(ip[2:], uint16(20+l4+len(payload)))
	s, d := src.Addr().As4(), dst.Addr().As4()
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip[:20], 0))
	t := ip[20:]
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	copy(t[l4:], payload)
	pseudo := uint32(proto) + uint32(l4+len(payload))
	for _, x := range [][4]byte{s, d} {
		pseudo += uint32(binary.BigEndian.Uint16(x[:2])) + uint32(binary.BigEndian.Uint16(x[2:]))
	}
	if proto == 6 {
		t[12], t[13] = 0x50, 0x02
		binary.BigEndian.PutUint16(t[16:], ^sum(t, pseudo))
	} else {
		binary.BigEndian.PutUint16(t[4:], uint16(8+len(payload)))
		binary.BigEndian.PutUint16(t[6:], ^sum(t, pseudo))
	}
	return b
}

// sum is the Internet checksum before its complement (RFC 1071).
func sum(b []byte, start uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		start += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		start += uint32(b[len(b)-1]) << 8
	}
	for start > 0xffff {
		start = start&0xffff + start>>16
	}
	return uint16(start)
}

// checkSums fails unless all checksums of a frame are right.
func checkSums(t *testing.T, b []byte) {
	t.Helper()
	ip := b[14:]
	if s := sum(ip[:20], 0); s != 0xffff {
		t.Errorf("IP checksum is off: %04x", s)
	}
	l4 := ip[20:binary.BigEndian.Uint16(ip[2:])]
	if ip[9] == 17 && binary.BigEndian.Uint16(l4[6:]) == 0 {
		return
	}
	pseudo := uint32(ip[9]) + uint32(len(l4))
	for i := 12; i < 20; i += 2 {
		pseudo += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	if s := sum(l4, pseudo); s != 0xffff {
		t.Errorf("transport checksum is off: %04x", s)
	}
}

// run puts a frame through a program; the frame arrives at interface 1.
func run(t testing.TB, p *ebpf.Program, in []byte) (uint32, []byte) {
	t.Helper()
	out := make([]byte, len(in)+512)
	ret, err := p.Run(&ebpf.RunOptions{Data: in, DataOut: out})
	_ = ret
	if err != nil {
		t.Fatal(err)
	}
	return ret, out
}

const (
	pod   = "10.244.0.2"
	other = "10.244.0.3"
)

func withPods(t testing.TB) *Datapath {
	d := open(t, testConfig(t))
	for i, a := range []string{pod, other} {
		_, err := d.Endpoints().Replace(a, []Endpoint{{Addr: netip.MustParseAddr(a), Ifindex: 1 + i, PodMAC: podMAC, HostMAC: hostMAC}})
		if err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestPodProgramVerdicts(t *testing.T) {
	d := withPods(t)
	fragment := frame(17, ap(pod+":999"), ap(other+":53"), nil)
	fragment[14+6] = 0x20
	binary.BigEndian.PutUint16(fragment[14+10:], 0)
	arp := frame(17, ap(pod+":1"), ap(other+":1"), nil)
	binary.BigEndian.PutUint16(arp[12:], 0x0806)
	options := frame(6, ap(pod+":1"), ap("192.0.2.1:1"), make([]byte, 40))
	options[14] = 0x4f
	for name, c := range map[string]struct {
		in   []byte
		want uint32
	}{
		"to a pod of this node":     {frame(6, ap(pod+":1000"), ap(other+":80"), nil), actRedirect},
		"a fragment to a pod":       {fragment, actRedirect},
		"to elsewhere":              {frame(6, ap(pod+":1000"), ap("192.0.2.1:80"), nil), actOK},
		"with another's address":    {frame(6, ap(other+":1000"), ap(pod+":80"), nil), actShot},
		"with an unknown address":   {frame(6, ap("10.244.9.9:1000"), ap(pod+":80"), nil), actShot},
		"ARP":                       {arp, actOK},
		"IP options past the end":   {options[:14+40], actShot},
		"no IP header":              {func() []byte { b := frame(6, ap(pod+":1"), ap(other+":1"), nil); b[14] = 0x44; return b }(), actShot},
		"a name's server elsewhere": {frame(17, ap(pod+":1000"), ap("192.0.2.1:53"), []byte("rubbish")), actOK},
	} {
		if got, _ := run(t, d.net.Programs[podProgram], c.in); got != c.want {
			t.Errorf("%s: verdict %d, want %d", name, got, c.want)
		}
	}
}

func query(t testing.TB, name string, qtype uint16, edns bool) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	if edns {
		m.SetEdns0(4096, false)
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDNSAnswers(t *testing.T) {
	d := withPods(t)
	addrs := []netip.Addr{netip.MustParseAddr("10.96.0.5"), netip.MustParseAddr("10.96.0.6"), netip.MustParseAddr("10.96.0.7")}
	if _, err := d.Names().Replace("u", []Name{{Name: "web.default.svc.cluster.local.", Addrs: addrs}}); err != nil {
		t.Fatal(err)
	}
	const up = -1 // goes up to user space
	for _, c := range []struct {
		name  string
		qtype uint16
		edns  bool
		rcode int
		n     int
	}{
		{"web.default.svc.cluster.local.", dns.TypeA, false, dns.RcodeSuccess, 3},
		{"WeB.dEfault.svc.Cluster.Local.", dns.TypeA, true, dns.RcodeSuccess, 3},
		{"web.default.svc.cluster.local.", dns.TypeAAAA, true, dns.RcodeSuccess, 0},
		{"web.default.svc.cluster.local.", dns.TypeSRV, false, up, 0},
		{"other.default.svc.cluster.local.", dns.TypeA, false, up, 0},
		{"web.default.svc.cluster.local.cluster.local.", dns.TypeA, true, dns.RcodeNameError, 0},
		{"web.default.svc.cluster.local.svc.cluster.local.", dns.TypeAAAA, false, dns.RcodeNameError, 0},
		{"web.default.svc.cluster.local.default.svc.cluster.local.", dns.TypeA, false, dns.RcodeNameError, 0},
		{"example.com.cluster.local.", dns.TypeA, false, dns.RcodeNameError, 0},
		{"example.com.default.svc.cluster.local.", dns.TypeA, false, up, 0},
		{"_http._tcp.web.default.svc.cluster.local.", dns.TypeA, false, up, 0},
		{"10-1-0-1.default.pod.cluster.local.", dns.TypeA, false, up, 0},
		{"dns-version.cluster.local.", dns.TypeTXT, false, up, 0},
		{"ns.dns.cluster.local.", dns.TypeA, false, up, 0},
		{"svc.cluster.local.", dns.TypeA, false, up, 0},
		{"cluster.local.", dns.TypeA, false, up, 0},
		{"xcluster.local.", dns.TypeA, false, up, 0},
		{"example.com.", dns.TypeA, true, up, 0},
		{".", dns.TypeNS, false, up, 0},
		{"a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.cluster.local.", dns.TypeA, false, up, 0},
		{strings.Repeat("a", 63) + ".default.svc.cluster.local.", dns.TypeA, false, up, 0},
	} {
		t.Run(c.name+dns.TypeToString[c.qtype], func(t *testing.T) {
			q := query(t, c.name, c.qtype, c.edns)
			in := frame(17, ap(pod+":4242"), ap("10.96.0.10:53"), q)
			verdict, out := run(t, d.net.Programs[podProgram], in)
			if c.rcode == up {
				if verdict != actOK {
					t.Fatalf("verdict %d, want it to go up", verdict)
				}
				if string(out[:len(in)]) != string(in) {
					t.Error("the packet was changed")
				}
				return
			}
			if verdict != actRedirect {
				t.Fatalf("verdict %d, want an answer", verdict)
			}
			length := 14 + int(binary.BigEndian.Uint16(out[16:]))
			out = out[:length]
			checkSums(t, out)
			if string(out[:6]) != string(podMAC) || string(out[6:12]) != string(hostMAC) {
				t.Errorf("MAC addresses %x", out[:12])
			}
			if netip.AddrFrom4([4]byte(out[26:30])) != netip.MustParseAddr("10.96.0.10") || netip.AddrFrom4([4]byte(out[30:34])) != netip.MustParseAddr(pod) {
				t.Errorf("addresses %v", out[26:34])
			}
			if binary.BigEndian.Uint16(out[34:]) != 53 || binary.BigEndian.Uint16(out[36:]) != 4242 || int(binary.BigEndian.Uint16(out[38:])) != length-34 {
				t.Errorf("UDP header %x", out[34:42])
			}
			var m dns.Msg
			if err := m.Unpack(out[42:]); err != nil {
				t.Fatalf("the answer does not parse: %v", err)
			}
			var sent dns.Msg
			if err := sent.Unpack(q); err != nil {
				t.Fatal(err)
			}
			if m.Id != sent.Id || !m.Response || !m.Authoritative || !m.RecursionDesired || !m.RecursionAvailable || m.Rcode != c.rcode || len(m.Answer) != c.n {
				t.Errorf("answer\n%s", &m)
			}
			if m.Question[0].Name != c.name {
				t.Errorf("question echoed as %s", m.Question[0].Name)
			}
			if (m.IsEdns0() != nil) != c.edns {
				t.Errorf("EDNS0 in the answer: %v", m.IsEdns0() != nil)
			}
			seen := map[string]bool{}
			for _, rr := range m.Answer {
				a := rr.(*dns.A)
				if a.Hdr.Ttl != 30 || a.Hdr.Name != c.name {
					t.Errorf("record %s", a)
				}
				seen[a.A.String()] = true
			}
			if len(seen) != c.n {
				t.Errorf("%d different addresses, want %d", len(seen), c.n)
			}
			if c.n == 0 {
				soa, ok := m.Ns[0].(*dns.SOA)
				if !ok || !strings.EqualFold(soa.Hdr.Name, "cluster.local.") || !strings.EqualFold(soa.Ns, "ns.dns.cluster.local.") || !strings.EqualFold(soa.Mbox, "hostmaster.cluster.local.") || soa.Minttl != 30 {
					t.Errorf("authority %v", m.Ns)
				}
			}
		})
	}
}

func TestUplink(t *testing.T) {
	d := withPods(t)
	row := LoadBalancer{Name: "ns/web:http", Protocol: 6, Frontends: []netip.AddrPort{ap("192.0.2.10:30080")}, Backends: []netip.AddrPort{ap(other + ":8080")}}
	empty := LoadBalancer{Name: "ns/empty:http", Protocol: 6, Frontends: []netip.AddrPort{ap("192.0.2.10:30081")}}
	if _, err := d.LoadBalancers().Replace("u", []LoadBalancer{row, empty}); err != nil {
		t.Fatal(err)
	}
	up, podProg := d.net.Programs[uplinkProgram], d.net.Programs[podProgram]
	verdict, out := run(t, up, frame(6, ap("198.51.100.1:5555"), ap("192.0.2.10:30080"), []byte("hi")))
	if verdict != actRedirect || netip.AddrFrom4([4]byte(out[30:34])) != netip.MustParseAddr(other) || binary.BigEndian.Uint16(out[36:]) != 8080 {
		t.Fatalf("verdict %d, packet %x", verdict, out[:40])
	}
	checkSums(t, out)
	// The pod's answer leaves as the frontend's. It is on interface 2 in the table, so move it to 1, where test packets arrive.
	if _, err := d.Endpoints().Replace(pod, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Endpoints().Replace(other, []Endpoint{{Addr: netip.MustParseAddr(other), Ifindex: 1, PodMAC: podMAC, HostMAC: hostMAC}}); err != nil {
		t.Fatal(err)
	}
	verdict, out = run(t, podProg, frame(6, ap(other+":8080"), ap("198.51.100.1:5555"), []byte("hello")))
	if verdict != actRedirect || netip.AddrFrom4([4]byte(out[26:30])) != netip.MustParseAddr("192.0.2.10") || binary.BigEndian.Uint16(out[34:]) != 30080 {
		t.Fatalf("verdict %d, packet %x", verdict, out[:40])
	}
	checkSums(t, out)
	for name, c := range map[string]struct {
		dst  string
		want uint32
	}{"no backend": {"192.0.2.10:30081", actShot}, "no frontend": {"192.0.2.10:22", actOK}} {
		if got, _ := run(t, up, frame(6, ap("198.51.100.1:5555"), ap(c.dst), nil)); got != c.want {
			t.Errorf("%s: verdict %d, want %d", name, got, c.want)
		}
	}
}

// A packet that ends anywhere is judged and harms nothing.
func TestTruncatedPackets(t *testing.T) {
	d := withPods(t)
	if _, err := d.Names().Replace("u", []Name{{Name: "web.default.svc.cluster.local.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}}); err != nil {
		t.Fatal(err)
	}
	for _, full := range [][]byte{
		frame(17, ap(pod+":4242"), ap("10.96.0.10:53"), query(t, "web.default.svc.cluster.local.", dns.TypeA, true)),
		frame(6, ap(pod+":1000"), ap(other+":80"), []byte("x")),
	} {
		for n := 14 + 20; n < len(full); n++ { // a test run takes no less than an Ethernet and an IP header
			for _, p := range []string{podProgram, uplinkProgram} {
				run(t, d.net.Programs[p], full[:n])
			}
		}
	}
}

func FuzzHostileQuestions(f *testing.F) {
	d := withPods(f)
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x07cluster\x05local\x00\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) > 1400 {
			return
		}
		in := frame(17, ap(pod+":4242"), ap("10.96.0.10:53"), payload)
		verdict, out := run(t, d.net.Programs[podProgram], in)
		if verdict != actRedirect {
			return
		}
		var m dns.Msg
		if err := m.Unpack(out[42 : 14+int(binary.BigEndian.Uint16(out[16:]))]); err != nil {
			t.Errorf("an answer that does not parse to %x: %v", payload, err)
		}
	})
}

// What is not a plain question goes up as it came.
func TestOddQuestionsGoUp(t *testing.T) {
	d := withPods(t)
	const name = "web.default.svc.cluster.local."
	if _, err := d.Names().Replace("u", []Name{{Name: name, Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}}); err != nil {
		t.Fatal(err)
	}
	with := func(edns bool, change func(q []byte) []byte) []byte {
		return frame(17, ap(pod+":4242"), ap("10.96.0.10:53"), change(query(t, name, dns.TypeA, edns)))
	}
	set := func(at int, v byte) func([]byte) []byte {
		return func(q []byte) []byte {
			if at < 0 {
				at += len(q)
			}
			q[at] = v
			return q
		}
	}
	same := func(q []byte) []byte { return q }
	if verdict, _ := run(t, d.net.Programs[podProgram], with(true, same)); verdict != actRedirect {
		t.Fatalf("the plain question: verdict %d", verdict)
	}
	short := with(false, same)
	short[14+20+5]-- // the datagram ends before the question does
	long := with(false, same)
	long[14+20+5]++ // or after the packet
	for what, in := range map[string][]byte{
		"a response":                   with(false, set(2, 0x81)),
		"a status request":             with(false, set(2, 0x11)),
		"a truncated one":              with(false, set(2, 0x03)),
		"two questions":                with(false, set(5, 2)),
		"an answer in it":              with(false, set(7, 1)),
		"an authority in it":           with(false, set(9, 1)),
		"class CH":                     with(false, set(-1, 3)),
		"something behind":             with(false, func(q []byte) []byte { return append(q, 0) }),
		"EDNS version 1":               with(true, set(-5, 1)),
		"an OPT longer than the rest":  with(true, set(-1, 4)),
		"an additional record missing": with(false, set(11, 1)),
		"a short datagram":             short,
		"a long datagram":              long,
	} {
		verdict, out := run(t, d.net.Programs[podProgram], in)
		if verdict != actOK || string(out[:len(in)]) != string(in) {
			t.Errorf("%s: verdict %d", what, verdict)
		}
	}
}
