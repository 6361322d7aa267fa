package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/dns/corefile"
)

// FromCorefile makes a configuration of a Corefile of the usual shape: a block for the root with kubernetes and forward, and blocks of stub
// domains. What is not done is returned with its line; without it the configuration is good, but may answer otherwise.
func FromCorefile(text string) (Config, []string, error) {
	blocks, err := corefile.Parse(text)
	if err != nil {
		return Config{}, nil, fmt.Errorf("dns: Corefile: %w", err)
	}
	t := translation{}
	t.c.Pods, t.c.TTL = PodsDisabled, 5 // what CoreDNS does when nothing is said
	for _, b := range blocks {
		t.block(b)
	}
	if !t.cached {
		t.c.Cache.Off = true
	}
	if len(t.c.Zones) == 0 && len(t.errs) == 0 {
		t.errs = append(t.errs, errors.New("dns: Corefile: no block has kubernetes with a zone"))
	}
	if err := errors.Join(t.errs...); err != nil {
		return t.c, t.skipped, err
	}
	return t.c, t.skipped, t.c.Check()
}

type translation struct {
	c       Config
	plugin  string // whose directive is being read
	cached  bool
	skipped []string
	errs    []error
}

// harmless are plugins, and directives of plugins, that leave the cluster's names as they are.
var harmless = []string{"forward", "cache", "loadbalance", "endpoint", "kubeconfig", "tls", "resyncperiod", "pprof", "trace", "dnstap", "debug", "chaos", "whoami"}

func (t *translation) skip(d corefile.Directive, why string, args ...any) {
	t.c.inDoubt = t.c.inDoubt || !slices.Contains(harmless, t.plugin) && !slices.Contains(harmless, d.Name)
	t.skipped = append(t.skipped, fmt.Sprintf("line %d: %s: %s", d.Line, strings.Join(append([]string{d.Name}, d.Args...), " "), fmt.Sprintf(why, args...)))
}

func (t *translation) fail(d corefile.Directive, why string, args ...any) {
	t.errs = append(t.errs, fmt.Errorf("dns: Corefile: line %d: %s: %s", d.Line, d.Name, fmt.Sprintf(why, args...)))
}

// number reads what is to be a number that is not negative.
func (t *translation) number(d corefile.Directive, text string) int {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 1<<31-1 {
		t.fail(d, "%q is no number from 0 on", text)
		return 0
	}
	return n
}

// zonesOf are the zones of a block's keys, such as ".:53" and "dns://example.org".
func zonesOf(keys []string) (zones []string, err error) {
	for _, k := range keys {
		name := k
		if scheme, rest, ok := strings.Cut(k, "://"); ok {
			if scheme != "dns" {
				return nil, fmt.Errorf("%s is not DNS over UDP and TCP", k)
			}
			name = rest
		}
		if p, err := netip.ParsePrefix(name); err == nil {
			return nil, fmt.Errorf("%s: write the name of the reverse zone of %s", k, p)
		}
		host, port, ok := strings.Cut(name, ":")
		if ok && port != "53" {
			if _, err := strconv.ParseUint(port, 10, 16); err != nil {
				return nil, fmt.Errorf("%s has no port", k)
			}
		}
		if !isName(host) {
			return nil, fmt.Errorf("%q is no zone", k)
		}
		zones = append(zones, canonical(host))
	}
	return zones, nil
}

func (t *translation) block(b corefile.Block) {
	here := corefile.Directive{Name: strings.Join(b.Keys, " "), Line: b.Line}
	zones, err := zonesOf(b.Keys)
	if err != nil {
		t.skip(here, "%v", err)
		return
	}
	for _, d := range b.Directives {
		t.plugin = d.Name
		switch d.Name {
		case "errors", "loop", "reload", "ready", "health", "prometheus", "cancel", "bind", "multisocket":
			// The resolver does so by itself, or its flags say where.
		case "log":
			t.c.Log = true
		case "loadbalance":
			if len(d.Args) > 0 && d.Args[0] != "round_robin" {
				t.skip(d, "answers come in an order of chance")
			}
		case "kubernetes":
			t.kubernetes(d, zones)
		case "forward":
			t.forward(d, zones)
		case "cache":
			t.cache(d, zones)
		case "hosts":
			t.hosts(d)
		case "rewrite":
			t.rewrite(d)
		default:
			t.skip(d, "not known")
		}
	}
}

func isReverse(zone string) bool {
	zone = canonical(zone)
	return strings.HasSuffix("."+zone, "."+reverse4) || strings.HasSuffix("."+zone, "."+reverse6)
}

func (t *translation) kubernetes(d corefile.Directive, of []string) {
	zones := d.Args
	if len(zones) == 0 {
		zones = of
	}
	reversed, falls := false, false
	for _, z := range zones {
		switch {
		case isReverse(z):
			reversed = true
		case canonical(z) == ".":
			t.skip(d, "a cluster whose zone is the root")
		case !slices.Contains(t.c.Zones, canonical(z)):
			t.c.Zones = append(t.c.Zones, canonical(z))
		}
	}
	for _, o := range d.Body {
		one := ""
		if len(o.Args) == 1 {
			one = o.Args[0]
		}
		switch {
		case o.Name == "pods" && slices.Contains([]string{PodsInsecure, PodsVerified, PodsDisabled}, one):
			t.c.Pods = one
		case o.Name == "ttl" && one != "":
			if t.c.TTL = uint32(t.number(o, one)); t.c.TTL == 0 {
				t.skip(o, "records live at least a second")
				t.c.TTL = 1
			}
		case o.Name == "fallthrough":
			falls = len(o.Args) == 0
			for _, z := range o.Args {
				falls = falls || isReverse(z)
			}
			if len(o.Args) == 0 || slices.ContainsFunc(o.Args, func(z string) bool { return !isReverse(z) }) {
				t.skip(o, "for names that the cluster does not have nobody else is asked; those of addresses go upstream")
			}
		default:
			t.skip(o, "not known of kubernetes; the way to the API server is a flag")
		}
	}
	if reversed && !falls {
		t.skip(d, "without fallthrough: addresses that are not the cluster's are asked upstream nevertheless")
	}
}

func (t *translation) forward(d corefile.Directive, of []string) {
	if len(d.Args) < 2 {
		t.fail(d, "it has no servers")
		return
	}
	u := Upstream{Policy: PolicyRandom} // what CoreDNS does when nothing is said
	for _, to := range d.Args[1:] {
		to = strings.TrimPrefix(to, "dns://")
		if _, err := serverAddr(to); err != nil && !strings.HasPrefix(to, "/") {
			t.skip(d, "%s is no server over UDP and TCP, and no file", to)
			continue
		}
		u.Servers = append(u.Servers, to)
	}
	for _, o := range d.Body {
		switch {
		case o.Name == "policy" && len(o.Args) == 1:
			if u.Policy = o.Args[0]; !slices.Contains([]string{PolicyRandom, PolicyRoundRobin, PolicySequential}, u.Policy) {
				t.skip(o, "not known of forward")
				u.Policy = PolicyRandom
			}
		case o.Name == "force_tcp":
			u.TCP = true
		case o.Name == "prefer_udp": // so it is
		case o.Name == "max_concurrent" && len(o.Args) == 1:
			u.MaxConcurrent = t.number(o, o.Args[0])
		case o.Name == "except":
			u.Except = append(u.Except, o.Args...)
		default:
			t.skip(o, "not known of forward; servers that don't answer are asked last, and checked until they do")
		}
	}
	if len(u.Servers) == 0 {
		return
	}
	for _, zone := range of {
		if from := canonical(d.Args[0]); from != "." {
			zone = from
		}
		switch {
		case zone == ".":
			t.c.Upstream = u
		case !slices.ContainsFunc(t.c.Stubs, func(s Stub) bool { return s.Zone == zone }):
			t.c.Stubs = append(t.c.Stubs, Stub{Zone: zone, Upstream: u})
		default:
			t.skip(d, "%s has servers already", zone)
		}
	}
}

// cache is the same for all zones; that of the root's block counts.
func (t *translation) cache(d corefile.Directive, of []string) {
	before := t.c.Cache
	var l CacheLimits
	hour, halfHour := metav1.Duration{Duration: time.Hour}, metav1.Duration{Duration: 30 * time.Minute}
	l.MaxTTL, l.MaxDenial = hour, halfHour
	seconds := func(o corefile.Directive, text string) metav1.Duration {
		return metav1.Duration{Duration: time.Duration(t.number(o, text)) * time.Second}
	}
	if len(d.Args) > 0 && strings.Trim(d.Args[0], "0123456789") == "" {
		l.MaxTTL = seconds(d, d.Args[0])
		l.MaxDenial = min2(l.MaxTTL, halfHour)
	}
	for _, o := range d.Body {
		switch {
		case (o.Name == "success" || o.Name == "denial") && len(o.Args) > 0:
			l.Entries = max(l.Entries, t.number(o, o.Args[0]))
			if len(o.Args) > 1 {
				if o.Name == "success" {
					l.MaxTTL = seconds(o, o.Args[1])
				} else {
					l.MaxDenial = seconds(o, o.Args[1])
				}
			}
			if len(o.Args) > 2 {
				t.skip(o, "no answer is kept for longer than it says")
			}
		case o.Name == "serve_stale":
			l.ServeStale = hour
			no := false
			l.Verify = &no
			if len(o.Args) > 0 {
				v, err := time.ParseDuration(o.Args[0])
				if err != nil || v < 0 {
					t.fail(o, "%q is no duration", o.Args[0])
				}
				l.ServeStale.Duration = v
			}
			if len(o.Args) > 1 && o.Args[1] == "verify" {
				l.Verify = nil
			}
		case o.Name == "servfail" && len(o.Args) == 1:
			v, err := time.ParseDuration(o.Args[0])
			if err != nil {
				t.fail(o, "%q is no duration", o.Args[0])
			}
			l.Failure.Duration = v
		case o.Name == "disable": // of zones of the cluster nothing is remembered
			if slices.ContainsFunc(o.Args, func(s string) bool {
				return s != "success" && s != "denial" && !slices.Contains(t.c.Zones, canonical(s))
			}) || len(o.Args) < 2 {
				t.skip(o, "answers of upstream servers are remembered for all zones or for none")
			}
		default:
			t.skip(o, "not known of cache")
		}
	}
	if !t.cached || slices.Contains(of, ".") {
		t.c.Cache = l
	}
	if t.cached && !sameLimits(before, l) {
		t.skip(d, "there is one cache: what the block of the root says counts")
	}
	t.cached = true
}

func min2(a, b metav1.Duration) metav1.Duration {
	return metav1.Duration{Duration: min(a.Duration, b.Duration)}
}

func sameLimits(a, b CacheLimits) bool {
	same := (a.Verify == nil) == (b.Verify == nil)
	a.Verify, b.Verify = nil, nil
	return same && a == b
}

func (t *translation) hosts(d corefile.Directive) {
	if len(d.Args) > 0 {
		t.skip(d, "lines of the block count, those of a file don't")
	}
	falls := false
	for _, o := range d.Body {
		if addr, err := netip.ParseAddr(o.Name); err == nil {
			if len(o.Args) == 0 {
				t.fail(o, "an address without a name")
				continue
			}
			t.c.Hosts = append(t.c.Hosts, Host{IP: addr.String(), Names: o.Args})
			continue
		}
		switch {
		case o.Name == "fallthrough":
			falls = true
			if len(o.Args) > 0 {
				t.skip(o, "names that hosts does not have are answered as others")
			}
		case o.Name == "ttl" && len(o.Args) == 1:
			t.c.HostsTTL = uint32(t.number(o, o.Args[0]))
		case o.Name == "reload": // of the file
		default:
			t.skip(o, "not known of hosts")
		}
	}
	if !falls {
		t.skip(d, "without fallthrough: names that it does not have are answered as others nevertheless")
	}
}

func (t *translation) rewrite(d corefile.Directive) {
	rules := []corefile.Directive{d}
	if len(d.Body) > 0 {
		rules = nil
		for _, o := range d.Body {
			if o.Name != "answer" { // the client sees the name that it asked for, in any case
				rules = append(rules, corefile.Directive{Name: d.Name, Args: append([]string{o.Name}, o.Args...), Line: o.Line})
			}
		}
	}
	for _, r := range rules {
		args := r.Args
		if len(args) > 0 && (args[0] == "stop" || args[0] == "continue") {
			if args[0] == "continue" {
				t.skip(r, "the first rule that fits counts")
			}
			args = args[1:]
		}
		if len(args) < 3 || args[0] != "name" {
			t.skip(r, "only names are rewritten")
			continue
		}
		args = args[1:]
		rule := Rewrite{}
		if slices.Contains([]string{"exact", "prefix", "suffix", "substring", "regex"}, args[0]) && len(args) > 2 {
			rule.Match, args = args[0], args[1:]
		}
		rule.From, rule.To = args[0], args[1]
		if _, err := rule.compile(); err != nil {
			t.fail(r, "%v", err)
			continue
		}
		t.c.Rewrites = append(t.c.Rewrites, rule)
	}
}
