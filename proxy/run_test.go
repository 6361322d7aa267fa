package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/strake-io/strake/bpf"
)

// fakeTable leaves out what the kernel's leaves out: a frontend of another owner. failures calls in a hundred fail.
type fakeTable struct {
	mu       sync.Mutex
	rows     map[string][]bpf.LoadBalancer
	failures int
	random   *rand.Rand
	changed  chan struct{}
}

func newTable(failures int) *fakeTable {
	return &fakeTable{rows: map[string][]bpf.LoadBalancer{}, failures: failures, random: rand.New(rand.NewPCG(1, 2)), changed: make(chan struct{}, 1)}
}

func (f *fakeTable) Replace(owner string, want []bpf.LoadBalancer) (bpf.Changes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.tell()
	if f.random.IntN(100) < f.failures {
		return bpf.Changes{}, errors.New("no memory")
	}
	taken := map[string]string{}
	for o, rows := range f.rows {
		for _, r := range rows {
			for _, fe := range r.Frontends {
				taken[fmt.Sprint(r.Protocol, fe.Addr)] = o
			}
		}
	}
	var errs []error
	for i, r := range want {
		want[i].Frontends = slices.DeleteFunc(slices.Clone(r.Frontends), func(fe bpf.Frontend) bool {
			o, ok := taken[fmt.Sprint(r.Protocol, fe.Addr)]
			if ok = ok && o != owner; ok {
				errs = append(errs, fmt.Errorf("%s belongs to %s", fe.Addr, o))
			}
			return ok
		})
	}
	c := bpf.Changes{Added: len(want), Deleted: len(f.rows[owner])}
	if f.rows[owner] = want; len(want) == 0 {
		delete(f.rows, owner)
	}
	return c, errors.Join(errs...)
}

func (f *fakeTable) tell() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

func (f *fakeTable) Prune(keep func(string) bool) (bpf.Changes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.tell()
	if f.random.IntN(100) < f.failures {
		return bpf.Changes{}, errors.New("no memory")
	}
	for o := range f.rows {
		if !keep(o) {
			delete(f.rows, o)
		}
	}
	return bpf.Changes{}, nil
}

func (f *fakeTable) Dump() ([]bpf.LoadBalancer, error) { return nil, nil }

// flat is what traffic sees: frontend → backends.
func (f *fakeTable) flat() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]string{}
	for _, rows := range f.rows {
		for _, r := range rows {
			for _, fe := range r.Frontends {
				out[fmt.Sprintf("%d/%s", r.Protocol, fe.Addr)] = fmt.Sprint(addresses([]bpf.LoadBalancer{r})[0].Backends)
			}
		}
	}
	return out
}

// hostPort is a row of a pod's: not the proxy's business.
var hostPort = bpf.LoadBalancer{Protocol: 6, Frontends: []bpf.Frontend{{Addr: aps("192.0.2.1:80")[0], Kind: bpf.HostPort}}, Backends: []bpf.Backend{{Addr: aps("10.244.0.9:8080")[0], All: true}}}

// cluster is the naive reference: what the API holds, and what follows for traffic by looking at all of it.
type cluster struct {
	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
}

func (c *cluster) want() map[string]string {
	out := map[string]string{"6/" + hostPort.Frontends[0].Addr.String(): "[" + hostPort.Backends[0].Addr.String() + "]"}
	for _, s := range c.services {
		var ready []netip.AddrPort
		for _, sl := range c.slices {
			if sl.Labels[discoveryv1.LabelServiceName] != s.Name {
				continue
			}
			for _, e := range sl.Endpoints {
				if *e.Conditions.Ready {
					ready = append(ready, netip.AddrPortFrom(netip.MustParseAddr(e.Addresses[0]), 8080))
				}
			}
		}
		slices.SortFunc(ready, netip.AddrPort.Compare)
		text := fmt.Sprint(slices.Compact(ready))
		out["6/"+s.Spec.ClusterIP+":80"] = text
		if p := s.Spec.Ports[0].NodePort; p != 0 {
			out[fmt.Sprintf("6/192.0.2.1:%d", p)] = text
		}
	}
	return out
}

// TestFollowsTheAPI makes random changes, with addresses and NodePorts that move between Services, a table that fails now
// and then, and agents that stop and start; in the end the table must be what a look at everything gives.
func TestFollowsTheAPI(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 7))
			client := fake.NewClientset()
			watches := countWatches(client)
			table := newTable(20)
			table.rows[bpf.HostPortOwner+"pod/eth0"] = []bpf.LoadBalancer{hostPort}
			c := &cluster{services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{}}
			uid := 0
			var total Metrics
			for round := range 4 {
				ctx, cancel := context.WithCancel(t.Context())
				if round == 2 {
					// A row of a Service that went, with its frontend, while no agent ran.
					for name := range c.services {
						must(t, client.CoreV1().Services("ns").Delete(ctx, name, metav1.DeleteOptions{}))
						delete(c.services, name)
						break
					}
				}
				f := informers.NewSharedInformerFactory(client, 0)
				p, err := New(Config{Informers: f, Table: table, Node: testNode})
				must(t, err)
				f.Start(ctx.Done())
				done := make(chan error, 1)
				go func() { done <- p.Run(ctx) }()
				awaitWatches(ctx, f, watches)
				for range 60 {
					change(t, ctx, client, c, random, &uid)
				}
				for !reflect.DeepEqual(table.flat(), c.want()) {
					select {
					case <-table.changed:
					case err := <-done:
						t.Fatalf("the proxy ended: %v", err)
					}
				}
				m := p.Metrics()
				total.Syncs, total.Failures, total.Added, total.Deleted = total.Syncs+m.Syncs, total.Failures+m.Failures, total.Added+m.Added, total.Deleted+m.Deleted
				cancel()
				must(t, <-done)
				f.Shutdown()
			}
			if total.Syncs == 0 || total.Failures == 0 || total.Added == 0 || total.Deleted == 0 {
				t.Errorf("metrics %+v", total)
			}
		})
	}
}

// countWatches tells of each watch that the fake API has opened. Unlike the real one it can't replay what happened between an
// informer's list and its watch, so a test that changes objects before the watch is open loses the change for ever.
func countWatches(client *fake.Clientset) <-chan struct{} {
	opened := make(chan struct{}, 16)
	client.PrependWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		w, err := client.Tracker().Watch(action.GetResource(), action.GetNamespace())
		opened <- struct{}{}
		return true, w, err
	})
	return opened
}

func awaitWatches(ctx context.Context, f informers.SharedInformerFactory, opened <-chan struct{}) {
	for range f.WaitForCacheSync(ctx.Done()) {
		<-opened
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func change(t *testing.T, ctx context.Context, client *fake.Clientset, c *cluster, random *rand.Rand, uid *int) {
	t.Helper()
	name := fmt.Sprint("s", random.IntN(6))
	services, sliceClient := client.CoreV1().Services("ns"), client.DiscoveryV1().EndpointSlices("ns")
	if random.IntN(2) == 0 {
		old := c.services[name]
		if old != nil && random.IntN(3) == 0 {
			must(t, services.Delete(ctx, name, metav1.DeleteOptions{}))
			delete(c.services, name)
			return
		}
		s := service(func(s *corev1.Service) { s.Name = name })
		s.Spec.ClusterIP, s.Spec.Ports[0].NodePort = free(c, random, name)
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		var err error
		if old != nil {
			s.UID = old.UID
			_, err = services.Update(ctx, s, metav1.UpdateOptions{})
		} else {
			*uid++
			s.UID = types.UID(fmt.Sprint("uid", *uid))
			_, err = services.Create(ctx, s, metav1.CreateOptions{})
		}
		must(t, err)
		c.services[name] = s
		return
	}
	id := fmt.Sprint("sl", random.IntN(8))
	old := c.slices[id]
	if old != nil && random.IntN(4) == 0 {
		must(t, sliceClient.Delete(ctx, id, metav1.DeleteOptions{}))
		delete(c.slices, id)
		return
	}
	sl := slice(func(s *discoveryv1.EndpointSlice) {
		s.Namespace, s.Name, s.Labels, s.Endpoints = "ns", id, map[string]string{discoveryv1.LabelServiceName: name}, nil
		for range random.IntN(4) {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.244.0.%d", 2+random.IntN(20))}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(random.IntN(3) > 0)},
			})
		}
	})
	var err error
	if old != nil {
		_, err = sliceClient.Update(ctx, sl, metav1.UpdateOptions{})
	} else {
		_, err = sliceClient.Create(ctx, sl, metav1.CreateOptions{})
	}
	must(t, err)
	c.slices[id] = sl
}

// free gives an address and a NodePort that no other Service has, out of few, so that they move between Services.
func free(c *cluster, random *rand.Rand, name string) (string, int32) {
	ips, ports := map[string]bool{}, map[int32]bool{0: false}
	for n, s := range c.services {
		if n != name {
			ips[s.Spec.ClusterIP], ports[s.Spec.Ports[0].NodePort] = true, true
		}
	}
	ip, port := "", int32(0)
	for ip == "" || ips[ip] {
		ip = fmt.Sprintf("10.96.0.%d", 20+random.IntN(8))
	}
	for {
		if port = int32(random.IntN(8)); port == 0 {
			return ip, 0
		} else if port += 30000; !ports[port] {
			return ip, port
		}
	}
}

func TestSliceThatChangesItsService(t *testing.T) {
	client := fake.NewClientset(service(nop), service(func(s *corev1.Service) { s.Name, s.UID, s.Spec.ClusterIP = "other", "u2", "10.96.0.6" }))
	watches := countWatches(client)
	f := informers.NewSharedInformerFactory(client, 0)
	table := newTable(0)
	p, err := New(Config{Informers: f, Table: table, Node: testNode})
	must(t, err)
	f.Start(t.Context().Done())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	awaitWatches(ctx, f, watches)
	both := fmt.Sprint(aps("10.244.0.2:8080", "10.244.1.2:8080"))
	sl := slice(func(s *discoveryv1.EndpointSlice) {
		s.Namespace, s.Name, s.Labels = "ns", "sl", map[string]string{discoveryv1.LabelServiceName: "web"}
	})
	_, err = client.DiscoveryV1().EndpointSlices("ns").Create(ctx, sl, metav1.CreateOptions{})
	must(t, err)
	for !reflect.DeepEqual(table.flat(), map[string]string{"6/10.96.0.5:80": both, "6/10.96.0.6:80": "[]"}) {
		<-table.changed
	}
	sl = sl.DeepCopy()
	sl.Labels[discoveryv1.LabelServiceName] = "other"
	_, err = client.DiscoveryV1().EndpointSlices("ns").Update(ctx, sl, metav1.UpdateOptions{})
	must(t, err)
	for !reflect.DeepEqual(table.flat(), map[string]string{"6/10.96.0.5:80": "[]", "6/10.96.0.6:80": both}) {
		<-table.changed
	}
	cancel()
	must(t, <-done)
}
