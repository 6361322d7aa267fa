package bpf

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

func (r raw) seen() map[netFrontendKey]seen {
	out := map[netFrontendKey]seen{}
	for k, fe := range r.frontends {
		s := seen{service: fe.Service, flags: fe.Flags, inside: r.choices(fe, false), outside: r.choices(fe, true), affinity: fe.Affinity}
		if fe.Flags&flagSources != 0 {
			var list []string
			for src := range r.sources {
				if src.Service == fe.Service {
					list = append(list, fmt.Sprint(src.Prefixlen, addrOf(src.Addr)))
				}
			}
			slices.Sort(list)
			s.sources = strings.Join(list, " ")
		}
		out[k] = s
	}
	return out
}

// randomService makes one of few that differ in all that a LoadBalancer can.
func randomService(rng *rand.Rand, owner string, i int) LoadBalancer {
	lb := LoadBalancer{Owner: owner, Name: fmt.Sprintf("ns/%s:%d", owner, i), Protocol: []uint8{6, 17, 132}[rng.IntN(3)], Affinity: []time.Duration{0, time.Second, 3 * time.Hour}[rng.IntN(3)]}
	var sources []netip.Prefix
	for range rng.IntN(3) {
		sources = append(sources, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(rng.IntN(4)), 0}), 8+rng.IntN(24)))
	}
	for f := range rng.IntN(4) {
		fe := Frontend{Addr: ap(fmt.Sprintf("10.96.%s.%d:%d", owner[4:], i+1, 80+f)), Kind: FrontendKind(rng.IntN(len(kinds))), Inside: Scope(rng.IntN(2)), Outside: Scope(rng.IntN(2))}
		if rng.IntN(2) == 0 {
			fe.Sources = sources
		}
		lb.Frontends = append(lb.Frontends, fe)
	}
	for range rng.IntN(8) {
		lb.Backends = append(lb.Backends, Backend{Addr: ap(fmt.Sprintf("10.244.0.%d:8080", 2+rng.IntN(10))), All: rng.IntN(3) > 0, Local: rng.IntN(3) > 0, Weight: uint16(rng.IntN(3))})
	}
	return lb
}

// Any agent may be killed between any two writes. No packet then, or in between, sees half a change: what it comes to is what there was before
// or will be after. The next agent's Replace makes it right.
func TestKilledBetweenAnyTwoWrites(t *testing.T) {
	c := tablesConfig(t)
	c.MaxFrontends, c.MaxBackends = 1024, 1024 // the tables are read whole before each write
	d := open(t, c)
	m := d.loadBalancers.lbMaps
	rng := rand.New(rand.NewPCG(3, 4))
	t.Cleanup(func() { beforeWrite = nil })
	var was map[netFrontendKey]seen
	kills := 0
	for step := range 150 {
		want := []LoadBalancer{randomService(rng, "uid-1", 0), randomService(rng, "uid-1", 1)}[:1+rng.IntN(2)]
		if step%3 == 0 { // the Service is made anew
			_, err := openTable(t, m).Replace("uid-1", nil)
			must(t, err)
		}
		was = rawOf(t, m).seen()
		for i := range want {
			want[i].Protocol = 6 // so that frontends pass from one service to the other
			for k := range want[i].Frontends {
				want[i].Frontends[k].Addr = ap(fmt.Sprintf("10.96.1.1:%d", 80+2*k+i))
			}
		}
		if rng.IntN(2) == 0 {
			slices.Reverse(want)
		}
		// What is to be, in maps of its own.
		table := openTable(t, m)
		writes := 0
		var during []raw
		stop := rng.IntN(25)
		beforeWrite = func() {
			if writes++; writes == stop {
				panic("killed")
			}
			during = append(during, rawOf(t, m))
		}
		killed := func() (killed bool) {
			defer func() {
				if p := recover(); p != nil {
					killed = true
				}
			}()
			_, err := table.Replace("uid-1", want)
			must(t, err)
			return false
		}()
		beforeWrite = nil
		if killed {
			kills++
			during = append(during, rawOf(t, m))
		}
		table = openTable(t, m)
		_, err := table.Replace("uid-1", want)
		must(t, err)
		now := rawOf(t, m)
		if err := now.rounded(); err != nil {
			t.Fatalf("step %d: %v\nwant %+v", step, err, want)
		}
		will := now.seen()
		for i, r := range during {
			for id, s := range r.services {
				if is, ok := now.services[id]; ok && is.Owner == s.Owner && is.Name == s.Name && is.Made != s.Made {
					t.Fatalf("step %d, before write %d of %d: service %d was made at %d, and then at %d", step, i, len(during), id, s.Made, is.Made)
				}
			}
			for k, s := range r.seen() {
				var left uint32 // its service, which it is to leave, may have changed already
				if was[k].service != will[k].service || was[k].flags != will[k].flags {
					left = was[k].service
				}
				if err := between(s, was[k], will[k], now.of(left)); err != nil {
					t.Fatalf("step %d, before write %d of %d: %v: %v", step, i, len(during), frontendOf(k), err)
				}
			}
			for k := range was {
				if _, ok := will[k]; !ok {
					continue
				}
				if _, ok := r.frontends[k]; !ok {
					t.Fatalf("step %d, before write %d of %d: %v is gone", step, i, len(during), frontendOf(k))
				}
			}
		}
		have := dumped(t, table, func(lb LoadBalancer) string { return lb.Name })
		for _, lb := range want {
			normal, err := NormalLoadBalancer(lb)
			must(t, err)
			if !reflect.DeepEqual(have[lb.Name], normal) {
				t.Fatalf("step %d: have %+v, want %+v", step, have[lb.Name], normal)
			}
		}
		if len(have) != len(want) {
			t.Fatalf("step %d: %d services, want %d", step, len(have), len(want))
		}
	}
	if kills < 20 {
		t.Errorf("killed %d times only", kills)
	}
}

func openTable(t testing.TB, m lbMaps) *loadBalancers {
	t.Helper()
	table, err := openLoadBalancers(map[string]*ebpf.Map{
		"lb_services": m.services, "lb_frontends": m.frontends, "lb_backends": m.backends, "lb_members": m.members, "lb_maglev": m.maglev, "lb_sources": m.sources, "lb_changes": m.changes, "lb_ports": m.ports,
	})
	must(t, err)
	return table
}

// One backend that goes moves one other at most, and a write touches what differs.
func TestSlotsStay(t *testing.T) {
	d := open(t, tablesConfig(t))
	m := d.loadBalancers.lbMaps
	lb := LoadBalancer{Name: "ns/a:http", Protocol: 6, Frontends: fronts(NodePort, ap("192.0.2.1:30080"))}
	for i := range 20 {
		lb.Backends = append(lb.Backends, Backend{Addr: ap(fmt.Sprintf("10.244.0.%d:80", i+2)), All: true, Local: i%2 == 0})
	}
	replace := func() {
		t.Helper()
		_, err := d.LoadBalancers().Replace("u", []LoadBalancer{lb})
		must(t, err)
	}
	replace()
	rng := rand.New(rand.NewPCG(5, 6))
	for range 30 {
		was := rawOf(t, m)
		if i := rng.IntN(len(lb.Backends) + 1); i < len(lb.Backends) && len(lb.Backends) > 5 {
			lb.Backends = slices.Delete(lb.Backends, i, i+1)
		} else {
			lb.Backends = append(lb.Backends, Backend{Addr: ap(fmt.Sprintf("10.244.1.%d:80", rng.IntN(250)+2)), All: true, Local: true})
		}
		replace()
		now := rawOf(t, m)
		must(t, now.rounded())
		moved := map[uint32]int{}
		for k, b := range now.slots {
			if other, ok := was.slots[k]; ok && other != b {
				moved[k.Slot>>31]++
			}
		}
		if moved[0] > 1 || moved[1] > 1 {
			t.Fatalf("slots that hold another backend now: %v", moved)
		}
	}
}

// A change of a backend's state keeps count of how often it was chosen.
func TestHitsStay(t *testing.T) {
	d := open(t, tablesConfig(t))
	lb := LoadBalancer{Name: "ns/a:http", Protocol: 6, Frontends: fronts(ClusterIP, ap("10.96.0.5:80")), Backends: backs(ap("10.244.0.2:80"))}
	_, err := d.LoadBalancers().Replace("u", []LoadBalancer{lb})
	must(t, err)
	m := d.loadBalancers.members
	var k netMemberKey
	var v netMember
	it := m.Iterate()
	for it.Next(&k, &v) {
		v.Hits = 7
		must(t, m.Put(k, v))
	}
	lb.Backends[0].All = false
	_, err = d.LoadBalancers().Replace("u", []LoadBalancer{lb})
	must(t, err)
	must(t, m.Lookup(k, &v))
	if v.Hits != 7 || v.Flags != 0 {
		t.Errorf("%+v", v)
	}
}

// Programs look for their backends again when one went, and not before.
func TestGenerations(t *testing.T) {
	d := open(t, tablesConfig(t))
	lb := LoadBalancer{Name: "ns/a:http", Protocol: 6, Frontends: fronts(ClusterIP, ap("10.96.0.5:80")), Backends: backs(ap("10.244.0.2:80"))}
	set := func(backends ...Backend) uint32 {
		t.Helper()
		lb.Backends = backends
		_, err := d.LoadBalancers().Replace("u", []LoadBalancer{lb})
		must(t, err)
		var n uint32
		must(t, d.loadBalancers.changes.Lookup(uint32(0), &n))
		return n
	}
	first := set(backs(ap("10.244.0.2:80"))...)
	if n := set(backs(ap("10.244.0.2:80"), ap("10.244.0.3:80"))...); n != first {
		t.Error("a new backend")
	}
	if n := set(backs(ap("10.244.0.2:80"))[0], Backend{Addr: ap("10.244.0.3:80")}); n != first {
		t.Error("a draining backend")
	}
	if n := set(backs(ap("10.244.0.2:80"))...); n == first {
		t.Error("a backend went, and nobody is told")
	}
}

// What meets with a full table is told with its name, the other owners' rows are written, and all is right when there is room.
func TestFullTables(t *testing.T) {
	for name, small := range map[string]func(*ebpf.CollectionSpec){
		"lb_backends":  func(s *ebpf.CollectionSpec) { s.Maps["lb_backends"].MaxEntries = 8 },
		"lb_members":   func(s *ebpf.CollectionSpec) { s.Maps["lb_members"].MaxEntries = 8 },
		"lb_frontends": func(s *ebpf.CollectionSpec) { s.Maps["lb_frontends"].MaxEntries = 2 },
		"lb_services":  func(s *ebpf.CollectionSpec) { s.Maps["lb_services"].MaxEntries = 2 },
		"lb_sources":   func(s *ebpf.CollectionSpec) { s.Maps["lb_sources"].MaxEntries = 2 },
		"lb_maglev":    func(s *ebpf.CollectionSpec) { s.Maps["lb_maglev"].MaxEntries = 10 },
	} {
		t.Run(name, func(t *testing.T) {
			spec, err := loadNet()
			must(t, err)
			small(spec)
			m := map[string]*ebpf.Map{}
			for _, pin := range lbPins {
				spec.Maps[pin].Pinning = ebpf.PinNone
				m[pin], err = ebpf.NewMap(spec.Maps[pin])
				must(t, err)
				defer m[pin].Close()
			}
			table, err := openLoadBalancers(m)
			must(t, err)
			rows := func(owner byte, backends int) []LoadBalancer {
				lb := LoadBalancer{Name: fmt.Sprintf("ns/%c:http", owner), Protocol: 6, Frontends: []Frontend{{
					Addr: ap(fmt.Sprintf("192.0.2.%d:80", owner)), Kind: LoadBalancerIP, Sources: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("198.51.%d.0/24", owner))},
				}}}
				for i := range backends {
					lb.Backends = append(lb.Backends, backs(ap(fmt.Sprintf("10.244.0.%d:80", i+2)))...)
				}
				return []LoadBalancer{lb}
			}
			want := map[string][]LoadBalancer{"a": rows('a', 3), "b": rows('b', 5), "c": rows('c', 3)}
			_, errs := table.ReplaceAll(want)
			if len(errs) != 1 {
				t.Fatalf("errors of %d owners, want one: %v", len(errs), errs)
			}
			for owner, err := range errs {
				if !strings.Contains(err.Error(), "ns/"+owner+":http") || !strings.Contains(err.Error(), "full") || name != "lb_sources" && !strings.Contains(err.Error(), "--max-service-") {
					t.Errorf("of %s: %v", owner, err)
				}
			}
			failed := slices.Collect(maps.Keys(errs))[0]
			if _, err := table.Replace(failed, want[failed]); err == nil {
				t.Error("there is no room still")
			}
			served := rawOf(t, table.lbMaps).seen()
			for owner := range want {
				if _, failed := errs[owner]; failed && name != "lb_maglev" {
					continue
				}
				k := netFrontendKey{Addr: addr16(want[owner][0].Frontends[0].Addr.Addr()), Port: port16(80), Proto: 6}
				if len(served[k].outside) < 3 || served[k].outside[netBackend{}] {
					t.Errorf("%s is served by %v", owner, served[k].outside)
				}
			}
			// Room is made: by one that goes.
			for owner := range want {
				if owner != failed {
					_, err := table.Replace(owner, nil)
					must(t, err)
				}
			}
			_, err = table.Replace(failed, want[failed])
			must(t, err)
			now := rawOf(t, table.lbMaps)
			must(t, now.rounded())
			if len(now.services) != 1 {
				t.Errorf("%d services", len(now.services))
			}
			_, err = table.Replace(failed, nil)
			must(t, err)
			if now = rawOf(t, table.lbMaps); len(now.services)+len(now.frontends)+len(now.slots)+len(now.members)+len(now.maglev)+len(now.sources) != 0 {
				t.Errorf("left behind: %+v", now)
			}
		})
	}
}

// All owners at once come to the same as one by one, two that want one frontend included.
func TestReplaceAll(t *testing.T) {
	d := open(t, tablesConfig(t))
	want := map[string][]LoadBalancer{}
	for i := range 3000 {
		want[fmt.Sprintf("uid-%d", i)] = []LoadBalancer{{
			Name: fmt.Sprint("ns/s:", i), Protocol: 6, Frontends: fronts(ClusterIP, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80)), Backends: backs(ap("10.244.0.2:80"), ap("10.244.0.3:80")),
		}}
	}
	want["uid-7"][0].Frontends = want["uid-8"][0].Frontends
	c, errs := d.loadBalancers.ReplaceAll(want)
	if c.Added != 3000 || len(errs) != 1 || errs["uid-8"] == nil {
		t.Errorf("%+v, %v", c, errs)
	}
	r := rawOf(t, d.loadBalancers.lbMaps)
	must(t, r.rounded())
	if len(r.frontends) != 2999 || len(r.members) != 2999*2 {
		t.Errorf("%d frontends, %d members", len(r.frontends), len(r.members))
	}
	// The two swap what they have.
	first, second := want["uid-1"][0].Frontends, want["uid-2900"][0].Frontends
	want["uid-1"][0].Frontends, want["uid-2900"][0].Frontends = second, first
	delete(want, "uid-8")
	for range 2 {
		c, errs = d.loadBalancers.ReplaceAll(want)
	}
	if len(errs) != 0 {
		t.Errorf("%v", errs)
	}
}

// Another size keeps the rows; one that is too small is refused and changes nothing.
func TestTablesOfAnotherSize(t *testing.T) {
	c := tablesConfig(t)
	d := open(t, c)
	lb := LoadBalancer{Owner: "u", Name: "ns/a:http", Protocol: 6, Frontends: fronts(NodePort, ap("192.0.2.1:30080")), Backends: backs(ap("10.244.0.2:80"), ap("10.244.0.3:80"))}
	_, err := d.LoadBalancers().Replace("u", []LoadBalancer{lb})
	must(t, err)
	for _, size := range []int{100, DefaultMaxBackends, 2, 7} {
		must(t, d.Close())
		c.MaxFrontends, c.MaxBackends = size, size*4
		d = open(t, c)
		if n := d.net.Maps["lb_members"].MaxEntries(); int(n) != size*4 {
			t.Errorf("%d rows, want %d", n, size*4)
		}
		if rows, err := d.LoadBalancers().Dump(); err != nil || !reflect.DeepEqual(rows, []LoadBalancer{lb}) {
			t.Fatalf("%d: %+v, %v", size, rows, err)
		}
	}
	must(t, d.Close())
	c.MaxBackends = 1
	if _, err := Open(c); err == nil || !strings.Contains(err.Error(), "lb_") {
		t.Errorf("error %v", err)
	}
	c.MaxBackends = 0
	d = open(t, c)
	if rows, err := d.LoadBalancers().Dump(); err != nil || !reflect.DeepEqual(rows, []LoadBalancer{lb}) {
		t.Errorf("%+v, %v", rows, err)
	}
}
