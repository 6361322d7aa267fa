package garbage

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

var (
	things = schema.GroupVersionResource{Group: "test", Version: "v1", Resource: "things"} // in namespaces
	worlds = schema.GroupVersionResource{Group: "test", Version: "v1", Resource: "worlds"} // cluster-scoped
)

// model is an API server in memory: deletes with their policies, finalizers, preconditions, and a watch whose
// events arrive when the test says so.
type model struct {
	t        *testing.T
	c        *collector
	objects  map[types.UID]*metav1.PartialObjectMetadata
	version  int
	pending  []func()
	orphaned map[types.UID]bool // owners that a user deleted with policy Orphan
	work     []types.UID
}

func newModel(t *testing.T) *model {
	m := &model{t: t, objects: map[types.UID]*metav1.PartialObjectMetadata{}, orphaned: map[types.UID]bool{}}
	m.c = newCollector(m)
	m.c.add = func(uid types.UID) {
		if !slices.Contains(m.work, uid) {
			m.work = append(m.work, uid)
		}
	}
	return m
}

func resourceOf(o *metav1.PartialObjectMetadata) schema.GroupVersionResource {
	if o.Namespace == "" {
		return worlds
	}
	return things
}

func (m *model) changed(o *metav1.PartialObjectMetadata) {
	m.version++
	o.ResourceVersion = fmt.Sprint(m.version)
	if o.DeletionTimestamp != nil && len(o.Finalizers) == 0 {
		delete(m.objects, o.UID)
		m.pending = append(m.pending, func() { m.c.gone(o.UID) })
		return
	}
	m.objects[o.UID] = o
	seen := o.DeepCopy()
	m.pending = append(m.pending, func() {
		m.c.enqueue(m.c.graph.put(&object{
			identity: identity{resourceOf(seen), seen.Namespace, seen.Name, seen.UID}, owners: seen.OwnerReferences,
			finalizers: seen.Finalizers, deleting: seen.DeletionTimestamp != nil,
		}))
	})
}

func (m *model) create(namespace, name string, owners ...metav1.OwnerReference) *metav1.PartialObjectMetadata {
	o := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name), OwnerReferences: owners}}
	m.changed(o)
	return o
}

func (m *model) ref(name string, namespaced, block bool) metav1.OwnerReference {
	kind := "World"
	if namespaced {
		kind = "Thing"
	}
	return metav1.OwnerReference{APIVersion: "test/v1", Kind: kind, Name: name, UID: types.UID(name), BlockOwnerDeletion: &block}
}

// remove is the API server's delete.
func (m *model) remove(uid types.UID, policy metav1.DeletionPropagation) {
	o := m.objects[uid].DeepCopy()
	o.Finalizers = slices.DeleteFunc(o.Finalizers, func(f string) bool {
		return f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents
	})
	switch policy {
	case metav1.DeletePropagationForeground:
		o.Finalizers = append(o.Finalizers, metav1.FinalizerDeleteDependents)
	case metav1.DeletePropagationOrphan:
		o.Finalizers = append(o.Finalizers, metav1.FinalizerOrphanDependents)
	}
	if o.DeletionTimestamp == nil {
		now := metav1.Now()
		o.DeletionTimestamp = &now
	}
	m.changed(o)
}

func (m *model) get(_ context.Context, gvr schema.GroupVersionResource, namespace, name string) (*metav1.PartialObjectMetadata, error) {
	o := m.objects[types.UID(name)]
	if o == nil || o.Namespace != namespace || resourceOf(o) != gvr {
		return nil, apierrors.NewNotFound(gvr.GroupResource(), name)
	}
	return o.DeepCopy(), nil
}

func (m *model) at(o *object, version string) (*metav1.PartialObjectMetadata, error) {
	have := m.objects[o.uid]
	switch {
	case have == nil:
		return nil, apierrors.NewNotFound(o.gvr.GroupResource(), o.name)
	case have.ResourceVersion != version:
		return nil, apierrors.NewConflict(o.gvr.GroupResource(), o.name, fmt.Errorf("version"))
	}
	return have.DeepCopy(), nil
}

func (m *model) delete(_ context.Context, o *object, version string, policy metav1.DeletionPropagation) error {
	have, err := m.at(o, version)
	if err != nil {
		return err
	}
	// The promise that matters most: nothing is deleted that an owner still holds, or that was orphaned.
	for _, ref := range have.OwnerReferences {
		owner := m.objects[ref.UID]
		if owner != nil && (owner.Namespace == "" || owner.Namespace == have.Namespace) && !slices.Contains(owner.Finalizers, metav1.FinalizerDeleteDependents) {
			m.t.Errorf("%s deleted, though %s holds it", o.name, ref.Name)
		}
		if m.orphaned[ref.UID] {
			m.t.Errorf("%s deleted, though it was orphaned by %s", o.name, ref.Name)
		}
	}
	if len(have.OwnerReferences) == 0 {
		m.t.Errorf("%s deleted, though it has no owner", o.name)
	}
	m.remove(o.uid, policy)
	return nil
}

func (m *model) patch(_ context.Context, o *object, version string, fields map[string]any) error {
	have, err := m.at(o, version)
	if err != nil {
		return err
	}
	if refs, ok := fields["ownerReferences"]; ok {
		have.OwnerReferences = refs.([]metav1.OwnerReference)
	}
	if f, ok := fields["finalizers"]; ok {
		have.Finalizers = f.([]string)
	}
	m.changed(have)
	return nil
}

func (m *model) resolve(kind schema.GroupVersionKind) (schema.GroupVersionResource, bool, error) {
	if kind.Kind == "Thing" {
		return things, true, nil
	}
	return worlds, false, nil
}

func (m *model) reset() {}

// deliver lets all events arrive.
func (m *model) deliver() {
	for len(m.pending) > 0 {
		e := m.pending[0]
		m.pending = m.pending[1:]
		e()
	}
}

// settle lets events arrive and workers work, in an order that r chooses, until nothing is left to do.
func (m *model) settle(r *rand.Rand) {
	for step := 0; len(m.pending)+len(m.work) > 0; step++ {
		if step > 20000 {
			m.t.Fatalf("no end: %d events, work %v", len(m.pending), m.work)
		}
		if len(m.work) == 0 || len(m.pending) > 0 && r.IntN(2) == 0 {
			e := m.pending[0]
			m.pending = m.pending[1:]
			e()
			continue
		}
		i := r.IntN(len(m.work))
		uid := m.work[i]
		m.work = slices.Delete(m.work, i, i+1)
		if err := m.c.process(context.Background(), uid); err != nil {
			m.c.add(uid)
		}
	}
}

func (m *model) names() string {
	var out []string
	for _, o := range m.objects {
		out = append(out, o.Name)
	}
	slices.Sort(out)
	return fmt.Sprint(out)
}

func TestPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		build  func(*model)
		delete string
		policy metav1.DeletionPropagation
		want   string
	}{
		"background takes all generations along": {func(m *model) {
			m.create("ns", "a")
			m.create("ns", "b", m.ref("a", true, true))
			m.create("ns", "c", m.ref("b", true, true))
		}, "a", metav1.DeletePropagationBackground, "[]"},
		"foreground too": {func(m *model) {
			m.create("ns", "a")
			m.create("ns", "b", m.ref("a", true, true))
			m.create("ns", "c", m.ref("b", true, true))
		}, "a", metav1.DeletePropagationForeground, "[]"},
		"orphan leaves the dependents": {func(m *model) {
			m.create("ns", "a")
			m.create("ns", "b", m.ref("a", true, true))
			m.create("ns", "c", m.ref("b", true, true))
		}, "a", metav1.DeletePropagationOrphan, "[b c]"},
		"another owner holds": {func(m *model) {
			m.create("ns", "a")
			m.create("ns", "a2")
			m.create("ns", "b", m.ref("a", true, true), m.ref("a2", true, false))
		}, "a", metav1.DeletePropagationForeground, "[a2 b]"},
		"an owner of another namespace is none": {func(m *model) {
			m.create("other", "a")
			m.create("other", "x")
			m.create("ns", "b", m.ref("a", true, true))
		}, "x", metav1.DeletePropagationBackground, "[a]"},
		"a namespaced owner of a cluster-scoped object is not judged": {func(m *model) {
			m.create("ns", "a")
			m.create("", "b", m.ref("a", true, true))
			m.create("ns", "x")
		}, "x", metav1.DeletePropagationBackground, "[a b]"},
		"a cluster-scoped owner holds objects of namespaces": {func(m *model) {
			m.create("", "a")
			m.create("ns", "b", m.ref("a", false, true))
			m.create("ns", "x")
		}, "x", metav1.DeletePropagationBackground, "[a b]"},
		"a circle is no knot": {func(m *model) {
			m.create("ns", "a", m.ref("c", true, true))
			m.create("ns", "b", m.ref("a", true, true))
			m.create("ns", "c", m.ref("b", true, true))
		}, "a", metav1.DeletePropagationForeground, "[]"},
		"an owner that never was": {func(m *model) {
			m.create("ns", "b", m.ref("never", true, true))
			m.create("ns", "x")
		}, "x", metav1.DeletePropagationBackground, "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newModel(t)
			c.build(m)
			m.deliver()
			m.remove(types.UID(c.delete), c.policy)
			m.orphaned[types.UID(c.delete)] = c.policy == metav1.DeletePropagationOrphan
			m.settle(rand.New(rand.NewPCG(1, 1)))
			if got := m.names(); got != c.want {
				t.Errorf("left: %s, want %s", got, c.want)
			}
		})
	}
}

// TestForegroundOwnerGoesLast: the owner is there as long as a dependent that blocks it is.
func TestForegroundOwnerGoesLast(t *testing.T) {
	m := newModel(t)
	m.create("ns", "a")
	b := m.create("ns", "b", m.ref("a", true, true))
	b.Finalizers = []string{"test/slow"}
	m.changed(b)
	m.deliver()
	m.remove("a", metav1.DeletePropagationForeground)
	m.settle(rand.New(rand.NewPCG(1, 1)))
	if got := m.names(); got != "[a b]" {
		t.Fatalf("left: %s", got)
	}
	b = m.objects["b"].DeepCopy()
	b.Finalizers = nil
	m.changed(b)
	m.settle(rand.New(rand.NewPCG(1, 1)))
	if got := m.names(); got != "[]" {
		t.Errorf("left: %s", got)
	}
}

// TestRandomGraphs deletes at random in random graphs, with a watch that lags at random. model.delete checks that
// nothing is deleted that is held; here it is checked that all else is gone, and that nothing hangs.
func TestRandomGraphs(t *testing.T) {
	policies := []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground, metav1.DeletePropagationOrphan}
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 7))
		m := newModel(t)
		n := 3 + r.IntN(20)
		for i := range n {
			var refs []metav1.OwnerReference
			for range r.IntN(3) {
				to := r.IntN(n) // forwards too: circles
				if r.IntN(3) > 0 && i > 0 {
					to = r.IntN(i)
				}
				if to != i && !slices.ContainsFunc(refs, func(x metav1.OwnerReference) bool { return x.Name == fmt.Sprint("o", to) }) {
					refs = append(refs, m.ref(fmt.Sprint("o", to), true, r.IntN(2) == 0))
				}
			}
			m.create("ns", fmt.Sprint("o", i), refs...)
		}
		m.deliver()
		for range 1 + r.IntN(4) {
			uid := types.UID(fmt.Sprint("o", r.IntN(n)))
			if o := m.objects[uid]; o != nil && o.DeletionTimestamp == nil {
				policy := policies[r.IntN(3)]
				m.orphaned[uid] = policy == metav1.DeletePropagationOrphan
				m.remove(uid, policy)
			}
			for range r.IntN(10) {
				if len(m.pending) > 0 {
					e := m.pending[0]
					m.pending = m.pending[1:]
					e()
				}
			}
		}
		m.settle(r)
		for _, o := range m.objects {
			if o.DeletionTimestamp != nil {
				t.Errorf("seed %d: %s hangs with %v", seed, o.Name, o.Finalizers)
			}
			for _, ref := range o.OwnerReferences {
				if m.objects[ref.UID] == nil {
					t.Errorf("seed %d: %s still names the owner %s that is gone", seed, o.Name, ref.Name)
				}
			}
		}
		if t.Failed() {
			return
		}
	}
}
