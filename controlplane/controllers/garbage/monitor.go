package garbage

import (
	"context"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

const (
	// settle is how long changes of CRDs and APIServices are gathered before resources are discovered anew.
	settle = 500 * time.Millisecond
	// retryDiscovery is the pause after a discovery that failed in part or in whole.
	retryDiscovery = 5 * time.Second
)

var (
	// ignored resources own nothing and are owned by nothing that matters, but change all the time.
	ignored = []schema.GroupResource{{Resource: "events"}, {Group: "events.k8s.io", Resource: "events"}}
	// defining resources bring and take other resources.
	defining = []schema.GroupResource{{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"}, {Group: "apiregistration.k8s.io", Resource: "apiservices"}}
)

// monitor is the informer of one resource.
type monitor struct {
	stop   context.CancelFunc
	synced cache.InformerSynced
}

func (c *collector) run(ctx context.Context, d discovery.DiscoveryInterface, md metadata.Interface) {
	changed := make(chan struct{}, 1)
	complete := c.discover(ctx, d, md, changed)
	go func() {
		for {
			var retry <-chan time.Time
			if !complete {
				retry = time.After(retryDiscovery)
			}
			select {
			case <-ctx.Done():
				return
			case <-retry:
			case <-changed:
				select {
				case <-ctx.Done():
					return
				case <-time.After(settle):
				}
			}
			complete = c.discover(ctx, d, md, changed)
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

// discover starts a monitor for each resource that is new, and ends those of resources that are gone. It tells
// whether it saw all there is.
func (c *collector) discover(ctx context.Context, d discovery.DiscoveryInterface, md metadata.Interface, changed chan<- struct{}) bool {
	lists, err := d.ServerPreferredResources()
	if err != nil && len(lists) == 0 {
		klog.V(2).InfoS("Discovery of deletable resources failed, trying again", "err", err)
		return false
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
	c.api.reset()
	c.mu.Lock()
	defer c.mu.Unlock()
	for gvr := range want {
		if c.monitors[gvr] == nil {
			c.monitors[gvr] = c.monitor(ctx, md, gvr, changed)
		}
	}
	for gvr, m := range c.monitors {
		if complete && !want[gvr] {
			m.stop()
			delete(c.monitors, gvr)
			// Whether what it knew still exists, nobody says any more: owners among it are asked for by name.
			c.enqueue(c.graph.dropResource(gvr))
		}
	}
	return complete
}

// monitor feeds the graph with one resource.
func (c *collector) monitor(ctx context.Context, md metadata.Interface, gvr schema.GroupVersionResource, changed chan<- struct{}) *monitor {
	ctx, cancel := context.WithCancel(ctx)
	client := md.Resource(gvr)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) },
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return client.Watch(ctx, o)
		},
	}
	seen := func() {}
	if slices.Contains(defining, gvr.GroupResource()) {
		seen = func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}
	put := func(obj any) {
		if m, ok := obj.(*metav1.PartialObjectMetadata); ok && ctx.Err() == nil {
			c.enqueue(c.graph.put(&object{
				identity: identity{gvr: gvr, namespace: m.Namespace, name: m.Name, uid: m.UID},
				owners:   m.OwnerReferences, finalizers: m.Finalizers, deleting: m.DeletionTimestamp != nil,
			}))
			seen()
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
		AddFunc: put,
		UpdateFunc: func(oldObj, obj any) {
			// Deleted and made again while the watch was away.
			if old, ok := oldObj.(*metav1.PartialObjectMetadata); ok {
				if m, ok := obj.(*metav1.PartialObjectMetadata); ok && m.UID != old.UID {
					c.gone(old.UID)
				}
			}
			put(obj)
		},
		DeleteFunc: func(obj any) {
			if m, ok := queue.Object[*metav1.PartialObjectMetadata](obj); ok {
				c.gone(m.UID)
				seen()
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

// gone notes that an object was seen to be deleted.
func (c *collector) gone(uid types.UID) {
	c.absent.add(uid)
	c.enqueue(c.graph.drop(uid))
}

func (c *collector) enqueue(uids []types.UID) {
	for _, uid := range uids {
		c.add(uid)
	}
}
