package dns

import (
	"sync"
	"sync/atomic"
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
	success, denials *memory
	metrics          *metrics

	mu    sync.Mutex    // of who adds, removes or forgets
	epoch atomic.Uint64 // how often something was to be forgotten: what was asked before is not remembered
}

// memory is an LRU that knows its keys. All but Get and Len is for who holds the lock of answers: an entry and its key come and go together.
type memory struct {
	*lru.Cache
	keys map[cacheKey]struct{}
}

func newMemory(entries int) *memory {
	m := &memory{keys: map[cacheKey]struct{}{}}
	m.Cache = lru.NewWithEvictionFunc(entries, func(key lru.Key, _ any) {
		delete(m.keys, key.(cacheKey))
	})
	return m
}

func (m *memory) add(key cacheKey, c cached) {
	m.keys[key] = struct{}{}
	m.Add(key, c)
}

// below are the keys of a lower-case name and of all names below it.
func (m *memory) below(name string) []cacheKey {
	var out []cacheKey
	for key := range m.keys {
		if dns.IsSubDomain(name, key.name) {
			out = append(out, key)
		}
	}
	return out
}

const (
	kindSuccess = "success"
	kindDenial  = "denial"
)

// newAnswers wants limits with their defaults.
func newAnswers(limits CacheLimits, m *metrics) *answers {
	return &answers{
		limits: limits, verify: limits.Verify == nil || *limits.Verify, metrics: m,
		success: newMemory(limits.Entries), denials: newMemory(limits.Entries),
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
		a.expire(l, key, c)
	}
	return cached{}, "", false
}

// expire removes what was found of a question, if there is nothing newer by now.
func (a *answers) expire(l *memory, key cacheKey, c cached) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if v, ok := l.Get(key); ok && v.(cached) == c {
		l.Remove(key)
	}
}

// forget forgets what is known of a lower-case name and of all names below it, and what is being asked. It tells how many answers that were.
func (a *answers) forget(name string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.epoch.Add(1)
	n := 0
	for _, from := range []*memory{a.success, a.denials} {
		for _, key := range from.below(name) {
			from.Remove(key)
			n++
		}
	}
	return n
}

// add remembers an answer to what was asked in an epoch, and returns it as it was remembered. Only one of a question is.
func (a *answers) add(key cacheKey, m *dns.Msg, now time.Time, epoch uint64) cached {
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
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.limits.Off || ttl <= 0 || a.epoch.Load() != epoch {
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
	into.add(key, c)
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
