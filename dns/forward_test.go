package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func ask(f *Forwarder, name string, qtype uint16) *dns.Msg {
	m, _ := f.forward(context.Background(), netip.Addr{}, new(dns.Msg).SetQuestion(name, qtype))
	return m
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
	f := forwarder(t, resolvConf(t, public))
	for _, c := range []struct {
		name  string
		qtype uint16
		asked int // of three
	}{
		{"example.com.", dns.TypeA, 1}, {"EXAMPLE.com.", dns.TypeA, 1}, {"none.example.com.", dns.TypeA, 1},
		{"noSOA.", dns.TypeA, 3}, {"zero.", dns.TypeA, 3}, {"broken.example.com.", dns.TypeA, 1},
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
	if got := show(ask(f, "none.example.com.", dns.TypeA)); got != "NXDOMAIN\n! com. 20 SOA ns.com. host.com. 1 2 3 4 20" {
		t.Errorf("remembered: %s", got)
	}
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// Other ports, TCP alone, and names that are not asked.
func TestUpstreamSettings(t *testing.T) {
	up := newUpstream(t, "127.0.11.1", says("192.0.2.1"))
	f := forwarderTo(t, Upstream{Servers: []string{"127.0.11.1:53"}, TCP: true, Except: []string{"Secret.example"}}, CacheLimits{})
	if got := address(ask(f, "a.", dns.TypeA)); got != "192.0.2.1" || up.count("tcp a.") != 1 || up.count("udp a.") != 0 {
		t.Errorf("%s, asked %v", got, up.asked)
	}
	if m := ask(f, "b.secret.Example.", dns.TypeA); m.Rcode != dns.RcodeRefused || up.count("tcp b.secret.example.") != 0 {
		t.Errorf("excepted: %s", show(m))
	}
}

// An answer that is over is given where that is allowed, and only if no server has a better one.
func TestServeStale(t *testing.T) {
	var mode atomic.Value
	mode.Store("well")
	up := newUpstream(t, "127.0.12.1", func(network string, q *dns.Msg) *dns.Msg {
		m := says("192.0.2.1")(network, q)
		m.Answer[0].Header().Ttl = 1
		switch mode.Load() {
		case "failing":
			return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		case "moved":
			m.Answer = rrs(q.Question[0].Name + " 60 IN A 192.0.2.2")
		}
		return m
	})
	no := false
	for name, c := range map[string]struct {
		limits  CacheLimits
		failing string
		moved   string
	}{
		"not allowed": {CacheLimits{Failure: seconds(-1)}, "SERVFAIL", "192.0.2.2"},
		"verify":      {CacheLimits{ServeStale: seconds(60)}, "192.0.2.1", "192.0.2.2"},
		"immediate":   {CacheLimits{ServeStale: seconds(60), Verify: &no}, "192.0.2.1", "192.0.2.1"},
	} {
		mode.Store("well")
		f := forwarderTo(t, Upstream{Servers: []string{"127.0.12.1"}}, c.limits)
		ask(f, "a.", dns.TypeA)
		age(f, "a.", 10*time.Second)
		mode.Store("failing")
		m := ask(f, "a.", dns.TypeA)
		if got := address(m); got != c.failing || len(m.Answer) > 0 && m.Answer[0].Header().Ttl != staleTTL {
			t.Errorf("%s, server failing: %s", name, show(m))
		}
		mode.Store("moved")
		if got := address(ask(f, "a.", dns.TypeA)); got != c.moved {
			t.Errorf("%s, answer changed: %s, want %s", name, got, c.moved)
		}
		// What is asked behind the client's back comes in the end.
		await(t, name+": the new answer", func() bool { return address(ask(f, "a.", dns.TypeA)) == "192.0.2.2" })
	}
	if up.count("udp a.") < 6 {
		t.Errorf("asked %v", up.asked)
	}
}

// age makes what is remembered of a name older.
func age(f *Forwarder, name string, by time.Duration) {
	key := f.key(new(dns.Msg).SetQuestion(name, dns.TypeA), name)
	v, ok := f.cache.success.Get(key)
	if !ok {
		panic(name + " is not remembered")
	}
	c := v.(cached)
	c.since = c.since.Add(-by)
	f.cache.success.Add(key, c)
}

func TestForwarderWithoutServers(t *testing.T) {
	for name, conf := range map[string]string{
		"no file": "/nowhere/resolv.conf", "no server": resolvConf(t), "only ourselves": resolvConf(t, self.String(), "::ffff:"+self.String()),
		"no address": resolvConf(t, "dns.example.com"), "nobody listens": resolvConf(t, "127.0.4.1"), "a folder": t.TempDir(),
	} {
		q := new(dns.Msg).SetQuestion("A.example.", dns.TypeA)
		f := forwarder(t, conf, at)
		m, _ := f.forward(context.Background(), netip.Addr{}, q)
		if name == "only ourselves" && len(f.servers.list) != 0 {
			t.Errorf("it would ask %v", f.servers.list)
		}
		if m.Rcode != dns.RcodeServerFailure || m.Id != q.Id || !m.Response || len(m.Question) != 1 || m.Question[0] != q.Question[0] {
			t.Errorf("%s:\n%s", name, m)
		}
	}
}

// While one of its files can't be read the servers stay, and nobody is probed; then all files are read.
func TestFilesAreReadTogether(t *testing.T) {
	const addr = "127.0.5.4"
	up := newUpstream(t, addr, says("192.0.2.1"))
	first, second := resolvConf(t, "127.0.5.9"), filepath.Join(t.TempDir(), "resolv.conf")
	for what, breakIt := range map[string]func(){
		"is gone": func() { must(t, os.Remove(second)) },
		"is a socket": func() { // which can't be opened
			must(t, os.Remove(second))
			l, err := net.Listen("unix", second)
			must(t, err)
			t.Cleanup(func() { l.Close() })
		},
	} {
		writeServers(t, first, "127.0.5.9")
		must(t, os.RemoveAll(second))
		writeServers(t, second, "127.0.5.8")
		s := newServers(Upstream{Servers: []string{first, second}}, nil, newMetrics())
		defer s.close()
		if _, err := s.order(); err != nil {
			t.Fatal(err)
		}
		breakIt()
		writeServers(t, first, addr, addr+"0")
		for range 5 {
			if _, err := s.order(); err == nil {
				t.Fatal("no error")
			}
			if s.changed() {
				t.Errorf("the second file %s, and there are other servers", what)
			}
		}
		must(t, os.RemoveAll(second))
		writeServers(t, second, "127.0.5.8")
		list, err := s.order()
		if err != nil || len(list) != 3 || list[0].addr != addr+":53" || !s.changed() {
			t.Errorf("after the second file %s: %v, %v", what, list, err)
			continue
		}
		await(t, "the probe", func() bool { return up.count("udp "+list[0].probe) == 1 })
	}
	up.mu.Lock()
	defer up.mu.Unlock()
	if len(up.asked) != 2 {
		t.Errorf("of two lists of servers came %v", up.asked)
	}
}

func TestForwarderFollowsResolvConf(t *testing.T) {
	newUpstream(t, "127.0.5.1", says("192.0.2.1"))
	newUpstream(t, "127.0.5.2", says("192.0.2.2"))
	conf := resolvConf(t, "127.0.5.1")
	f := forwarder(t, conf)
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
	f := forwarder(t, resolvConf(t, "127.0.6.1"))
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
	s := newServer(t, newRecords(t), resolvConf(t, "127.0.7.1"))
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
	f := forwarder(t, resolvConf(t, "127.0.8.1"))
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			name := strings.Repeat("a", i%2) + strings.Repeat("A", 1-i%2) + "." // two spellings
			q := new(dns.Msg).SetQuestion(name, dns.TypeA)
			if m, _ := f.forward(context.Background(), netip.Addr{}, q); address(m) != "192.0.2.8" || m.Id != q.Id || m.Question[0].Name != name || m.Answer[0].Header().Name != name {
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
	s := newServer(t, newRecords(t, objects()...), resolvConf(t, looping, "127.0.9.2"), netip.AddrPortFrom(self, 53))
	f := s.settings.Load().upstream
	run(t, s)
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
	if m := s.Answer(context.Background(), new(dns.Msg).SetQuestion("x."+probeZone, dns.TypeA)); m.Rcode != dns.RcodeRefused {
		t.Errorf("%s", m)
	}
	if order, err := f.servers.order(); err != nil || len(order) != 1 {
		t.Errorf("servers %v, %v", order, err)
	}
}
