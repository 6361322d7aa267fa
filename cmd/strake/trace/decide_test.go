package trace

import (
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/bpf"
)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestDecide(t *testing.T) {
	pod := Client{Kind: Pod, Addr: netip.MustParseAddr("10.244.0.9"), Netns: 7}
	outside := Client{Kind: Outside, Addr: netip.MustParseAddr("198.18.0.1")}
	here, there := at("10.244.0.2:8080"), at("10.244.1.2:8080")
	row := bpf.ServiceRows{
		LoadBalancer: bpf.LoadBalancer{Name: "demo/echo:http", Protocol: 6, Affinity: time.Minute,
			Frontends: []bpf.Frontend{
				{Addr: at("10.96.0.5:80")}, {Addr: at("198.18.0.2:30080"), Kind: bpf.NodePort, Outside: bpf.Local},
				{Addr: at("203.0.113.5:80"), Kind: bpf.LoadBalancerIP, Sources: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}},
			},
			Backends: []bpf.Backend{{Addr: here, All: true, Local: true}, {Addr: there, All: true}}},
		ID: 3, Slots: [2][]netip.AddrPort{{here, there}, {here}}, Maglev: [2][]uint16{{0, 0, 0, 1}, nil},
	}
	one := row
	one.Affinity, one.Frontends = 0, []bpf.Frontend{{Addr: at("10.96.0.6:80"), Kind: bpf.ExternalIP, Outside: bpf.Local}}
	one.Slots, one.ID = [2][]netip.AddrPort{{there}, nil}, 4
	none := bpf.ServiceRows{LoadBalancer: bpf.LoadBalancer{Name: "demo/none:", Protocol: 6, Frontends: []bpf.Frontend{{Addr: at("10.96.0.7:80")}}}, ID: 5}
	hashed := row
	hashed.Affinity, hashed.Frontends, hashed.ID = 0, []bpf.Frontend{{Addr: at("10.96.0.8:80"), Kind: bpf.ExternalIP}}, 6
	s := State{
		Services: []bpf.ServiceRows{row, one, none, hashed}, NodeAddrs: []netip.Addr{netip.MustParseAddr("198.18.0.2")},
		Endpoints: []bpf.Endpoint{{Addr: here.Addr()}, {Addr: pod.Addr}},
		Remotes:   []bpf.Remote{{Prefix: netip.MustParsePrefix("10.244.1.0/24"), Node: netip.MustParseAddr("198.18.1.2")}},
		Affinity: []bpf.AffinityRow{{Service: 3, Netns: 7, Backend: there, Ago: 2 * time.Second}, {Service: 3, Client: outside.Addr, Backend: here, Ago: 2 * time.Minute},
			{Service: 6, Netns: 7, Backend: there, Ago: time.Second}},
	}
	alone := s
	alone.SocketsOff = []uint64{7}
	direct := s
	direct.DSR = true
	exact := "10.244.0.2:8080 100 of this node"
	if hashed.Maglev[0][bpf.MaglevEntry(netip.AddrPortFrom(outside.Addr, 40000), 80, 6, false, 4)] == 1 {
		exact = "10.244.1.2:8080 100 tunnel"
	}
	for _, c := range []struct {
		name                      string
		from                      Client
		to                        string
		state                     State
		place, rule, verdict, why string
		backends                  string // each as address, chance in percent, part of the path
	}{
		{"kept by the pod's namespace", pod, "10.96.0.5:80", s, "socket", "session affinity: this client chose it 2s ago", Delivered, "", "10.244.1.2:8080 100 tunnel to the node 198.18.1.2"},
		{"a pod whose sockets are left alone has chosen nothing", pod, "10.96.0.5:80", alone, "packet", "one of 2 by chance, then kept for 1m0s", Delivered, "", "10.244.0.2:8080 50 of this node|10.244.1.2:8080 50 tunnel"},
		{"local policy from outside; what was kept has expired", outside, "198.18.0.2:30080", s, "packet", "the only one, then kept", Delivered, "", "10.244.0.2:8080 100 of this node"},
		{"consistent hashing from outside", outside, "10.96.0.8:80", s, "packet", "a table of 4 entries", Delivered, "", "10.244.0.2:8080 75 of this node|10.244.1.2:8080 25 tunnel"},
		{"consistent hashing from outside by a known port", Client{Kind: Outside, Addr: outside.Addr, Port: 40000}, "10.96.0.8:80", s, "packet", "this client's is number", Delivered, "", exact},
		{"the other node answers by itself", outside, "10.96.0.8:80", direct, "packet", "a table of 4 entries", Delivered, "", "10.244.0.2:8080 75 of this node|10.244.1.2:8080 25 (dsr)"},
		{"but not a client of the cluster", Client{Kind: Outside, Addr: netip.MustParseAddr("10.244.1.9")}, "10.96.0.8:80", direct, "packet", "a table of 4 entries", Delivered, "", "10.244.0.2:8080 75 of this node|10.244.1.2:8080 25 by the tunnel to the node"},
		{"no local backend", outside, "10.96.0.6:80", s, "packet", "none", Dropped, "drop_no_local_backend", ""},
		{"a pod asks an external address of it: every backend", pod, "10.96.0.6:80", s, "socket", "the only one", Delivered, "", "10.244.1.2:8080 100 tunnel"},
		{"no backend", pod, "10.96.0.7:80", s, "socket", "no backend", Refused, "no endpoint is ready", ""},
		{"a source that may not ask", outside, "203.0.113.5:80", s, "packet", "none", Dropped, "drop_source_range", ""},
		{"sources are judged at the packet, for pods too", pod, "203.0.113.5:80", s, "packet", "one of 2", Delivered, "", "10.244.0.2:8080 50 of this node|10.244.1.2:8080 50 tunnel"},
		{"no Service: a pod", pod, "10.244.0.2:8080", s, "none", "no Service", Delivered, "", "10.244.0.2:8080 100 of this node"},
		{"no Service: the world", pod, "192.0.2.1:443", s, "none", "no Service", Delivered, "", "192.0.2.1:443 100 out of the cluster"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := Decide(Question{From: c.from, To: at(c.to), Protocol: 6}, c.state)
			if a.Place != c.place || !strings.Contains(a.Rule, c.rule) || a.Verdict != c.verdict || !strings.Contains(a.Reason, c.why) {
				t.Errorf("%+v", a)
			}
			var want []string
			if c.backends != "" {
				want = strings.Split(c.backends, "|")
			}
			if len(want) != len(a.Backends) {
				t.Fatalf("backends %+v", a.Backends)
			}
			for i, w := range want {
				f := strings.SplitN(w, " ", 3)
				b := a.Backends[i]
				percent := map[string]float64{"100": 1, "50": .5, "75": .75, "25": .25}[f[1]]
				if b.Address != f[0] || math.Abs(b.Chance-percent) > 1e-9 || !strings.Contains(b.Path, f[2]) {
					t.Errorf("%+v is not %s", b, w)
				}
			}
		})
	}
	world := Decide(Question{From: pod, To: at("192.0.2.1:443"), Protocol: 6}, s)
	if !strings.Contains(world.Backends[0].Source, "198.18.0.2 (masqueraded)") {
		t.Errorf("%+v", world.Backends)
	}
	far := Decide(Question{From: outside, To: at("10.96.0.8:80"), Protocol: 6}, s)
	if !strings.HasPrefix(far.Backends[1].Source, "198.18.0.2") || far.Backends[0].Source != "198.18.0.1" {
		t.Errorf("%+v", far.Backends)
	}
}

func TestResolve(t *testing.T) {
	names := []bpf.Name{{Name: "echo.demo.svc.cluster.local.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.5")}}, {Name: "echo.other.svc.cluster.local.", Addrs: []netip.Addr{netip.MustParseAddr("10.96.0.6")}}}
	for host, want := range map[string]string{"echo": "10.96.0.5", "Echo.other": "10.96.0.6", "echo.demo.svc": "10.96.0.5", "echo.other.svc.cluster.local.": "10.96.0.6", "::ffff:192.0.2.1": "192.0.2.1"} {
		got, err := Resolve(host, "demo", "cluster.local.", names)
		if err != nil || len(got) != 1 || got[0].String() != want {
			t.Errorf("%s: %v, %v", host, got, err)
		}
	}
	if _, err := Resolve("nobody", "demo", "cluster.local", names); err == nil {
		t.Error("a name that no Service has was resolved")
	}
}

// What pods of another plugin ask by packets, because of source ranges here, keeps their address where their veth has the programs; behind a device that others
// are behind, too, it counts as from outside.
func TestPodsOfOtherPlugins(t *testing.T) {
	pod := Client{Kind: Pod, Addr: netip.MustParseAddr("10.244.0.9")}
	here, there := at("10.244.0.2:8080"), at("10.244.1.2:8080")
	inside := []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	row := bpf.ServiceRows{
		LoadBalancer: bpf.LoadBalancer{Name: "demo/echo:http", Protocol: 6, Backends: []bpf.Backend{{Addr: here, All: true, Local: true}, {Addr: there, All: true}},
			Frontends: []bpf.Frontend{{Addr: at("10.96.0.5:80")}, {Addr: at("203.0.113.5:80"), Kind: bpf.LoadBalancerIP, Outside: bpf.Local, Sources: inside}}},
		ID: 3, Slots: [2][]netip.AddrPort{{here, there}, {here}},
	}
	devices := func(own bool, indexes map[string]int) func(netip.Addr) Device {
		return func(a netip.Addr) Device {
			i := indexes[a.String()]
			return Device{Ifindex: i, Own: own && i != 0}
		}
	}
	const masqueraded = "198.18.0.2 (masqueraded"
	for _, c := range []struct {
		name    string
		to      string
		behind  func(netip.Addr) Device
		place   string
		sources []string // by backend
	}{
		{"at its socket", "10.96.0.5:80", nil, "socket", []string{"10.244.0.9", "10.244.0.9 (its own, unless the CNI plugin"}},
		{"at its veth", "203.0.113.5:80", devices(true, map[string]int{"10.244.0.9": 5, "10.244.0.2": 6}), "packet", []string{"10.244.0.9", "10.244.0.9 (its own, unless the CNI plugin"}},
		{"itself, at its veth", "203.0.113.5:80", devices(true, map[string]int{"10.244.0.9": 5, "10.244.0.2": 5}), "packet", []string{masqueraded, "10.244.0.9 (its own"}},
		{"by a bridge, on which the backend is", "203.0.113.5:80", devices(false, map[string]int{"10.244.0.9": 7, "10.244.0.2": 7}), "packet", []string{masqueraded}},
		{"by a bridge", "203.0.113.5:80", devices(false, map[string]int{"10.244.0.9": 7, "10.244.0.2": 8}), "packet", []string{"10.244.0.9"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := State{Services: []bpf.ServiceRows{row}, NodeAddrs: []netip.Addr{netip.MustParseAddr("198.18.0.2")}, OtherPods: true, Behind: c.behind}
			a := Decide(Question{From: pod, To: at(c.to), Protocol: 6}, s)
			if a.Place != c.place || len(a.Backends) != len(c.sources) {
				t.Fatalf("%+v", a)
			}
			for i, want := range c.sources {
				if got := a.Backends[i].Source; got != want && (!strings.Contains(want, "(") || !strings.HasPrefix(got, want)) {
					t.Errorf("%s sees %s, want %s", a.Backends[i].Address, got, want)
				}
			}
		})
	}
}
