package enforce

import (
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/strake-io/strake/mirror"
)

// followed is a kind of objects of the API: a store for client-go's reflector, which passes on what changes. Each object that was passed on is held as
// bytes, which take little room, so that what changes nothing (a pod's readiness, a node's heartbeat) ends here, and so that what is enforced can be proved.
type followed struct {
	kind string
	codec
	// id names an object in what is passed on.
	id func(obj metav1.Object) string
	// pass is told of an object that is new or has changed, or, with nil, of one that is gone.
	pass func(kind, id string, obj metav1.Object)
	// look, if there is one, is told of every version of an object, also of what is not held, and with nil that it is gone.
	look func(key string, obj metav1.Object)

	mu      sync.Mutex
	known   map[string]passed
	changed chan struct{} // closed and replaced when known changes
	once    sync.Once
	api     lastError
	synced  chan struct{} // closed when all that there was at the start is passed on
}

// lastError is that of the last request for a kind of objects, nil if it succeeded.
type lastError struct {
	mu  sync.Mutex
	err error
}

func (l *lastError) note(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	return err
}

func (l *lastError) get() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// passed is what was passed on of an object.
type passed struct {
	id      string
	packed  string // without its resourceVersion
	version string // resourceVersion
}

// codec says what is held of a kind's objects, and how.
type codec struct {
	// keep returns what is passed on of an object; an error drops it.
	keep   func(obj any) (metav1.Object, error)
	pack   func(metav1.Object) ([]byte, error)
	unpack func(string) (metav1.Object, error)
}

func newFollowed(kind string, id func(metav1.Object) string, c codec, pass func(kind, id string, obj metav1.Object)) *followed {
	return &followed{kind: kind, codec: c, id: id, pass: pass, known: map[string]passed{}, changed: make(chan struct{}), synced: make(chan struct{})}
}

// uidOf is an id for kinds of which one may be there still when the next of its name comes.
func uidOf(o metav1.Object) string { return string(o.GetUID()) }

func keyOf(o metav1.Object) string { return mirror.KeyOf(o) }

// Transformer implements cache.TransformingStore: what a list brings takes little room from the first on.
func (f *followed) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return f.keep(obj) }
}

// held is an object on its way into a followed.
type held struct {
	key string
	passed
	obj metav1.Object // nil, from a page of a list: only its bytes are left
}

// hold makes it of an object of the API.
func (f *followed) hold(obj any) (*held, error) {
	if h, ok := obj.(*mirror.Held[*held]); ok {
		return h.Of, nil
	}
	kept, err := f.keep(obj)
	if err != nil {
		return nil, err
	}
	packed, err := f.packed(kept)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", f.kind, keyOf(kept), err)
	}
	return &held{keyOf(kept), passed{f.id(kept), packed, kept.GetResourceVersion()}, kept}, nil
}

// Add implements cache.ReflectorStore.
func (f *followed) Add(obj any) error {
	h, err := f.hold(obj)
	if err != nil {
		return err
	}
	return f.put(h)
}

// Update implements cache.ReflectorStore.
func (f *followed) Update(obj any) error { return f.Add(obj) }

// Delete implements cache.ReflectorStore.
func (f *followed) Delete(obj any) error {
	o, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("%s: %T is no object", f.kind, obj)
	}
	f.remove(keyOf(o))
	return nil
}

// Replace implements cache.ReflectorStore.
func (f *followed) Replace(list []any, _ string) error {
	live := make(map[string]bool, len(list))
	for i, obj := range list {
		h, err := f.hold(obj)
		if err != nil {
			return err
		}
		list[i] = nil
		live[h.key] = true
		if err := f.put(h); err != nil {
			return err
		}
	}
	f.mu.Lock()
	var gone []string
	for key := range f.known {
		if !live[key] {
			gone = append(gone, key)
		}
	}
	f.mu.Unlock()
	for _, key := range gone {
		f.remove(key)
	}
	f.settled()
	return nil
}

// Resync implements cache.ReflectorStore.
func (f *followed) Resync() error { return nil }

func (f *followed) settled() { f.once.Do(func() { close(f.synced) }) }

// packed is what is held of an object.
func (f *followed) packed(obj metav1.Object) (string, error) {
	version := obj.GetResourceVersion()
	obj.SetResourceVersion("")
	defer obj.SetResourceVersion(version)
	data, err := f.pack(obj)
	return string(data), err
}

func (f *followed) put(h *held) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.look != nil {
		f.look(h.key, h.obj)
	}
	was, had := f.known[h.key]
	if had && was.id != h.id {
		f.pass(f.kind, was.id, nil)
		had = false
	}
	if !had || was.packed != h.packed {
		obj := h.obj
		if obj == nil {
			var err error
			if obj, err = f.unpack(h.packed); err != nil {
				return fmt.Errorf("%s %s: %w", f.kind, h.key, err)
			}
			obj.SetResourceVersion(h.version)
		}
		f.pass(f.kind, h.id, obj)
	}
	f.known[h.key] = h.passed
	f.told()
	return nil
}

// told wakes who waits for an object.
func (f *followed) told() {
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *followed) remove(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if was, had := f.known[key]; had {
		f.pass(f.kind, was.id, nil)
		if f.look != nil {
			f.look(key, nil)
		}
		delete(f.known, key)
		f.told()
	}
}

// count is how many objects there are.
func (f *followed) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.known)
}

// each calls f with the objects that are held and wanted, by their key. It stops at an error.
func (f *followed) each(want func(key string) bool, do func(metav1.Object)) error {
	f.mu.Lock()
	list := make([]string, 0, len(f.known))
	for key, p := range f.known {
		if want == nil || want(key) {
			list = append(list, p.packed)
		}
	}
	f.mu.Unlock()
	for _, data := range list {
		o, err := f.unpack(data)
		if err != nil {
			return fmt.Errorf("%s: %w", f.kind, err)
		}
		do(o)
	}
	return nil
}

// keeping is the codec of built-in objects, of which keep says what is held. keep takes what it has made itself, too.
func keeping[T any, P interface {
	*T
	metav1.Object
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}](keep func(P) P) codec {
	return codec{
		keep: func(obj any) (metav1.Object, error) {
			o, ok := obj.(P)
			if !ok {
				return nil, fmt.Errorf("%T where %T is expected", obj, o)
			}
			return keep(o), nil
		},
		pack: func(o metav1.Object) ([]byte, error) { return o.(P).Marshal() },
		unpack: func(data string) (metav1.Object, error) {
			o := P(new(T))
			return o, o.Unmarshal([]byte(data))
		},
	}
}

// Kinds that are followed.
const (
	kindPod                  = "Pod"
	kindNamespace            = "Namespace"
	kindNode                 = "Node"
	kindNetworkPolicy        = "NetworkPolicy"
	kindClusterNetworkPolicy = "ClusterNetworkPolicy"
	kindEndpoint             = "endpoint" // of this node, by the CNI server
)

// followAPI follows the built-in kinds.
func (e *Enforcer) followAPI(c kubernetes.Interface) []*cache.Reflector {
	core := c.CoreV1()
	return []*cache.Reflector{
		reflector[*corev1.PodList](&corev1.Pod{}, e.pods, core.Pods(metav1.NamespaceAll)),
		reflector[*corev1.NamespaceList](&corev1.Namespace{}, e.namespaces, core.Namespaces()),
		reflector[*corev1.NodeList](&corev1.Node{}, e.nodes, core.Nodes()),
		reflector[*networkingv1.NetworkPolicyList](&networkingv1.NetworkPolicy{}, e.policies, c.NetworkingV1().NetworkPolicies(metav1.NamespaceAll)),
	}
}
