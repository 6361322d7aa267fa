package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/strake-io/strake/bpf"
)

// What the kernel may answer: names with one to eight addresses of a family, or of each.
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
		"no address yet":               {service("s", nil), nil, ""},
		"IPv6":                         {service("s", []string{"fd00::5"}), nil, "[fd00::5]"},
		"both families":                {service("s", []string{"fd00::5", "10.96.0.5"}), nil, "[10.96.0.5 fd00::5]"},
		"an address of both":           {service("s", []string{"::ffff:10.96.0.5"}), nil, ""},
		"ExternalName":                 {service("s", nil, external("example.com")), nil, ""},
		"ExternalName, once ClusterIP": {service("s", []string{"10.96.0.5"}, external("example.com")), nil, ""},
		"headless":                     {service("s", headless), []*discoveryv1.EndpointSlice{ready(2)}, "[10.244.0.1 10.244.0.2]"},
		"headless, two slices":         {service("s", headless), []*discoveryv1.EndpointSlice{ready(2), endpoints("s", "b", nil, "10.244.0.2", "10.244.0.3")}, "[10.244.0.1 10.244.0.2 10.244.0.3]"},
		"headless, nobody":             {service("s", headless), nil, ""},
		"headless, not ready":          {service("s", headless), []*discoveryv1.EndpointSlice{ready(0, "10.244.0.9!")}, ""},
		"headless, one not ready":      {service("s", headless), []*discoveryv1.EndpointSlice{ready(1, "10.244.0.9!")}, "[10.244.0.1]"},
		"headless, not ready, told":    {service("s", headless, publish), []*discoveryv1.EndpointSlice{ready(0, "10.244.0.9!")}, "[10.244.0.9]"},
		"headless, eight":              {service("s", headless), []*discoveryv1.EndpointSlice{ready(8)}, "[10.244.0.1 10.244.0.2 10.244.0.3 10.244.0.4 10.244.0.5 10.244.0.6 10.244.0.7 10.244.0.8]"},
		"headless, nine":               {service("s", headless), []*discoveryv1.EndpointSlice{ready(9)}, ""},
		"headless, IPv6 too":           {service("s", headless), []*discoveryv1.EndpointSlice{ready(1, "fd00::1")}, "[10.244.0.1 fd00::1]"},
		"headless, a slice of each":    {service("s", headless), []*discoveryv1.EndpointSlice{endpoints("s", "b", nil, "fd00::2", "fd00::1"), ready(1)}, "[10.244.0.1 fd00::1 fd00::2]"},
		"headless, IPv6 only":          {service("s", headless), []*discoveryv1.EndpointSlice{ready(0, "fd00::1")}, "[fd00::1]"},
		"headless, eight and one":      {service("s", headless), []*discoveryv1.EndpointSlice{ready(8, "fd00::1")}, "[10.244.0.1 10.244.0.2 10.244.0.3 10.244.0.4 10.244.0.5 10.244.0.6 10.244.0.7 10.244.0.8 fd00::1]"},
		"headless, nine and one":       {service("s", headless), []*discoveryv1.EndpointSlice{ready(9, "fd00::1")}, ""},
		"headless, nine of IPv6":       {service("s", headless), []*discoveryv1.EndpointSlice{ready(1, "fd00::1", "fd00::2", "fd00::3", "fd00::4", "fd00::5", "fd00::6", "fd00::7", "fd00::8", "fd00::9")}, ""},
		"headless, what is no address": {service("s", headless), []*discoveryv1.EndpointSlice{ready(1, "db.example.com")}, "[10.244.0.1]"},
	} {
		var got string
		rows := Desired(c.service, c.slices, "Cluster.Local.")
		if len(rows) > 0 {
			got = fmt.Sprint(rows[0].Addrs)
		}
		if got != c.want || len(rows) > 1 || len(rows) == 1 && (rows[0].Name != "s.default.svc.cluster.local." || rows[0].Owner != "uid-s") {
			t.Errorf("%s: %v, want %s", name, rows, c.want)
		}
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
		out[name] = fmt.Sprint(n.Owner, n.Addrs)
	}
	return out
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
		watched <- struct{}{}
		return true, w, err
	})
	return client, watched
}

// start runs a feeder until stop, and returns when nothing that happens is missed.
func start(t *testing.T, client *fake.Clientset, watched chan struct{}, table bpf.Table[bpf.Name]) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := informers.NewSharedInformerFactory(client, 0)
	n, err := NewNames(f, table, "cluster.local")
	must(t, err)
	f.Start(ctx.Done())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	for range 2 { // Services and EndpointSlices
		<-watched
	}
	return sync.OnceFunc(func() {
		cancel()
		must(t, <-done)
		f.Shutdown()
	})
}

// TestNamesFollowTheAPI makes random changes, with Services that are deleted and made again, a table that fails now and
// then, and agents that stop and start; in the end the names must be what a look at everything gives.
func TestNamesFollowTheAPI(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			client, watched := newClient()
			table := newTable(20)
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
						out[n.Name] = fmt.Sprint(n.Owner, n.Addrs)
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
				stop := start(t, client, watched, table)
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
	table := newTable(0)
	both := map[string]string{"a.default.svc.cluster.local.": "uid-a[10.96.0.5]", "b.default.svc.cluster.local.": "uid-b[10.96.0.6]"}
	stop := start(t, client, watched, table)
	table.await(t, both)
	stop()
	if got := table.flat(); !reflect.DeepEqual(got, both) {
		t.Errorf("after the end: %v", got)
	}
	must(t, client.CoreV1().Services("default").Delete(context.Background(), "a", metav1.DeleteOptions{}))

	// A feeder that never sees the cluster.
	f := informers.NewSharedInformerFactory(client, 0)
	n, err := NewNames(f, table, "cluster.local")
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
	defer start(t, client, watched, table)()
	delete(both, "a.default.svc.cluster.local.")
	table.await(t, both)
}

// A Service that is made again has another UID: its predecessor's row must neither stay nor hold the name.
func TestRenewedService(t *testing.T) {
	client, watched := newClient(service("a", []string{"10.96.0.5"}))
	table := newTable(0)
	defer start(t, client, watched, table)()
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
