// Package queue runs a reconcile function over a de-duplicated, rate-limited
// queue of keys: the loop that all controllers share.
package queue

import (
	"context"
	"sync"
	"time"

	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

// Queue holds keys "namespace/name". A key that is being worked on is not worked on twice at a time.
type Queue struct {
	name string
	q    workqueue.TypedRateLimitingInterface[string]
}

// New makes a queue; name appears in logs.
func New(name string) *Queue {
	limit := workqueue.NewTypedItemExponentialFailureRateLimiter[string](20*time.Millisecond, 2*time.Minute)
	return &Queue{name: name, q: workqueue.NewTypedRateLimitingQueue(limit)}
}

// Add queues a key.
func (q *Queue) Add(key string) { q.q.Add(key) }

// AddAfter queues a key later.
func (q *Queue) AddAfter(key string, d time.Duration) { q.q.AddAfter(key, d) }

// Failing tells whether a key failed when it was last worked on, and is to be tried again.
func (q *Queue) Failing(key string) bool { return q.q.NumRequeues(key) > 0 }

// AddObject queues an object's key; tombstones of a missed delete too.
func (q *Queue) AddObject(obj any) {
	if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
		q.Add(key)
	}
}

// Handlers queue an object whenever it changes.
func (q *Queue) Handlers() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{AddFunc: q.AddObject, UpdateFunc: func(_, obj any) { q.AddObject(obj) }, DeleteFunc: q.AddObject}
}

// Run works with so many goroutines until ctx ends, after the caches have synced. A reconcile that fails is
// repeated with a growing pause.
func (q *Queue) Run(ctx context.Context, workers int, reconcile func(ctx context.Context, namespace, name string) error, synced ...cache.InformerSynced) {
	defer q.q.ShutDown()
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for q.next(ctx, reconcile) {
			}
		})
	}
	<-ctx.Done()
	q.q.ShutDown()
	wg.Wait()
}

func (q *Queue) next(ctx context.Context, reconcile func(ctx context.Context, namespace, name string) error) bool {
	key, quit := q.q.Get()
	if quit {
		return false
	}
	defer q.q.Done(key)
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err == nil {
		err = reconcile(ctx, namespace, name)
	}
	if err != nil && ctx.Err() == nil {
		klog.V(2).InfoS("Reconcile failed, trying again", "controller", q.name, "key", key, "err", err)
		q.q.AddRateLimited(key)
		return true
	}
	q.q.Forget(key)
	return true
}

// Object unwraps what a delete handler gets: the object, or the tombstone that holds its last known state.
func Object[T any](obj any) (T, bool) {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	o, ok := obj.(T)
	return o, ok
}
