package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/mirror"
)

// What the kernel knows of Services: names with one to eight addresses of a family, or of each, and what it leaves to user space.
func TestDesired(t *testing.T) {
	ready := func(n int, more ...string) *discoveryv1.EndpointSlice {
		for i := range n {
			more = append(more, fmt.Sprint("10.244.0.", i+1))
		}
		return endpoints("s", "a", nil, more...)
	}
	for name, c := range map[string]struct {
		service *corev1.Service
		slices  []*discoveryv1.EndpointSlice
		want    string
	}{
		"a cluster address":            {service("s", []string{"10.96.0.5"}), nil, "[10.96.0.5]"},
		"its endpoints don't matter":   {service("s", []string{"10.96.0.5"}), []*discoveryv1.EndpointSlice{ready(20, "fd00::1")}, "[10.96.0.5]"},
		"the older field":              {service("s", nil, func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.0.5" }), nil, "[10.96.0.5]"},
		"no address yet":               {service("s", nil), nil, "elsewhere"},
		"IPv6":                         {service("s", []string{"fd00::5"}), nil, "[fd00::5]"},
		"both families":                {service("s", []string{"fd00::5", "10.96.0.5"}), nil, "[10.96.0.5 fd00::5]"},
		"an address of both":           {service("s", []string{"::ffff:10.96.0.5"}), nil, "elsewhere"},
		"ExternalName":                 {service("s", nil, external("example.com")), nil, "elsewhere"},
		"ExternalName, once ClusterIP": {service("s", []string{"10.96.0.5"}, external("example.com")), nil, "elsewhere"},
		"headless":                     {service("s", headless), []*discoveryv1.EndpointSlice{ready(2)}, "[10.244.0.1 10.244.0.2]"},
		"headless, two slices":         {service("s", headless), []*discoveryv1.EndpointSlice{ready(2), endpoints("s", "b", nil, "10.244.0.2", "10.244.0.3")}, "[10.244.0.1 10.244.0.2 10.244.0.3]"},
		"headless, nobody":             {service("s", headless), nil, ""},
		"headless, not ready":          {service("s", headless), []*discoveryv1.EndpointSlice{ready(0, "10.244.0.9!")}, ""},
		"headless, one not ready":      {service("s", headless), []*discoveryv1.EndpointSlice{ready(1, "10.244.0.9!")}, "[10.244.0.1]"},
		"headless, not ready, told":    {service("s", headless, publish), []*discoveryv1.EndpointSlice{ready(0, "10.244.0.9!")}, "[10.244.0.9]"},
		"headless, eight":              {service("s", headless), []*discoveryv1.EndpointSlice{ready(8)}, "[10.244.0.1 10.244.0.2 10.244.0.3 10.244.0.4 10.244.0.5 10.244.0.6 10.244.0.7 10.244.0.8]"},
		"headless, nine":               {service("s", headless), []*discoveryv1.EndpointSlice{ready(9)}, "elsewhere"},
		"headless, IPv6 too":           {service("s", headless), []*discoveryv1.EndpointSlice{ready(1, "fd00::1")}, "[10.244.0.1 fd00::1]"},
		"headless, a slice of each":    {service("s", headless), []*discoveryv1.EndpointSlice{endpoints("s", "b", nil, "fd00::2", "fd00::1"), ready(1)}, "[10.244.0.1 fd00::1 fd00::2]"},
		"headless, IPv6 only":          {service("s", headless), []*discoveryv1.EndpointSlice{ready(0, "fd00::1")}, "[fd00::1]"},
		"headless, eight and one":      {service("s", headless), []*discoveryv1.EndpointSlice{ready(8, "fd00::1")}, "[10.244.0.1 10.244.0.2 10.244.0.3 10.244.0.4 10.244.0.5 10.244.0.6 10.244.0.7 10.244.0.8 fd00::1]"},
		"headless, nine and one":       {service("s", headless), []*discoveryv1.EndpointSlice{ready(9, "fd00::1")}, "elsewhere"},
		"headless, nine of IPv6":       {service("s", headless), []*discoveryv1.EndpointSlice{ready(1, "fd00::1", "fd00::2", "fd00::3", "fd00::4", "fd00::5", "fd00::6", "fd00::7", "fd00::8", "fd00::9")}, "elsewhere"},
		"headless, hostnames":          {service("s", headless), []*discoveryv1.EndpointSlice{ready(1, "s-0=10.244.0.8", "s-1=10.244.0.9!"), endpoints("s", "b", nil, "s-0=fd00::8")}, "[10.244.0.1 10.244.0.8 fd00::8] s-0[10.244.0.8 fd00::8]"},
		"headless, no host's name":     {service("s", headless), []*discoveryv1.EndpointSlice{ready(0, "a.b=10.244.0.8")}, "[10.244.0.8]"},
		"a cluster address, hostnames": {service("s", []string{"10.96.0.5"}), []*discoveryv1.EndpointSlice{ready(0, "s-0=10.244.0.8", "s-1=10.244.0.9!")}, "[10.96.0.5] s-0[10.244.0.8]"},
		"headless, what is no address": {service("s", headless), []*discoveryv1.EndpointSlice{ready(1, "db.example.com")}, "[10.244.0.1]"},
	} {
		var got []string
		rows := Desired(c.service, c.slices, "Cluster.Local.")
		for _, r := range rows {
			host, _, _ := strings.Cut(r.Name, ".")
			if a, ok := dashed(host); ok { // an endpoint by its address: see below
				if len(r.Addrs) != 1 || r.Addrs[0] != a {
					t.Errorf("%s: %v", name, r)
				}
				continue
			}
			text := fmt.Sprint(r.Addrs)
			if r.Elsewhere {
				text = "elsewhere"
			}
			if host, ok := strings.CutSuffix(r.Name, ".s.default.svc.cluster.local."); ok {
				text = host + text
			} else if r.Name != "s.default.svc.cluster.local." {
				t.Errorf("%s: %v", name, r)
			}
			if got = append(got, text); r.Owner != "uid-s" {
				t.Errorf("%s: %v", name, r)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", name, rows, c.want)
		}
	}
}

// Endpoints of headless Services without a hostname are known by their addresses, each spelling as the server has it.
func TestDesiredNamesOfAddresses(t *testing.T) {
	list := []*discoveryv1.EndpointSlice{endpoints("s", "a", nil, "10.244.0.1", "10.244.0.2!", "s-0=10.244.0.3", "10-244-0-4=10.244.0.9"), endpoints("s", "b", nil, "FD00:0::1", "::2", "fd00::", "::ffff:10.244.0.5", "10.244.0.1")}
	got := map[string]string{}
	for _, r := range Desired(service("s", headless), list, "cluster.local") {
		got[strings.TrimSuffix(r.Name, ".default.svc.cluster.local.")] = fmt.Sprint(r.Addrs, r.Elsewhere)
	}
	want := map[string]string{"s": "[] true", "10-244-0-1.s": "[10.244.0.1] false", "s-0.s": "[10.244.0.3] false", "10-244-0-4.s": "[10.244.0.9] false", "fd00--1.s": "[fd00::1] false",
		"--2.s": "[::2] false", "fd00--.s": "[fd00::] false", "--ffff-10-244-0-5.s": "[] true"}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	// The names by address of a Service with an address of its own are the resolver's: who asks for them has read them in a PTR.
	if rows := Desired(service("s", []string{"10.96.0.5"}), list, "cluster.local"); len(rows) != 2 || !strings.HasPrefix(rows[1].Name, "s-0.s.") {
		t.Errorf("of a Service with an address of its own: %v", rows)
	}
}

// fakeTable refuses what the kernel's refuses: a name of another owner. failures calls in a hundred fail.
type fakeTable struct {
	mu       sync.Mutex
	rows     map[string]bpf.Name // by name
	failures int
	failed   int
	random   *rand.Rand
	changed  chan struct{}
}

func newTable(failures int) *fakeTable {
	return &fakeTable{rows: map[string]bpf.Name{}, failures: failures, random: rand.New(rand.NewPCG(1, 2)), changed: make(chan struct{}, 1)}
}

// begin is the start of each call; the caller unlocks.
func (f *fakeTable) begin() error {
	f.mu.Lock()
	select {
	case f.changed <- struct{}{}:
	default:
	}
	if f.random.IntN(100) < f.failures {
		f.failed++
		return errors.New("no memory")
	}
	return nil
}

func (f *fakeTable) Replace(owner string, want []bpf.Name) (bpf.Changes, error) {
	err := f.begin()
	defer f.mu.Unlock()
	if err != nil {
		return bpf.Changes{}, err
	}
	for _, n := range want {
		if have, ok := f.rows[n.Name]; ok && have.Owner != owner {
			return bpf.Changes{}, fmt.Errorf("%s belongs to %s", n.Name, have.Owner)
		}
	}
	maps.DeleteFunc(f.rows, func(_ string, n bpf.Name) bool { return n.Owner == owner })
	for _, n := range want {
		n.Owner = owner
		f.rows[n.Name] = n
	}
	return bpf.Changes{}, nil
}

func (f *fakeTable) Prune(keep func(string) bool) (bpf.Changes, error) {
	err := f.begin()
	defer f.mu.Unlock()
	if err != nil {
		return bpf.Changes{}, err
	}
	maps.DeleteFunc(f.rows, func(_ string, n bpf.Name) bool { return !keep(n.Owner) })
	return bpf.Changes{}, nil
}

func (f *fakeTable) Dump() ([]bpf.Name, error) { return nil, nil }

// flat is what is answered: name → owner and addresses.
func (f *fakeTable) flat() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]string{}
	for name, n := range f.rows {
		out[name] = flat(n)
	}
	return out
}

func flat(n bpf.Name) string {
	if n.Elsewhere {
		return n.Owner + " elsewhere"
	}
	return fmt.Sprint(n.Owner, n.Addrs)
}

// fakeState holds what the kernel is told.
type fakeState struct {
	mu   sync.Mutex
	v    bpf.NamesState
	fail int // so many writes
}

func (f *fakeState) SetNamesState(v bpf.NamesState) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail > 0 {
		f.fail--
		return errors.New("not now")
	}
	f.v = v
	return nil
}

func (f *fakeState) NamesState() (bpf.NamesState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.v, nil
}

// await waits until the table answers want.
func (f *fakeTable) await(t *testing.T, want map[string]string) {
	t.Helper()
	for !reflect.DeepEqual(f.flat(), want) {
		<-f.changed
	}
}

// newClient tells, by watched, of each watch that has begun: the fake clientset forgets what happens between a list and
// its watch, which an API server does not.
func newClient(objs ...apiruntime.Object) (client *fake.Clientset, watched chan struct{}) {
	client, watched = fake.NewClientset(objs...), make(chan struct{}, 100)
	client.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		w, err := client.Tracker().Watch(action.GetResource(), action.GetNamespace())
		select {
		case watched <- struct{}{}:
		default: // nobody waits for so many
		}
		return true, w, err
	})
	return client, watched
}

// start runs a feeder until stop, and returns when nothing that happens is missed.
func start(t *testing.T, client *fake.Clientset, watched chan struct{}, table bpf.Table[bpf.Name], state *fakeState) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m := mirror.New(client, "")
	n, err := NewNames(m, table, state, "cluster.local")
	must(t, err)
	stopFollowing := follow(m)
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	for range 3 { // Services, EndpointSlices and namespaces
		<-watched
	}
	return sync.OnceFunc(func() {
		cancel()
		must(t, <-done)
		stopFollowing()
	})
}

// TestNamesFollowTheAPI makes random changes, with Services that are deleted and made again, a table that fails now and
// then, and agents that stop and start; in the end the names must be what a look at everything gives.
func TestNamesFollowTheAPI(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			client, watched := newClient()
			table, state := newTable(20), &fakeState{}
			services, slicesByID := map[string]*corev1.Service{}, map[string]*discoveryv1.EndpointSlice{}
			uid := 0
			want := func() map[string]string {
				out := map[string]string{}
				for _, s := range services {
					var list []*discoveryv1.EndpointSlice
					for _, sl := range slicesByID {
						if sl.Labels[discoveryv1.LabelServiceName] == s.Name {
							list = append(list, sl)
						}
					}
					for _, n := range Desired(s, list, "cluster.local") {
						out[n.Name] = flat(n)
					}
				}
				return out
			}
			step := func() {
				ctx := context.Background()
				name := fmt.Sprint("s", random.IntN(5))
				api, sliceAPI := client.CoreV1().Services("default"), client.DiscoveryV1().EndpointSlices("default")
				if random.IntN(2) == 0 {
					old := services[name]
					if old != nil && random.IntN(2) == 0 {
						must(t, api.Delete(ctx, name, metav1.DeleteOptions{}))
						delete(services, name)
						if random.IntN(2) == 0 {
							return
						}
						old = nil // made again at once
					}
					s := service(name, [][]string{headless, {fmt.Sprint("10.96.0.", 20+random.IntN(50))}, {"fd00::1"}}[random.IntN(3)])
					var err error
					if old != nil {
						s.UID = old.UID
						_, err = api.Update(ctx, s, metav1.UpdateOptions{})
					} else {
						uid++
						s.UID = types.UID(fmt.Sprint("uid", uid))
						_, err = api.Create(ctx, s, metav1.CreateOptions{})
					}
					must(t, err)
					services[name] = s
					return
				}
				id := fmt.Sprint(random.IntN(6))
				old := slicesByID[id]
				if old != nil && random.IntN(4) == 0 {
					must(t, sliceAPI.Delete(ctx, old.Name, metav1.DeleteOptions{}))
					delete(slicesByID, id)
					return
				}
				var addrs []string
				for range random.IntN(6) {
					addrs = append(addrs, fmt.Sprint("10.244.0.", 2+random.IntN(20))+[]string{"", "!"}[random.IntN(2)])
				}
				sl := endpoints(name, "", nil, addrs...)
				sl.Name = "sl" + id // it may move to another Service
				var err error
				if old != nil {
					_, err = sliceAPI.Update(ctx, sl, metav1.UpdateOptions{})
				} else {
					_, err = sliceAPI.Create(ctx, sl, metav1.CreateOptions{})
				}
				must(t, err)
				slicesByID[id] = sl
			}
			for range 4 {
				stop := start(t, client, watched, table, state)
				for range 60 {
					step()
				}
				table.await(t, want())
				stop()
				for range 10 { // while no agent runs
					step()
				}
			}
			if table.failed == 0 {
				t.Error("no call failed")
			}
		})
	}
}

// Names stay while no feeder runs and until another has seen the cluster; then those of Services that went go.
func TestNamesAtARestart(t *testing.T) {
	client, watched := newClient(service("a", []string{"10.96.0.5"}), service("b", []string{"10.96.0.6"}))
	table, state := newTable(0), &fakeState{}
	both := map[string]string{"a.default.svc.cluster.local.": "uid-a[10.96.0.5]", "b.default.svc.cluster.local.": "uid-b[10.96.0.6]"}
	stop := start(t, client, watched, table, state)
	table.await(t, both)
	stop()
	if got := table.flat(); !reflect.DeepEqual(got, both) {
		t.Errorf("after the end: %v", got)
	}
	must(t, client.CoreV1().Services("default").Delete(context.Background(), "a", metav1.DeleteOptions{}))

	// A feeder that never sees the cluster.
	n, err := NewNames(mirror.New(client, ""), table, state, "cluster.local")
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	cancel()
	must(t, <-done)
	if got := table.flat(); !reflect.DeepEqual(got, both) {
		t.Errorf("names were touched before the cluster was seen: %v", got)
	}

	// The prune fails for a while.
	table.mu.Lock()
	table.failures = 60
	table.mu.Unlock()
	defer start(t, client, watched, table, state)()
	delete(both, "a.default.svc.cluster.local.")
	table.await(t, both)
}

// A Service that is made again has another UID: its predecessor's row must neither stay nor hold the name.
func TestRenewedService(t *testing.T) {
	client, watched := newClient(service("a", []string{"10.96.0.5"}))
	table, state := newTable(0), &fakeState{}
	defer start(t, client, watched, table, state)()
	table.await(t, map[string]string{"a.default.svc.cluster.local.": "uid-a[10.96.0.5]"})
	for i := range 20 {
		s := service("a", []string{fmt.Sprint("10.96.1.", i)})
		s.UID = types.UID(fmt.Sprint("new", i))
		must(t, client.CoreV1().Services("default").Delete(context.Background(), "a", metav1.DeleteOptions{}))
		_, err := client.CoreV1().Services("default").Create(context.Background(), s, metav1.CreateOptions{})
		must(t, err)
	}
	table.await(t, map[string]string{"a.default.svc.cluster.local.": "new19[10.96.1.19]"})
}

// The kernel is told that it has all names once it has, never while one could not be written, and goes on by it when an agent starts anew.
func TestNamesAreWhole(t *testing.T) {
	client, watched := newClient(service("a", []string{"10.96.0.5"}), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", UID: "ns"}})
	table, state := newTable(0), &fakeState{}
	whole := func() bool { v, _ := state.NamesState(); return v.Whole }
	refuse := func(percent int) {
		table.mu.Lock()
		defer table.mu.Unlock()
		table.failures = percent
	}
	stop := start(t, client, watched, table, state)
	await(t, "all names to be there", whole)
	if got := table.flat(); len(got) != 2 || got["default.svc.cluster.local."] != "ns[]" {
		t.Errorf("all are %v", got)
	}
	refuse(100)
	_, err := client.CoreV1().Services("default").Create(context.Background(), service("b", []string{"10.96.0.6"}), metav1.CreateOptions{})
	must(t, err)
	await(t, "a name that is missing to be told", func() bool { return !whole() })
	refuse(0)
	await(t, "the name to be there", whole)
	stop()
	if !whole() {
		t.Error("not whole without an agent")
	}
	defer start(t, client, watched, table, state)()
	if !whole() {
		t.Error("not whole while an agent starts")
	}
}

// A configuration that says something of the zone leaves it to user space.
func TestNamesAreConfigured(t *testing.T) {
	client, _ := newClient()
	state := &fakeState{}
	n, err := NewNames(mirror.New(client, ""), newTable(0), state, "cluster.local")
	must(t, err)
	for name, c := range map[string]struct {
		cfg  Config
		want bpf.NamesState
	}{
		"by default":            {Config{}, bpf.NamesState{Pods: true, TTL: 30}},
		"pods' names disabled":  {Config{Pods: PodsDisabled}, bpf.NamesState{TTL: 30}},
		"pods' names verified":  {Config{Pods: PodsVerified}, bpf.NamesState{TTL: 30}},
		"another TTL":           {Config{TTL: 5}, bpf.NamesState{Pods: true, TTL: 5}},
		"hosts elsewhere":       {Config{Hosts: []Host{{"192.0.2.1", []string{"a.example"}}}}, bpf.NamesState{Pods: true, TTL: 30}},
		"hosts in the zone":     {Config{Hosts: []Host{{"192.0.2.1", []string{"b.example", "a.Cluster.local"}}}}, bpf.NamesState{Pods: true, TTL: 30, Off: true}},
		"a stub elsewhere":      {Config{Stubs: []Stub{{Zone: "a.example", Upstream: Upstream{Servers: []string{"192.0.2.1"}}}}}, bpf.NamesState{Pods: true, TTL: 30}},
		"a stub in the zone":    {Config{Stubs: []Stub{{Zone: "consul.cluster.local", Upstream: Upstream{Servers: []string{"192.0.2.1"}}}}}, bpf.NamesState{Pods: true, TTL: 30, Off: true}},
		"a second zone":         {Config{Zones: []string{"cluster.local", "old.example"}}, bpf.NamesState{Pods: true, TTL: 30}},
		"a second zone, below":  {Config{Zones: []string{"cluster.local", "b.cluster.local"}}, bpf.NamesState{Pods: true, TTL: 30, Off: true}},
		"rewrites of any names": {Config{Rewrites: []Rewrite{{From: "a.example", To: "b.example"}}}, bpf.NamesState{Pods: true, TTL: 30, Off: true}},
	} {
		must(t, n.Configure(c.cfg))
		if got, _ := state.NamesState(); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
