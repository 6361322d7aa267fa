package mirror

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// object is an API object that can be held as bytes.
type object[T any] interface {
	*T
	metav1.Object
	runtime.Object
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// KeyOf is the key of an object in its set: namespace/name, or the name of what is in no namespace.
func KeyOf[P metav1.Object](obj P) string {
	if namespace := obj.GetNamespace(); namespace != "" {
		return namespace + "/" + obj.GetName()
	}
	return obj.GetName()
}

// Follower is told what becomes of the objects of a set, after it is held: of one object after the other. It must neither change them nor wait.
type Follower[P any] struct {
	// Listed is told of each object of a list that has the label or annotation Having, as it came, before it is held; nil: nobody is. Having is one that is kept already.
	Listed func(P)
	Having string
	// Added is told of each object that a list brought and that was not held before: the key of the Service that it is or belongs to. It spares the
	// copy that Changed, which is told if it is nil, would get.
	Added func(service string)
	// Changed is told of every other difference: old is nil for what is new, now for what is gone. An object that was deleted and made anew between
	// two lists comes as one that changed its UID.
	Changed func(old, now P)
}

// Set are the objects of a kind that the API server has. It is a store for client-go's reflector, whose methods are for nobody else.
type Set[T any, P object[T]] struct {
	keeper    keeper               // of the reflector alone
	decoded   T                    // what keeper has packed last, without its key
	service   func(P) string       // key of the Service that an object is or belongs to; nil: of none
	addresses func(P) []netip.Addr // each once; nil: it has none
	belong    bool                 // objects are found by their Service
	long      map[string]string    // names of labels and annotations, by those in packed objects
	followers []Follower[P]

	mu      sync.RWMutex
	objects map[string]string // by key, packed
	of      lists[string]
	at      *lists[netip.Addr] // nil: nobody asks for addresses
	named   map[string]bool    // keys of objects that tell hostnames
	first   sync.Once
	synced  chan struct{} // closed when all that there was at the start is held and told of
}

func newSet[T any, P object[T]](m *Mirror, kept message) *Set[T, P] {
	return &Set[T, P]{
		keeper: keeper{kept: kept, short: m.short, node: m.node}, long: m.long,
		objects: map[string]string{}, of: newLists[string](), named: map[string]bool{}, synced: make(chan struct{}),
	}
}

// Follow has somebody told. Call it before the mirror runs.
func (s *Set[T, P]) Follow(f Follower[P]) {
	if f.Listed != nil && s.keeper.short[f.Having] == "" {
		panic(fmt.Sprintf("mirror: somebody follows lists' objects that have %q, which is not kept; Keep it first", f.Having))
	}
	s.followers = append(s.followers, f)
}

// FindByAddress makes At possible. Call it before the mirror runs.
func (s *Set[T, P]) FindByAddress() {
	if s.at == nil {
		l := newLists[netip.Addr]()
		s.at = &l
	}
}

// Synced is closed when all that there was at the start is held and told of.
func (s *Set[T, P]) Synced() <-chan struct{} { return s.synced }

// Get returns an object by its key, or nil.
func (s *Set[T, P]) Get(key string) P {
	s.mu.RLock()
	data, ok := s.objects[key]
	s.mu.RUnlock()
	if !ok {
		return nil
	}
	return s.unpack(key, data)
}

// Has tells whether there is an object of a key.
func (s *Set[T, P]) Has(key string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.objects[key]
	return ok
}

// OfService returns what belongs to the Service of a key.
func (s *Set[T, P]) OfService(key string) []P { return found(s, s.of, key, nil) }

// NamedOfService returns what belongs to the Service of a key and tells hostnames.
func (s *Set[T, P]) NamedOfService(key string) []P {
	return found(s, s.of, key, func(key string) bool { return s.named[key] })
}

// At returns what has an address.
func (s *Set[T, P]) At(a netip.Addr) []P { return found(s, *s.at, a, nil) }

// found reads what a list leads to, all or what is wanted of it.
func found[T any, P object[T], K comparable](s *Set[T, P], l lists[K], k K, wanted func(key string) bool) []P {
	s.mu.RLock()
	keys := l.keys(k)
	if wanted != nil {
		keys = slices.DeleteFunc(keys, func(key string) bool { return !wanted(key) })
	}
	data := make([]string, len(keys))
	for i, key := range keys {
		data[i] = s.objects[key]
	}
	s.mu.RUnlock()
	out := make([]P, len(keys))
	for i, key := range keys {
		out[i] = s.unpack(key, data[i])
	}
	return out
}

// Keys are those of all objects.
func (s *Set[T, P]) Keys() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.AppendSeq(make([]string, 0, len(s.objects)), maps.Keys(s.objects))
}

// All are all objects that there are when it begins, and still are.
func (s *Set[T, P]) All() iter.Seq[P] {
	return func(yield func(P) bool) {
		for _, key := range s.Keys() {
			if obj := s.Get(key); obj != nil && !yield(obj) {
				return
			}
		}
	}
}

// packed is an object on its way into a set.
type packed struct {
	key, data string
	service   string
	addrs     []netip.Addr
	named     bool
}

func (s *Set[T, P]) pack(obj P) (packed, error) {
	data, err := obj.Marshal()
	if err != nil {
		return packed{}, err
	}
	return s.packBytes(data)
}

// packBytes is pack of an object on the wire.
func (s *Set[T, P]) packBytes(object []byte) (packed, error) {
	k := &s.keeper
	if err := k.keep(object); err != nil {
		return packed{}, err
	}
	// The keeper takes fields as they come: what is wrong within one must end the list, not whoever asks for the object.
	var none T
	s.decoded = none
	obj := P(&s.decoded)
	if err := obj.Unmarshal(k.out); err != nil {
		return packed{}, err
	}
	p := packed{key: k.key(k.name), data: string(k.out), named: k.named}
	switch {
	case s.belong && len(k.service) > 0:
		p.service = k.key(k.service)
	case !s.belong && s.service != nil:
		p.service = p.key
	}
	if s.at != nil && s.addresses != nil {
		p.addrs = s.addresses(obj)
	}
	return p, nil
}

// places is where an object is found besides.
func (s *Set[T, P]) places(obj P) (service string, addrs []netip.Addr) {
	if s.service != nil {
		service = s.service(obj)
	}
	if s.at != nil && s.addresses != nil {
		addrs = s.addresses(obj)
	}
	return service, addrs
}

// unpack is only called with what packBytes made, which has decoded it once.
func (s *Set[T, P]) unpack(key, data string) P {
	obj := P(new(T))
	if err := obj.Unmarshal([]byte(data)); err != nil {
		panic(err)
	}
	namespace, name, ok := strings.Cut(key, "/")
	if !ok {
		namespace, name = "", key
	}
	obj.SetNamespace(namespace)
	obj.SetName(name)
	obj.SetLabels(renamed(obj.GetLabels(), s.long))
	obj.SetAnnotations(renamed(obj.GetAnnotations(), s.long))
	return obj
}

// Add implements cache.ReflectorStore.
func (s *Set[T, P]) Add(obj any) error {
	now, ok := obj.(P)
	if !ok {
		return nil // the reflector has checked the type
	}
	p, err := s.pack(now)
	if err != nil {
		return err
	}
	s.put(p, now)
	return nil
}

// Update implements cache.ReflectorStore.
func (s *Set[T, P]) Update(obj any) error { return s.Add(obj) }

// Delete implements cache.ReflectorStore.
func (s *Set[T, P]) Delete(obj any) error {
	if o, ok := obj.(P); ok {
		s.remove(KeyOf(o))
	}
	return nil
}

// listed holds an object of a list, which the followers are told of first.
func (s *Set[T, P]) listed(o runtime.Object) (packed, error) {
	obj := o.(P) // a typed client's list has no others
	data, err := obj.Marshal()
	if err != nil {
		return packed{}, fmt.Errorf("%s: %w", KeyOf(obj), err)
	}
	return s.listedBytes(data)
}

// listedBytes is listed of an object on the wire.
func (s *Set[T, P]) listedBytes(object []byte) (packed, error) {
	p, err := s.packBytes(object)
	if err != nil {
		return p, fmt.Errorf("%s: %w", s.keeper.key(s.keeper.name), err)
	}
	for _, f := range s.followers {
		if f.Listed == nil || s.keeper.has&shortBit(s.keeper.short[f.Having]) == 0 {
			continue
		}
		obj := P(new(T))
		if err := obj.Unmarshal(object); err != nil {
			return p, fmt.Errorf("%s: %w", p.key, err)
		}
		f.Listed(obj)
	}
	return p, nil
}

// Replace implements cache.ReflectorStore. The list is of what listed has made.
func (s *Set[T, P]) Replace(list []any, _ string) error {
	live := make(map[string]bool, len(list))
	for i, obj := range list {
		p := obj.(*Held[packed]).Of
		list[i] = nil
		live[p.key] = true
		s.put(p, nil)
	}
	for _, key := range s.Keys() {
		if !live[key] {
			s.remove(key)
		}
	}
	s.first.Do(func() { close(s.synced) })
	return nil
}

// Resync implements cache.ReflectorStore.
func (s *Set[T, P]) Resync() error { return nil }

// put holds an object and tells of it, if it isn't held just so. now is nil if a list brought it.
func (s *Set[T, P]) put(p packed, now P) {
	s.mu.Lock()
	data, had := s.objects[p.key]
	if had && data == p.data {
		s.mu.Unlock()
		return
	}
	var old P
	var service string
	var addrs []netip.Addr
	if had {
		old = s.unpack(p.key, data)
		service, addrs = s.places(old)
	}
	s.objects[p.key] = p.data
	s.relate(p.key, service, p.service, addrs, p.addrs)
	if p.named {
		s.named[p.key] = true
	} else {
		delete(s.named, p.key)
	}
	s.mu.Unlock()
	listed := now == nil
	for _, f := range s.followers {
		if listed && !had && f.Added != nil {
			f.Added(p.service)
			continue
		}
		if now == nil {
			now = s.unpack(p.key, p.data)
		}
		f.Changed(old, now)
	}
}

func (s *Set[T, P]) remove(key string) {
	s.mu.Lock()
	data, had := s.objects[key]
	if !had {
		s.mu.Unlock()
		return
	}
	old := s.unpack(key, data)
	delete(s.objects, key)
	delete(s.named, key)
	service, addrs := s.places(old)
	s.relate(key, service, "", addrs, nil)
	s.mu.Unlock()
	for _, f := range s.followers {
		f.Changed(old, nil)
	}
}

// relate follows which Service an object belongs to, and which addresses it has.
func (s *Set[T, P]) relate(key, wasOf, isOf string, had, has []netip.Addr) {
	if s.belong && wasOf != isOf {
		if wasOf != "" {
			s.of.remove(wasOf, key)
		}
		if isOf != "" {
			s.of.add(isOf, key)
		}
	}
	if slices.Equal(had, has) {
		return
	}
	for _, a := range had {
		s.at.remove(a, key)
	}
	for _, a := range has {
		s.at.add(a, key)
	}
}
