package garbage

import (
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// identity names an object for good.
type identity struct {
	gvr       schema.GroupVersionResource
	namespace string
	name      string
	uid       types.UID
}

// object is what the graph knows of one.
type object struct {
	identity
	owners     []metav1.OwnerReference
	finalizers []string
	deleting   bool
}

// graph holds all objects and who owns whom. It is told of changes by the informers and asked by the workers.
type graph struct {
	mu         sync.Mutex
	objects    map[types.UID]*object
	dependents map[types.UID]map[types.UID]bool
}

func newGraph() *graph {
	return &graph{objects: map[types.UID]*object{}, dependents: map[types.UID]map[types.UID]bool{}}
}

// put adds or updates an object and returns the objects that may need work because of it.
func (g *graph) put(o *object) []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.objects[o.uid]
	if old != nil {
		g.unlink(old)
	}
	g.objects[o.uid] = o
	for _, ref := range o.owners {
		if g.dependents[ref.UID] == nil {
			g.dependents[ref.UID] = map[types.UID]bool{}
		}
		g.dependents[ref.UID][o.uid] = true
	}
	var work []types.UID
	if len(o.owners) > 0 || o.deleting {
		work = append(work, o.uid)
	}
	// An owner that waits for this one, in the foreground, may be done or must tell it to go; so may one that
	// it had until now.
	refs := o.owners
	if old != nil {
		refs = append(slices.Clone(refs), old.owners...)
	}
	for _, ref := range refs {
		if owner := g.objects[ref.UID]; owner != nil && owner.deleting {
			work = append(work, ref.UID)
		}
	}
	return work
}

// drop removes an object and returns those that may need work: what it owned, and owners that wait for it.
func (g *graph) drop(uid types.UID) []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	o := g.objects[uid]
	if o == nil {
		return nil
	}
	g.unlink(o)
	delete(g.objects, uid)
	var work []types.UID
	for d := range g.dependents[uid] {
		work = append(work, d)
	}
	for _, ref := range o.owners {
		if owner := g.objects[ref.UID]; owner != nil && owner.deleting {
			work = append(work, ref.UID)
		}
	}
	return work
}

// dropResource removes all objects of a resource and returns what they owned.
func (g *graph) dropResource(gvr schema.GroupVersionResource) []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	var work []types.UID
	for uid, o := range g.objects {
		if o.gvr != gvr {
			continue
		}
		g.unlink(o)
		delete(g.objects, uid)
		for d := range g.dependents[uid] {
			work = append(work, d)
		}
	}
	return work
}

func (g *graph) unlink(o *object) {
	for _, ref := range o.owners {
		delete(g.dependents[ref.UID], o.uid)
		if len(g.dependents[ref.UID]) == 0 {
			delete(g.dependents, ref.UID)
		}
	}
}

// get returns an object and what it owns.
func (g *graph) get(uid types.UID) (*object, []*object) {
	g.mu.Lock()
	defer g.mu.Unlock()
	o := g.objects[uid]
	var owned []*object
	for d := range g.dependents[uid] {
		if x := g.objects[d]; x != nil {
			owned = append(owned, x)
		}
	}
	return o, owned
}

// known tells whether the graph has an object of this UID.
func (g *graph) known(uid types.UID) (*object, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	o, ok := g.objects[uid]
	return o, ok
}

func (o *object) has(finalizer string) bool { return slices.Contains(o.finalizers, finalizer) }

// blocks tells whether the object holds up the deletion of an owner in the foreground.
func (o *object) blocks(owner types.UID) bool {
	for _, ref := range o.owners {
		if ref.UID == owner {
			return ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion
		}
	}
	return false
}
