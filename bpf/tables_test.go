package bpf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func dumped[R any](t *testing.T, table Table[R], key func(R) string) map[string]R {
	t.Helper()
	rows, err := table.Dump()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]R{}
	for _, r := range rows {
		out[key(r)] = r
	}
	if len(out) != len(rows) {
		t.Fatalf("%d rows, but %d keys", len(rows), len(out))
	}
	return out
}

// Random sequences of Replace and Prune leave what a plain map would hold, also across restarts.
func TestTablesEqualAModel(t *testing.T) {
	c := tablesConfig(t)
	d := open(t, c)
	rng := rand.New(rand.NewPCG(1, 2))
	model := map[string]LoadBalancer{}
	for step := range 300 {
		owner := fmt.Sprintf("uid-%d", rng.IntN(8))
		var want []LoadBalancer
		for i := range rng.IntN(3) {
			lb := LoadBalancer{Owner: owner, Name: fmt.Sprintf("ns/%s:%d", owner, i), Protocol: 6}
			for f := range rng.IntN(4) {
				lb.Frontends = append(lb.Frontends, fronts(ClusterIP, ap(fmt.Sprintf("10.96.%s.%d:%d", owner[4:], i+1, 80+f)))...)
			}
			for range rng.IntN(6) {
				lb.Backends = append(lb.Backends, backs(ap(fmt.Sprintf("10.244.0.%d:8080", 2+rng.IntN(20))))...)
			}
			want = append(want, lb)
		}
		if _, err := d.LoadBalancers().Replace(owner, want); err != nil {
			t.Fatal(err)
		}
		for k, lb := range model {
			if lb.Owner == owner {
				delete(model, k)
			}
		}
		for _, lb := range want {
			var err error
			model[lb.Name], err = NormalLoadBalancer(lb)
			must(t, err)
		}
		if step%50 == 49 {
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			d = open(t, c)
		}
		have := dumped(t, d.LoadBalancers(), func(lb LoadBalancer) string { return lb.Name })
		for k, want := range model {
			got := have[k]
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("step %d: have %+v, want %+v", step, got, want)
			}
		}
		if len(have) != len(model) {
			t.Fatalf("step %d: %d rows, want %d", step, len(have), len(model))
		}
	}
	if _, err := d.LoadBalancers().Prune(func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	st, err := ReadStatus(c.PinDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range st.Maps {
		if m.Rows != 0 {
			t.Errorf("%s holds %d rows after all owners are gone", m.Name, m.Rows)
		}
	}
}

func TestReplaceWritesOnlyDifferences(t *testing.T) {
	d := open(t, tablesConfig(t))
	row := LoadBalancer{Name: "ns/a:http", Protocol: 6, Frontends: fronts(ClusterIP, ap("10.96.0.5:80")), Backends: backs(ap("10.244.0.2:8080"))}
	for i, want := range []Changes{{Added: 1}, {}} {
		if got, err := d.LoadBalancers().Replace("u", []LoadBalancer{row}); err != nil || got != want {
			t.Errorf("round %d: %+v, %v; want %+v", i, got, err, want)
		}
	}
	if got, err := d.LoadBalancers().Replace("u", nil); err != nil || got != (Changes{Deleted: 1}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestOneFrontendHasOneOwner(t *testing.T) {
	d := open(t, tablesConfig(t))
	row := func(name string) []LoadBalancer {
		return []LoadBalancer{{Name: name, Protocol: 6, Frontends: fronts(ClusterIP, ap("10.96.0.5:80"))}}
	}
	if _, err := d.LoadBalancers().Replace("a", row("ns/a:http")); err != nil {
		t.Fatal(err)
	}
	_, err := d.LoadBalancers().Replace("b", row("ns/b:http"))
	if err == nil || !strings.Contains(err.Error(), "ns/a:http") || !strings.Contains(err.Error(), "ns/b:http") {
		t.Errorf("error %v does not name both Services", err)
	}
}

// Two Services that swap a frontend while nobody watched must not wait for each other for ever.
func TestFrontendsAreSwapped(t *testing.T) {
	d := open(t, tablesConfig(t))
	row := func(frontends ...string) []LoadBalancer {
		lb := LoadBalancer{Name: "ns/s:http", Protocol: 6}
		for _, f := range frontends {
			lb.Frontends = append(lb.Frontends, fronts(ClusterIP, ap(f))...)
		}
		return []LoadBalancer{lb}
	}
	write := func(owner string, ok bool, frontends ...string) {
		t.Helper()
		if _, err := d.LoadBalancers().Replace(owner, row(frontends...)); (err == nil) != ok {
			t.Fatalf("%s wants %q: %v", owner, frontends, err)
		}
	}
	write("a", true, "10.96.0.5:80", "192.0.2.1:30001")
	write("b", true, "10.96.0.6:80", "192.0.2.1:30002")
	write("a", false, "10.96.0.5:80", "192.0.2.1:30002")
	write("b", true, "10.96.0.6:80", "192.0.2.1:30001")
	write("a", true, "10.96.0.5:80", "192.0.2.1:30002")
	want := map[string][]Frontend{"a": fronts(ClusterIP, ap("10.96.0.5:80"), ap("192.0.2.1:30002")), "b": fronts(ClusterIP, ap("10.96.0.6:80"), ap("192.0.2.1:30001"))}
	for owner, row := range dumped(t, d.LoadBalancers(), func(lb LoadBalancer) string { return lb.Owner }) {
		if !reflect.DeepEqual(row.Frontends, want[owner]) {
			t.Errorf("%s has %v, want %v", owner, row.Frontends, want[owner])
		}
	}
}

func TestBadRowsAreRefused(t *testing.T) {
	d := open(t, tablesConfig(t))
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for name, try := range map[string]func() (Changes, error){
		"endpoint without a MAC": func() (Changes, error) {
			return d.Endpoints().Replace("s", []Endpoint{{Addr: netip.MustParseAddr("10.244.0.2"), Ifindex: 3, HostMAC: mac}})
		},
		"endpoint with a mapped address": func() (Changes, error) {
			return d.Endpoints().Replace("s", []Endpoint{{Addr: netip.MustParseAddr("::ffff:10.244.0.2"), Ifindex: 3, PodMAC: mac, HostMAC: mac}})
		},
		"endpoint with a zone": func() (Changes, error) {
			return d.Endpoints().Replace("s", []Endpoint{{Addr: netip.MustParseAddr("fe80::1%eth0"), Ifindex: 3, PodMAC: mac, HostMAC: mac}})
		},
		"frontend and backend of two families": func() (Changes, error) {
			return d.LoadBalancers().Replace("s", []LoadBalancer{{Name: "n", Protocol: 6, Frontends: fronts(ClusterIP, ap("10.96.0.5:80")), Backends: backs(ap("[fd00::2]:80"))}})
		},
		"name with addresses and elsewhere": func() (Changes, error) {
			return d.Names().Replace("s", []Name{{Name: "a.b.svc.cluster.local.", Elsewhere: true, Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}})
		},
		"relative name": func() (Changes, error) {
			return d.Names().Replace("s", []Name{{Name: "a.b", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}})
		},
		"owner that does not fit": func() (Changes, error) {
			return d.Names().Replace(strings.Repeat("x", 65), []Name{{Name: "a.b.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}})
		},
		"backend without a port": func() (Changes, error) {
			return d.LoadBalancers().Replace("s", []LoadBalancer{{Name: "n", Protocol: 6, Backends: backs(netip.AddrPortFrom(netip.MustParseAddr("10.244.0.2"), 0))}})
		},
	} {
		if _, err := try(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestEndpointsAndNamesSurviveARestart(t *testing.T) {
	c := tablesConfig(t)
	d := open(t, c)
	ep := Endpoint{Owner: "box", Addr: netip.MustParseAddr("10.244.0.2"), Ifindex: 7, PodMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, HostMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}}
	name := Name{Owner: "uid", Name: "web.default.svc.cluster.local.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5"), netip.MustParseAddr("10.96.0.6")}}
	if _, err := d.Endpoints().Replace("box", []Endpoint{ep}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Names().Replace("uid", []Name{name}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	d = open(t, c)
	if rows, err := d.Endpoints().Dump(); err != nil || !reflect.DeepEqual(rows, []Endpoint{ep}) {
		t.Errorf("%+v, %v", rows, err)
	}
	if rows, err := d.Names().Dump(); err != nil || !reflect.DeepEqual(rows, []Name{name}) {
		t.Errorf("%+v, %v", rows, err)
	}
	if ch, err := d.Names().Prune(func(o string) bool { return o != "uid" }); err != nil || ch.Deleted != 1 {
		t.Errorf("%+v, %v", ch, err)
	}
}

// A renamed port is another row with the same frontend: the frontend moves, and never belongs to nobody.
func TestFrontendMovesWithinAnOwner(t *testing.T) {
	d := open(t, tablesConfig(t))
	row := LoadBalancer{Owner: "u", Name: "ns/a:http", Protocol: 6, Frontends: fronts(ClusterIP, ap("10.96.0.5:80")), Backends: backs(ap("10.244.0.2:8080"))}
	if _, err := d.LoadBalancers().Replace("u", []LoadBalancer{row}); err != nil {
		t.Fatal(err)
	}
	row.Name = "ns/a:web"
	if c, err := d.LoadBalancers().Replace("u", []LoadBalancer{row}); err != nil || c != (Changes{Added: 1, Deleted: 1}) {
		t.Fatalf("%+v, %v", c, err)
	}
	if rows, err := d.LoadBalancers().Dump(); err != nil || !reflect.DeepEqual(rows, []LoadBalancer{row}) {
		t.Errorf("%+v, %v", rows, err)
	}
	if _, err := d.LoadBalancers().Replace("u", nil); err != nil {
		t.Fatal(err)
	}
	if rows, err := d.LoadBalancers().Dump(); err != nil || len(rows) != 0 {
		t.Errorf("%+v, %v", rows, err)
	}
}

func TestBadReplaceWritesNothing(t *testing.T) {
	d := open(t, tablesConfig(t))
	good := LoadBalancer{Name: "ns/a:http", Protocol: 6, Frontends: fronts(ClusterIP, ap("10.96.0.5:80"))}
	double := good
	double.Name = "ns/a:again"
	if _, err := d.LoadBalancers().Replace("u", []LoadBalancer{good, double}); err == nil {
		t.Error("two rows with one frontend were accepted")
	}
	if rows, err := d.LoadBalancers().Dump(); err != nil || len(rows) != 0 {
		t.Errorf("%+v, %v", rows, err)
	}
}

// An agent killed between two writes leaves rows that the next one repairs.
func TestTornRowsAreRepaired(t *testing.T) {
	c := tablesConfig(t)
	d := open(t, c)
	row := LoadBalancer{
		Owner: "u", Name: "ns/a:http", Protocol: 6,
		Frontends: fronts(ClusterIP, ap("10.96.0.5:80"), ap("10.96.0.6:80")),
		Backends:  backs(ap("10.244.0.2:8080"), ap("10.244.0.3:8080")),
	}
	if _, err := d.LoadBalancers().Replace("u", []LoadBalancer{row}); err != nil {
		t.Fatal(err)
	}
	frontends, backends := d.net.Maps["lb_frontends"], d.net.Maps["lb_backends"]
	id := d.loadBalancers.find("u", row.Name, 6).id
	for _, err := range []error{
		frontends.Put(frontendKey(row.Frontends[0].Addr, 6), netFrontend{Service: id, All: 1}), // disagrees with its twin
		frontends.Put(frontendKey(ap("10.96.0.7:80"), 6), netFrontend{Service: id + 1, All: 1}),
		backends.Put(netSlotKey{Service: id, Slot: 2}, netBackend{}),
		backends.Put(netSlotKey{Service: id + 1}, netBackend{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.LoadBalancers().Dump(); err != nil {
		t.Fatal(err)
	}
	if n := rows(frontends) + rows(backends); n != 3+4 {
		t.Errorf("%d rows after Dump, which must change nothing", n)
	}
	d.Close()
	d = open(t, c)
	if got, err := d.LoadBalancers().Replace("u", []LoadBalancer{row}); err != nil || got.Updated != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	frontends, backends = d.net.Maps["lb_frontends"], d.net.Maps["lb_backends"]
	if rows(frontends) != 2 || rows(backends) != 2 {
		t.Errorf("%d frontends and %d backends, want 2 and 2", rows(frontends), rows(backends))
	}
	for _, f := range row.Frontends {
		var fe netFrontend
		if err := frontends.Lookup(frontendKey(f.Addr, 6), &fe); err != nil || fe.All != 2 {
			t.Errorf("%s: %+v, %v", f.Addr, fe, err)
		}
	}
}

// oldMap makes a map as layout 1 had it, with one row.
func oldMap(t *testing.T, c Config, name string, kind ebpf.MapType, key, value []byte) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: name, Type: kind, KeySize: uint32(len(key)), ValueSize: uint32(len(value)), MaxEntries: 64})
	must(t, err)
	defer m.Close()
	must(t, m.Put(key, value))
	must(t, m.Pin(filepath.Join(c.PinDir, name)))
}

// A release with the former layout leaves its rows to this one, also if this one was killed between two maps.
func TestLayout1IsMigrated(t *testing.T) {
	c := tablesConfig(t)
	open(t, c).Close()
	text := func(s string, n int) []byte { return append([]byte(s), make([]byte, n-len(s))...) }
	host := slices.Concat([]byte{7, 0, 0, 0}, podMAC, hostMAC, text("box", 64))
	wire := text("\x03web\x02ns\x03svc\x07cluster\x05local", 256)
	for name, row := range map[string]struct {
		kind       ebpf.MapType
		key, value []byte
	}{
		"endpoints":      {ebpf.Hash, []byte{10, 244, 0, 2}, host},
		"lb_frontends":   {ebpf.Hash, []byte{10, 96, 0, 5, 0, 80, 6, 0}, []byte{9, 0, 0, 0, 1, 0, 0, 0}},
		"lb_backends":    {ebpf.Hash, []byte{9, 0, 0, 0, 0, 0, 0, 0}, []byte{10, 244, 0, 2, 0x1f, 0x90, 0, 0}},
		"names":          {ebpf.Hash, wire, slices.Concat([]byte{1, 0, 0, 0, 10, 96, 0, 5}, make([]byte, 28), text("uid", 64))},
		"masq_fragments": {ebpf.LRUHash, make([]byte, 12), make([]byte, 4)},
		"sock_reverse":   {ebpf.LRUHash, []byte{1, 2, 3, 4, 5, 6, 7, 8, 10, 244, 0, 2, 0x1f, 0x90, 1, 0}, []byte{10, 96, 0, 5, 0, 80, 4, 0}},
	} {
		must(t, os.Remove(filepath.Join(c.PinDir, name)))
		oldMap(t, c, name, row.kind, row.key, row.value)
	}
	services, err := ebpf.LoadPinnedMap(filepath.Join(c.PinDir, "lb_services"), nil) // as it was
	must(t, err)
	defer services.Close()
	must(t, services.Put(uint32(9), slices.Concat(text("uid", 64), text("ns/web:http", 192), []byte{6, 0, 0, 0, 0, 0, 0, 0})))
	version, err := ebpf.LoadPinnedMap(filepath.Join(c.PinDir, versionPin), nil)
	must(t, err)
	defer version.Close()
	for range 2 { // the second time all is done but the version
		must(t, version.Put(uint32(0), uint32(1)))
		d := open(t, c)
		if rows, err := d.Endpoints().Dump(); err != nil || !reflect.DeepEqual(rows, []Endpoint{{Owner: "box", Addr: netip.MustParseAddr(pod), Ifindex: 7, PodMAC: podMAC, HostMAC: hostMAC}}) {
			t.Errorf("%+v, %v", rows, err)
		}
		want := LoadBalancer{Owner: "uid", Name: "ns/web:http", Protocol: 6, Frontends: fronts(ClusterIP, ap("10.96.0.5:80")), Backends: backs(at(pod, 8080))}
		if rows, err := d.LoadBalancers().Dump(); err != nil || !reflect.DeepEqual(rows, []LoadBalancer{want}) {
			t.Errorf("%+v, %v", rows, err)
		}
		if rows, err := d.Names().Dump(); err != nil || !reflect.DeepEqual(rows, []Name{{Owner: "uid", Name: "web.ns.svc.cluster.local.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}}) {
			t.Errorf("%+v, %v", rows, err)
		}
		backend, frontend := addr16(netip.MustParseAddr(pod)).B, addr16(netip.MustParseAddr("10.96.0.5")).B
		peer, err := d.sock.Maps["sock_reverse"].LookupBytes(slices.Concat([]byte{1, 2, 3, 4, 5, 6, 7, 8}, backend[:], []byte{0x1f, 0x90, 1, 0, 0, 0, 0, 0}))
		if err != nil || string(peer) != string(slices.Concat(frontend[:], []byte{0, 80}, make([]byte, 14))) {
			t.Errorf("%x, %v", peer, err)
		}
		must(t, d.Close())
	}
	// What is no layout 1 is not taken for it.
	must(t, version.Put(uint32(0), uint32(1)))
	must(t, os.Remove(filepath.Join(c.PinDir, "lb_backends")))
	oldMap(t, c, "lb_backends", ebpf.Hash, make([]byte, 12), make([]byte, 12))
	if _, err := Open(c); err == nil || !strings.Contains(err.Error(), "lb_backends") {
		t.Errorf("error %v", err)
	}
}

func TestAnotherLayoutIsRefused(t *testing.T) {
	c := tablesConfig(t)
	open(t, c).Close()
	m, err := ebpf.LoadPinnedMap(filepath.Join(c.PinDir, versionPin), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Put(uint32(0), layoutVersion+1); err != nil {
		t.Fatal(err)
	}
	var wrong *LayoutError
	if _, err := Open(c); !errors.As(err, &wrong) || wrong.Have != layoutVersion+1 || wrong.Want != layoutVersion {
		t.Errorf("error %v", err)
	}
}

func frontendKey(f netip.AddrPort, proto uint8) netFrontendKey {
	return netFrontendKey{Addr: addr16(f.Addr()), Port: port16(f.Port()), Proto: proto}
}

// A row's tag tells it from one of another question, whose answer may be the same.
func TestTagsOfStoredAnswers(t *testing.T) {
	seen := map[uint32]netAsked{}
	for _, name := range []string{"\x01a", "\x01b"} {
		for _, k := range []netAsked{{}, {Type: typeA}, {Type: typeAAAA}, {Type: typeA, Bits: AskedRecursion}} {
			copy(k.Key.Name[:], name)
			tag := storedAnswer{key: k, body: []byte("body")}.head(0).Tag
			if other, is := seen[tag]; is {
				t.Errorf("%+v and %+v have one tag", k, other)
			}
			seen[tag] = k
		}
	}
}
