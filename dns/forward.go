package dns

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"k8s.io/utils/lru"
)

const (
	maxInflight = 1000
	maxCached   = 10_000
	maxTTL      = time.Hour
	attempt     = 2 * time.Second
)

// Forwarder asks the upstream servers of a resolv.conf, and remembers what they said for as long as they allow.
type Forwarder struct {
	path  string
	avoid []netip.Addr // our own addresses: asking them would never end
	slots chan struct{}
	cache *lru.Cache

	mu      sync.Mutex
	read    time.Time
	servers []string
}

type cached struct {
	msg   *dns.Msg
	since time.Time
	ttl   time.Duration
}

// NewForwarder reads upstreams from a resolv.conf, again when it changes. avoid are addresses never to ask.
func NewForwarder(resolvConf string, avoid ...netip.Addr) *Forwarder {
	return &Forwarder{path: resolvConf, avoid: avoid, slots: make(chan struct{}, maxInflight), cache: lru.New(maxCached)}
}

// upstreams returns the servers, after reading the file again if it is newer.
func (f *Forwarder) upstreams() ([]string, error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, fmt.Errorf("dns: upstreams: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if info.ModTime().Equal(f.read) {
		return f.servers, nil
	}
	conf, err := dns.ClientConfigFromFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("dns: upstreams: %w", err)
	}
	f.servers = nil
next:
	for _, s := range conf.Servers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			continue
		}
		for _, own := range f.avoid {
			if a == own {
				continue next
			}
		}
		f.servers = append(f.servers, netip.AddrPortFrom(a, 53).String())
	}
	f.read = info.ModTime()
	return f.servers, nil
}

// Forward answers a query from the cache or from upstream. Without an upstream that answers it is a SERVFAIL.
func (f *Forwarder) Forward(ctx context.Context, q *dns.Msg) *dns.Msg {
	failed := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	failed.RecursionAvailable = true
	do := q.IsEdns0() != nil && q.IsEdns0().Do()
	key := fmt.Sprintf("%s/%d/%d/%v", strings.ToLower(q.Question[0].Name), q.Question[0].Qtype, q.Question[0].Qclass, do)
	if v, ok := f.cache.Get(key); ok {
		if m, ok := v.(cached).fresh(q); ok {
			return m
		}
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return failed
	}
	servers, err := f.upstreams()
	if err != nil {
		return failed
	}
	for _, server := range servers {
		m, err := exchange(ctx, q, server)
		if err != nil || m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused {
			continue
		}
		if ttl := lifetime(m); ttl > 0 {
			f.cache.Add(key, cached{m.Copy(), time.Now(), ttl})
		}
		m.Id = q.Id
		return m
	}
	return failed
}

func exchange(ctx context.Context, q *dns.Msg, server string) (*dns.Msg, error) {
	c := &dns.Client{Timeout: attempt, UDPSize: dns.DefaultMsgSize}
	m, _, err := c.ExchangeContext(ctx, q, server)
	if err == nil && m.Truncated {
		c.Net = "tcp"
		m, _, err = c.ExchangeContext(ctx, q, server)
	}
	return m, err
}

// lifetime is the least TTL of an answer; of a denial, that of its SOA (RFC 2308).
func lifetime(m *dns.Msg) time.Duration {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	least := maxTTL
	n := 0
	for _, rr := range m.Answer {
		n++
		least = min(least, time.Duration(rr.Header().Ttl)*time.Second)
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok && len(m.Answer) == 0 {
			n++
			least = min(least, time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second)
		}
	}
	if n == 0 {
		return 0
	}
	return least
}

// fresh returns a copy of a cached answer for a query, its TTLs counted down.
func (c cached) fresh(q *dns.Msg) (*dns.Msg, bool) {
	age := time.Since(c.since)
	if age >= c.ttl {
		return nil, false
	}
	m := c.msg.Copy()
	m.Id, m.Question = q.Id, q.Question
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				rr.Header().Ttl -= min(rr.Header().Ttl, uint32(age.Seconds()))
			}
		}
	}
	return m, true
}
