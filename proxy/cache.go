package proxy

import (
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// packable is an API object that can be held as bytes.
type packable[T any] interface {
	*T
	metav1.Object
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// held are the objects of a kind that the API has, each as bytes and without what no row follows from. As Go's objects in an
// informer's cache, 50 000 Services with five endpoints each take six hundred MB; so they take thirty. It is a store for
// client-go's reflector.
type held[T any, P packable[T]] struct {
	// keep returns a copy of what is held: without name and namespace, which the key tells.
	keep func(P) *T
	// service is the key of the Service that an object belongs to, or is.
	service func(P) string
	// listed is told of each object of a list, before it is held.
	listed func(P)
	// added is told the Service of each object that a list brought and that was not held before.
	added func(service string)
	// changed is told of every other change after it is held: old is nil for what is new, now for what is gone.
	changed func(old, now P)

	mu      sync.RWMutex
	objects map[string]string   // by key, packed
	of      map[string][]string // by key of the Service: keys of what belongs to it; nil if objects are Services themselves
	first   sync.Once
	synced  chan struct{} // closed when all that there was at the start is held and told of
}

func (h *held[T, P]) pack(obj P) (packed, error) {
	data, err := P(h.keep(obj)).Marshal()
	return packed{key: obj.GetNamespace() + "/" + obj.GetName(), service: h.service(obj), data: string(data)}, err
}

// unpack is only called with what pack made.
func (h *held[T, P]) unpack(key, data string) P {
	obj := P(new(T))
	if err := obj.Unmarshal([]byte(data)); err != nil {
		panic(err)
	}
	namespace, name, _ := strings.Cut(key, "/")
	obj.SetNamespace(namespace)
	obj.SetName(name)
	obj.SetLabels(renamed(obj.GetLabels(), false))
	obj.SetAnnotations(renamed(obj.GetAnnotations(), false))
	return obj
}

// Add implements cache.ReflectorStore.
func (h *held[T, P]) Add(obj any) error {
	now, ok := obj.(P)
	if !ok {
		return nil // the reflector has checked the type
	}
	p, err := h.pack(now)
	if err != nil {
		return err
	}
	h.put(p, now)
	return nil
}

// Update implements cache.ReflectorStore.
func (h *held[T, P]) Update(obj any) error { return h.Add(obj) }

// Delete implements cache.ReflectorStore.
func (h *held[T, P]) Delete(obj any) error {
	if o, ok := obj.(P); ok {
		h.remove(o.GetNamespace() + "/" + o.GetName())
	}
	return nil
}

// Replace implements cache.ReflectorStore. The list is of what a lister has packed.
func (h *held[T, P]) Replace(list []any, _ string) error {
	live := make(map[string]bool, len(list))
	for i, obj := range list {
		p := obj.(*packed)
		list[i] = nil
		live[p.key] = true
		h.put(*p, nil)
	}
	for _, key := range h.keys() {
		if !live[key] {
			h.remove(key)
		}
	}
	h.first.Do(func() { close(h.synced) })
	return nil
}

// Resync implements cache.ReflectorStore.
func (h *held[T, P]) Resync() error { return nil }

// put holds an object and tells of it, if it isn't held just so. now is nil if a list brought it.
func (h *held[T, P]) put(p packed, now P) {
	h.mu.Lock()
	data, had := h.objects[p.key]
	if had && data == p.data {
		h.mu.Unlock()
		return
	}
	h.objects[p.key] = p.data
	if !had {
		h.relate(p.key, "", p.service)
		h.mu.Unlock()
		if now == nil {
			h.added(p.service)
		} else {
			h.changed(nil, now)
		}
		return
	}
	old := h.unpack(p.key, data)
	h.relate(p.key, h.service(old), p.service)
	h.mu.Unlock()
	if now == nil {
		now = h.unpack(p.key, p.data)
	}
	h.changed(old, now)
}

func (h *held[T, P]) remove(key string) {
	h.mu.Lock()
	data, had := h.objects[key]
	if !had {
		h.mu.Unlock()
		return
	}
	old := h.unpack(key, data)
	delete(h.objects, key)
	h.relate(key, h.service(old), "")
	h.mu.Unlock()
	h.changed(old, nil)
}

// relate follows which Service an object belongs to.
func (h *held[T, P]) relate(key, before, after string) {
	if h.of == nil || before == after {
		return
	}
	if before != "" {
		left := h.of[before]
		if i := slices.Index(left, key); i >= 0 {
			left = slices.Delete(left, i, i+1)
		}
		if h.of[before] = left; len(left) == 0 {
			delete(h.of, before)
		}
	}
	if after != "" {
		h.of[after] = append(h.of[after], key)
	}
}

// get returns an object, or nil.
func (h *held[T, P]) get(key string) P {
	h.mu.RLock()
	data, ok := h.objects[key]
	h.mu.RUnlock()
	if !ok {
		return nil
	}
	return h.unpack(key, data)
}

// ofService returns what belongs to a Service.
func (h *held[T, P]) ofService(key string) []P {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var out []P
	for _, k := range h.of[key] {
		out = append(out, h.unpack(k, h.objects[k]))
	}
	return out
}

func (h *held[T, P]) keys() []string {
	h.mu.RLock()
	defer h.mu.RUnlock()
	out := make([]string, 0, len(h.objects))
	for key := range h.objects {
		out = append(out, key)
	}
	return out
}

// shortNames stand for labels and annotations that rows, Events and metrics follow from, in packed objects; there are no others.
var shortNames = map[string]string{
	discoveryv1.LabelServiceName: "s", labelProxyName: "p", corev1.IsHeadlessService: "h",
	corev1.AnnotationLoadBalancerSourceRangesKey: "r", corev1.EndpointsLastChangeTriggerTime: "t", AnnotationWeight: "w",
}

// renamed returns a copy with the short names, or with the long ones again.
func renamed(all map[string]string, short bool) map[string]string {
	var out map[string]string
	for long, s := range shortNames {
		from, to := s, long
		if short {
			from, to = long, s
		}
		if v, ok := all[from]; ok {
			if out == nil {
				out = map[string]string{}
			}
			out[to] = v
		}
	}
	return out
}

func keptMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{UID: m.UID, Labels: renamed(m.Labels, true), Annotations: renamed(m.Annotations, true)}
}

// keptService leaves out what no row follows from.
func keptService(s *corev1.Service) *corev1.Service {
	k := &corev1.Service{ObjectMeta: keptMeta(&s.ObjectMeta), Spec: s.Spec, Status: corev1.ServiceStatus{LoadBalancer: s.Status.LoadBalancer}}
	k.Spec.Selector, k.Spec.IPFamilies, k.Spec.IPFamilyPolicy = nil, nil, nil
	return k
}

// keptSlice leaves out what no row of the node follows from: of nodes' names all but its own.
func keptSlice(node string) func(*discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	return func(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
		k := &discoveryv1.EndpointSlice{ObjectMeta: keptMeta(&s.ObjectMeta), AddressType: s.AddressType, Ports: s.Ports, Endpoints: make([]discoveryv1.Endpoint, len(s.Endpoints))}
		k.UID = ""
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			k.Endpoints[i] = discoveryv1.Endpoint{Addresses: e.Addresses, Conditions: e.Conditions, Hints: e.Hints}
			if e.NodeName != nil && *e.NodeName == node {
				k.Endpoints[i].NodeName = e.NodeName
			}
		}
		return k
	}
}
