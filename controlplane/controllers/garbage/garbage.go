package garbage

import (
	"context"
	"fmt"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/restmapper"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

// objects is the API server as the collector needs it.
type objects interface {
	// get returns an object's metadata, or a NotFound error.
	get(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string) (*metav1.PartialObjectMetadata, error)
	// delete removes the object if it still is of this UID and version (Conflict error otherwise).
	delete(ctx context.Context, o *object, version string, policy metav1.DeletionPropagation) error
	// patch merges fields into the metadata of the object, if it still is of this UID and version.
	patch(ctx context.Context, o *object, version string, fields map[string]any) error
	// resolve tells where objects of a kind are found, and whether they live in namespaces; a NoMatch error if nowhere.
	resolve(kind schema.GroupVersionKind) (gvr schema.GroupVersionResource, namespaced bool, err error)
	// reset forgets what resolve knew.
	reset()
}

type collector struct {
	api   objects
	graph *graph
	queue *queue.Queue
	add   func(types.UID) // queues an object

	mu       sync.Mutex
	monitors map[schema.GroupVersionResource]*monitor
	absent   absences
}

// Setup returns what runs the collector.
func Setup(client kubernetes.Interface, md metadata.Interface) func(context.Context) {
	api := &server{metadata: md, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))}
	c := newCollector(api)
	return func(ctx context.Context) { c.run(ctx, client.Discovery(), md) }
}

func newCollector(api objects) *collector {
	q := queue.New("garbage")
	return &collector{
		api: api, graph: newGraph(), queue: q, add: func(uid types.UID) { q.Add(string(uid)) },
		monitors: map[schema.GroupVersionResource]*monitor{},
	}
}

// process looks at one object.
func (c *collector) process(ctx context.Context, uid types.UID) error {
	o, owned := c.graph.get(uid)
	switch {
	case o == nil:
		return nil
	case o.deleting && o.has(metav1.FinalizerOrphanDependents):
		return c.orphan(ctx, o, owned)
	case o.deleting && o.has(metav1.FinalizerDeleteDependents):
		return c.foreground(ctx, o, owned)
	case o.deleting || len(o.owners) == 0:
		return nil
	}
	return c.collect(ctx, o, owned)
}

// judgement sorts an object's owners.
type judgement struct {
	solid   bool                    // one stands, or can't be judged: the object stays
	waiting []metav1.OwnerReference // are being deleted in the foreground and wait for their dependents
	gone    []metav1.OwnerReference
}

func (j judgement) keep() bool { return j.solid && len(j.waiting)+len(j.gone) == 0 }

func (c *collector) judge(ctx context.Context, o *object, owners []metav1.OwnerReference) (judgement, error) {
	var j judgement
	for _, ref := range owners {
		state, err := c.ownerState(ctx, o, ref)
		if err != nil {
			return j, err
		}
		switch state {
		case ownerGone:
			j.gone = append(j.gone, ref)
		case ownerWaits:
			j.waiting = append(j.waiting, ref)
		case ownerStands:
			j.solid = true
		}
	}
	return j, nil
}

type ownerState int

const (
	ownerStands ownerState = iota
	ownerWaits
	ownerGone
)

// ownerState looks for an owner in the graph, else asks the API server for it.
func (c *collector) ownerState(ctx context.Context, o *object, ref metav1.OwnerReference) (ownerState, error) {
	if owner, ok := c.graph.known(ref.UID); ok {
		switch {
		case owner.namespace != "" && o.namespace == "":
			return ownerStands, nil // not allowed, and not to be resolved: it stays
		case owner.namespace != "" && owner.namespace != o.namespace:
			return ownerGone, nil // an owner is of the same namespace, or of none (KEP-2336)
		case owner.deleting && owner.has(metav1.FinalizerDeleteDependents):
			return ownerWaits, nil
		}
		return ownerStands, nil
	}
	if c.absent.has(ref.UID) {
		return ownerGone, nil
	}
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return ownerStands, nil // not to be understood, so not to be judged
	}
	gvr, namespaced, err := c.api.resolve(gv.WithKind(ref.Kind))
	if meta.IsNoMatchError(err) {
		return ownerStands, fmt.Errorf("%s %s/%s: the kind of its owner, %s %s, is not served; it stays until that kind is back: %w", o.gvr.Resource, o.namespace, o.name, ref.APIVersion, ref.Kind, err)
	}
	if err != nil {
		return ownerStands, err
	}
	namespace := ""
	if namespaced {
		if o.namespace == "" {
			return ownerStands, nil
		}
		namespace = o.namespace
	}
	got, err := c.api.get(ctx, gvr, namespace, ref.Name)
	switch {
	case apierrors.IsNotFound(err), err == nil && got.UID != ref.UID:
		c.absent.add(ref.UID)
		return ownerGone, nil
	case err != nil:
		return ownerStands, err
	case got.DeletionTimestamp != nil && slices.Contains(got.Finalizers, metav1.FinalizerDeleteDependents):
		return ownerWaits, nil
	}
	return ownerStands, nil
}

// collect deletes an object that no owner holds any more.
func (c *collector) collect(ctx context.Context, o *object, owned []*object) error {
	j, err := c.judge(ctx, o, o.owners)
	if err != nil || j.keep() {
		return err
	}
	m, err := c.api.get(ctx, o.gvr, o.namespace, o.name)
	if apierrors.IsNotFound(err) || err == nil && (m.UID != o.uid || m.DeletionTimestamp != nil) {
		return nil // the graph hears of it soon
	}
	if err != nil {
		return err
	}
	if j, err = c.judge(ctx, o, m.OwnerReferences); err != nil || len(m.OwnerReferences) == 0 || j.keep() {
		return err
	}
	if j.solid {
		// Others still hold it: only the references go.
		return harmless(c.dropReferences(ctx, o, m, append(j.gone, j.waiting...)))
	}
	policy := metav1.DeletePropagationBackground
	switch {
	case len(j.waiting) > 0 && len(owned) > 0:
		// Its own dependents go before it, so that the owner goes last. If one of them waits for this object in
		// turn, the owners are in a circle: then nobody waits for this one any more.
		if slices.ContainsFunc(owned, func(d *object) bool { return d.deleting && d.has(metav1.FinalizerDeleteDependents) }) {
			if err := c.unblock(ctx, o, m); err != nil {
				return harmless(err)
			}
			return fmt.Errorf("%s %s/%s: owners in a circle, no longer blocking", o.gvr.Resource, o.namespace, o.name) // again, with its new version
		}
		policy = metav1.DeletePropagationForeground
	case slices.Contains(m.Finalizers, metav1.FinalizerOrphanDependents):
		policy = metav1.DeletePropagationOrphan
	case slices.Contains(m.Finalizers, metav1.FinalizerDeleteDependents):
		policy = metav1.DeletePropagationForeground
	}
	return harmless(c.api.delete(ctx, o, m.ResourceVersion, policy))
}

// foreground deletes what an object owns, and lets it go when nothing that blocks it is left.
func (c *collector) foreground(ctx context.Context, o *object, owned []*object) error {
	blocked := false
	for _, d := range owned {
		blocked = blocked || d.blocks(o.uid)
		c.add(d.uid)
	}
	if blocked {
		return nil
	}
	return c.dropFinalizer(ctx, o, metav1.FinalizerDeleteDependents)
}

// orphan takes the owner off its dependents and lets it go.
func (c *collector) orphan(ctx context.Context, o *object, owned []*object) error {
	for _, d := range owned {
		m, err := c.api.get(ctx, d.gvr, d.namespace, d.name)
		if err == nil && m.UID == d.uid {
			err = c.dropReferences(ctx, d, m, []metav1.OwnerReference{{UID: o.uid}})
		}
		if harmless(err) != nil {
			return err
		}
	}
	return c.dropFinalizer(ctx, o, metav1.FinalizerOrphanDependents)
}

// harmless takes away the error that there is nothing left to do.
func harmless(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// dropReferences removes owner references by UID.
func (c *collector) dropReferences(ctx context.Context, o *object, m *metav1.PartialObjectMetadata, refs []metav1.OwnerReference) error {
	left := slices.DeleteFunc(slices.Clone(m.OwnerReferences), func(r metav1.OwnerReference) bool {
		return slices.ContainsFunc(refs, func(x metav1.OwnerReference) bool { return x.UID == r.UID })
	})
	if len(left) == len(m.OwnerReferences) {
		return nil
	}
	return c.api.patch(ctx, o, m.ResourceVersion, map[string]any{"ownerReferences": left})
}

// unblock lets the owners of an object go before it.
func (c *collector) unblock(ctx context.Context, o *object, m *metav1.PartialObjectMetadata) error {
	refs := slices.Clone(m.OwnerReferences)
	for i := range refs {
		refs[i].BlockOwnerDeletion = nil
	}
	return c.api.patch(ctx, o, m.ResourceVersion, map[string]any{"ownerReferences": refs})
}

func (c *collector) dropFinalizer(ctx context.Context, o *object, finalizer string) error {
	m, err := c.api.get(ctx, o.gvr, o.namespace, o.name)
	if err != nil || m.UID != o.uid {
		return harmless(err)
	}
	left := slices.DeleteFunc(slices.Clone(m.Finalizers), func(f string) bool { return f == finalizer })
	if len(left) == len(m.Finalizers) {
		return nil
	}
	return harmless(c.api.patch(ctx, o, m.ResourceVersion, map[string]any{"finalizers": left}))
}

// absences remembers owners that were seen to be gone: a UID never comes back. It spares a request for each
// dependent of a large owner.
type absences struct {
	mu sync.Mutex
	m  map[types.UID]bool
}

const maxAbsences = 4096

func (a *absences) add(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.m == nil || len(a.m) >= maxAbsences {
		a.m = map[types.UID]bool{}
	}
	a.m[uid] = true
}

func (a *absences) has(uid types.UID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.m[uid]
}
