package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func ask(f *Forwarder, name string, qtype uint16) *dns.Msg {
	return f.Forward(context.Background(), new(dns.Msg).SetQuestion(name, qtype))
}

// says answers A questions with an address.
func says(addr string) func(string, *dns.Msg) *dns.Msg {
	return func(_ string, q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		m.Answer = rrs(q.Question[0].Name + " 300 IN A " + addr)
		return m
	}
}

func fails(rcode int) func(string, *dns.Msg) *dns.Msg {
	return func(_ string, q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, rcode) }
}

func silent(string, *dns.Msg) *dns.Msg { return nil }

func address(m *dns.Msg) string {
	if len(m.Answer) == 1 {
		if a, ok := m.Answer[0].(*dns.A); ok {
			return a.A.String()
		}
	}
	return show(m)
}

func TestForwarderRemembers(t *testing.T) {
	up := newUpstream(t, public, func(network string, q *dns.Msg) *dns.Msg {
		switch q.Question[0].Name {
		case "noSOA.": // RFC 2308 5: not to be remembered
			return new(dns.Msg).SetRcode(q, dns.RcodeNameError)
		case "zero.":
			m := new(dns.Msg).SetReply(q)
			m.Answer = rrs("zero. 0 IN A 192.0.2.1")
			return m
		}
		return internet(network, q)
	})
	f := NewForwarder(resolvConf(t, public))
	for _, c := range []struct {
		name  string
		qtype uint16
		asked int // of three
	}{
		{"example.com.", dns.TypeA, 1}, {"EXAMPLE.com.", dns.TypeA, 1}, {"none.example.com.", dns.TypeA, 1},
		{"noSOA.", dns.TypeA, 3}, {"zero.", dns.TypeA, 3}, {"broken.example.com.", dns.TypeA, 3},
	} {
		for range 3 {
			ask(f, c.name, c.qtype)
		}
		if n := up.count("udp " + strings.ToLower(c.name)); n != c.asked {
			t.Errorf("%s: asked %d times of 3, want %d", c.name, n, c.asked)
		}
	}
	if n := up.count("udp example.com."); n != 1 {
		t.Errorf("another spelling was asked again: %d", n)
	}
	ask(f, "example.com.", dns.TypeAAAA)
	if n := up.count("udp example.com."); n != 2 {
		t.Errorf("another type was not asked: %d", n)
	}
	if got := show(ask(f, "none.example.com.", dns.TypeA)); got != "NXDOMAIN\n! com. 60 SOA ns.com. host.com. 1 2 3 4 20" {
		t.Errorf("remembered: %s", got)
	}
}

func TestLifetime(t *testing.T) {
	for _, c := range []struct {
		rcode      int
		answer, ns []dns.RR
		want       time.Duration
	}{
		{dns.RcodeSuccess, rrs("a. 60 IN CNAME b.", "b. 30 IN A 192.0.2.1"), nil, 30 * time.Second},
		{dns.RcodeSuccess, rrs("a. 999999 IN A 192.0.2.1"), nil, maxTTL},
		{dns.RcodeSuccess, nil, nil, 0},
		{dns.RcodeSuccess, nil, rrs("a. 60 IN SOA b. c. 1 2 3 4 20"), 20 * time.Second},
		{dns.RcodeNameError, nil, rrs("a. 10 IN SOA b. c. 1 2 3 4 20"), 10 * time.Second},
		{dns.RcodeNameError, rrs("a. 60 IN CNAME b."), nil, 0},
		{dns.RcodeNameError, rrs("a. 60 IN CNAME b."), rrs("a. 100 IN SOA b. c. 1 2 3 4 200"), 60 * time.Second},
		{dns.RcodeServerFailure, nil, rrs("a. 60 IN SOA b. c. 1 2 3 4 20"), 0},
	} {
		m := &dns.Msg{Answer: c.answer, Ns: c.ns}
		m.Rcode = c.rcode
		if got := lifetime(m); got != c.want {
			t.Errorf("%s: %s, want %s", show(m), got, c.want)
		}
		m.Truncated = true
		if got := lifetime(m); got != 0 {
			t.Errorf("cut short: %s", got)
		}
	}
	m := &dns.Msg{Answer: rrs("a. 60 IN A 192.0.2.1")}
	if _, ok := (cached{m, time.Now().Add(-time.Minute), time.Minute}).fresh(); ok {
		t.Error("out of date, and given")
	}
	got, ok := (cached{m, time.Now().Add(-20 * time.Second), time.Minute}).fresh()
	if !ok || got.Answer[0].Header().Ttl > 40 || got.Answer[0].Header().Ttl == 0 || m.Answer[0].Header().Ttl != 60 {
		t.Errorf("counted down: %v, %v", got, ok)
	}
}

// A server that is silent costs one query its time; the next ones ask those first that answer.
func TestForwarderFailsOver(t *testing.T) {
	t.Parallel()
	dead := newUpstream(t, "127.0.1.1", silent)
	newUpstream(t, "127.0.1.2", says("192.0.2.2"))
	f := NewForwarder(resolvConf(t, "127.0.1.1", "127.0.1.2"))
	for i := range 10 {
		if got := address(ask(f, fmt.Sprint("a", i, "."), dns.TypeA)); got != "192.0.2.2" {
			t.Fatalf("question %d: %s", i, got)
		}
	}
	if dead.count("udp a0.") != 1 || dead.count("udp a9.") != 0 {
		t.Errorf("the silent server was asked %v", dead.asked)
	}
	// When its time is over one query tries it, and its answer brings it back to its place.
	f.servers[0].resume = time.Now().Add(-time.Second)
	first, err := f.upstreams()
	must(t, err)
	second, err := f.upstreams()
	must(t, err)
	if first[0] != f.servers[0] || second[0] != f.servers[1] || len(first) != 2 || len(second) != 2 {
		t.Error("not one query tries the server again, but none or all")
	}
	f.judge(f.servers[0], nil)
	for range 2 {
		if s, err := f.upstreams(); err != nil || s[0] != f.servers[0] {
			t.Error("a server that answers again is not in its place")
		}
	}
}

func TestForwarderAsksTheNext(t *testing.T) {
	newUpstream(t, "127.0.2.9", says("192.0.2.9"))
	for name, first := range map[string]func(string, *dns.Msg) *dns.Msg{
		"SERVFAIL": fails(dns.RcodeServerFailure), "REFUSED": fails(dns.RcodeRefused),
		"another question": func(_ string, q *dns.Msg) *dns.Msg {
			m := new(dns.Msg).SetReply(q)
			m.Question = []dns.Question{{Name: "evil.", Qtype: dns.TypeA, Qclass: dns.ClassINET}}
			m.Answer = rrs("evil. 300 IN A 192.0.2.66")
			return m
		},
		"no question": func(_ string, q *dns.Msg) *dns.Msg {
			m := new(dns.Msg).SetReply(q)
			m.Question = nil
			return m
		},
	} {
		t.Run(name, func(t *testing.T) {
			newUpstream(t, "127.0.2.1", first)
			if got := address(ask(NewForwarder(resolvConf(t, "127.0.2.1", "127.0.2.9")), "a.", dns.TypeA)); got != "192.0.2.9" {
				t.Error(got)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		if got := address(ask(NewForwarder(resolvConf(t, "127.0.2.2", "127.0.2.9")), "a.", dns.TypeA)); got != "192.0.2.9" {
			t.Error(got)
		}
	})
}

// One datagram that is lost is asked for again.
func TestForwarderTriesTwice(t *testing.T) {
	t.Parallel()
	var once sync.Once
	newUpstream(t, "127.0.3.1", func(network string, q *dns.Msg) (m *dns.Msg) {
		m = says("192.0.2.3")(network, q)
		if q.Question[0].Name == "a." {
			once.Do(func() { m = nil })
		}
		return m
	})
	if got := address(ask(NewForwarder(resolvConf(t, "127.0.3.1")), "a.", dns.TypeA)); got != "192.0.2.3" {
		t.Error(got)
	}
}

func TestForwarderWithoutServers(t *testing.T) {
	for name, conf := range map[string]string{
		"no file": "/nowhere/resolv.conf", "no server": resolvConf(t), "only ourselves": resolvConf(t, self.String(), "::ffff:"+self.String()),
		"no address": resolvConf(t, "dns.example.com"), "nobody listens": resolvConf(t, "127.0.4.1"), "a folder": t.TempDir(),
	} {
		q := new(dns.Msg).SetQuestion("A.example.", dns.TypeA)
		f := NewForwarder(conf, self)
		m := f.Forward(context.Background(), q)
		if name == "only ourselves" && len(f.servers) != 0 {
			t.Errorf("it would ask %v", f.servers)
		}
		if m.Rcode != dns.RcodeServerFailure || m.Id != q.Id || !m.Response || len(m.Question) != 1 || m.Question[0] != q.Question[0] {
			t.Errorf("%s:\n%s", name, m)
		}
	}
}

func TestForwarderFollowsResolvConf(t *testing.T) {
	newUpstream(t, "127.0.5.1", says("192.0.2.1"))
	newUpstream(t, "127.0.5.2", says("192.0.2.2"))
	conf := resolvConf(t, "127.0.5.1")
	f := NewForwarder(conf)
	for i, c := range []struct {
		servers []string
		want    string
	}{
		{[]string{"127.0.5.1"}, "192.0.2.1"}, {[]string{"127.0.5.2", "127.0.5.2"}, "192.0.2.2"}, {nil, "SERVFAIL"}, {[]string{"127.0.5.1", "127.0.5.2", "127.0.5.3"}, "192.0.2.1"},
	} {
		writeServers(t, conf, c.servers...)
		if got := address(ask(f, fmt.Sprint("a", i, "."), dns.TypeA)); got != c.want {
			t.Errorf("servers %v: %s, want %s", c.servers, got, c.want)
		}
	}
	must(t, os.Remove(conf))
	if got := address(ask(f, "gone.", dns.TypeA)); got != "SERVFAIL" {
		t.Errorf("without the file: %s", got)
	}
	writeServers(t, conf, "127.0.5.2")
	if got := address(ask(f, "back.", dns.TypeA)); got != "192.0.2.2" {
		t.Errorf("the file is back: %s", got)
	}
}

func TestForwarderTakesTCPForWhatIsCut(t *testing.T) {
	up := newUpstream(t, "127.0.6.1", func(network string, q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		for i := range 100 {
			m.Answer = append(m.Answer, rrs(fmt.Sprintf("big. 60 IN A 192.0.2.%d", i))...)
		}
		if network == "udp" {
			m.Truncate(512)
		}
		return m
	})
	f := NewForwarder(resolvConf(t, "127.0.6.1"))
	for range 2 { // the second is remembered
		if m := ask(f, "big.", dns.TypeA); len(m.Answer) != 100 || m.Truncated {
			t.Errorf("%d of 100 records, truncated %v", len(m.Answer), m.Truncated)
		}
	}
	if up.count("udp big.") != 1 || up.count("tcp big.") != 1 {
		t.Errorf("asked %v", up.asked)
	}
}

// OPT records are between two servers (RFC 6891 6.1.1): ours come from Server.
func TestForwarderKeepsOPTApart(t *testing.T) {
	var got *dns.OPT
	newUpstream(t, "127.0.7.1", func(network string, q *dns.Msg) *dns.Msg {
		m := says("192.0.2.7")(network, q)
		if !strings.HasSuffix(q.Question[0].Name, probeZone) {
			if got = q.IsEdns0(); got != nil {
				m.SetEdns0(4096, got.Do())
			}
		}
		return m
	})
	s := NewServer(newRecords(t), NewForwarder(resolvConf(t, "127.0.7.1")))
	q := new(dns.Msg).SetQuestion("a.", dns.TypeA)
	q.SetEdns0(4000, true)
	q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
	m := s.Answer(context.Background(), q)
	if o := m.IsEdns0(); o == nil || !o.Do() || o.UDPSize() != udpSize || len(m.Extra) != 1 || address(m) != "192.0.2.7" {
		t.Errorf("with EDNS0:\n%s", m)
	}
	if got == nil || !got.Do() || len(got.Option) != 0 {
		t.Errorf("upstream was asked with %v", got)
	}
	for i, name := range []string{"a.", "b."} { // a. is remembered with what a client with EDNS0 brought
		m := s.Answer(context.Background(), new(dns.Msg).SetQuestion(name, dns.TypeA))
		if m.IsEdns0() != nil || len(m.Extra) != 0 || address(m) != "192.0.2.7" {
			t.Errorf("%d without EDNS0:\n%s", i, m)
		}
	}
	if got != nil {
		t.Error("upstream was asked with EDNS0 for a client without")
	}
}

// The same question of many clients goes upstream once.
func TestForwarderAsksOnce(t *testing.T) {
	up := newUpstream(t, "127.0.8.1", says("192.0.2.8"))
	f := NewForwarder(resolvConf(t, "127.0.8.1"))
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			name := strings.Repeat("a", i%2) + strings.Repeat("A", 1-i%2) + "." // two spellings
			q := new(dns.Msg).SetQuestion(name, dns.TypeA)
			if m := f.Forward(context.Background(), q); address(m) != "192.0.2.8" || m.Id != q.Id || m.Question[0].Name != name || m.Answer[0].Header().Name != name {
				t.Errorf("%s:\n%s", name, m)
			}
		})
	}
	wg.Wait()
	if n := up.count("udp a."); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// A server that forwards to us what we ask it is found out, and not asked again; others are.
func TestLoop(t *testing.T) {
	const looping = "127.0.9.1"
	f := NewForwarder(resolvConf(t, looping, "127.0.9.2"), self)
	run(t, NewServer(newRecords(t, objects()...), f, netip.AddrPortFrom(self, 53)))
	found := make(chan struct{})
	loop := newUpstream(t, looping, func(_ string, q *dns.Msg) *dns.Msg {
		m, err := dns.Exchange(q, net.JoinHostPort(self.String(), "53"))
		if err != nil {
			m = new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		}
		if strings.HasSuffix(q.Question[0].Name, probeZone) {
			if m.Rcode != dns.RcodeRefused {
				t.Errorf("the probe: %v", m)
			}
			close(found)
		}
		return m
	})
	newUpstream(t, "127.0.9.2", says("192.0.2.9"))
	ask(f, "first.", dns.TypeA) // reads the file; its own way round may take a time-out
	<-found
	for i := range 5 {
		name := fmt.Sprint("a", i, ".")
		if got := address(ask(f, name, dns.TypeA)); got != "192.0.2.9" {
			t.Errorf("%s: %s", name, got)
		}
		if n := loop.count("udp " + name); n != 0 {
			t.Errorf("the looping server was asked %d times for %s", n, name)
		}
	}
	// Names that only look like a probe hurt nobody.
	if m := ask(f, "x."+probeZone, dns.TypeA); m.Rcode != dns.RcodeRefused {
		t.Errorf("%s", m)
	}
	if s, err := f.upstreams(); err != nil || len(s) != 1 {
		t.Errorf("servers %v, %v", s, err)
	}
}
