package dns

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A server that is silent costs one query its time; the next ones ask those first that answer, until it does again.
func TestForwarderFailsOver(t *testing.T) {
	t.Parallel()
	var well atomic.Bool
	dead := newUpstream(t, "127.0.1.1", func(network string, q *dns.Msg) *dns.Msg {
		if !well.Load() {
			return nil
		}
		return says("192.0.2.1")(network, q)
	})
	newUpstream(t, "127.0.1.2", says("192.0.2.2"))
	f := forwarder(t, resolvConf(t, "127.0.1.1", "127.0.1.2"))
	begin := time.Now()
	if got := address(ask(f, "a.", dns.TypeA)); got != "192.0.2.2" {
		t.Fatal(got)
	}
	await(t, "the silent server to be known as such", func() bool {
		order, err := f.servers.order()
		return err == nil && order[0].addr == "127.0.1.2:53" && len(order) == 2
	})
	t.Logf("after %s", time.Since(begin))
	for i := range 10 {
		if got := address(ask(f, fmt.Sprint("a", i, "."), dns.TypeA)); got != "192.0.2.2" {
			t.Fatalf("question %d: %s", i, got)
		}
	}
	if n := dead.count("udp a9."); n != 0 {
		t.Errorf("the silent server was asked %v", dead.asked)
	}
	well.Store(true)
	await(t, "the server to be in its place again", func() bool {
		order, err := f.servers.order()
		return err == nil && order[0].addr == "127.0.1.1:53"
	})
	if got := address(ask(f, "z.", dns.TypeA)); got != "192.0.2.1" {
		t.Error(got)
	}
}

// The policies of CoreDNS' forward.
func TestPolicies(t *testing.T) {
	list := []string{"127.0.10.1", "127.0.10.2", "127.0.10.3"}
	for _, a := range list {
		newUpstream(t, a, says("192.0.2.1"))
	}
	for policy, want := range map[string]int{PolicySequential: 1, PolicyRandom: 3, PolicyRoundRobin: 3} {
		f := forwarderTo(t, Upstream{Servers: list, Policy: policy}, CacheLimits{})
		first := map[string]int{}
		for range 300 {
			order, err := f.servers.order()
			must(t, err)
			first[order[0].addr]++
			if len(order) != 3 {
				t.Fatalf("%s: %d servers", policy, len(order))
			}
		}
		if len(first) != want || policy == PolicyRoundRobin && first["127.0.10.1:53"] != 100 {
			t.Errorf("%s: %v", policy, first)
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
			if got := address(ask(forwarder(t, resolvConf(t, "127.0.2.1", "127.0.2.9")), "a.", dns.TypeA)); got != "192.0.2.9" {
				t.Error(got)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		if got := address(ask(forwarder(t, resolvConf(t, "127.0.2.2", "127.0.2.9")), "a.", dns.TypeA)); got != "192.0.2.9" {
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
	if got := address(ask(forwarder(t, resolvConf(t, "127.0.3.1")), "a.", dns.TypeA)); got != "192.0.2.3" {
		t.Error(got)
	}
}

// One client that asks a lot waits for itself: others have their turn.
func TestTurns(t *testing.T) {
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	turns := newTurns(1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	must(t, turns.take(ctx, a))
	came := make(chan netip.Addr)
	waiting := func(client netip.Addr) int {
		turns.mu.Lock()
		defer turns.mu.Unlock()
		return len(turns.queues[client])
	}
	enter := func(client netip.Addr) {
		n := waiting(client)
		go func() {
			if turns.take(ctx, client) == nil {
				came <- client
			}
		}()
		await(t, "a place in the line", func() bool { return waiting(client) == n+1 })
	}
	for range 5 {
		enter(a)
	}
	enter(b)
	enter(c)
	enter(c)
	var order []string
	for range 8 {
		turns.leave()
		order = append(order, (<-came).String())
	}
	if got := strings.ReplaceAll(strings.Join(order, " "), "10.0.0.", ""); got != "1 2 3 1 3 1 1 1" {
		t.Errorf("in turn came %s", got)
	}
	for range maxWaiting {
		enter(b)
	}
	if err := turns.take(ctx, b); err == nil {
		t.Error("one more of a client that has too many was let in")
	}
	enter(c) // others are not refused for that
	over, stop := context.WithCancel(ctx)
	stop()
	if err := turns.take(over, a); err == nil || waiting(a) != 0 {
		t.Errorf("%v; %d wait", err, waiting(a))
	}
	cancel()
	await(t, "all to give up", func() bool { return waiting(b) == 0 && waiting(c) == 0 })
	turns.leave()
	if turns.free != 1 || len(turns.clients) != 0 || len(turns.queues) != 0 {
		t.Errorf("in the end: %d free, %v", turns.free, turns.clients)
	}
}
