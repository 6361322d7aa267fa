package dns

import (
	"reflect"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// settings are a Config as queries use it. They don't change; a new Config makes new ones.
type settings struct {
	cfg      Config
	zones    []*Records // the longest first
	primary  *Records   // of the first zone: addresses have their names in it
	hosts    hosts
	rewrites []func(string) (string, bool)
	stubs    []stub // the longest first
	upstream *Forwarder
	cache    *answers
}

type stub struct {
	zone string
	*Forwarder
}

// newSettings takes over what is known of upstream servers that stay as they are.
func newSettings(cfg Config, r *Records, m *metrics, before *settings) *settings {
	cfg = cfg.withDefaults()
	s := &settings{cfg: cfg, hosts: newHosts(cfg)}
	for _, z := range cfg.Zones {
		s.zones = append(s.zones, r.of(z, cfg))
	}
	s.primary = s.zones[0]
	slices.SortStableFunc(s.zones, func(a, b *Records) int { return len(b.zone) - len(a.zone) })
	for _, rule := range cfg.Rewrites {
		if f, err := rule.compile(); err == nil { // Check has refused others
			s.rewrites = append(s.rewrites, f)
		}
	}
	if before != nil && sameLimits(before.cfg.Cache, cfg.Cache) {
		s.cache = before.cache
	} else {
		s.cache = newAnswers(cfg.Cache, m)
	}
	s.upstream = s.forwarder(cfg.Upstream, before, m)
	for _, st := range cfg.Stubs {
		s.stubs = append(s.stubs, stub{st.Zone, s.forwarder(st.Upstream, before, m)})
	}
	slices.SortStableFunc(s.stubs, func(a, b stub) int { return len(b.zone) - len(a.zone) })
	return s
}

// forwarder is the one that there was, if it is for the same and remembers in the same place.
func (s *settings) forwarder(u Upstream, before *settings, m *metrics) *Forwarder {
	if before != nil && before.cache == s.cache && slices.Equal(before.cfg.Avoid, s.cfg.Avoid) {
		for _, f := range before.forwarders() {
			if reflect.DeepEqual(f.cfg, u) {
				return f
			}
		}
	}
	return newForwarder(u, s.cache, m, s.cfg.Avoid)
}

func (s *settings) forwarders() []*Forwarder {
	out := []*Forwarder{s.upstream}
	for _, st := range s.stubs {
		out = append(out, st.Forwarder)
	}
	return out
}

// closeBut ends what the next settings don't use.
func (s *settings) closeBut(next *settings) {
	for _, f := range s.forwarders() {
		if next == nil || !slices.Contains(next.forwarders(), f) {
			f.close()
		}
	}
}

// rewrite returns what is asked in a name's stead, if something is.
func (s *settings) rewrite(name string) (string, bool) {
	for _, f := range s.rewrites {
		if to, ok := f(name); ok && isName(to) {
			return to, to != name
		}
	}
	return name, false
}

// zoneOf returns who answers for a lower-case name: a zone of the cluster, or else a Forwarder with the zone that it is for.
func (s *settings) zoneOf(name string) (*Records, *Forwarder, string) {
	var records *Records
	for _, z := range s.zones {
		if z.mine(name) {
			records = z
			break
		}
	}
	for _, st := range s.stubs {
		if dns.IsSubDomain(st.zone, name) && (records == nil || len(st.zone) > len(records.zone)) {
			return nil, st.Forwarder, st.zone
		}
	}
	if records != nil {
		return records, nil, records.zone
	}
	return nil, s.upstream, "."
}

// zone is that of the cluster which a lower-case name is in; nil if it is in none.
func (s *settings) zone(name string) *Records {
	z, _, _ := s.zoneOf(name)
	return z
}

// inZone tells whether the configuration says anything of names inside a zone of the cluster that cluster objects do not.
func (c Config) inZone(zone string) bool {
	zone = canonical(zone)
	if c.inDoubt || len(c.Rewrites) > 0 {
		return true // what rewrites are for can't be told in general
	}
	inside := func(name string) bool { return dns.IsSubDomain(zone, canonical(name)) }
	return slices.ContainsFunc(c.Stubs, func(s Stub) bool { return inside(s.Zone) }) ||
		slices.ContainsFunc(c.Hosts, func(h Host) bool { return slices.ContainsFunc(h.Names, inside) }) ||
		slices.ContainsFunc(c.Zones, func(z string) bool { return inside(z) && !strings.EqualFold(canonical(z), zone) })
}
