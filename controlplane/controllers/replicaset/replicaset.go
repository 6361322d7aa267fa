// Package replicaset keeps as many pods of a template running as a ReplicaSet says.
package replicaset

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/controlplane/controllers/pods"
	"github.com/strake-io/strake/controlplane/controllers/queue"
)

// burst bounds the pods that one pass makes or deletes.
const burst = 500

// source is where sets come from: ReplicaSets themselves, or ReplicationControllers seen as such.
type source struct {
	kind   schema.GroupVersionKind
	inf    cache.SharedIndexInformer
	get    func(namespace, name string) (*appsv1.ReplicaSet, error)
	list   func(namespace string) ([]*appsv1.ReplicaSet, error)
	live   func(ctx context.Context, namespace, name string) (metav1.Object, error)
	update func(ctx context.Context, rs *appsv1.ReplicaSet) error // writes the status
}

type controller struct {
	source
	pods         *pods.Control
	queue        *queue.Queue
	expectations pods.Expectations
}

// Setup registers the controller of ReplicaSets with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	sets := f.Apps().V1().ReplicaSets()
	return setup(client, f, recorder, source{
		kind: appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), inf: sets.Informer(),
		get: func(namespace, name string) (*appsv1.ReplicaSet, error) {
			return sets.Lister().ReplicaSets(namespace).Get(name)
		},
		list: func(namespace string) ([]*appsv1.ReplicaSet, error) {
			return sets.Lister().ReplicaSets(namespace).List(labels.Everything())
		},
		live: func(ctx context.Context, namespace, name string) (metav1.Object, error) {
			return client.AppsV1().ReplicaSets(namespace).Get(ctx, name, metav1.GetOptions{})
		},
		update: func(ctx context.Context, rs *appsv1.ReplicaSet) error {
			_, err := client.AppsV1().ReplicaSets(rs.Namespace).UpdateStatus(ctx, rs, metav1.UpdateOptions{})
			return err
		},
	})
}

func setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder, from source) (func(context.Context), error) {
	what := strings.ToLower(from.kind.Kind)
	podInf := f.Core().V1().Pods()
	if err := pods.AddIndex(podInf.Informer()); err != nil {
		return nil, fmt.Errorf("%s controller: %w", what, err)
	}
	c := &controller{
		source: from, queue: queue.New(what),
		pods: &pods.Control{Client: client, Indexer: podInf.Informer().GetIndexer(), Recorder: recorder},
	}
	if _, err := from.inf.AddEventHandler(c.queue.Handlers()); err != nil {
		return nil, fmt.Errorf("%s controller: %w", what, err)
	}
	_, err := podInf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			p := obj.(*corev1.Pod)
			if key, ok := c.ownerKey(p); ok {
				c.expectations.Created(key)
				c.queue.Add(key)
			} else {
				c.addMatching(p)
			}
		},
		UpdateFunc: func(oldObj, obj any) {
			old, p := oldObj.(*corev1.Pod), obj.(*corev1.Pod)
			if old.ResourceVersion == p.ResourceVersion {
				return
			}
			if old.UID != p.UID { // deleted and made again while the watch was away
				if key, ok := c.ownerKey(old); ok {
					c.expectations.Deleted(key, old.UID)
				}
			}
			key, owned := c.ownerKey(p)
			if owned {
				if p.DeletionTimestamp != nil {
					c.expectations.Deleted(key, p.UID)
				}
				c.queue.Add(key)
			} else if !apiequality.Semantic.DeepEqual(old.Labels, p.Labels) {
				c.addMatching(p)
			}
			if oldKey, ok := c.ownerKey(old); ok && oldKey != key {
				c.queue.Add(oldKey)
			}
		},
		DeleteFunc: func(obj any) {
			if p, ok := queue.Object[*corev1.Pod](obj); ok {
				if key, ok := c.ownerKey(p); ok {
					c.expectations.Deleted(key, p.UID)
					c.queue.Add(key)
				}
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("%s controller: %w", what, err)
	}
	return func(ctx context.Context) {
		c.queue.Run(ctx, 4, c.reconcile, from.inf.HasSynced, podInf.Informer().HasSynced)
	}, nil
}

func (c *controller) ownerKey(p *corev1.Pod) (string, bool) {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil || ref.Kind != c.kind.Kind {
		return "", false
	}
	return p.Namespace + "/" + ref.Name, true
}

// addMatching queues the sets that could adopt a stray pod.
func (c *controller) addMatching(p *corev1.Pod) {
	if metav1.GetControllerOfNoCopy(p) != nil || len(p.Labels) == 0 {
		return
	}
	sets, err := c.list(p.Namespace)
	if err != nil {
		return
	}
	for _, rs := range sets {
		if sel, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector); err == nil && !sel.Empty() && sel.Matches(labels.Set(p.Labels)) {
			c.queue.Add(rs.Namespace + "/" + rs.Name)
		}
	}
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	key := namespace + "/" + name
	rs, err := c.get(namespace, name)
	if apierrors.IsNotFound(err) {
		c.expectations.Forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	sel, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil {
		return nil // validation keeps such objects out; there is nothing to retry
	}
	owned, err := c.pods.Owned(ctx, rs, *metav1.NewControllerRef(rs, c.kind), sel, func(ctx context.Context) (metav1.Object, error) {
		return c.live(ctx, namespace, name)
	})
	if err != nil {
		return err
	}
	active := slices.DeleteFunc(slices.Clone(owned), func(p *corev1.Pod) bool { return !pods.Active(p) })
	var scaleErr error
	if c.expectations.Satisfied(key) && rs.DeletionTimestamp == nil {
		scaleErr = c.scale(ctx, key, rs, active)
	}
	now := time.Now()
	status, again := statusOf(rs, active, owned, scaleErr, now)
	if again > 0 {
		c.queue.AddAfter(key, again)
	}
	if err := c.writeStatus(ctx, rs, status); err != nil {
		return err
	}
	return scaleErr
}

// scale makes or deletes the pods that are missing or too many.
func (c *controller) scale(ctx context.Context, key string, rs *appsv1.ReplicaSet, active []*corev1.Pod) error {
	diff := len(active) - int(*rs.Spec.Replicas)
	switch {
	case diff < 0:
		n := min(-diff, burst)
		c.expectations.Expect(key, n)
		made, err := pods.SlowStart(n, func() error {
			_, err := c.pods.Create(ctx, rs, rs.Namespace, rs.Name, &rs.Spec.Template, *metav1.NewControllerRef(rs, c.kind), nil)
			return err
		})
		for range n - made {
			c.expectations.Created(key)
		}
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
		return err
	case diff > 0:
		victims := toDelete(active, min(diff, burst))
		uids := make([]types.UID, len(victims))
		for i, p := range victims {
			uids[i] = p.UID
		}
		c.expectations.Expect(key, 0, uids...)
		var first error
		for _, p := range victims {
			if err := c.pods.Delete(ctx, rs, p); err != nil {
				c.expectations.Deleted(key, p.UID)
				first = err
			}
		}
		return first
	}
	return nil
}

// toDelete picks n pods, the least useful first: not yet bound, not ready, cheap to delete
// (controller.kubernetes.io/pod-deletion-cost), on a node with many of them, ready for a shorter time, often restarted, young.
func toDelete(active []*corev1.Pod, n int) []*corev1.Pod {
	perNode := map[string]int{}
	for _, p := range active {
		perNode[p.Spec.NodeName]++
	}
	phase := map[corev1.PodPhase]int{corev1.PodPending: 0, corev1.PodUnknown: 1, corev1.PodRunning: 2}
	sorted := slices.Clone(active)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int {
		ra, sinceA := pods.Ready(a)
		rb, sinceB := pods.Ready(b)
		return cmp.Or(
			no(a.Spec.NodeName != "", b.Spec.NodeName != ""),
			cmp.Compare(phase[a.Status.Phase], phase[b.Status.Phase]),
			no(ra, rb),
			cmp.Compare(deletionCost(a), deletionCost(b)),
			cmp.Compare(perNode[b.Spec.NodeName], perNode[a.Spec.NodeName]),
			sinceB.Time.Compare(sinceA.Time),
			cmp.Compare(restarts(b), restarts(a)),
			b.CreationTimestamp.Time.Compare(a.CreationTimestamp.Time),
		)
	})
	return sorted[:min(n, len(sorted))]
}

// no orders false before true.
func no(a, b bool) int {
	switch {
	case a == b:
		return 0
	case !a:
		return -1
	}
	return 1
}

func deletionCost(p *corev1.Pod) int64 {
	n, err := strconv.ParseInt(p.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return 0
	}
	return n
}

func restarts(p *corev1.Pod) int32 {
	var n int32
	for _, s := range p.Status.ContainerStatuses {
		n = max(n, s.RestartCount)
	}
	return n
}

// statusOf counts, and tells when a pod that is ready becomes available.
func statusOf(rs *appsv1.ReplicaSet, active, owned []*corev1.Pod, scaleErr error, now time.Time) (appsv1.ReplicaSetStatus, time.Duration) {
	s := *rs.Status.DeepCopy()
	s.Replicas, s.ReadyReplicas, s.AvailableReplicas, s.FullyLabeledReplicas = int32(len(active)), 0, 0, 0
	var terminating int32
	for _, p := range owned {
		if p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			terminating++
		}
	}
	s.TerminatingReplicas = &terminating
	full := labels.SelectorFromSet(rs.Spec.Template.Labels)
	var again time.Duration
	for _, p := range active {
		if full.Matches(labels.Set(p.Labels)) {
			s.FullyLabeledReplicas++
		}
		if ready, _ := pods.Ready(p); !ready {
			continue
		}
		s.ReadyReplicas++
		ok, left := pods.Available(p, time.Duration(rs.Spec.MinReadySeconds)*time.Second, now)
		if ok {
			s.AvailableReplicas++
		} else if again == 0 || left < again {
			again = left
		}
	}
	s.ObservedGeneration = rs.Generation
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c appsv1.ReplicaSetCondition) bool {
		return c.Type == appsv1.ReplicaSetReplicaFailure && scaleErr == nil
	})
	if scaleErr != nil && !slices.ContainsFunc(s.Conditions, func(c appsv1.ReplicaSetCondition) bool { return c.Type == appsv1.ReplicaSetReplicaFailure }) {
		reason := "FailedCreate"
		if len(active) > int(*rs.Spec.Replicas) {
			reason = "FailedDelete"
		}
		s.Conditions = append(s.Conditions, appsv1.ReplicaSetCondition{Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now), Reason: reason, Message: scaleErr.Error()})
	}
	return s, again
}

func (c *controller) writeStatus(ctx context.Context, rs *appsv1.ReplicaSet, s appsv1.ReplicaSetStatus) error {
	if apiequality.Semantic.DeepEqual(rs.Status, s) {
		return nil
	}
	rs = rs.DeepCopy()
	rs.Status = s
	err := c.update(ctx, rs)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
