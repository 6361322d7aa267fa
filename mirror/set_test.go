package mirror

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }

// slice is one of a Service, with a port of a name and some addresses.
func slice(name, service, port string, addresses ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &port}},
	}
	for _, a := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	return s
}

// told is what a set tells of.
type told struct {
	added   []string
	changes [][2]string // names of ports before and after
}

func newTold() (*told, *Slices) {
	t := &told{}
	port := func(s *discoveryv1.EndpointSlice) string {
		if s == nil {
			return ""
		}
		return s.Namespace + "/" + s.Name + ":" + *s.Ports[0].Name
	}
	s := New(fake.NewClientset(), "n1").Slices()
	s.FindByAddress()
	s.Follow(Follower[*discoveryv1.EndpointSlice]{
		Added: func(key string) { t.added = append(t.added, key) },
		Changed: func(old, now *discoveryv1.EndpointSlice) {
			t.changes = append(t.changes, [2]string{port(old), port(now)})
		},
	})
	return t, s
}

// replace is what a reflector does with a list.
func replace[T any, P object[T]](t *testing.T, s *Set[T, P], all ...P) {
	t.Helper()
	var list []any
	for _, obj := range all {
		p, err := s.pack(obj)
		must(t, err)
		list = append(list, &Held[packed]{p})
	}
	must(t, s.Replace(list, ""))
}

// What lists and watches bring is held, belongs to its Service, and each difference is told once.
func TestSet(t *testing.T) {
	told, s := newTold()
	if Seen(s) {
		t.Error("seen before the first list")
	}
	replace(t, s, slice("a", "web", "1"), slice("b", "web", "1"))
	<-s.Synced()
	must(t, s.Add(slice("c", "web", "1")))
	must(t, s.Update(slice("a", "web", "1"))) // no difference
	must(t, s.Update(slice("a", "db", "2")))
	must(t, s.Delete(slice("c", "web", "1")))
	must(t, s.Delete(slice("c", "web", "1"))) // gone already
	replace(t, s, slice("a", "db", "3"), slice("d", "db", "1"))
	if want := []string{"ns/web", "ns/web", "ns/db"}; !slices.Equal(told.added, want) {
		t.Errorf("added: %v", told.added)
	}
	want := [][2]string{{"", "ns/c:1"}, {"ns/a:1", "ns/a:2"}, {"ns/c:1", ""}, {"ns/a:2", "ns/a:3"}, {"ns/b:1", ""}}
	if !reflect.DeepEqual(told.changes, want) {
		t.Errorf("changes: %v", told.changes)
	}
	var names []string
	for _, sl := range s.OfService("ns/db") {
		names = append(names, sl.Name+ServiceOf(sl))
	}
	if slices.Sort(names); !slices.Equal(names, []string{"ans/db", "dns/db"}) || s.Get("ns/b") != nil || s.Has("ns/b") || !s.Has("ns/a") || len(s.OfService("ns/web")) != 0 {
		t.Errorf("slices %v", names)
	}
}

// Who asks for no copy of what a list brings gets none, and the others do.
func TestFollowersOfAList(t *testing.T) {
	told, s := newTold()
	var seen []string
	for range 2 {
		s.Follow(Follower[*discoveryv1.EndpointSlice]{Changed: func(old, now *discoveryv1.EndpointSlice) {
			if old != nil {
				t.Errorf("%s was there", old.Name)
			}
			seen = append(seen, now.Name)
		}})
	}
	replace(t, s, slice("a", "web", "1"))
	if !slices.Equal(seen, []string{"a", "a"}) || !slices.Equal(told.added, []string{"ns/web"}) || told.changes != nil {
		t.Errorf("told of %v, and %v", seen, told)
	}
}

// Whatever comes and goes, objects are found by the addresses and the Service that they have then, and nothing stays of those that they had.
func TestFound(t *testing.T) {
	_, s := newTold()
	random := rand.New(rand.NewPCG(1, 2))
	all := map[string]*discoveryv1.EndpointSlice{}
	for range 2000 {
		name := fmt.Sprint(random.IntN(6))
		switch n := random.IntN(8); {
		case n == 0 && all[name] != nil:
			must(t, s.Delete(all[name]))
			delete(all, name)
		case n == 1:
			for other := range all {
				if random.IntN(3) == 0 {
					delete(all, other)
				}
			}
			replace(t, s, slices.Collect(maps.Values(all))...)
		default:
			var addrs []string
			for range random.IntN(5) { // also the same twice, and none that can be read
				addrs = append(addrs, []string{"10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1", "fd00::1", "fd00:0::1", "rubbish"}[random.IntN(6)])
			}
			all[name] = slice(name, []string{"", "web", "db"}[random.IntN(3)], "1", addrs...)
			if len(addrs) > 0 && random.IntN(2) == 0 {
				all[name].Endpoints[0].Hostname = ptr("host")
			}
			must(t, s.Add(all[name]))
		}
		for _, text := range []string{"10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1", "fd00::1"} {
			a := netip.MustParseAddr(text)
			want := map[string]bool{}
			for _, o := range all {
				if slices.Contains(sliceAddresses(o), a) {
					want[o.Name] = true
				}
			}
			check(t, text, s.At(a), want)
		}
		for _, service := range []string{"web", "db"} {
			want, named := map[string]bool{}, map[string]bool{}
			for _, o := range all {
				if o.Labels[discoveryv1.LabelServiceName] == service {
					want[o.Name] = true
					if len(o.Endpoints) > 0 && o.Endpoints[0].Hostname != nil {
						named[o.Name] = true
					}
				}
			}
			check(t, service, s.OfService("ns/"+service), want)
			check(t, "names of "+service, s.NamedOfService("ns/"+service), named)
		}
	}
	replace(t, s)
	if n := len(s.at.first) + len(s.at.more) + len(s.of.first) + len(s.of.more) + len(s.named) + len(s.objects); n != 0 {
		t.Errorf("%d entries of nothing", n)
	}
}

func check(t *testing.T, of string, found []*discoveryv1.EndpointSlice, want map[string]bool) {
	t.Helper()
	got := map[string]bool{}
	for _, o := range found {
		got[o.Name] = true
	}
	if len(found) != len(want) || !maps.Equal(got, want) {
		t.Fatalf("of %s there are %v, want %v", of, got, want)
	}
}

// All that somebody asks for is held.
func TestKept(t *testing.T) {
	annotations := map[string]string{"example.com/a": "r", "example.com/b": "2"}
	labels := map[string]string{discoveryv1.LabelServiceName: "web", "example.com/c": ""}
	m := New(fake.NewClientset(), "n1")
	m.Keep("example.com/a", "example.com/b", "example.com/a", "example.com/c")
	s := slice("web-1", "", "http", "10.0.0.1", "10.0.0.2")
	s.Labels, s.Annotations = labels, annotations
	for i := range s.Endpoints {
		s.Endpoints[i].NodeName, s.Endpoints[i].Hostname = ptr(fmt.Sprint("n", i+1)), ptr("db-0")
		s.Endpoints[i].Conditions = discoveryv1.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)}
		s.Endpoints[i].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "a"}}}
	}
	must(t, m.Slices().Add(s))
	s.Endpoints[1].NodeName = nil // another node's: that it is not this one is all that counts
	if back := m.Slices().Get("ns/web-1"); !reflect.DeepEqual(back, s) {
		t.Errorf("%+v\nis held as\n%+v", s, back)
	}
	v := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "1", Labels: labels, Annotations: annotations}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, ExternalName: "a.example", PublishNotReadyAddresses: true,
		Ports:                    []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080}},
		LoadBalancerSourceRanges: []string{"192.0.2.0/24"}, ExternalIPs: []string{"192.0.2.8"}, HealthCheckNodePort: 30000,
	}, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "192.0.2.9"}}}}}
	must(t, m.Services().Add(v))
	if back := m.Services().Get("ns/web"); !reflect.DeepEqual(back, v) {
		t.Errorf("%+v\nis held as\n%+v", v, back)
	}
	must(t, m.Namespaces().Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", UID: "7"}}))
	if ns := m.Namespaces().Get("ns"); ns == nil || ns.Name != "ns" || ns.Namespace != "" || ns.UID != "7" || !m.Namespaces().Has("ns") {
		t.Errorf("a namespace is held as %+v", ns)
	}
	must(t, m.Namespaces().Add(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{"app": "x"}, Annotations: map[string]string{"a": "x"}}}))
	if k := m.Namespaces().Get("other"); k.Labels != nil || k.Annotations != nil {
		t.Errorf("held, though nobody asks for it: %v, %v", k.Labels, k.Annotations)
	}
}

// The last label that can be kept is told of as others are. One more, or one that isn't kept, is refused before anything is listed.
func TestKeepsWhatItCan(t *testing.T) {
	refused := func(what string, do func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s is not refused", what)
			}
		}()
		do()
	}
	m := New(fake.NewClientset(), "")
	last := ""
	for i := range 30 { // and the Service's name
		last = fmt.Sprint("example.com/", i)
		m.Keep(last)
	}
	told := 0
	listed := func(*corev1.Namespace) { told++ }
	m.Namespaces().Follow(Follower[*corev1.Namespace]{Listed: listed, Having: last})
	_, err := m.Namespaces().listed(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{last: "x"}}})
	must(t, err)
	if told != 1 {
		t.Errorf("told %d times of the last label", told)
	}
	refused("a label more", func() { m.Keep("example.com/more") })
	refused("a label that is not kept", func() { m.Namespaces().Follow(Follower[*corev1.Namespace]{Listed: listed, Having: "other"}) })
}

// Only pods that run in a network of their own are found by their addresses, also after they have ended.
func TestPodsAddresses(t *testing.T) {
	pods := New(fake.NewClientset(), "").Pods()
	pods.FindByAddress()
	pods.Follow(Follower[*corev1.Pod]{Changed: func(_, _ *corev1.Pod) {}})
	a := netip.MustParseAddr("10.0.0.1")
	pod := func(change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}}}
		change(p)
		return p
	}
	for _, c := range []struct {
		change func(*corev1.Pod)
		want   int
	}{
		{func(*corev1.Pod) {}, 1}, {func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, 0}, {func(*corev1.Pod) {}, 1},
		{func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, 0}, {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, 0}, {func(p *corev1.Pod) { p.Status.PodIPs = nil }, 0},
	} {
		p := pod(c.change)
		must(t, pods.Add(p))
		if n := len(pods.At(a)); n != c.want {
			t.Errorf("%+v: %d pods have its address", p, n)
		}
	}
}
