package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/miekg/dns"
)

// run puts a frame through a program; the frame arrives at interface 1.
func run(t testing.TB, p *ebpf.Program, in []byte) (uint32, []byte) {
	t.Helper()
	ret, out, err := tryRun(p, in)
	if err != nil {
		t.Fatal(err)
	}
	return ret, out
}

func tryRun(p *ebpf.Program, in []byte) (uint32, []byte, error) {
	out := make([]byte, len(in)+1300) // an answer of 1232 bytes behind it
	ret, err := p.Run(&ebpf.RunOptions{Data: in, DataOut: out})
	return ret, out, err
}

const (
	pod     = "10.244.0.2"
	other   = "10.244.0.3"
	pod6    = "fd00:10:244::2"
	other6  = "fd00:10:244::3"
	nodeIP  = "192.0.2.10"
	nodeIP6 = "2001:db8::10"
)

// addPods makes two pods with an address of each family, of which the first is at the interface where test packets arrive.
func addPods(t testing.TB, d *Datapath) {
	t.Helper()
	for i, list := range [][]string{{pod, pod6}, {other, other6}} {
		var rows []Endpoint
		for _, a := range list {
			rows = append(rows, Endpoint{Addr: netip.MustParseAddr(a), Ifindex: 1 + i, PodMAC: podMAC, HostMAC: hostMAC})
		}
		_, err := d.Endpoints().Replace(list[0], rows)
		must(t, err)
	}
}

func withPods(t testing.TB, change ...func(*Config)) *Datapath {
	c := testConfig(t)
	for _, f := range change {
		f(&c)
	}
	d := open(t, c)
	addPods(t, d)
	return d
}

func query(t testing.TB, name string, qtype uint16, edns bool) []byte {
	t.Helper()
	b, err := packQuery(name, qtype, edns)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func packQuery(name string, qtype uint16, edns bool) ([]byte, error) {
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	if edns {
		m.SetEdns0(4096, false)
	}
	return m.Pack()
}

func TestDNSAnswers(t *testing.T) {
	d := withPods(t)
	var addrs4, addrs6 []netip.Addr
	for i := range 3 {
		addrs4 = append(addrs4, netip.AddrFrom4([4]byte{10, 96, 0, byte(5 + i)}))
	}
	for i := range 8 { // as many as there may be
		addrs6 = append(addrs6, netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x10, 0, 0x96, 15: byte(5 + i)}))
	}
	long := strings.Repeat(strings.Repeat("a", 60)+".", 3) + strings.Repeat("b", 51) + ".svc.cluster.local." // as names may be: 255 bytes
	_, err := d.Names().Replace("u", []Name{
		{Name: "web.default.svc.cluster.local.", Addrs: addrs4}, {Name: "six.default.svc.cluster.local.", Addrs: addrs6},
		{Name: "both.default.svc.cluster.local.", Addrs: append(addrs6[:1:1], addrs4...)},
		{Name: long, Addrs: addrs6},
	})
	must(t, err)
	const goesUp = -1 // to user space
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
		{"web.default.svc.cluster.local.", dns.TypeSRV, false, goesUp, 0},
		{"six.default.svc.cluster.local.", dns.TypeAAAA, false, dns.RcodeSuccess, 8},
		{"six.default.svc.cluster.local.", dns.TypeAAAA, true, dns.RcodeSuccess, 8},
		{"six.default.svc.cluster.local.", dns.TypeA, true, dns.RcodeSuccess, 0},
		{"both.default.svc.cluster.local.", dns.TypeA, true, dns.RcodeSuccess, 3},
		{"both.default.svc.cluster.local.", dns.TypeAAAA, false, dns.RcodeSuccess, 1},
		{"both.default.svc.cluster.local.", dns.TypeMX, false, dns.RcodeSuccess, 0},
		{long, dns.TypeAAAA, false, dns.RcodeSuccess, 8},
		{long, dns.TypeAAAA, true, dns.RcodeSuccess, 8},
		{"other.default.svc.cluster.local.", dns.TypeA, false, goesUp, 0},
		{"web.default.svc.cluster.local.cluster.local.", dns.TypeA, true, dns.RcodeNameError, 0},
		{"web.default.svc.cluster.local.svc.cluster.local.", dns.TypeAAAA, false, dns.RcodeNameError, 0},
		{"web.default.svc.cluster.local.default.svc.cluster.local.", dns.TypeA, false, dns.RcodeNameError, 0},
		{"example.com.cluster.local.", dns.TypeA, false, dns.RcodeNameError, 0},
		{"example.com.default.svc.cluster.local.", dns.TypeA, false, goesUp, 0},
		{"_http._tcp.web.default.svc.cluster.local.", dns.TypeA, false, goesUp, 0},
		{"10-1-0-1.default.pod.cluster.local.", dns.TypeA, false, goesUp, 0},
		{"dns-version.cluster.local.", dns.TypeTXT, false, goesUp, 0},
		{"ns.dns.cluster.local.", dns.TypeA, false, goesUp, 0},
		{"svc.cluster.local.", dns.TypeA, false, goesUp, 0},
		{"cluster.local.", dns.TypeA, false, goesUp, 0},
		{"xcluster.local.", dns.TypeA, false, goesUp, 0},
		{"example.com.", dns.TypeA, true, goesUp, 0},
		{".", dns.TypeNS, false, goesUp, 0},
		{strings.Repeat("a.", 62) + "cluster.local.", dns.TypeA, false, dns.RcodeNameError, 0},
		{strings.Repeat("a.", 63) + "cluster.local.", dns.TypeA, false, goesUp, 0},
		{strings.Repeat("a", 63) + ".default.svc.cluster.local.", dns.TypeA, false, goesUp, 0},
	} {
		for _, f := range families {
			t.Run(f.name+c.name+dns.TypeToString[c.qtype], func(t *testing.T) {
				q := query(t, c.name, c.qtype, c.edns)
				in := frame(17, at(f.pod, 4242), at(f.dns, 53), q)
				verdict, out := run(t, d.net.Programs[podProgram], in)
				if c.rcode == goesUp {
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
				_, l4, end := transport(out)
				out = out[:end]
				checkSums(t, out)
				if string(out[:6]) != string(podMAC) || string(out[6:12]) != string(hostMAC) {
					t.Errorf("MAC addresses %x", out[:12])
				}
				if src, dst := ends(out); src != at(f.dns, 53) || dst != at(f.pod, 4242) {
					t.Errorf("from %s to %s", src, dst)
				}
				if int(binary.BigEndian.Uint16(out[l4+4:])) != end-l4 {
					t.Errorf("UDP header %x", out[l4:l4+8])
				}
				checkAnswer(t, q, out[l4+8:], c.name, c.qtype, c.edns, c.rcode, c.n)
			})
		}
	}
}

// checkAnswer fails unless an answer is what was asked for, with so many addresses.
func checkAnswer(t *testing.T, q, answer []byte, name string, qtype uint16, edns bool, rcode, n int) {
	t.Helper()
	var m, sent dns.Msg
	if err := m.Unpack(answer); err != nil {
		t.Fatalf("the answer does not parse: %v", err)
	}
	must(t, sent.Unpack(q))
	if m.Id != sent.Id || !m.Response || !m.Authoritative || !m.RecursionDesired || !m.RecursionAvailable || m.Rcode != rcode || len(m.Answer) != n {
		t.Errorf("answer\n%s", &m)
	}
	if m.Question[0].Name != name {
		t.Errorf("question echoed as %s", m.Question[0].Name)
	}
	if (m.IsEdns0() != nil) != edns {
		t.Errorf("EDNS0 in the answer: %v", m.IsEdns0() != nil)
	}
	seen := map[string]bool{}
	for _, rr := range m.Answer {
		if h := rr.Header(); h.Ttl != 30 || h.Name != name || h.Rrtype != qtype {
			t.Errorf("record %s", rr)
		}
		seen[rr.String()] = true
	}
	if len(seen) != n {
		t.Errorf("%d different addresses, want %d", len(seen), n)
	}
	if n == 0 {
		soa, ok := m.Ns[0].(*dns.SOA)
		if !ok || !strings.EqualFold(soa.Hdr.Name, "cluster.local.") || !strings.EqualFold(soa.Ns, "ns.dns.cluster.local.") || !strings.EqualFold(soa.Mbox, "hostmaster.cluster.local.") || soa.Minttl != 30 {
			t.Errorf("authority %v", m.Ns)
		}
	}
}

func TestUplink(t *testing.T) {
	d := withPods(t)
	up, podProg := d.net.Programs[uplinkProgram], d.net.Programs[podProgram]
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			for _, proto := range []byte{6, 17} {
				row := LoadBalancer{Name: "ns/web:http", Protocol: proto, Frontends: fronts(NodePort, at(f.node, 30080)), Backends: backs(at(f.pod, 8080))}
				_, err := d.LoadBalancers().Replace("u", []LoadBalancer{row})
				must(t, err)
				in := frame(proto, at(f.far, 5555), at(f.node, 30080), []byte("odd"))
				verdict, out := run(t, up, in)
				out = out[:len(in)]
				if src, dst := ends(out); verdict != actRedirect || src != at(f.far, 5555) || dst != at(f.pod, 8080) {
					t.Fatalf("verdict %d, from %s to %s", verdict, src, dst)
				}
				checkSums(t, out)
				// The pod's answer leaves as the frontend's.
				in = frame(proto, at(f.pod, 8080), at(f.far, 5555), []byte("hello"))
				verdict, out = run(t, podProg, in)
				out = out[:len(in)]
				if src, dst := ends(out); verdict != actRedirect || src != at(f.node, 30080) || dst != at(f.far, 5555) {
					t.Fatalf("the answer: verdict %d, from %s to %s", verdict, src, dst)
				}
				checkSums(t, out)
				if got, _ := run(t, up, frame(proto, at(f.far, 5555), at(f.node, 22), nil)); got != actOK {
					t.Errorf("no frontend: verdict %d", got)
				}
			}
		})
	}
}

// A packet that ends anywhere is judged and harms nothing.
func TestTruncatedPackets(t *testing.T) {
	d := masqueraded(t, 62000, 62000)
	_, err := d.Names().Replace("u", []Name{{Name: "web.default.svc.cluster.local.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}})
	must(t, err)
	for _, f := range families {
		frames := [][]byte{
			frame(17, at(f.pod, 4242), at(f.dns, 53), query(t, "web.default.svc.cluster.local.", dns.TypeA, true)),
			frame(6, at(f.pod, 1000), at(f.other, 80), []byte("x")),
			frame(6, at(f.pod, 1000), at(f.far, 80), []byte("x")),
			icmp(f.pod, f.far, f.echo, 0, 1<<16, []byte("ping")),
			icmp(f.hop, f.node, f.unreachable, 0, 0, frame(17, at(f.node, 62000), at(f.far, 53), nil)[14:]),
			cut(frame(17, at(f.pod, 1000), at(f.far, 80), []byte("x")), 1, 0, true),
			arpFrame(1, podMAC, pod, "10.244.0.9"),
			solicit(pod6, "fd00:10:244::9"),
		}
		if f.name == "IPv6" {
			frames = append(frames, extended(frames[1], extension(0, 1), extension(60, 2), extension(43, 1), extension(51, 2), extension(44, 1)))
		}
		for _, full := range frames {
			for n := shortest(full); n <= len(full); n++ {
				for _, p := range []string{podProgram, uplinkProgram, egressProgram} {
					verdict, _ := run(t, d.net.Programs[p], full[:n])
					if n < len(full) && p == podProgram && verdict != actShot {
						t.Errorf("%d of %x: verdict %d", n, full, verdict)
					}
				}
			}
		}
	}
}

// response is one as user space stores it.
func response(t testing.TB, name string, rrs ...string) []byte {
	t.Helper()
	m := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion(name, dns.TypeA))
	m.Compress = true
	for _, text := range rrs {
		rr, err := dns.NewRR(text)
		must(t, err)
		m.Answer = append(m.Answer, rr)
	}
	data, err := m.Pack()
	must(t, err)
	return data
}

func FuzzHostileQuestions(f *testing.F) {
	d := withPods(f)
	_, err := d.Names().Replace("u", []Name{{Name: "web.default.svc.cluster.local.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}, {Name: "default.svc.cluster.local."}, {Name: "many.default.svc.cluster.local.", Elsewhere: true}})
	must(f, err)
	var many []string
	for i := range 70 {
		many = append(many, fmt.Sprintf("many.default.svc.cluster.local. 30 IN A 10.1.0.%d", i))
	}
	_, err = d.Records().Replace("u", []Record{{Message: response(f, "many.default.svc.cluster.local.", many...)}})
	must(f, err)
	must(f, d.Outside().Keep(response(f, "a.example.", "a.example. 300 IN CNAME b.example.", "b.example. 60 IN A 192.0.2.1"), AskedRecursion, time.Now().Add(time.Hour)))
	var long []string
	for i := range 60 {
		long = append(long, fmt.Sprintf("long.example. 300 IN A 192.0.2.%d", i))
	}
	must(f, d.Outside().Keep(response(f, "long.example.", long...), AskedRecursion, time.Now().Add(time.Hour)))
	must(f, d.SetNamesState(NamesState{Whole: true, Pods: true}))
	for _, name := range []string{"long.example.", "web.default.svc.cluster.local.", "many.default.svc.cluster.local.", "a.example.", "10-1-0-1.default.pod.cluster.local.", "fd00--1.default.pod.cluster.local.", "x.default.svc.cluster.local."} {
		f.Add(query(f, name, dns.TypeA, true))
		f.Add(query(f, name, dns.TypeAAAA, false))
	}
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
