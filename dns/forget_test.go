package dns

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// Other servers in the resolv.conf make kernel and resolver forget what the former have said, long before that would end.
func TestOtherServersMakeForget(t *testing.T) {
	const other = "127.0.0.77"
	newUpstream(t, other, func(_ string, q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		m.Answer = rrs(q.Question[0].Name + " 300 IN A 198.51.100.1")
		return m
	})
	conf := resolvConf(t, public)
	conns, s, d, up := podAndOutside(t, func(c *Config) { c.Upstream.Servers = []string{conf} })
	q := new(dns.Msg).SetQuestion("plain.example.com.", dns.TypeA)
	for range 2 {
		askOver(t, conns[0], q)
	}
	if kernelCount(t, d, "dns_outside") != 1 {
		t.Fatal("the kernel does not answer")
	}
	writeServers(t, conf, public) // the same again
	askOver(t, conns[0], new(dns.Msg).SetQuestion("alias.example.com.", dns.TypeA))
	if s.settings.Load().upstream.servers.changed() {
		t.Error("the same servers are taken for others")
	}
	asked := up.count("udp plain.example.com.")
	askOver(t, conns[0], q)
	if up.count("udp plain.example.com.") != asked {
		t.Error("what the same servers have said was forgotten")
	}
	writeServers(t, conf, other)
	await(t, "an answer of the other server", func() bool {
		m := askOver(t, conns[0], q)
		return len(m.Answer) == 1 && strings.HasSuffix(m.Answer[0].String(), "198.51.100.1")
	})
	await(t, "the kernel to give it", func() bool {
		before := kernelCount(t, d, "dns_outside")
		if m := askOver(t, conns[0], q); len(m.Answer) != 1 || !strings.HasSuffix(m.Answer[0].String(), "198.51.100.1") {
			t.Fatalf("the former answer came back: %s", m)
		}
		return kernelCount(t, d, "dns_outside") > before
	})
}

// Who asks for it has names forgotten, by kernel and resolver, and also what is being asked at that time.
func TestForget(t *testing.T) {
	conns, s, d, up := podAndOutside(t, nil)
	socket := filepath.Join(t.TempDir(), "forget.sock")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.ServeForget(ctx, socket) }()
	t.Cleanup(func() { cancel(); <-done })
	var forgotten Forgotten
	forget := func(name string, want Forgotten) {
		t.Helper()
		await(t, "the socket", func() bool {
			var err error
			forgotten, err = AskToForget(ctx, socket, name)
			return err == nil
		})
		if forgotten != want {
			t.Errorf("of %s %+v was forgotten, want %+v", name, forgotten, want)
		}
	}
	ask := func(name string) (byKernel bool) {
		t.Helper()
		before := kernelCount(t, d, "dns_outside")
		askOver(t, conns[0], new(dns.Msg).SetQuestion(name, dns.TypeA))
		return kernelCount(t, d, "dns_outside") > before
	}
	forget("nobody.example.org", Forgotten{})
	for _, name := range []string{"plain.example.com.", "a.plain.example.com.", "explain.example.com.", "alias.example.com."} {
		ask(name)
		if !ask(name) {
			t.Errorf("%s is not given by the kernel", name)
		}
	}
	forget("Plain.EXAMPLE.com", Forgotten{Kernel: 2, Resolver: 2})
	for name, want := range map[string]bool{"plain.example.com.": false, "a.plain.example.com.": false, "explain.example.com.": true, "alias.example.com.": true} {
		if ask(name) != want {
			t.Errorf("%s is given by the kernel: %v", name, !want)
		}
	}
	if n := up.count("udp plain.example.com."); n != 2 {
		t.Errorf("the server was asked %d times", n)
	}
	forget(".", Forgotten{Kernel: 4, Resolver: 4})

	// A question that is on its way is older than that.
	q := new(dns.Msg).SetQuestion("plain.example.com.", dns.TypeA)
	set := s.settings.Load()
	epoch := set.cache.epoch.Load()
	a := s.rewritten(request{ctx, set, self}, q)
	forget(".", Forgotten{Resolver: 1})
	s.share(set, epoch, q, a)
	if ask("plain.example.com.") {
		t.Error("what was asked before is in the kernel")
	}
	for _, name := range []string{"a..b", "", " ", "\t", strings.Repeat("a", 64) + ".example.com"} {
		if _, err := AskToForget(ctx, socket, name); err == nil {
			t.Errorf("%q is a name", name)
		}
	}
	if _, err := AskToForget(ctx, socket+".none", "."); err == nil {
		t.Error("nobody is there to forget")
	}
}
