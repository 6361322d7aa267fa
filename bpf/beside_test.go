package bpf

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const actUnspec = 1<<32 - 1

// besideOthers is a datapath that knows a name, and two name servers of somebody else.
func besideOthers(t *testing.T) (*Datapath, Config, []netip.AddrPort) {
	t.Helper()
	c := testConfig(t)
	c.DNSAddrs, c.Beside = nil, true
	d := open(t, c)
	_, err := d.Names().Replace("web", []Name{{Owner: "web", Name: "web.default.svc.cluster.local.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}})
	must(t, err)
	servers := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("[fd00:244::9]:5353")}
	must(t, d.SetNameServers(servers))
	return d, c, servers
}

// TestAnswersInOthersStead: what is asked of a name server of others is answered if the kernel knows the name; all else is left to them, as it is.
func TestAnswersInOthersStead(t *testing.T) {
	d, c, servers := besideOthers(t)
	if have, err := ReadNameServers(c.PinDir); err != nil || !slices.Equal(have, servers) {
		t.Errorf("name servers %v, %v", have, err)
	}
	asked := query(t, "web.default.svc.cluster.local.", dns.TypeA, true)
	clients := []netip.AddrPort{netip.MustParseAddrPort("10.210.1.7:4000"), netip.MustParseAddrPort("[fd00:210::7]:4000")}
	for i, client := range clients {
		verdict, out := run(t, d.net.Programs[namesProgram], frame(17, client, servers[i], asked))
		if src, dst := ends(out); verdict != actRedirect || src != servers[i] || dst != client {
			t.Fatalf("verdict %d, from %s to %s", verdict, src, dst)
		}
		_, l4, end := transport(out)
		checkSums(t, out[:end])
		checkAnswer(t, asked, out[l4+8:end], "web.default.svc.cluster.local.", dns.TypeA, true, dns.RcodeSuccess, 1)
	}
	at := netip.MustParseAddrPort
	for what, in := range map[string][]byte{
		"another name":   frame(17, clients[0], servers[0], query(t, "example.com.", dns.TypeA, false)),
		"another server": frame(17, clients[0], at("10.96.0.11:53"), asked),
		"another port":   frame(17, clients[0], at("10.96.0.10:54"), asked),
		"over TCP":       frame(6, clients[0], servers[0], asked),
		"rubbish":        frame(17, clients[0], servers[0], []byte("no question")),
		"ARP":            arpFrame(1, podMAC, pod, gateway),
		"cut":            frame(17, clients[0], servers[0], asked)[:40],
	} {
		verdict, out := run(t, d.net.Programs[namesProgram], in)
		if verdict != actUnspec || !bytes.Equal(out[:len(in)], in) {
			t.Errorf("%s: verdict %d", what, verdict)
		}
	}
	must(t, d.SetNameServers(servers[1:]))
	if verdict, _ := run(t, d.net.Programs[namesProgram], frame(17, clients[0], servers[0], asked)); verdict != actUnspec {
		t.Errorf("of a server that is none any more: verdict %d", verdict)
	}
	if err := d.SetNameServers([]netip.AddrPort{{}}); err == nil {
		t.Error("no address was taken for one")
	}
}

// TestQuestions: who looks sees each question and what became of it; while nobody does nothing is written, and losses are counted.
func TestQuestions(t *testing.T) {
	d, c, servers := besideOthers(t)
	client := netip.MustParseAddrPort("[fd00:210::7]:4000")
	known, unknown := query(t, "web.default.svc.cluster.local.", dns.TypeA, true), query(t, "example.com.", dns.TypeA, false)
	ask := func(q []byte) {
		t.Helper()
		run(t, d.net.Programs[namesProgram], frame(17, client, servers[1], q))
	}
	ask(known) // before anybody looks
	q, err := OpenQuestions(c.PinDir)
	must(t, err)
	if _, err := OpenQuestions(c.PinDir); !errors.Is(err, ErrQuestionsWatched) {
		t.Errorf("a second one: %v", err)
	}
	must(t, d.net.Maps["dns_watch"].Put(uint32(0), uint64(0))) // a lease that lapsed, or another that opens at the same time
	if _, err := OpenQuestions(c.PinDir); !errors.Is(err, ErrQuestionsWatched) {
		t.Errorf("a second one without a lease: %v", err)
	}
	must(t, q.renew(leaseTime))
	before := Monotonic()
	ask(known)
	ask(unknown)
	client4 := netip.MustParseAddrPort("10.210.1.7:4000")
	run(t, d.net.Programs[namesProgram], options(frame(17, client4, servers[0], unknown), 1, 1, 1, 1)) // IP options before it
	for i, want := range []struct {
		answered bool
		name     string
		answers  int
		client   netip.AddrPort
	}{{true, "web.default.svc.cluster.local.", 1, client}, {false, "example.com.", 0, client}, {false, "example.com.", 0, client4}} {
		one, err := q.Read(time.Now().Add(20 * time.Second))
		must(t, err)
		var m dns.Msg
		must(t, m.Unpack(one.Message))
		if one.Answered != want.answered || one.Took > 0 != want.answered || one.Client != want.client.Addr() || one.Time < before || m.Question[0].Name != want.name || len(m.Answer) != want.answers {
			t.Errorf("question %d: %+v\n%s", i, one, &m)
		}
	}
	for range 2 * (1 << 20) / 320 {
		ask(unknown)
	}
	if lost, err := q.Lost(); err != nil || lost == 0 {
		t.Errorf("lost %d, %v", lost, err)
	}
	must(t, q.Close())
	if _, err := q.Read(time.Time{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	// The lease of one that was killed is ended by the first program that meets it.
	must(t, d.net.Maps["dns_watch"].Put(uint32(0), uint64(Monotonic())))
	ask(known)
	var until uint64
	must(t, d.net.Maps["dns_watch"].Lookup(uint32(0), &until))
	if until != 0 {
		t.Error("a lease that is over goes on")
	}
}

func FuzzDecodeQuestion(f *testing.F) {
	f.Add(make([]byte, dnsEventHead+10))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := decodeQuestion(b)
		if err == nil && len(q.Message) > len(b) {
			t.Errorf("%d bytes of %d", len(q.Message), len(b))
		}
	})
}
