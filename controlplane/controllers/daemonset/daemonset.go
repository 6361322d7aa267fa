// Package daemonset keeps a pod on each node that a DaemonSet names.
package daemonset

import (
	"context"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/strake-io/strake/controlplane/controllers/pods"
	"github.com/strake-io/strake/controlplane/controllers/queue"
	"github.com/strake-io/strake/controlplane/controllers/revisions"
)

// burst bounds the pods that one pass makes.
const burst = 250

// A daemon that fails is made anew after a second, then after twice as long each time.
const (
	backoffFirst = time.Second
	backoffMax   = 15 * time.Minute
)

var kind = appsv1.SchemeGroupVersion.WithKind("DaemonSet")

type controller struct {
	client       kubernetes.Interface
	sets         appslisters.DaemonSetLister
	nodes        corelisters.NodeLister
	pods         *pods.Control
	history      *revisions.History
	recorder     record.EventRecorder
	queue        *queue.Queue
	expectations pods.Expectations
	failures     *flowcontrol.Backoff
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	sets, podInf, nodes, history := f.Apps().V1().DaemonSets(), f.Core().V1().Pods(), f.Core().V1().Nodes(), f.Apps().V1().ControllerRevisions()
	if err := pods.AddIndex(podInf.Informer()); err != nil {
		return nil, fmt.Errorf("daemonset controller: %w", err)
	}
	c := &controller{
		client: client, sets: sets.Lister(), nodes: nodes.Lister(), recorder: recorder, queue: queue.New("daemonset"),
		history:  &revisions.History{Client: client, Lister: history.Lister(), Kind: kind},
		pods:     &pods.Control{Client: client, Indexer: podInf.Informer().GetIndexer(), Recorder: recorder},
		failures: flowcontrol.NewBackOff(backoffFirst, backoffMax),
	}
	if _, err := sets.Informer().AddEventHandler(c.queue.Handlers()); err != nil {
		return nil, fmt.Errorf("daemonset controller: %w", err)
	}
	_, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { c.addAll() }, DeleteFunc: func(any) { c.addAll() },
		UpdateFunc: func(oldObj, obj any) {
			old, n := oldObj.(*corev1.Node), obj.(*corev1.Node)
			if !apiequality.Semantic.DeepEqual(old.Labels, n.Labels) || !apiequality.Semantic.DeepEqual(old.Spec.Taints, n.Spec.Taints) {
				c.addAll()
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("daemonset controller: %w", err)
	}
	_, err = podInf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			c.podChanged(obj.(*corev1.Pod), func(key string, _ *corev1.Pod) { c.expectations.Created(key) })
		},
		UpdateFunc: func(_, obj any) {
			c.podChanged(obj.(*corev1.Pod), func(key string, p *corev1.Pod) {
				if p.DeletionTimestamp != nil {
					c.expectations.Deleted(key, p.UID)
				}
			})
		},
		DeleteFunc: func(obj any) {
			if p, ok := queue.Object[*corev1.Pod](obj); ok {
				c.podChanged(p, func(key string, p *corev1.Pod) { c.expectations.Deleted(key, p.UID) })
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("daemonset controller: %w", err)
	}
	return func(ctx context.Context) {
		var wg sync.WaitGroup
		wg.Go(func() {
			for ctx.Err() == nil {
				select {
				case <-ctx.Done():
				case <-time.After(2 * backoffMax):
					c.failures.GC()
				}
			}
		})
		c.queue.Run(ctx, 2, c.reconcile, sets.Informer().HasSynced, podInf.Informer().HasSynced, nodes.Informer().HasSynced, history.Informer().HasSynced)
		wg.Wait()
	}, nil
}

func (c *controller) addAll() {
	sets, err := c.sets.List(labels.Everything())
	if err != nil {
		return
	}
	for _, d := range sets {
		c.queue.Add(d.Namespace + "/" + d.Name)
	}
}

func (c *controller) podChanged(p *corev1.Pod, seen func(key string, p *corev1.Pod)) {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref != nil {
		if ref.Kind == kind.Kind {
			key := p.Namespace + "/" + ref.Name
			seen(key, p)
			c.queue.Add(key)
		}
		return
	}
	sets, err := c.sets.DaemonSets(p.Namespace).List(labels.Everything())
	if err != nil {
		return
	}
	for _, d := range sets {
		if sel, err := metav1.LabelSelectorAsSelector(d.Spec.Selector); err == nil && !sel.Empty() && sel.Matches(labels.Set(p.Labels)) {
			c.queue.Add(d.Namespace + "/" + d.Name)
		}
	}
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	key := namespace + "/" + name
	d, err := c.sets.DaemonSets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.expectations.Forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	sel, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil || sel.Empty() {
		return nil // validation keeps such objects out; there is nothing to retry
	}
	live := func(ctx context.Context) (metav1.Object, error) {
		return c.client.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	owned, err := c.pods.Owned(ctx, d, *metav1.NewControllerRef(d, kind), sel, live)
	if err != nil {
		return err
	}
	if d.DeletionTimestamp != nil {
		return nil // the garbage collector removes what depends on it
	}
	all, revision, collisions, err := c.history.Sync(ctx, revisions.Owner{Object: d, Selector: sel, Template: &d.Spec.Template, Collisions: d.Status.CollisionCount, Live: live})
	if err != nil {
		return err
	}
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		return err
	}
	hash := revision.Labels[revisions.Label]
	p := decide(d, nodes, owned, hash, time.Now())
	if p.again > 0 {
		c.queue.AddAfter(key, p.again)
	}
	p.status.CollisionCount = &collisions
	var actErr error
	if c.expectations.Satisfied(key) {
		actErr = c.act(ctx, key, d, p, hash)
	}
	if err := c.writeStatus(ctx, d, p.status); err != nil {
		return err
	}
	if actErr != nil {
		return actErr
	}
	used := map[string]bool{hash: true}
	for _, pod := range owned {
		used[pod.Labels[revisions.Label]] = true
	}
	limit := int32(10)
	if d.Spec.RevisionHistoryLimit != nil {
		limit = *d.Spec.RevisionHistoryLimit
	}
	return c.history.Trim(ctx, all, limit, func(r *appsv1.ControllerRevision) bool { return used[r.Labels[revisions.Label]] })
}

// act makes and deletes the pods of a plan.
func (c *controller) act(ctx context.Context, key string, d *appsv1.DaemonSet, p plan, hash string) error {
	remove := p.remove
	for _, pod := range p.failed {
		id := key + "/" + nodeOf(pod) + "/" + hash
		now := c.failures.Clock.Now()
		if c.failures.IsInBackOffSinceUpdate(id, now) {
			c.queue.AddAfter(key, c.failures.Get(id))
			continue
		}
		c.failures.Next(id, now)
		c.recorder.Eventf(d, corev1.EventTypeWarning, "FailedDaemonPod", "Found failed daemon pod %s/%s on node %s, will try to kill it", pod.Namespace, pod.Name, nodeOf(pod))
		remove = append(remove, pod)
	}
	create := p.create[:min(len(p.create), burst)]
	if len(create)+len(remove) == 0 {
		return nil
	}
	uids := make([]types.UID, len(remove))
	for i, pod := range remove {
		uids[i] = pod.UID
	}
	c.expectations.Expect(key, len(create), uids...)
	var first error
	for _, pod := range remove {
		if err := c.pods.Delete(ctx, d, pod); err != nil {
			c.expectations.Deleted(key, pod.UID)
			first = err
		}
	}
	var mu sync.Mutex
	next := 0
	made, err := pods.SlowStart(len(create), func() error {
		mu.Lock()
		node := create[next]
		next++
		mu.Unlock()
		_, err := c.pods.Create(ctx, d, d.Namespace, d.Name, &d.Spec.Template, *metav1.NewControllerRef(d, kind), func(pod *corev1.Pod) {
			l := map[string]string{revisions.Label: hash}
			for k, v := range pod.Labels {
				if k != revisions.Label {
					l[k] = v
				}
			}
			pod.Labels = l
			tolerate(&pod.Spec)
			pin(&pod.Spec, node)
		})
		return err
	})
	for range len(create) - made {
		c.expectations.Created(key)
	}
	if err != nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		first = err
	}
	return first
}

func (c *controller) writeStatus(ctx context.Context, d *appsv1.DaemonSet, status appsv1.DaemonSetStatus) error {
	if apiequality.Semantic.DeepEqual(d.Status, status) {
		return nil
	}
	d = d.DeepCopy()
	d.Status = status
	_, err := c.client.AppsV1().DaemonSets(d.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
