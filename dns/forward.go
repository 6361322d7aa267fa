package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
	"k8s.io/klog/v2"
	"k8s.io/utils/lru"
)

const (
	maxInflight = 1000
	maxCached   = 10_000
	maxTTL      = time.Hour
	attempt     = 2 * time.Second // for one upstream, once over UDP and once over TCP
	attempts    = 2               // for each upstream that does not answer; a resolver of libc waits 5 s
	penalty     = 5 * time.Second // for which an upstream that did not answer is the last choice
)

// Forwarder asks the upstream servers of a resolv.conf, and remembers what they said for as long as they allow.
type Forwarder struct {
	path    string
	avoid   []netip.Addr // our own addresses: asking them would never end
	slots   chan struct{}
	cache   *lru.Cache
	flights singleflight.Group // of one question only one is on its way: a loop that is not detected yet meets itself

	mu      sync.Mutex
	read    fileVersion
	servers []*upstream
}

// fileVersion tells whether a file was written.
type fileVersion struct {
	modified time.Time
	size     int64
}

// upstream is a server. Its fields but addr and probe are guarded by the Forwarder's mu.
type upstream struct {
	addr   string
	probe  string // a name that nobody else knows: who asks us for it was sent by this server
	loops  bool
	resume time.Time // it failed: until then others go first
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

// upstreams returns the servers in the order to ask them, after reading the file again if it changed.
func (f *Forwarder) upstreams() ([]*upstream, error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, fmt.Errorf("dns: upstreams: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := (fileVersion{info.ModTime(), info.Size()}); now != f.read {
		file, err := os.Open(f.path)
		if err != nil {
			return nil, fmt.Errorf("dns: upstreams: %w", err)
		}
		defer file.Close()
		conf, err := dns.ClientConfigFromReader(file)
		if err != nil {
			return nil, fmt.Errorf("dns: upstreams: %s: %w", f.path, err)
		}
		f.read, f.servers = now, nil
		for _, addr := range usable(conf.Servers, f.avoid) {
			u := &upstream{addr: netip.AddrPortFrom(addr, 53).String(), probe: probeName()}
			f.servers = append(f.servers, u)
			go f.detectLoop(u)
		}
		klog.InfoS("Upstream DNS servers", "file", f.path, "servers", conf.Servers, "used", len(f.servers))
	}
	var first, last []*upstream
	now := time.Now()
	for _, u := range f.servers {
		switch {
		case u.loops:
		case now.Before(u.resume):
			last = append(last, u)
		default:
			if !u.resume.IsZero() {
				u.resume = now.Add(penalty) // this query tries it; others wait for what comes of it
			}
			first = append(first, u)
		}
	}
	return append(first, last...), nil
}

// usable are the addresses of a resolv.conf's servers without those to avoid, each once.
func usable(servers []string, avoid []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, s := range servers {
		a, err := netip.ParseAddr(s)
		if err != nil || slices.Contains(avoid, a.Unmap()) || slices.Contains(out, a) {
			continue
		}
		out = append(out, a)
	}
	return out
}

// judge notes whether a server answered.
func (f *Forwarder) judge(u *upstream, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u.resume = time.Time{}
	if err != nil {
		u.resume = time.Now().Add(penalty)
	}
}

// Forward answers a query from the cache or from upstream, without an OPT record. Without an upstream that answers it is
// a SERVFAIL.
func (f *Forwarder) Forward(ctx context.Context, q *dns.Msg) *dns.Msg {
	question := q.Question[0]
	if f.returned(question.Name) {
		return reply(q, new(dns.Msg).SetRcode(q, dns.RcodeRefused))
	}
	o := q.IsEdns0()
	key := fmt.Sprintf("%s/%d/%d/%v/%v/%v", strings.ToLower(question.Name), question.Qtype, question.Qclass, q.RecursionDesired, q.CheckingDisabled, o != nil && o.Do())
	if v, ok := f.cache.Get(key); ok {
		if m, ok := v.(cached).fresh(); ok {
			return reply(q, m)
		}
	}
	flight := f.flights.DoChan(key, func() (any, error) {
		m, err := f.resolve(q)
		if err == nil {
			if ttl := lifetime(m); ttl > 0 {
				f.cache.Add(key, cached{m, time.Now(), ttl})
			}
		}
		return m, err
	})
	select {
	case r := <-flight:
		if m, ok := r.Val.(*dns.Msg); ok && r.Err == nil {
			return reply(q, m.Copy())
		}
		klog.V(2).InfoS("Not resolved", "name", question.Name, "err", r.Err)
	case <-ctx.Done():
	}
	return reply(q, new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
}

// reply makes m the answer to q. What was remembered for another spelling of the name is written as it is asked now.
func reply(q, m *dns.Msg) *dns.Msg {
	for _, rr := range m.Answer {
		if name := q.Question[0].Name; strings.EqualFold(rr.Header().Name, name) {
			rr.Header().Name = name
		}
	}
	m.Id, m.Question, m.Response, m.Opcode = q.Id, q.Question, true, q.Opcode
	m.RecursionDesired, m.CheckingDisabled, m.RecursionAvailable, m.Authoritative = q.RecursionDesired, q.CheckingDisabled, true, false
	return m
}

// resolve asks one server after the other. A server that fails or refuses has answered, and is not asked again.
func (f *Forwarder) resolve(q *dns.Msg) (*dns.Msg, error) {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, errors.New("dns: too many queries wait for upstream servers")
	}
	servers, err := f.upstreams()
	if err != nil {
		return nil, err
	}
	// A query of our own: what else the client's holds is between it and us (RFC 6891 6.1.1).
	up := new(dns.Msg)
	up.Id, up.Question, up.RecursionDesired, up.CheckingDisabled = dns.Id(), q.Question, q.RecursionDesired, q.CheckingDisabled
	if o := q.IsEdns0(); o != nil {
		up.SetEdns0(udpSize, o.Do())
	}
	failure := fmt.Errorf("dns: %s names no server to ask", f.path)
	for range attempts {
		var silent []*upstream
		for _, u := range servers {
			m, err := exchange(up, u.addr)
			f.judge(u, err)
			if err != nil {
				failure = fmt.Errorf("dns: server %s: %w", u.addr, err)
				silent = append(silent, u)
				continue
			}
			if m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused {
				failure = fmt.Errorf("dns: server %s says %s", u.addr, dns.RcodeToString[m.Rcode])
				continue
			}
			m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
			return m, nil
		}
		servers = silent
	}
	return nil, failure
}

// exchange asks one server, over TCP again if the answer is cut.
func exchange(q *dns.Msg, server string) (*dns.Msg, error) {
	c := &dns.Client{Timeout: attempt, UDPSize: udpSize}
	m, _, err := c.Exchange(q, server)
	if err == nil && m.Truncated {
		c.Net = "tcp"
		m, _, err = c.Exchange(q, server)
	}
	if err != nil {
		return nil, err
	}
	if len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.Question[0].Name) || m.Question[0].Qtype != q.Question[0].Qtype {
		return nil, errors.New("the answer is to another question")
	}
	return m, nil
}

// lifetime is the least TTL of an answer; of a denial, that of its SOA, and none without (RFC 2308 5).
func lifetime(m *dns.Msg) time.Duration {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0
	}
	least := maxTTL
	known := len(m.Answer) > 0 && m.Rcode == dns.RcodeSuccess
	for _, rr := range m.Answer {
		least = min(least, time.Duration(rr.Header().Ttl)*time.Second)
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			known = true
			least = min(least, time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second)
		}
	}
	if !known {
		return 0
	}
	return least
}

// fresh returns a copy of a cached answer, its TTLs counted down.
func (c cached) fresh() (*dns.Msg, bool) {
	age := time.Since(c.since)
	if age >= c.ttl {
		return nil, false
	}
	m := c.msg.Copy()
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			rr.Header().Ttl -= min(rr.Header().Ttl, uint32(age.Seconds()))
		}
	}
	return m, true
}
