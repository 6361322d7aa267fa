package dns

import (
	"time"

	"github.com/miekg/dns"
	"k8s.io/utils/lru"
)

// staleTTL is that of what is given although its time is over (RFC 8767 4 has 30; this is what CoreDNS gives).
const staleTTL = 0

// cacheKey is a question to an Upstream.
type cacheKey struct {
	upstream      uint64
	name          string // lower case
	qtype, qclass uint16
	flags         uint8 // RD, CD, AD, DO
}

// answers are what is remembered of upstream servers. Denials have a place of their own: search lists make many.
type answers struct {
	limits           CacheLimits
	verify           bool
	success, denials *lru.Cache
	metrics          *metrics
}

const (
	kindSuccess = "success"
	kindDenial  = "denial"
)

// newAnswers wants limits with their defaults.
func newAnswers(limits CacheLimits, m *metrics) *answers {
	return &answers{
		limits: limits, verify: limits.Verify == nil || *limits.Verify, metrics: m,
		success: lru.New(limits.Entries), denials: lru.New(limits.Entries),
	}
}

// cached is an answer and how long it is good.
type cached struct {
	msg   *dns.Msg
	since time.Time
	ttl   time.Duration
	kept  bool // it is remembered
}

// until is when the first of its records has lived long enough: those that are no part of the answer may before the rest. Zero if it is
// not remembered, or a failure.
func (c cached) until() time.Time {
	if !c.kept || c.msg.Rcode == dns.RcodeServerFailure {
		return time.Time{}
	}
	ttl := c.ttl
	for _, section := range [][]dns.RR{c.msg.Ns, c.msg.Extra} {
		for _, rr := range section {
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
		}
	}
	return c.since.Add(ttl)
}

// get returns what is known of a question: fresh, or if that is allowed what was so once. It counts as a hit or a miss.
func (a *answers) get(key cacheKey, now time.Time) (c cached, fresh bool) {
	if a.limits.Off {
		return cached{}, false
	}
	c, kind, fresh := a.find(key, now)
	switch {
	case fresh:
		a.metrics.hit(kind)
	case c.msg == nil:
		a.metrics.missed()
	}
	return c, fresh
}

// find is get, uncounted; kind is that of what it found.
func (a *answers) find(key cacheKey, now time.Time) (c cached, kind string, fresh bool) {
	for _, kind := range [...]string{kindSuccess, kindDenial} {
		l := a.success
		if kind == kindDenial {
			l = a.denials
		}
		v, ok := l.Get(key)
		if !ok {
			continue
		}
		c := v.(cached)
		age := now.Sub(c.since)
		if age < c.ttl {
			return c, kind, true
		}
		if age < c.ttl+a.limits.ServeStale.Duration && c.msg.Rcode != dns.RcodeServerFailure {
			return c, kind, false
		}
		l.Remove(key)
	}
	return cached{}, "", false
}

// add remembers an answer, and returns it as it was remembered. Only one of a question is.
func (a *answers) add(key cacheKey, m *dns.Msg, now time.Time) cached {
	ttl, denial := lifetime(m)
	if m.Rcode == dns.RcodeServerFailure {
		ttl, denial = a.limits.Failure.Duration, true
	}
	limit, into, other := a.limits.MaxTTL.Duration, a.success, a.denials
	if denial {
		limit, into, other = a.limits.MaxDenial.Duration, a.denials, a.success
	}
	ttl = min(ttl, limit)
	c := cached{msg: m, since: now, ttl: ttl}
	if a.limits.Off || ttl <= 0 {
		c.ttl = limit // nothing counts down; what is given to a client is not longer than what is remembered
		return c
	}
	if m.Rcode == dns.RcodeServerFailure && a.limits.ServeStale.Duration > 0 {
		if _, ok := other.Get(key); ok {
			return c // an old answer is better
		}
	}
	c.kept = true
	other.Remove(key)
	into.Add(key, c)
	return c
}

// sizes are how many answers and denials there are.
func (a *answers) sizes() (success, denials int) { return a.success.Len(), a.denials.Len() }

// lifetime is the least TTL of an answer; of a denial, that of its SOA, and none without (RFC 2308 5).
func lifetime(m *dns.Msg) (ttl time.Duration, denial bool) {
	if m.Truncated || m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
		return 0, false
	}
	denial = len(m.Answer) == 0 || m.Rcode == dns.RcodeNameError
	least, known := uint32(1<<31-1), !denial
	for _, rr := range m.Answer {
		least = min(least, rr.Header().Ttl)
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			known = true
			least = min(least, soa.Hdr.Ttl, soa.Minttl)
			// An alias whose target has no such records is a denial, too (RFC 2308 2.2).
			denial = true
		}
	}
	if !known {
		return 0, denial
	}
	return time.Duration(least) * time.Second, denial
}

// at returns a copy of an answer as it is at a time: its TTLs have counted down.
func (c cached) at(now time.Time) *dns.Msg {
	m := c.msg.Copy()
	age := now.Sub(c.since)
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			// No longer than we remember it ourselves: else a client would keep what we ask for anew.
			h.Ttl = min(h.Ttl, uint32(c.ttl.Seconds()))
			h.Ttl -= min(h.Ttl, uint32(age.Seconds()))
			if age >= c.ttl {
				h.Ttl = staleTTL
			}
		}
	}
	return m
}
