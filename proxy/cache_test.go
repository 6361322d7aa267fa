package proxy

import (
	"reflect"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// told is what a held tells of.
type told struct {
	added   []string
	changes [][2]string // names of ports before and after
}

func newTold() (*told, *held[discoveryv1.EndpointSlice, *discoveryv1.EndpointSlice]) {
	t := &told{}
	port := func(s *discoveryv1.EndpointSlice) string {
		if s == nil {
			return ""
		}
		return s.Namespace + "/" + s.Name + ":" + *s.Ports[0].Name
	}
	return t, &held[discoveryv1.EndpointSlice, *discoveryv1.EndpointSlice]{
		keep: keptSlice("n1"), service: serviceOf, listed: func(*discoveryv1.EndpointSlice) {},
		added: func(key string) { t.added = append(t.added, key) },
		changed: func(old, now *discoveryv1.EndpointSlice) {
			t.changes = append(t.changes, [2]string{port(old), port(now)})
		},
		objects: map[string]string{}, of: map[string][]string{}, synced: make(chan struct{}),
	}
}

// What lists and watches bring is held, belongs to its Service, and each difference is told once.
func TestHeld(t *testing.T) {
	told, h := newTold()
	of := func(name, service, port string) *discoveryv1.EndpointSlice {
		return slice(func(s *discoveryv1.EndpointSlice) {
			s.Name, s.Labels, s.Ports[0].Name = name, map[string]string{discoveryv1.LabelServiceName: service, "more": "labels"}, &port
		})
	}
	list := func(all ...*discoveryv1.EndpointSlice) {
		var packed []any
		for _, s := range all {
			p, err := h.pack(s)
			must(t, err)
			packed = append(packed, &p)
		}
		must(t, h.Replace(packed, ""))
	}
	list(of("a", "web", "1"), of("b", "web", "1"))
	<-h.synced
	must(t, h.Add(of("c", "web", "1")))
	must(t, h.Update(of("a", "web", "1"))) // no difference
	must(t, h.Update(of("a", "db", "2")))
	must(t, h.Delete(of("c", "web", "1")))
	must(t, h.Delete(of("c", "web", "1"))) // gone already
	list(of("a", "db", "3"), of("d", "db", "1"))
	if want := []string{"ns/web", "ns/web", "ns/db"}; !slices.Equal(told.added, want) {
		t.Errorf("added: %v", told.added)
	}
	want := [][2]string{{"", "ns/c:1"}, {"ns/a:1", "ns/a:2"}, {"ns/c:1", ""}, {"ns/a:2", "ns/a:3"}, {"ns/b:1", ""}}
	if !reflect.DeepEqual(told.changes, want) {
		t.Errorf("changes: %v", told.changes)
	}
	if n := len(h.ofService("ns/web")); n != 0 || len(h.of) != 1 {
		t.Errorf("%d slices of a Service without any, %v", n, h.of)
	}
	var names []string
	for _, s := range h.ofService("ns/db") {
		names = append(names, s.Name+serviceOf(s))
	}
	if slices.Sort(names); !slices.Equal(names, []string{"ans/db", "dns/db"}) || h.get("ns/b") != nil {
		t.Errorf("slices %v", names)
	}
}

// All that rows, Events and metrics follow from is held.
func TestKept(t *testing.T) {
	annotations := map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: "r", corev1.EndpointsLastChangeTriggerTime: "t", AnnotationWeight: "2"}
	labels := map[string]string{discoveryv1.LabelServiceName: "web", labelProxyName: "x", corev1.IsHeadlessService: ""}
	s := slice(func(s *discoveryv1.EndpointSlice) {
		s.Labels, s.Annotations = labels, annotations
		s.Endpoints[0].Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "a"}}}
	})
	_, h := newTold()
	must(t, h.Add(s))
	back := h.get("ns/web-1")
	s.Endpoints[1].NodeName = nil // another node's: that it is not this one is all that counts
	if !reflect.DeepEqual(back, s) {
		t.Errorf("%+v\nis held as\n%+v", s, back)
	}
	v := service(func(s *corev1.Service) {
		s.Labels, s.Annotations = labels, annotations
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.9"}}
		s.Spec.LoadBalancerSourceRanges, s.Spec.ExternalIPs, s.Spec.HealthCheckNodePort = []string{"192.0.2.0/24"}, []string{"192.0.2.8"}, 30000
	})
	data, err := keptService(v).Marshal()
	must(t, err)
	services := &held[corev1.Service, *corev1.Service]{}
	if back := services.unpack("ns/web", string(data)); !reflect.DeepEqual(back, v) {
		t.Errorf("%+v\nis held as\n%+v", v, back)
	}
	if m := keptMeta(&metav1.ObjectMeta{Labels: map[string]string{"app": "x"}, Annotations: map[string]string{"s": "x"}}); m.Labels != nil || m.Annotations != nil {
		t.Errorf("held, though nothing follows from it: %v, %v", m.Labels, m.Annotations)
	}
}
