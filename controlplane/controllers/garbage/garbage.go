// Package garbage deletes objects whose owners are gone, and carries out the
// propagation policies of deletes: background, foreground and orphan.
//
// Informers of all deletable resources, metadata only, keep a graph of owners
// and dependents. A worker looks at one object at a time; before it deletes, it
// asks the API server whether an owner that the graph does not know is really
// gone, so that a lagging cache never costs a live object.
package garbage

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

// rediscover is how often new resources are looked for when no CRD event tells of them.
const rediscover = 30 * time.Second

// ignored resources own nothing and are owned by nothing that matters, but change all the time.
var ignored = []schema.GroupResource{{Resource: "events"}, {Group: "events.k8s.io", Resource: "events"}}

type collector struct {
	client   kubernetes.Interface
	metadata metadata.Interface
	mapper   *restmapper.DeferredDiscoveryRESTMapper
	graph    *graph
	queue    *queue.Queue

	mu       sync.Mutex
	monitors map[schema.GroupVersionResource]*monitor
}

type monitor struct {
	stop   context.CancelFunc
	synced cache.InformerSynced
}

// Setup returns what runs the collector.
func Setup(client kubernetes.Interface, md metadata.Interface) func(context.Context) {
	c := &collector{
		client: client, metadata: md, mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery())),
		graph: newGraph(), queue: queue.New("garbage"), monitors: map[schema.GroupVersionResource]*monitor{},
	}
	return c.run
}

func (c *collector) run(ctx context.Context) {
	c.discover(ctx)
	go func() {
		t := time.NewTicker(rediscover)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				c.discover(ctx)
			}
		}
	}()
	c.queue.Run(ctx, 4, func(ctx context.Context, _, uid string) error { return c.process(ctx, types.UID(uid)) }, c.synced)
}

func (c *collector) synced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.monitors {
		if !m.synced() {
			return false
		}
	}
	return len(c.monitors) > 0
}

// discover starts a monitor for each resource that is new, and ends those of resources that are gone.
func (c *collector) discover(ctx context.Context) {
	lists, err := c.client.Discovery().ServerPreferredResources()
	if err != nil && len(lists) == 0 {
		klog.V(2).InfoS("Discovery of deletable resources failed, trying again", "err", err)
		return
	}
	complete := err == nil
	want := map[schema.GroupVersionResource]bool{}
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			continue
		}
		for _, r := range l.APIResources {
			ok := !strings.Contains(r.Name, "/")
			for _, verb := range []string{"delete", "list", "watch"} {
				ok = ok && slices.Contains(r.Verbs, verb)
			}
			if ok && !slices.Contains(ignored, schema.GroupResource{Group: gv.Group, Resource: r.Name}) {
				want[gv.WithResource(r.Name)] = true
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	for gvr := range want {
		if c.monitors[gvr] == nil {
			c.monitors[gvr] = c.monitor(ctx, gvr)
			changed = true
		}
	}
	for gvr, m := range c.monitors {
		if complete && !want[gvr] {
			m.stop()
			delete(c.monitors, gvr)
			changed = true
		}
	}
	if changed {
		c.mapper.Reset()
	}
}

// monitor feeds the graph with one resource.
func (c *collector) monitor(ctx context.Context, gvr schema.GroupVersionResource) *monitor {
	ctx, cancel := context.WithCancel(ctx)
	client := c.metadata.Resource(gvr)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.Watch(ctx, o)
		},
	}
	put := func(obj any) {
		if m, ok := obj.(*metav1.PartialObjectMetadata); ok {
			c.enqueue(c.graph.put(&object{
				identity: identity{gvr: gvr, namespace: m.Namespace, name: m.Name, uid: m.UID},
				owners:   m.OwnerReferences, finalizers: m.Finalizers, deleting: m.DeletionTimestamp != nil,
			}))
		}
	}
	inf := cache.NewSharedIndexInformer(lw, &metav1.PartialObjectMetadata{}, 0, nil)
	// Only what the graph needs stays in memory.
	_ = inf.SetTransform(func(obj any) (any, error) {
		if m, ok := obj.(*metav1.PartialObjectMetadata); ok {
			return &metav1.PartialObjectMetadata{TypeMeta: m.TypeMeta, ObjectMeta: metav1.ObjectMeta{
				Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion,
				OwnerReferences: m.OwnerReferences, Finalizers: m.Finalizers, DeletionTimestamp: m.DeletionTimestamp,
			}}, nil
		}
		return obj, nil
	}) // fails only once the informer runs
	reg, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: put, UpdateFunc: func(_, obj any) { put(obj) },
		DeleteFunc: func(obj any) {
			if m, ok := queue.Object[*metav1.PartialObjectMetadata](obj); ok {
				c.enqueue(c.graph.drop(m.UID))
			}
		},
	})
	if err != nil {
		klog.ErrorS(err, "Garbage collector can't watch", "resource", gvr)
		return &monitor{stop: cancel, synced: func() bool { return true }}
	}
	go inf.RunWithContext(ctx)
	return &monitor{stop: cancel, synced: reg.HasSynced}
}

func (c *collector) enqueue(uids []types.UID) {
	for _, uid := range uids {
		c.queue.Add(string(uid))
	}
}

// process looks at one object.
func (c *collector) process(ctx context.Context, uid types.UID) error {
	o, owned := c.graph.get(uid)
	if o == nil {
		return nil
	}
	if o.deleting {
		switch {
		case o.has(metav1.FinalizerOrphanDependents):
			return c.orphan(ctx, o, owned)
		case o.has(metav1.FinalizerDeleteDependents):
			return c.foreground(ctx, o, owned)
		}
		return nil
	}
	if len(o.owners) == 0 {
		return nil
	}
	return c.collect(ctx, o, owned)
}

// collect deletes an object that no owner holds any more.
func (c *collector) collect(ctx context.Context, o *object, owned []*object) error {
	var solid, waiting, gone []metav1.OwnerReference
	for _, ref := range o.owners {
		owner, found, err := c.owner(ctx, o, ref)
		switch {
		case err != nil:
			return err
		case !found:
			gone = append(gone, ref)
		case owner != nil && owner.deleting && owner.has(metav1.FinalizerDeleteDependents):
			waiting = append(waiting, ref)
		default:
			solid = append(solid, ref)
		}
	}
	switch {
	case len(solid) > 0 && len(gone)+len(waiting) == 0:
		return nil
	case len(solid) > 0:
		// Others still hold it: only the references go.
		return c.dropReferences(ctx, o, append(gone, waiting...))
	case len(waiting) > 0 && len(owned) > 0:
		return c.delete(ctx, o, metav1.DeletePropagationForeground)
	}
	policy := metav1.DeletePropagationBackground
	if o.has(metav1.FinalizerOrphanDependents) {
		policy = metav1.DeletePropagationOrphan
	} else if o.has(metav1.FinalizerDeleteDependents) {
		policy = metav1.DeletePropagationForeground
	}
	return c.delete(ctx, o, policy)
}

// owner tells whether an owner exists: by the graph, else by asking the API server for it.
func (c *collector) owner(ctx context.Context, o *object, ref metav1.OwnerReference) (*object, bool, error) {
	if owner, ok := c.graph.known(ref.UID); ok {
		// A namespaced owner holds objects of its own namespace only (KEP-1786).
		if owner.namespace != "" && owner.namespace != o.namespace {
			return nil, false, nil
		}
		return owner, true, nil
	}
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return nil, true, nil // not to be understood, so not to be judged
	}
	mapping, err := c.mapper.RESTMapping(gv.WithKind(ref.Kind).GroupKind(), gv.Version)
	if meta.IsNoMatchError(err) {
		return nil, false, fmt.Errorf("%s %s/%s: its owner's kind %s %s is not served; it stays until that kind is back: %w", o.gvr.Resource, o.namespace, o.name, ref.APIVersion, ref.Kind, err)
	}
	if err != nil {
		return nil, false, err
	}
	namespace := ""
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		if o.namespace == "" {
			return nil, true, nil // a cluster-scoped object can't have a namespaced owner; it stays
		}
		namespace = o.namespace
	}
	got, err := c.metadata.Resource(mapping.Resource).Namespace(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return nil, got.UID == ref.UID, nil
}

// foreground deletes what an object owns, and lets it go when nothing that blocks it is left.
func (c *collector) foreground(ctx context.Context, o *object, owned []*object) error {
	blocked := false
	for _, d := range owned {
		if d.blocks(o.uid) {
			blocked = true
		}
		c.queue.Add(string(d.uid))
	}
	if blocked {
		return nil
	}
	return c.dropFinalizer(ctx, o, metav1.FinalizerDeleteDependents)
}

// orphan takes the owner off its dependents and lets it go.
func (c *collector) orphan(ctx context.Context, o *object, owned []*object) error {
	for _, d := range owned {
		if err := c.dropReferences(ctx, d, []metav1.OwnerReference{{UID: o.uid}}); err != nil {
			return err
		}
	}
	return c.dropFinalizer(ctx, o, metav1.FinalizerOrphanDependents)
}

func (c *collector) resource(o *object) metadata.ResourceInterface {
	return c.metadata.Resource(o.gvr).Namespace(o.namespace)
}

func (c *collector) delete(ctx context.Context, o *object, policy metav1.DeletionPropagation) error {
	err := c.resource(o).Delete(ctx, o.name, metav1.DeleteOptions{PropagationPolicy: &policy, Preconditions: metav1.NewUIDPreconditions(string(o.uid))})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // gone, or another of the same name
	}
	return err
}

// dropReferences removes owner references by UID, if the object has not changed meanwhile.
func (c *collector) dropReferences(ctx context.Context, o *object, refs []metav1.OwnerReference) error {
	return c.change(ctx, o, func(m *metav1.PartialObjectMetadata) map[string]any {
		left := slices.DeleteFunc(slices.Clone(m.OwnerReferences), func(r metav1.OwnerReference) bool {
			return slices.ContainsFunc(refs, func(x metav1.OwnerReference) bool { return x.UID == r.UID })
		})
		if len(left) == len(m.OwnerReferences) {
			return nil
		}
		return map[string]any{"ownerReferences": left}
	})
}

func (c *collector) dropFinalizer(ctx context.Context, o *object, finalizer string) error {
	return c.change(ctx, o, func(m *metav1.PartialObjectMetadata) map[string]any {
		left := slices.DeleteFunc(slices.Clone(m.Finalizers), func(f string) bool { return f == finalizer })
		if len(left) == len(m.Finalizers) {
			return nil
		}
		return map[string]any{"finalizers": left}
	})
}

// change patches metadata of the current object.
func (c *collector) change(ctx context.Context, o *object, edit func(*metav1.PartialObjectMetadata) map[string]any) error {
	m, err := c.resource(o).Get(ctx, o.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && m.UID != o.uid {
		return nil
	}
	if err != nil {
		return err
	}
	fields := edit(m)
	if fields == nil {
		return nil
	}
	fields["resourceVersion"], fields["uid"] = m.ResourceVersion, m.UID
	patch, err := json.Marshal(map[string]any{"metadata": fields})
	if err != nil {
		return err
	}
	_, err = c.resource(o).Patch(ctx, o.name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
