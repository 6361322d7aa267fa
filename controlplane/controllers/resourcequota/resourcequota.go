// Package resourcequota writes into the status of ResourceQuotas how much of them is used. Admission charges
// objects before they are made; what goes is found here.
//
// What admission charged is not counted yet while the object is on its way into the store, and while the caches
// here lag behind it. A plain sum of what the caches hold would give such room away twice. So a figure is only
// lowered by what was seen to go. Charges for objects that never came into being are found by adding up a quota
// that nobody has charged for longer than a request may take.
package resourcequota

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	quota "k8s.io/apiserver/pkg/quota/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

const (
	// gather is how long changes of a namespace are gathered before its quotas are added up.
	gather = 100 * time.Millisecond
	// again is after how long a quota is added up though nothing was seen to change.
	again = 5 * time.Minute
	// settled is how long after its last change a quota holds no charge of a request that is still served: such a
	// request ends within a minute (--request-timeout), the rest is for the caches.
	settled = 90 * time.Second
)

// Evaluators makes the evaluators that measure objects as admission does.
type Evaluators func(list func(resource schema.GroupVersionResource, namespace string) ([]runtime.Object, error)) []quota.Evaluator

type controller struct {
	client     kubernetes.Interface
	metadata   metadata.Interface
	quotas     corelisters.ResourceQuotaLister
	evaluators []quota.Evaluator
	typed      map[schema.GroupVersionResource]cache.GenericLister
	mapper     meta.ResettableRESTMapper
	queue      *queue.Queue
	settled    time.Duration
	ledger     ledger

	mu      sync.Mutex
	watches sync.WaitGroup
	counted map[schema.GroupVersionResource]informers.GenericInformer // by metadata only
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, md metadata.Interface, f informers.SharedInformerFactory, evaluators Evaluators) (func(context.Context), error) {
	c, synced, err := register(client, md, f, evaluators)
	if err != nil {
		return nil, fmt.Errorf("resourcequota controller: %w", err)
	}
	return func(ctx context.Context) {
		c.queue.Run(ctx, 2, c.reconcile, synced...)
		c.watches.Wait()
	}, nil
}

func register(client kubernetes.Interface, md metadata.Interface, f informers.SharedInformerFactory, evaluators Evaluators) (*controller, []cache.InformerSynced, error) {
	quotas := f.Core().V1().ResourceQuotas()
	c := &controller{
		client: client, metadata: md, quotas: quotas.Lister(), queue: queue.New("resourcequota"),
		typed: map[schema.GroupVersionResource]cache.GenericLister{}, counted: map[schema.GroupVersionResource]informers.GenericInformer{},
		settled: settled, ledger: ledger{accounts: map[string]*account{}},
		mapper: restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery())),
	}
	c.evaluators = evaluators(c.list)
	if _, err := quotas.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: c.queue.AddObject, DeleteFunc: func(obj any) {
			if q, ok := queue.Object[*corev1.ResourceQuota](obj); ok {
				c.ledger.close(q)
			}
		},
		UpdateFunc: func(old, obj any) {
			was, q := old.(*corev1.ResourceQuota), obj.(*corev1.ResourceQuota)
			if was.UID != q.UID {
				c.ledger.close(was)
			}
			if !apiequality.Semantic.DeepEqual(was.Spec.ScopeSelector, q.Spec.ScopeSelector) {
				c.ledger.recount(q) // it counts other objects than before
			}
			if !apiequality.Semantic.DeepEqual(was.Spec, q.Spec) {
				c.queue.AddObject(obj)
			}
		},
	}); err != nil {
		return nil, nil, err
	}
	synced := []cache.InformerSynced{quotas.Informer().HasSynced}
	for _, name := range []string{"pods", "services", "persistentvolumeclaims"} {
		gvr := corev1.SchemeGroupVersion.WithResource(name)
		inf, err := f.ForResource(gvr)
		if err != nil {
			return nil, nil, err
		}
		c.typed[gvr] = inf.Lister()
		if _, err := inf.Informer().AddEventHandler(c.handlers(gvr)); err != nil {
			return nil, nil, err
		}
		synced = append(synced, inf.Informer().HasSynced)
	}
	return c, synced, nil
}

// measuredChange tells whether an update may change what an object takes: its spec, or a pod's end.
func measuredChange(old, obj any) bool {
	switch n := obj.(type) {
	case *corev1.Pod:
		o := old.(*corev1.Pod)
		return o.Status.Phase != n.Status.Phase || o.DeletionTimestamp == nil != (n.DeletionTimestamp == nil) || o.Generation != n.Generation
	case *corev1.Service:
		return !apiequality.Semantic.DeepEqual(old.(*corev1.Service).Spec, n.Spec)
	case *corev1.PersistentVolumeClaim:
		o := old.(*corev1.PersistentVolumeClaim)
		return !apiequality.Semantic.DeepEqual(o.Spec, n.Spec) || !apiequality.Semantic.DeepEqual(o.Status.AllocatedResources, n.Status.AllocatedResources)
	}
	return false // of what is only counted nothing but its presence matters
}

// handlers note what becomes of the objects of a resource.
func (c *controller) handlers(gvr schema.GroupVersionResource) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { c.changed(gvr, nil, obj) },
		DeleteFunc: func(obj any) { c.changed(gvr, obj, nil) },
		UpdateFunc: func(old, obj any) { c.changed(gvr, old, obj) },
	}
}

// changed credits the quotas of an object's namespace with what it no longer takes, and queues them. One of old and now may be nil.
func (c *controller) changed(gvr schema.GroupVersionResource, old, now any) {
	before, _ := queue.Object[runtime.Object](old)
	after, _ := now.(runtime.Object)
	object := after
	if object == nil {
		object = before
	}
	m, err := meta.Accessor(object)
	if err != nil {
		return
	}
	quotas, err := c.quotas.ResourceQuotas(m.GetNamespace()).List(labels.Everything())
	if err != nil {
		return
	}
	due := before == nil || after == nil || measuredChange(before, after)
	for _, q := range quotas {
		if before != nil && c.ledger.credit(q, quota.SubtractWithNonNegativeResult(c.usage(q, gvr, before), c.usage(q, gvr, after))) {
			due = true
		}
		if due {
			c.queue.AddAfter(q.Namespace+"/"+q.Name, gather)
		}
	}
}

// list reads a resource from the caches. Those of kinds that are only counted begin when a quota names them.
func (c *controller) list(gvr schema.GroupVersionResource, namespace string) ([]runtime.Object, error) {
	if l, ok := c.typed[gvr]; ok {
		return l.ByNamespace(namespace).List(labels.Everything())
	}
	c.mu.Lock()
	inf := c.counted[gvr]
	c.mu.Unlock()
	if inf == nil {
		return nil, fmt.Errorf("nobody watches %s", gvr)
	}
	return inf.Lister().ByNamespace(namespace).List(labels.Everything())
}

// watch begins to count a resource and waits until its cache is filled.
func (c *controller) watch(ctx context.Context, gvr schema.GroupVersionResource) error {
	if _, ok := c.typed[gvr]; ok {
		return nil
	}
	c.mu.Lock()
	inf, ok := c.counted[gvr]
	if !ok {
		inf = metadatainformer.NewFilteredMetadataInformer(c.metadata, gvr, metav1.NamespaceAll, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}, nil)
		if _, err := inf.Informer().AddEventHandler(c.handlers(gvr)); err != nil {
			c.mu.Unlock()
			return err
		}
		c.counted[gvr] = inf
		c.watches.Go(func() { inf.Informer().Run(ctx.Done()) })
	}
	c.mu.Unlock()
	patience, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if !cache.WaitForCacheSync(patience.Done(), inf.Informer().HasSynced) {
		return fmt.Errorf("the list of %s is not there yet", gvr)
	}
	return nil
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	q, err := c.quotas.ResourceQuotas(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	// The credit is read before the caches: what it tells of is gone from them.
	credit, since, anew := c.ledger.read(q)
	counted, sumErr := c.sum(ctx, q)
	whole := anew || time.Since(since) >= c.settled
	status := corev1.ResourceQuotaStatus{Hard: q.Spec.Hard.DeepCopy(), Used: corev1.ResourceList{}}
	spent, uncounted := corev1.ResourceList{}, false
	for n := range q.Spec.Hard {
		was, had := q.Status.Used[n]
		now, ok := counted[n]
		switch {
		case !ok && had: // what could not be added up keeps the figure that it had
			status.Used[n] = was
			continue
		case !ok:
			continue
		case had && !whole:
			left := was.DeepCopy()
			left.Sub(credit[n])
			if left.Cmp(now) > 0 {
				now, uncounted = left, true
			}
		}
		status.Used[n] = now
		if back, ok := credit[n]; ok {
			spent[n] = back
		}
	}
	// A credit is spent by a write, though it may change nothing: it fails if the figures that it was reckoned from are old.
	if len(spent) > 0 || !apiequality.Semantic.DeepEqual(q.Status, status) {
		next := q.DeepCopy()
		next.Status = status
		if _, err := c.client.CoreV1().ResourceQuotas(namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return errors.Join(sumErr, err)
		}
	}
	c.ledger.spend(q, spent, anew && sumErr == nil)
	if uncounted {
		c.queue.AddAfter(namespace+"/"+name, c.settled)
	} else {
		c.queue.AddAfter(namespace+"/"+name, again)
	}
	return sumErr
}

// sum adds up what a quota counts.
func (c *controller) sum(ctx context.Context, q *corev1.ResourceQuota) (corev1.ResourceList, error) {
	used := corev1.ResourceList{}
	names := quota.ResourceNames(q.Spec.Hard)
	var errs []error
	known := map[corev1.ResourceName]bool{}
	for _, e := range c.evaluators {
		mine := e.MatchingResources(names)
		if len(mine) == 0 {
			continue
		}
		for _, n := range mine {
			known[n] = true
		}
		if err := c.watch(ctx, e.GroupResource().WithVersion("v1")); err != nil {
			errs = append(errs, err)
			continue
		}
		stats, err := e.UsageStats(quota.UsageStatsOptions{Namespace: q.Namespace, Scopes: q.Spec.Scopes, Resources: mine, ScopeSelector: q.Spec.ScopeSelector})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for n, v := range quota.Mask(stats.Used, mine) {
			used[n] = v
		}
	}
	for _, n := range names {
		if known[n] {
			continue
		}
		count, err := c.count(ctx, q.Namespace, n)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		used[n] = *resource.NewQuantity(int64(count), resource.DecimalSI)
	}
	return used, errors.Join(errs...)
}

// count counts the objects that "count/RESOURCE.GROUP" names. What is served by nobody is used by nobody.
func (c *controller) count(ctx context.Context, namespace string, name corev1.ResourceName) (int, error) {
	text, ok := strings.CutPrefix(string(name), "count/")
	if !ok {
		return 0, nil
	}
	gvr, err := c.mapper.ResourceFor(schema.ParseGroupResource(text).WithVersion(""))
	if meta.IsNoMatchError(err) {
		c.mapper.Reset()
		if gvr, err = c.mapper.ResourceFor(schema.ParseGroupResource(text).WithVersion("")); meta.IsNoMatchError(err) {
			return 0, nil
		}
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	if err := c.watch(ctx, gvr); err != nil {
		return 0, err
	}
	list, err := c.list(gvr, namespace)
	return len(list), err
}
