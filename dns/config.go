package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// What is asked of the name of a pod's address (10-1-0-1.ns.pod.zone).
const (
	PodsInsecure = "insecure" // its namespace exists
	PodsVerified = "verified" // a pod of the namespace has the address
	PodsDisabled = "disabled" // there are no such names
)

// In which order the servers of an Upstream are asked. Those that fail come last in each.
const (
	PolicySequential = "sequential"
	PolicyRandom     = "random"
	PolicyRoundRobin = "round_robin"
)

// Config is all that can be set of the resolver, in the form in which config.yaml of a ConfigMap has it. What is not set has the default
// that is told.
type Config struct {
	Zones    []string         `json:"zones,omitempty"` // of the cluster; that of the cluster, or cluster.local
	TTL      uint32           `json:"ttl,omitempty"`   // seconds, of the cluster's records; 30
	Pods     string           `json:"pods,omitempty"`  // insecure, verified or disabled; insecure
	Upstream Upstream         `json:"upstream,omitzero"`
	Stubs    []Stub           `json:"stubs,omitempty"` // zones with servers of their own; the longest that fits counts
	Hosts    []Host           `json:"hosts,omitempty"`
	HostsTTL uint32           `json:"hostsTTL,omitempty"` // seconds; 3600
	Rewrites []Rewrite        `json:"rewrites,omitempty"` // the first that fits counts
	Cache    CacheLimits      `json:"cache,omitzero"`
	Log      bool             `json:"log,omitempty"` // a line for each query that the kernel leaves to the resolver
	Avoid    []netip.AddrPort `json:"-"`             // where the resolver itself listens: no upstream
	inDoubt  bool             // something of a Corefile that is not done may say something of names in a zone
}

// Upstream is a set of name servers.
type Upstream struct {
	Servers       []string `json:"servers,omitempty"`       // addresses, with a port or without, or files such as resolv.conf, which are followed; /etc/resolv.conf
	Policy        string   `json:"policy,omitempty"`        // sequential, random or round_robin; sequential
	TCP           bool     `json:"tcp,omitempty"`           // ask over TCP only
	MaxConcurrent int      `json:"maxConcurrent,omitempty"` // queries that wait for these servers at a time; 1000
	Except        []string `json:"except,omitempty"`        // zones that are refused
}

// Stub is a zone that others answer for.
type Stub struct {
	Zone     string `json:"zone"`
	Upstream `json:",inline"`
}

// Host is an address and its names, as a line of a hosts file.
type Host struct {
	IP    string   `json:"ip"`
	Names []string `json:"names"`
}

// Rewrite answers one name as another. The client sees the name that it asked for.
type Rewrite struct {
	Match string `json:"match,omitempty"` // exact, prefix, suffix, substring or regex; exact
	From  string `json:"from"`
	To    string `json:"to"` // of a regex: {1} is its first group
}

// CacheLimits bound what is remembered of upstream servers' answers.
type CacheLimits struct {
	Off        bool            `json:"disabled,omitempty"`
	Entries    int             `json:"entries,omitempty"`     // answers, and as many denials; 10000
	MaxTTL     metav1.Duration `json:"maxTTL,omitzero"`       // of an answer; 1h
	MaxDenial  metav1.Duration `json:"maxDenial,omitzero"`    // of a denial; 30m
	Failure    metav1.Duration `json:"failure,omitzero"`      // of a server failure, at most 5m (RFC 9520); 5s
	ServeStale metav1.Duration `json:"serveStale,omitzero"`   // how long after its end an answer is given when no server answers; never
	Verify     *bool           `json:"staleVerify,omitempty"` // ask before an old answer is given, rather than after; true
}

// ParseConfig reads config.yaml. Fields that it does not know are an error.
func ParseConfig(text []byte) (Config, error) {
	var c Config
	if err := yaml.UnmarshalStrict(text, &c); err != nil {
		return c, fmt.Errorf("dns: config.yaml: %w", err)
	}
	return c, c.Check()
}

// withDefaults returns the configuration with all that was not set.
func (c Config) withDefaults() Config {
	zones := c.Zones
	if len(zones) == 0 {
		zones = []string{"cluster.local"}
	}
	c.Zones = nil
	for _, z := range zones {
		if z = canonical(z); !slices.Contains(c.Zones, z) {
			c.Zones = append(c.Zones, z)
		}
	}
	set(&c.TTL, 30)
	set(&c.Pods, PodsInsecure)
	set(&c.HostsTTL, 3600)
	set(&c.Cache.Entries, 10_000)
	set(&c.Cache.MaxTTL.Duration, time.Hour)
	set(&c.Cache.MaxDenial.Duration, 30*time.Minute)
	set(&c.Cache.Failure.Duration, 5*time.Second)
	c.Upstream = c.Upstream.withDefaults()
	c.Stubs = slices.Clone(c.Stubs)
	for i := range c.Stubs {
		c.Stubs[i].Zone, c.Stubs[i].Upstream = canonical(c.Stubs[i].Zone), c.Stubs[i].Upstream.withDefaults()
	}
	return c
}

func (u Upstream) withDefaults() Upstream {
	if len(u.Servers) == 0 {
		u.Servers = []string{"/etc/resolv.conf"}
	}
	set(&u.Policy, PolicySequential)
	set(&u.MaxConcurrent, 1000)
	return u
}

// set gives a value to what has none.
func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// canonical is a name in lower case with its last dot.
func canonical(name string) string { return dns.Fqdn(strings.ToLower(name)) }

// Check tells all that is wrong with a configuration.
func (c Config) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("dns: "+format, args...)) }
	for _, z := range c.Zones {
		if !isName(z) || z == "." {
			bad("zone %q is no domain name", z)
		}
	}
	if c.TTL > 3600 {
		bad("ttl %d is longer than an hour (3600): names would be wrong for as long", c.TTL)
	}
	if !slices.Contains([]string{"", PodsInsecure, PodsVerified, PodsDisabled}, c.Pods) {
		bad("pods %q is none of insecure, verified and disabled", c.Pods)
	}
	errs = append(errs, c.Upstream.check("upstream"))
	seen := map[string]bool{}
	for _, s := range c.Stubs {
		zone := canonical(s.Zone)
		switch {
		case !isName(s.Zone) || zone == ".":
			bad("stub %q is no domain name", s.Zone)
		case seen[zone]:
			bad("stub %s is there twice", s.Zone)
		case len(s.Servers) == 0:
			bad("stub %s has no servers", s.Zone)
		}
		seen[zone] = true
		errs = append(errs, s.check("stub "+s.Zone))
	}
	for _, h := range c.Hosts {
		if a, err := netip.ParseAddr(h.IP); err != nil || a.Zone() != "" {
			bad("hosts: %q is no IP address", h.IP)
		}
		if len(h.Names) == 0 {
			bad("hosts: %s has no name", h.IP)
		}
		for _, n := range h.Names {
			if !isName(n) {
				bad("hosts: %q, a name of %s, is no domain name", n, h.IP)
			}
		}
	}
	for _, r := range c.Rewrites {
		if _, err := r.compile(); err != nil {
			errs = append(errs, err)
		}
	}
	if l := c.Cache; l.Entries < 0 || l.MaxTTL.Duration < 0 || l.MaxDenial.Duration < 0 || l.ServeStale.Duration < 0 || l.Failure.Duration < 0 || l.Failure.Duration > 5*time.Minute {
		bad("cache: entries and durations are not negative, and failure is at most 5m (RFC 9520)")
	}
	return errors.Join(errs...)
}

func isName(s string) bool {
	_, ok := dns.IsDomainName(s)
	return ok && s != ""
}

func (u Upstream) check(what string) error {
	var errs []error
	for _, s := range u.Servers {
		if _, err := serverAddr(s); err != nil && !filepath.IsAbs(s) {
			errs = append(errs, fmt.Errorf("dns: %s: %w", what, err))
		}
	}
	if !slices.Contains([]string{"", PolicySequential, PolicyRandom, PolicyRoundRobin}, u.Policy) {
		errs = append(errs, fmt.Errorf("dns: %s: policy %q is none of sequential, random and round_robin", what, u.Policy))
	}
	if u.MaxConcurrent < 0 {
		errs = append(errs, fmt.Errorf("dns: %s: maxConcurrent %d is negative", what, u.MaxConcurrent))
	}
	for _, z := range u.Except {
		if !isName(z) {
			errs = append(errs, fmt.Errorf("dns: %s: except %q is no domain name", what, z))
		}
	}
	return errors.Join(errs...)
}

// serverAddr reads the address of a name server; without a port it is 53.
func serverAddr(text string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.AddrPortFrom(a, 53), nil
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil || a.Port() == 0 {
		return a, fmt.Errorf("%q is neither an IP address, with a port or without, nor the path of a resolv.conf", text)
	}
	return a, nil
}

// compile returns what a name becomes, if the rule is for it. Names are in lower case, with their last dot.
func (r Rewrite) compile() (func(name string) (string, bool), error) {
	from, to := strings.ToLower(r.From), strings.ToLower(r.To)
	if from == "" || to == "" && r.Match != "substring" && r.Match != "prefix" {
		return nil, fmt.Errorf("dns: rewrite %s %q to %q: both are names, or parts of some", r.Match, r.From, r.To)
	}
	switch r.Match {
	case "", "exact":
		if !isName(from) || !isName(to) {
			return nil, fmt.Errorf("dns: rewrite %q to %q: no domain names", r.From, r.To)
		}
		from, to = dns.Fqdn(from), dns.Fqdn(to)
		return func(name string) (string, bool) { return to, name == from }, nil
	case "prefix":
		return func(name string) (string, bool) {
			rest, ok := strings.CutPrefix(name, from)
			return to + rest, ok
		}, nil
	case "suffix":
		from, to = dns.Fqdn(from), dns.Fqdn(to)
		return func(name string) (string, bool) {
			rest, ok := strings.CutSuffix(name, from)
			return rest + to, ok
		}, nil
	case "substring":
		return func(name string) (string, bool) {
			return strings.ReplaceAll(name, from, to), strings.Contains(name, from)
		}, nil
	case "regex":
		re, err := regexp.Compile("(?i)" + r.From) // asked for in lower case, written as one likes
		if err != nil {
			return nil, fmt.Errorf("dns: rewrite regex %q: %w", r.From, err)
		}
		return func(name string) (string, bool) {
			groups := re.FindStringSubmatch(name)
			if groups == nil {
				groups = re.FindStringSubmatch(strings.TrimSuffix(name, "."))
			}
			if groups == nil {
				return "", false
			}
			out := to
			for i, g := range groups {
				out = strings.ReplaceAll(out, fmt.Sprintf("{%d}", i), g)
			}
			return dns.Fqdn(out), true
		}, nil
	}
	return nil, fmt.Errorf("dns: rewrite %q is none of exact, prefix, suffix, substring and regex", r.Match)
}
