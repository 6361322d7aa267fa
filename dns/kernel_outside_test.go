package dns

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/strake-io/strake/bpf"
)

// outsideServer answers names of example.com in all the ways that servers do.
func outsideServer(network string, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable, m.AuthenticatedData = true, q.AuthenticatedData
	name := strings.ToLower(q.Question[0].Name)
	first, _, _ := strings.Cut(name, ".")
	switch first {
	case "plain":
		m.Answer = rrs(name+" 300 IN A 192.0.2.1", name+" 300 IN A 192.0.2.2")
	case "alias":
		m.Answer = rrs(name+" 300 IN CNAME www.CDN.example.net.", "www.cdn.example.net. 60 IN CNAME edge.example.com.", "edge.example.com. 200 IN A 192.0.2.3")
	case "more":
		m.Answer, m.Ns = rrs(name+" 300 IN MX 10 mail."+name), rrs("example.com. 3600 IN NS ns.example.com.")
		m.Extra = rrs("mail."+name+" 100 IN A 192.0.2.4", "ns.example.com. 90 IN AAAA 2001:db8::4")
	case "nodata":
		m.Ns = rrs("example.com. 600 IN SOA ns.example.com. host.example.com. 1 2 3 4 120")
	case "short":
		m.Answer = rrs(name + " 1 IN A 192.0.2.5")
	case "zero":
		m.Answer = rrs(name + " 0 IN A 192.0.2.6")
	case "wide", "huge": // more than 512 bytes, and than 1232
		for i := range map[string]int{"wide": 70, "huge": 90}[first] {
			m.Answer = append(m.Answer, rrs(fmt.Sprintf("%s 300 IN A 192.0.2.%d", name, i))...)
		}
	case "middle": // more than fits without EDNS0
		m.Answer = rrs(name + ` 300 IN TXT "` + strings.Repeat("x", 250) + `" "` + strings.Repeat("y", 240) + `"`)
	case "broken":
		m.Rcode = dns.RcodeServerFailure
	default:
		m.Rcode, m.Ns = dns.RcodeNameError, rrs("example.com. 600 IN SOA ns.example.com. host.example.com. 1 2 3 4 120")
	}
	if network == "udp" {
		m.Truncate(1232)
	}
	return m
}

// podAndOutside is a pod on a node whose kernel is given what was forwarded.
func podAndOutside(t *testing.T, cfg func(*Config)) (conns []*dns.Conn, s *Server, d *bpf.Datapath, up *fakeUpstream) {
	t.Helper()
	up = newUpstream(t, public, outsideServer)
	c := Config{Zones: []string{"cluster.local"}, Upstream: Upstream{Servers: []string{resolvConf(t, public)}}, Avoid: []netip.AddrPort{at}}
	if cfg != nil {
		cfg(&c)
	}
	records := newRecords(t, objects()...)
	s = configured(t, records, c, at, at6)
	d = openDatapath(t)
	fillKernel(t, d, records)
	must(t, s.ShareWith(d.Outside()))
	run(t, s)
	dial := podDial(t, d)
	for _, to := range []netip.AddrPort{at, at6} {
		conns = append(conns, &dns.Conn{Conn: dial("udp", to), UDPSize: 4096})
	}
	return conns, s, d, up
}

// kernelCount reads one of the kernel's counters.
func kernelCount(t *testing.T, d *bpf.Datapath, name string) uint64 {
	t.Helper()
	c, err := d.Counters()
	must(t, err)
	return c[name]
}

// sameButTTLs compares two messages, and fails if a record of the first lives longer than in the second.
func sameButTTLs(t *testing.T, got, want *dns.Msg) bool {
	t.Helper()
	g, w := got.Copy(), want.Copy()
	least := uint32(1<<31 - 1)
	for _, section := range [][]dns.RR{w.Answer, w.Ns, w.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				least = min(least, rr.Header().Ttl)
				rr.Header().Ttl = 0
			}
		}
	}
	for _, section := range [][]dns.RR{g.Answer, g.Ns, g.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				if ttl := rr.Header().Ttl; ttl > least+1 || ttl+30 < least { // the one who is asked a moment later may say one less; nobody asks half a minute later
					t.Errorf("%s, and the server says %d", rr, least)
				}
				rr.Header().Ttl = 0
			}
		}
	}
	do := func(m *dns.Msg) bool { o := m.IsEdns0(); return o != nil && o.Do() }
	return sameMessage(g, w) && do(g) == do(w)
}

// What was asked once the kernel answers from then on, as the server would: to the very same question alone, while it lives.
func TestKernelGivesWhatWasForwarded(t *testing.T) {
	conns, s, d, up := podAndOutside(t, nil)
	ask := func(conn *dns.Conn, q *dns.Msg) (m *dns.Msg, byKernel bool) {
		t.Helper()
		before := kernelCount(t, d, "dns_outside")
		m = askOver(t, conn, q)
		return m, kernelCount(t, d, "dns_outside") > before
	}
	for _, conn := range conns {
		must(t, d.Outside().Flush())
		for _, c := range []struct {
			name  string
			qtype uint16
			size  uint16 // of EDNS0; 0: none
			kept  bool
		}{
			{"plain.example.com.", dns.TypeA, 0, true}, {"plain.example.com.", dns.TypeA, 1232, true}, {"alias.example.com.", dns.TypeA, 4096, true},
			{"more.example.com.", dns.TypeMX, 512, true}, {"nodata.example.com.", dns.TypeAAAA, 0, true}, {"nothing.example.com.", dns.TypeA, 0, true},
			{"nothing.example.com.", dns.TypeHTTPS, 100, true}, {"zero.example.com.", dns.TypeA, 0, false}, {"wide.example.com.", dns.TypeA, 1232, true}, {"wide.example.com.", dns.TypeA, 4096, true},
			{"wide.example.com.", dns.TypeA, 0, false}, {"wide.example.com.", dns.TypeA, 1000, false}, {"huge.example.com.", dns.TypeA, 4096, false},
			{"broken.example.com.", dns.TypeA, 0, false}, {"middle.example.com.", dns.TypeTXT, 1232, true}, {"middle.example.com.", dns.TypeTXT, 0, false},
			{"ext.default.svc.cluster.local.", dns.TypeA, 1232, true}, {"extbroken.default.svc.cluster.local.", dns.TypeA, 0, false}, // aliases of the cluster
			{strings.Repeat(strings.Repeat("a", 60)+".", 3) + strings.Repeat("b", 58) + ".example.com.", dns.TypeA, 1232, true}, // of 255 bytes
		} {
			must(t, d.Outside().Flush())
			for _, do := range []bool{false, true} {
				q := new(dns.Msg).SetQuestion(c.name, c.qtype)
				if c.size > 0 {
					q.SetEdns0(c.size, do)
				}
				first, byKernel := ask(conn, q)
				if byKernel && (c.size > 0 || !do) {
					t.Errorf("%s, DO %v: the kernel knows what nobody has asked", &q.Question[0], do)
				}
				for _, spelled := range []string{c.name, strings.ToUpper(c.name)} {
					q.Question[0].Name = spelled
					got, byKernel := ask(conn, q)
					want := s.Answer(context.Background(), q)
					want.Truncate(max(512, int(c.size)))
					if byKernel != c.kept || !sameButTTLs(t, got, want) {
						t.Errorf("%s over %s: by the kernel: %v\n%s\nthe server says\n%s\nand has said\n%s", &q.Question[0], conn.LocalAddr(), byKernel, got, want, first)
					}
				}
				for what, change := range map[string]func(*dns.Msg){
					"no recursion": func(q *dns.Msg) { q.RecursionDesired = false }, "unchecked": func(q *dns.Msg) { q.CheckingDisabled = true },
					"authentic": func(q *dns.Msg) { q.AuthenticatedData = true }, "another type": func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeNAPTR },
					"another name": func(q *dns.Msg) { q.Question[0].Name = "x" + c.name[1:] },
				} {
					other := q.Copy()
					change(other)
					before := kernelCount(t, d, "dns_outside")
					askOver(t, conn, other)
					if kernelCount(t, d, "dns_outside") != before && !do {
						t.Errorf("%s was given to %s", &q.Question[0], what)
					}
				}
			}
		}
	}
	if n := up.count("udp plain.example.com."); n > 12 {
		t.Errorf("plain.example.com was asked for %d times", n)
	}
}

// An answer lives as long as its records, and no longer.
func TestKernelForgetsWhatHasExpired(t *testing.T) {
	conns, _, d, _ := podAndOutside(t, nil)
	q := new(dns.Msg).SetQuestion("short.example.com.", dns.TypeA)
	askOver(t, conns[0], q)
	for begin := time.Now(); ; {
		before, asked := kernelCount(t, d, "dns_outside"), time.Now()
		m := askOver(t, conns[0], q)
		if kernelCount(t, d, "dns_outside") == before {
			break // it has
		}
		if m.Answer[0].Header().Ttl > 1 {
			t.Fatal(m)
		}
		if asked.Sub(begin) > 2*time.Second {
			t.Fatal("an answer that lives for a second was given by the kernel two seconds later")
		}
	}
	held, err := d.Outside().Dump()
	must(t, err)
	if len(held) != 1 || held[0].Name != "short.example.com." || held[0].Type != dns.TypeA || held[0].Bits != bpf.AskedRecursion || held[0].Left > time.Second {
		t.Errorf("the kernel holds %+v", held)
	}
}

// The TTL counts down.
func TestKernelCountsTTLsDown(t *testing.T) {
	conns, _, _, _ := podAndOutside(t, nil)
	q := new(dns.Msg).SetQuestion("alias.example.com.", dns.TypeA)
	askOver(t, conns[0], q)
	deadline := time.Now().Add(time.Minute)
	for {
		m := askOver(t, conns[0], q)
		if len(m.Answer) != 3 {
			t.Fatal(m)
		}
		first := m.Answer[0].Header().Ttl
		for _, rr := range m.Answer {
			if rr.Header().Ttl != first {
				t.Fatalf("not one time for all: %s", m)
			}
		}
		if first < 60 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("60 s go on")
		}
	}
}

// Another configuration makes the kernel forget; one under way at that time is not kept.
func TestConfigureFlushesTheKernel(t *testing.T) {
	conns, s, d, _ := podAndOutside(t, nil)
	q := new(dns.Msg).SetQuestion("plain.example.com.", dns.TypeA)
	askOver(t, conns[0], q)
	askOver(t, conns[0], q)
	if kernelCount(t, d, "dns_outside") != 1 {
		t.Fatal("the kernel does not answer")
	}
	cfg := s.Config()
	cfg.Hosts = []Host{{IP: "192.0.2.99", Names: []string{"plain.example.com"}}}
	before := s.settings.Load()
	must(t, s.Configure(cfg))
	if m := askOver(t, conns[0], q); len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), "192.0.2.99") {
		t.Errorf("after a configuration that says otherwise: %s", m)
	}
	m := new(dns.Msg).SetReply(q)
	m.Answer = rrs("plain.example.com. 300 IN A 192.0.2.1")
	s.share(before, before.cache.epoch.Load(), q, Answer{Msg: m, By: ByForward, until: time.Now().Add(time.Minute)})
	if m := askOver(t, conns[0], q); len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), "192.0.2.99") {
		t.Errorf("what was under way was kept: %s", m)
	}
}

// However many names are asked for, the kernel holds no more than it has room for, and keeps those that are asked for.
func TestKernelKeepsWhatIsAskedFor(t *testing.T) {
	d := openDatapath(t)
	conn := &dns.Conn{Conn: podDial(t, d)("udp", at), UDPSize: 4096}
	o := d.Outside()
	keep := func(name string) {
		t.Helper()
		m := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion(name, dns.TypeA))
		m.Compress, m.RecursionAvailable, m.Answer = true, true, rrs(name+" 3600 IN A 192.0.2.1")
		data, err := m.Pack()
		must(t, err)
		must(t, o.Keep(data, bpf.AskedRecursion, time.Now().Add(time.Hour)))
	}
	keep("wanted.example.com.")
	q := new(dns.Msg).SetQuestion("wanted.example.com.", dns.TypeA)
	for i := range 6000 {
		keep(fmt.Sprintf("n%d.example.com.", i))
		if i%400 == 0 { // that it is given is noted, but for some milliseconds
			for begin := time.Now(); time.Since(begin) < 80*time.Millisecond; {
				askOver(t, conn, q)
			}
		}
	}
	held, err := o.Dump()
	must(t, err)
	if len(held) > 4096 || len(held) < 3000 {
		t.Errorf("the kernel holds %d answers", len(held))
	}
	askOver(t, conn, q) // nobody else listens
}

// Rubbish of a server never becomes an answer of the kernel that clients can't read.
func TestKernelKeepsNoRubbish(t *testing.T) {
	d := openDatapath(t)
	random := rand.New(rand.NewPCG(3, 4))
	whole := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion("a.example.com.", dns.TypeA))
	whole.Answer, whole.Compress = rrs("a.example.com. 60 IN CNAME b.example.com.", "b.example.com. 60 IN A 192.0.2.1"), true
	data, err := whole.Pack()
	must(t, err)
	for range 5000 {
		bad := append([]byte(nil), data...)
		for range 1 + random.IntN(4) {
			bad[random.IntN(len(bad))] = byte(random.IntN(256))
		}
		if err := d.Outside().Keep(bad[:random.IntN(len(bad)+1)], 0, time.Now().Add(time.Minute)); err != nil {
			continue
		}
	}
	for n := range len(data) {
		if d.Outside().Keep(data[:n], 0, time.Now().Add(time.Minute)) == nil {
			t.Errorf("%d bytes of %d were kept", n, len(data))
		}
	}
	must(t, d.Outside().Keep(data, 0, time.Now().Add(time.Minute)))
}
