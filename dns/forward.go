package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
	"k8s.io/klog/v2"
)

const (
	attempt  = 2 * time.Second // for one server, once over UDP and once over TCP
	patience = time.Second     // after which the next server is asked as well; a resolver of libc waits 5 s for all
	attempts = 2               // of a server that does not answer
)

// Forwarder asks the servers of an Upstream, and remembers what they said for as long as they allow.
type Forwarder struct {
	cfg     Upstream
	servers *servers
	slots   *turns
	cache   *answers
	flights singleflight.Group // of one question only one is on its way: a loop that is not detected yet meets itself
	metrics *metrics
}

// newForwarder begins to follow its servers; close ends that. avoid are addresses never to ask.
func newForwarder(cfg Upstream, cache *answers, m *metrics, avoid []netip.AddrPort) *Forwarder {
	cfg = cfg.withDefaults()
	return &Forwarder{cfg: cfg, servers: newServers(cfg, avoid, m), slots: newTurns(cfg.MaxConcurrent), cache: cache, metrics: m}
}

func (f *Forwarder) close() { f.servers.close() }

// forward answers a query of a client from the cache or from upstream, without an OPT record. Without a server that answers it is a
// SERVFAIL, or what was remembered for too long if that is allowed. until is when the first of its records has lived long enough; zero if
// that is not to be remembered.
func (f *Forwarder) forward(ctx context.Context, client netip.Addr, q *dns.Msg) (m *dns.Msg, until time.Time) {
	question := q.Question[0]
	name := strings.ToLower(question.Name)
	if slices.ContainsFunc(f.cfg.Except, func(zone string) bool { return dns.IsSubDomain(canonical(zone), name) }) {
		return reply(q, new(dns.Msg).SetRcode(q, dns.RcodeRefused)), until
	}
	key := f.key(q, name)
	now := time.Now()
	old, fresh := f.cache.get(key, now)
	if fresh {
		return reply(q, old.at(now)), old.until()
	}
	flight := f.flights.DoChan(fmt.Sprint(key), func() (any, error) {
		if c, _, fresh := f.cache.find(key, time.Now()); fresh { // another flight has ended since we looked
			return c, nil
		}
		epoch := f.cache.epoch.Load()
		m, err := f.resolve(client, q)
		if err != nil {
			return cached{}, err
		}
		return f.cache.add(key, m, time.Now(), epoch), nil
	})
	if old.msg != nil && !f.cache.verify {
		return reply(q, old.at(now)), until
	}
	select {
	case r := <-flight:
		if c, ok := r.Val.(cached); ok && r.Err == nil && (c.msg.Rcode != dns.RcodeServerFailure || old.msg == nil) {
			return reply(q, c.at(c.since)), c.until()
		}
		klog.V(2).InfoS("Not resolved", "name", question.Name, "err", r.Err)
	case <-ctx.Done():
	}
	if old.msg != nil {
		f.metrics.stale()
		return reply(q, old.at(time.Now())), until
	}
	return reply(q, new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)), until
}

func (f *Forwarder) key(q *dns.Msg, name string) cacheKey {
	o := q.IsEdns0()
	k := cacheKey{upstream: f.servers.id, name: name, qtype: q.Question[0].Qtype, qclass: q.Question[0].Qclass}
	for i, set := range []bool{q.RecursionDesired, q.CheckingDisabled, q.AuthenticatedData, o != nil && o.Do()} {
		if set {
			k.flags |= 1 << i
		}
	}
	return k
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

// query is one of our own: what else the client's holds is between it and us (RFC 6891 6.1.1).
func query(q *dns.Msg) *dns.Msg {
	up := new(dns.Msg)
	up.Id, up.Question = dns.Id(), slices.Clone(q.Question)
	up.RecursionDesired, up.CheckingDisabled, up.AuthenticatedData = q.RecursionDesired, q.CheckingDisabled, q.AuthenticatedData
	if o := q.IsEdns0(); o != nil {
		up.SetEdns0(udpSize, o.Do())
	}
	return up
}

// resolve asks one server after the other, and does not wait for a slow one before it asks the next. A server that fails or refuses has
// answered, and is not asked again.
func (f *Forwarder) resolve(client netip.Addr, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := f.slots.take(ctx, client); err != nil {
		f.metrics.rejected()
		return nil, err
	}
	defer f.slots.leave()
	order, err := f.servers.order()
	if err != nil {
		return nil, err
	}
	type result struct {
		u   *server
		m   *dns.Msg
		err error
	}
	results := make(chan result, attempts*len(order))
	asked := map[*server]int{}
	answered := map[*server]bool{}
	waiting := 0
	next := func() bool {
		for n := range attempts {
			for _, u := range order {
				if asked[u] == n && !answered[u] {
					asked[u]++
					waiting++
					go func() {
						m, err := f.servers.ask(query(q), u)
						results <- result{u, m, err}
					}()
					return true
				}
			}
		}
		return false
	}
	failure := fmt.Errorf("dns: no server to ask in %s", strings.Join(f.cfg.Servers, ", "))
	var worse *dns.Msg // better than nothing
	if !next() {
		return nil, failure
	}
	more := time.NewTicker(patience)
	defer more.Stop()
	for {
		select {
		case r := <-results:
			waiting--
			switch {
			case r.err != nil:
				failure = fmt.Errorf("dns: server %s: %w", r.u.addr, r.err)
			case r.m.Rcode == dns.RcodeServerFailure || r.m.Rcode == dns.RcodeRefused:
				answered[r.u] = true
				failure = fmt.Errorf("dns: server %s says %s", r.u.addr, dns.RcodeToString[r.m.Rcode])
				if r.m.Rcode == dns.RcodeServerFailure && worse == nil {
					worse = r.m
				}
			case r.m.Truncated: // and there is no way to it over TCP
				answered[r.u], worse = true, r.m
			default:
				return r.m, nil
			}
			if !next() && waiting == 0 {
				if worse != nil {
					return worse, nil
				}
				return nil, failure
			}
		case <-more.C:
			next()
		case <-ctx.Done():
			if worse != nil {
				return worse, nil
			}
			return nil, failure
		}
	}
}

// exchange asks one server, over TCP again if the answer is cut. Its OPT record is left out.
func exchange(q *dns.Msg, addr string, tcp bool) (*dns.Msg, error) {
	c := &dns.Client{Timeout: attempt, UDPSize: udpSize}
	if tcp {
		c.Net = "tcp"
	}
	m, _, err := c.Exchange(q, addr)
	if err == nil && m.Truncated && !tcp {
		c.Net = "tcp"
		if whole, _, err := c.Exchange(q, addr); err == nil {
			m = whole
		}
	}
	if err != nil {
		return nil, err
	}
	if len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.Question[0].Name) || m.Question[0].Qtype != q.Question[0].Qtype {
		return nil, errors.New("the answer is to another question")
	}
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	return m, nil
}
