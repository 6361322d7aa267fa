package dns

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestLifetime(t *testing.T) {
	for _, c := range []struct {
		rcode      int
		answer, ns []dns.RR
		want       time.Duration
		denial     bool
	}{
		{dns.RcodeSuccess, rrs("a. 60 IN CNAME b.", "b. 30 IN A 192.0.2.1"), nil, 30 * time.Second, false},
		{dns.RcodeSuccess, rrs("a. 999999 IN A 192.0.2.1"), nil, 999999 * time.Second, false},
		{dns.RcodeSuccess, nil, nil, 0, true},
		{dns.RcodeSuccess, nil, rrs("a. 60 IN SOA b. c. 1 2 3 4 20"), 20 * time.Second, true},
		{dns.RcodeSuccess, rrs("a. 60 IN CNAME b."), rrs("a. 60 IN SOA b. c. 1 2 3 4 20"), 20 * time.Second, true},
		{dns.RcodeNameError, nil, rrs("a. 10 IN SOA b. c. 1 2 3 4 20"), 10 * time.Second, true},
		{dns.RcodeNameError, rrs("a. 60 IN CNAME b."), nil, 0, true},
		{dns.RcodeNameError, rrs("a. 60 IN CNAME b."), rrs("a. 100 IN SOA b. c. 1 2 3 4 200"), 60 * time.Second, true},
		{dns.RcodeServerFailure, nil, rrs("a. 60 IN SOA b. c. 1 2 3 4 20"), 0, false},
	} {
		m := &dns.Msg{Answer: c.answer, Ns: c.ns}
		m.Rcode = c.rcode
		if got, denial := lifetime(m); got != c.want || denial != c.denial {
			t.Errorf("%s: %s, denial %v; want %s", show(m), got, denial, c.want)
		}
		m.Truncated = true
		if got, _ := lifetime(m); got != 0 {
			t.Errorf("cut short: %s", got)
		}
	}
}

// What is remembered counts down, within the limits, is gone after its time, and comes back only if that is allowed.
func TestCache(t *testing.T) {
	now := time.Now()
	key := cacheKey{name: "a.", qtype: dns.TypeA}
	answer := &dns.Msg{Answer: rrs("a. 600 IN A 192.0.2.1", "b. 60 IN A 192.0.2.2")}
	denial := &dns.Msg{Ns: rrs("a. 600 IN SOA b. c. 1 2 3 4 600")}
	denial.Rcode = dns.RcodeNameError
	failure := new(dns.Msg)
	failure.Rcode = dns.RcodeServerFailure
	stale := CacheLimits{ServeStale: seconds(30)}
	for name, c := range map[string]struct {
		limits CacheLimits
		m      *dns.Msg
		after  int // seconds
		ttl    int // of what is got; -1: nothing
		fresh  bool
	}{
		"at once":                   {CacheLimits{}, answer, 0, 60, true},
		"counts down":               {CacheLimits{}, answer, 20, 40, true},
		"gone":                      {CacheLimits{}, answer, 60, -1, false},
		"limited":                   {CacheLimits{MaxTTL: seconds(10)}, answer, 4, 6, true},
		"limited, gone":             {CacheLimits{MaxTTL: seconds(10)}, answer, 10, -1, false},
		"a denial":                  {CacheLimits{MaxTTL: seconds(10)}, denial, 100, 500, true},
		"a limited denial":          {CacheLimits{MaxDenial: seconds(10)}, denial, 3, 7, true},
		"a failure":                 {CacheLimits{}, failure, 4, 0, true},
		"a failure, gone":           {CacheLimits{}, failure, 5, -1, false},
		"off":                       {CacheLimits{Off: true}, answer, 0, -1, false},
		"stale":                     {stale, answer, 89, 0, false},
		"too stale":                 {stale, answer, 90, -1, false},
		"a failure is never stale":  {stale, failure, 6, -1, false},
		"a denial can be stale too": {stale, denial, 601, 0, false},
	} {
		a := newAnswers(Config{Cache: c.limits}.withDefaults().Cache, newMetrics())
		a.add(key, c.m, now, 0)
		at := now.Add(time.Duration(c.after) * time.Second)
		got, fresh := a.get(key, at)
		if fresh != c.fresh || (got.msg == nil) != (c.ttl < 0) {
			t.Errorf("%s: %v, fresh %v", name, got.msg, fresh)
			continue
		}
		if got.msg == nil {
			continue
		}
		for _, rr := range append(got.at(at).Answer, got.at(at).Ns...) {
			if rr.Header().Ttl != uint32(c.ttl) {
				t.Errorf("%s: %s", name, rr)
			}
		}
	}
	if answer.Answer[0].Header().Ttl != 600 {
		t.Error("what is remembered was changed")
	}
	// Of one question there is one answer, whichever kind it is, and a failure does not take the place of what may still be given.
	a := newAnswers(Config{Cache: stale}.withDefaults().Cache, newMetrics())
	a.add(key, answer, now, 0)
	a.add(key, denial, now, 0)
	if s, d := a.sizes(); s != 0 || d != 1 {
		t.Errorf("%d answers and %d denials of one question", s, d)
	}
	a.add(key, answer, now, 0)
	a.add(key, failure, now, 0)
	if got, _ := a.get(key, now); got.msg != answer {
		t.Errorf("after a failure: %v", got.msg)
	}
}

func seconds(n int) metav1.Duration { return metav1.Duration{Duration: time.Duration(n) * time.Second} }

// Bounded, the least recently used goes first.
func TestCacheIsBounded(t *testing.T) {
	a := newAnswers(CacheLimits{Entries: 100, MaxTTL: seconds(60), MaxDenial: seconds(60)}, newMetrics())
	now := time.Now()
	for i := range 1000 {
		a.add(cacheKey{name: fmt.Sprint(i)}, &dns.Msg{Answer: rrs("a. 60 IN A 192.0.2.1")}, now, 0)
		a.get(cacheKey{name: "0"}, now)
	}
	if s, _ := a.sizes(); s != 100 {
		t.Errorf("%d answers", s)
	}
	if _, ok := a.get(cacheKey{name: "0"}, now); !ok {
		t.Error("the one that is used all the time is gone")
	}
}

// What expires while it is answered anew is replaced, and nothing is there of which the key isn't known.
func TestCacheKnowsItsKeys(t *testing.T) {
	a := newAnswers(Config{}.withDefaults().Cache, newMetrics())
	now := time.Now()
	later := now.Add(time.Hour)
	key := cacheKey{name: "a."}
	answer := &dns.Msg{Answer: rrs("a. 60 IN A 192.0.2.1")}
	old := a.add(key, answer, now, 0)
	a.add(key, answer, later, 0)
	a.expire(a.success, key, old) // by who has found it before that
	if _, fresh := a.get(key, later); !fresh {
		t.Error("the new answer expired with the old one")
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 20_000 {
				key := cacheKey{name: fmt.Sprint(i % 2)}
				a.add(key, answer, now, 0)
				a.get(key, later)
			}
		})
	}
	all.Wait()
	if n, _ := a.sizes(); n != len(a.success.keys) {
		t.Errorf("%d answers, %d keys", n, len(a.success.keys))
	}
}

// What is to be forgotten is, with all names below it, and what was asked for before that is not remembered.
func TestCacheForgets(t *testing.T) {
	a := newAnswers(Config{}.withDefaults().Cache, newMetrics())
	now := time.Now()
	answer, denial := &dns.Msg{Answer: rrs("a. 60 IN A 192.0.2.1")}, &dns.Msg{Ns: rrs("a. 60 IN SOA a. a. 1 2 3 4 60")}
	fill := func() {
		for _, name := range []string{"example.com.", "www.example.com.", "xexample.com.", "com."} {
			a.add(cacheKey{name: name, qtype: dns.TypeA}, answer, now, a.epoch.Load())
			a.add(cacheKey{name: name, qtype: dns.TypeTXT}, denial, now, a.epoch.Load())
		}
	}
	fill()
	before := a.epoch.Load()
	if n := a.forget("example.com."); n != 4 {
		t.Errorf("%d were forgotten", n)
	}
	for name, want := range map[string]bool{"example.com.": false, "www.example.com.": false, "xexample.com.": true, "com.": true} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeTXT} {
			if _, fresh := a.get(cacheKey{name: name, qtype: qtype}, now); fresh != want {
				t.Errorf("%s %s is there: %v", name, dns.TypeToString[qtype], fresh)
			}
		}
	}
	if c := a.add(cacheKey{name: "late."}, answer, now, before); c.kept || !c.until().IsZero() {
		t.Error("what was asked before is remembered")
	}
	fill()
	if n := a.forget("."); n != 8 {
		t.Errorf("%d were forgotten of all", n)
	}
	if s, d := a.sizes(); s+d+len(a.success.keys)+len(a.denials.keys) != 0 {
		t.Errorf("%d answers and %d denials are left", s, d)
	}
}
