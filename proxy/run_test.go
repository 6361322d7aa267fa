package proxy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/mirror"
)

// fakeTable leaves out what the kernel's leaves out: a frontend of another owner. failures calls in a hundred fail.
type fakeTable struct {
	mu       sync.Mutex
	rows     map[string][]bpf.LoadBalancer
	failures int
	random   *rand.Rand
}

// takenError is what the kernel's table says of it.
type takenError string

func (e takenError) Error() string { return string(e) }

func (takenError) As(target any) bool {
	_, ok := target.(**bpf.TakenError)
	return ok
}

func newTable(failures int) *fakeTable {
	return &fakeTable{rows: map[string][]bpf.LoadBalancer{}, failures: failures, random: rand.New(rand.NewPCG(1, 2))}
}

func (f *fakeTable) ReplaceAll(want map[string][]bpf.LoadBalancer) (bpf.Changes, map[string]error) {
	var c bpf.Changes
	errs := map[string]error{}
	for owner, rows := range want {
		one, err := f.Replace(owner, rows)
		if err != nil {
			errs[owner] = err
		}
		c.Added, c.Deleted = c.Added+one.Added, c.Deleted+one.Deleted
	}
	return c, errs
}

func (f *fakeTable) Replace(owner string, want []bpf.LoadBalancer) (bpf.Changes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.random.IntN(100) < f.failures {
		return bpf.Changes{}, errors.New("no memory")
	}
	taken := map[frontendKey]string{}
	for o, rows := range f.rows {
		for _, r := range rows {
			for _, fe := range r.Frontends {
				taken[frontendKey{fe.Addr, r.Protocol}] = o
			}
		}
	}
	var errs []error
	for i, r := range want {
		want[i].Frontends = slices.DeleteFunc(slices.Clone(r.Frontends), func(fe bpf.Frontend) bool {
			o, ok := taken[frontendKey{fe.Addr, r.Protocol}]
			if ok = ok && o != owner; ok {
				errs = append(errs, takenError(fmt.Sprintf("%s belongs to %s", fe.Addr, o)))
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

func (f *fakeTable) Prune(keep func(string) bool) (bpf.Changes, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
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

func (f *fakeTable) Dump() ([]bpf.LoadBalancer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []bpf.LoadBalancer
	for _, rows := range f.rows {
		out = append(out, rows...)
	}
	return out, nil
}

// hostPort is a row of a pod's: not the proxy's business.
var hostPort = bpf.LoadBalancer{
	Owner: bpf.HostPortOwner + "pod/eth0", Name: "pod", Protocol: 6, Frontends: []bpf.Frontend{{Addr: netip.MustParseAddrPort("192.0.2.1:80"), Kind: bpf.HostPort}},
	Backends: []bpf.Backend{{Addr: netip.MustParseAddrPort("10.244.0.9:8080"), All: true, Local: true, Weight: 1}},
}

// cluster is what the API holds.
type cluster struct {
	reference
	dice
	client *fake.Clientset
	at     map[string]int // by Service: the number of its addresses
	uids   int
}

func newCluster(seed uint64, client *fake.Clientset) *cluster {
	d := dice{rand.New(rand.NewPCG(seed, 7))}
	return &cluster{reference: reference{services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{}, node: d.node()}, dice: d, client: client, at: map[string]int{}}
}

// change does one random thing to the API. Addresses move between Services.
func (c *cluster) change(t *testing.T, ctx context.Context) {
	t.Helper()
	services, sliceClient, nodes := c.client.CoreV1().Services("ns"), c.client.DiscoveryV1().EndpointSlices("ns"), c.client.CoreV1().Nodes()
	switch c.IntN(12) {
	case 0:
		node := c.dice.node()
		c.reference.node.Zone = node.Zone
		_, err := nodes.Update(ctx, nodeObject(node), metav1.UpdateOptions{})
		must(t, err)
	case 1, 2, 3, 4, 5:
		i := c.IntN(modelServices)
		name := fmt.Sprint("s", i)
		old := c.services[name]
		if old != nil && c.once(3) {
			must(t, services.Delete(ctx, name, metav1.DeleteOptions{}))
			delete(c.services, name)
			delete(c.at, name)
			return
		}
		c.at[name] = c.free(name)
		s := c.dice.service(i, c.at[name])
		var err error
		if old != nil {
			s.UID = old.UID
			_, err = services.Update(ctx, s, metav1.UpdateOptions{})
		} else {
			c.uids++
			s.UID = types.UID(fmt.Sprint("uid", c.uids))
			_, err = services.Create(ctx, s, metav1.CreateOptions{})
		}
		must(t, err)
		c.services[name] = s
	default:
		sl := c.dice.slice(c.IntN(modelSlices))
		old := c.slices[sl.Name]
		if old != nil && c.once(4) {
			must(t, sliceClient.Delete(ctx, sl.Name, metav1.DeleteOptions{}))
			delete(c.slices, sl.Name)
			return
		}
		var err error
		if old != nil {
			_, err = sliceClient.Update(ctx, sl, metav1.UpdateOptions{})
		} else {
			_, err = sliceClient.Create(ctx, sl, metav1.CreateOptions{})
		}
		must(t, err)
		c.slices[sl.Name] = sl
	}
}

// free gives the number of addresses that no other Service has, out of few, so that they move.
func (c *cluster) free(name string) int {
	for {
		at, ok := c.IntN(modelPlaces), true
		for n, other := range c.at {
			ok = ok && (n == name || other != at)
		}
		if ok {
			return at
		}
	}
}

func nodeObject(n Node) *corev1.Node {
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Name}}
	if n.Zone != "" {
		o.Labels = map[string]string{corev1.LabelTopologyZone: n.Zone}
	}
	return o
}

// wrong holds a table against the reference.
func (c *cluster) wrong(t *testing.T, table bpf.LoadBalancerTable) []string {
	t.Helper()
	rows, err := table.Dump()
	must(t, err)
	n := len(rows)
	rows = slices.DeleteFunc(rows, func(lb bpf.LoadBalancer) bool { return lb.Owner == hostPort.Owner })
	out := c.differences(rows, c.places())
	if n != len(rows)+1 {
		out = append(out, "the pod's host port is gone")
	}
	return out
}

// follow makes random changes, and agents that stop and start. After each change, or each few, the table must say what the reference says.
func follow(t *testing.T, seed uint64, table bpf.LoadBalancerTable, rounds, changes int) {
	client := fake.NewClientset()
	c := newCluster(seed, client)
	_, err := client.CoreV1().Nodes().Create(t.Context(), nodeObject(c.reference.node), metav1.CreateOptions{})
	must(t, err)
	if _, err := table.Replace(hostPort.Owner, []bpf.LoadBalancer{hostPort}); err != nil {
		t.Fatal(err)
	}
	node := c.reference.node
	for round := range rounds {
		if round > 0 {
			// A row of a Service that went, with its frontend, while no agent ran; and others.
			for name := range c.services {
				must(t, client.CoreV1().Services("ns").Delete(t.Context(), name, metav1.DeleteOptions{}))
				delete(c.services, name)
				delete(c.at, name)
				break
			}
			for range 5 {
				c.change(t, t.Context())
			}
		}
		node.Zone = "" // the proxy is to find it
		r := start(t, client, table, node)
		for range changes {
			for range 1 + c.IntN(3) {
				c.change(t, t.Context())
			}
			r.until(t, func() bool { return len(c.wrong(t, table)) == 0 })
		}
		r.stop()
	}
}

// With addresses that move between Services, a table that fails now and then, and agents that stop and start.
func TestFollowsTheAPI(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			table := newTable(0)
			table.rows[hostPort.Owner] = []bpf.LoadBalancer{hostPort}
			table.failures = 20
			table.random = rand.New(rand.NewPCG(seed, 3))
			follow(t, seed, &hostPortTable{table}, 3, 25)
		})
	}
}

// hostPortTable lets the tests' own row in.
type hostPortTable struct{ *fakeTable }

func (h *hostPortTable) Replace(owner string, want []bpf.LoadBalancer) (bpf.Changes, error) {
	if owner == hostPort.Owner {
		return bpf.Changes{}, nil
	}
	return h.fakeTable.Replace(owner, want)
}

// The kernel's tables say what the reference says, after each change.
func TestKernelTablesEqualTheReference(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			follow(t, 100+seed, openDatapath(t).LoadBalancers(), 3, 40)
		})
	}
}

func TestSliceThatChangesItsService(t *testing.T) {
	client := fake.NewClientset(service(nop), service(func(s *corev1.Service) {
		s.Name, s.UID, s.Spec.ClusterIP, s.Spec.ClusterIPs = "other", "u2", "10.96.0.6", []string{"10.96.0.6"}
	}))
	table := newTable(0)
	r := start(t, client, table, testNode)
	sl := slice(nop)
	_, err := client.DiscoveryV1().EndpointSlices("ns").Create(t.Context(), sl, metav1.CreateOptions{})
	must(t, err)
	count := func(name string) (n int) {
		rows, err := table.Dump()
		must(t, err)
		for _, lb := range rows {
			if strings.HasPrefix(lb.Name, "ns/"+name+":") {
				n += len(lb.Backends)
			}
		}
		return n
	}
	r.until(t, func() bool { return count("web") == 2 && count("other") == 0 })
	sl = sl.DeepCopy()
	sl.Labels[discoveryv1.LabelServiceName] = "other"
	_, err = client.DiscoveryV1().EndpointSlices("ns").Update(t.Context(), sl, metav1.UpdateOptions{})
	must(t, err)
	r.until(t, func() bool { return count("web") == 0 && count("other") == 2 })
}

// A node port that a process has already is told once, and again when the Service gets another such port.
func TestHeldNodePortsAreTold(t *testing.T) {
	svc := service(func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = 30080
	})
	client := fake.NewClientset(svc)
	var asked []uint16
	events := record.NewFakeRecorder(100)
	p, err := New(Config{Objects: mirror.New(client, testNode.Name), Informers: informers.NewSharedInformerFactory(client, 0), Table: newTable(0), Node: testNode, Recorder: events, Held: func(rows []bpf.LoadBalancer) (out []bpf.HeldPort, _ error) {
		for _, r := range rows {
			asked = append(asked, r.Frontends[0].Addr.Port())
			if len(out) == 0 {
				out = append(out, bpf.HeldPort{Owner: r.Owner, Name: r.Name, Protocol: r.Protocol, Port: r.Frontends[0].Addr.Port(), Process: "nginx (process 7)"})
			}
		}
		return out, nil
	}})
	must(t, err)
	look := func() {
		t.Helper()
		j := p.job(mirror.KeyOf(svc), testNode)
		j.service, j.rows = svc, Desired(svc, nil, testNode)
		p.tellHeld([]*job{j})
	}
	look()
	n := len(asked)
	look()
	if n == 0 || len(asked) != n {
		t.Errorf("asked for %v", asked)
	}
	svc.Spec.Ports[0].NodePort = 30081
	look()
	if len(asked) <= n {
		t.Errorf("another port is not looked at: %v", asked)
	}
	for _, port := range []string{"30080", "30081"} {
		if e := <-events.Events; !strings.Contains(e, "NodePortHeld") || !strings.Contains(e, port) || !strings.Contains(e, "nginx") {
			t.Errorf("Event %q", e)
		}
	}
	if len(events.Events) > 0 {
		t.Errorf("more Events: %s", <-events.Events)
	}
}

// The end of the first full sync is told once.
func TestSyncedIsToldOnce(t *testing.T) {
	svc := service(func(*corev1.Service) {})
	client := fake.NewClientset(svc)
	table := newTable(0)
	r := start(t, client, table, testNode)
	rows := func() int {
		l, err := table.Dump()
		must(t, err)
		return len(l)
	}
	r.until(t, func() bool { return r.synced.Load() > 0 })
	first := rows()
	if first == 0 {
		t.Error("it is told before anything is written")
	}
	other := svc.DeepCopy()
	other.Name, other.UID, other.Spec.ClusterIP, other.Spec.ClusterIPs = "other", "other", "10.96.0.99", []string{"10.96.0.99"}
	_, err := client.CoreV1().Services(other.Namespace).Create(t.Context(), other, metav1.CreateOptions{})
	must(t, err)
	r.until(t, func() bool { return rows() > first })
	if n := r.synced.Load(); n != 1 {
		t.Errorf("it is told %d times", n)
	}
}
