// Package disruption writes into the status of PodDisruptionBudgets how many of their pods may be evicted.
package disruption

import (
	"context"
	"fmt"
	"maps"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	policylisters "k8s.io/client-go/listers/policy/v1"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/scale"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/controlplane/controllers/pods"
	"github.com/strake-io/strake/controlplane/controllers/queue"
)

// evictionTakes bounds how long an eviction that was granted may take to show in the pod.
const evictionTakes = 2 * time.Minute

type controller struct {
	client   kubernetes.Interface
	budgets  policylisters.PodDisruptionBudgetLister
	pods     corelisters.PodLister
	sets     appslisters.ReplicaSetLister
	mapper   meta.ResettableRESTMapper
	scales   scale.ScalesGetter
	recorder record.EventRecorder
	queue    *queue.Queue
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	budgets, podInf, sets := f.Policy().V1().PodDisruptionBudgets(), f.Core().V1().Pods(), f.Apps().V1().ReplicaSets()
	discovery := memory.NewMemCacheClient(client.Discovery())
	c := &controller{
		client: client, budgets: budgets.Lister(), pods: podInf.Lister(), sets: sets.Lister(), recorder: recorder, queue: queue.New("disruption"),
		mapper: restmapper.NewDeferredDiscoveryRESTMapper(discovery),
	}
	c.scales = scale.New(client.Discovery().RESTClient(), c.mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(client.Discovery()))
	if _, err := budgets.Informer().AddEventHandler(c.queue.Handlers()); err != nil {
		return nil, fmt.Errorf("disruption controller: %w", err)
	}
	changed := func(obj any) {
		if p, ok := queue.Object[*corev1.Pod](obj); ok {
			c.addCovering(p)
		}
	}
	if _, err := podInf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: changed, DeleteFunc: changed, UpdateFunc: func(old, obj any) {
		if !apiequality.Semantic.DeepEqual(old.(*corev1.Pod).Labels, obj.(*corev1.Pod).Labels) {
			changed(old)
		}
		changed(obj)
	}}); err != nil {
		return nil, fmt.Errorf("disruption controller: %w", err)
	}
	return func(ctx context.Context) {
		c.queue.Run(ctx, 2, c.reconcile, budgets.Informer().HasSynced, podInf.Informer().HasSynced, sets.Informer().HasSynced)
	}, nil
}

// addCovering queues the budgets that select a pod.
func (c *controller) addCovering(p *corev1.Pod) {
	budgets, err := c.budgets.PodDisruptionBudgets(p.Namespace).List(labels.Everything())
	if err != nil {
		return
	}
	for _, b := range budgets {
		if sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector); err == nil && sel.Matches(labels.Set(p.Labels)) {
			c.queue.Add(b.Namespace + "/" + b.Name)
		}
	}
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	b, err := c.budgets.PodDisruptionBudgets(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || b.DeletionTimestamp != nil {
		return err
	}
	sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err != nil {
		return nil // validation keeps such objects out; there is nothing to retry
	}
	covered, err := c.pods.Pods(namespace).List(sel)
	if err != nil {
		return err
	}
	now := time.Now()
	if len(covered) == 0 {
		c.recorder.Eventf(b, corev1.EventTypeNormal, "NoPods", "No matching pods found")
	}
	expected, desired, countErr := c.wanted(ctx, b, covered)
	if countErr != nil {
		// Nothing may be evicted of what nobody can count.
		c.recorder.Eventf(b, corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: %v", countErr)
	}
	status, again := statusOf(b, covered, expected, desired, countErr, now)
	if again > 0 {
		c.queue.AddAfter(namespace+"/"+name, again)
	}
	if !apiequality.Semantic.DeepEqual(b.Status, status) {
		b = b.DeepCopy()
		b.Status = status
		// The version guards what evictions have spent meanwhile.
		if _, err := c.client.PolicyV1().PodDisruptionBudgets(namespace).UpdateStatus(ctx, b, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return countErr
}

// statusOf counts the healthy pods, and tells when a granted eviction is to be looked at again.
func statusOf(b *policyv1.PodDisruptionBudget, covered []*corev1.Pod, expected, desired int32, problem error, now time.Time) (policyv1.PodDisruptionBudgetStatus, time.Duration) {
	s := *b.Status.DeepCopy()
	granted := map[string]metav1.Time{}
	maps.Copy(granted, s.DisruptedPods)
	present := map[string]bool{}
	var again time.Duration
	healthy := int32(0)
	for _, p := range covered {
		present[p.Name] = true
		since, evicted := granted[p.Name]
		switch {
		case p.DeletionTimestamp != nil:
			delete(granted, p.Name)
			continue
		case evicted && now.Sub(since.Time) < evictionTakes:
			if left := evictionTakes - now.Sub(since.Time); again == 0 || left < again {
				again = left
			}
			continue // as good as gone
		case evicted:
			delete(granted, p.Name) // the eviction failed after it had been granted
		}
		if ready, _ := pods.Ready(p); ready {
			healthy++
		}
	}
	for name := range granted {
		if !present[name] {
			delete(granted, name)
		}
	}
	s.DisruptedPods = nil
	if len(granted) > 0 {
		s.DisruptedPods = granted
	}
	s.ObservedGeneration = b.Generation
	condition := metav1.Condition{Type: policyv1.DisruptionAllowedCondition, ObservedGeneration: b.Generation}
	if problem != nil {
		s.DisruptionsAllowed = 0
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, policyv1.SyncFailedReason, problem.Error()
		meta.SetStatusCondition(&s.Conditions, condition)
		return s, again
	}
	s.CurrentHealthy, s.DesiredHealthy, s.ExpectedPods = healthy, desired, expected
	s.DisruptionsAllowed = max(healthy-desired, 0)
	if expected == 0 {
		s.DisruptionsAllowed = 0
	}
	condition.Status, condition.Reason = metav1.ConditionFalse, policyv1.InsufficientPodsReason
	if s.DisruptionsAllowed > 0 {
		condition.Status, condition.Reason = metav1.ConditionTrue, policyv1.SufficientPodsReason
	}
	meta.SetStatusCondition(&s.Conditions, condition)
	return s, again
}

// wanted tells how many pods there should be, and how many of them must be healthy.
func (c *controller) wanted(ctx context.Context, b *policyv1.PodDisruptionBudget, covered []*corev1.Pod) (expected, desired int32, err error) {
	switch {
	case b.Spec.MaxUnavailable != nil:
		if expected, err = c.scale(ctx, covered); err != nil {
			return 0, 0, err
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(b.Spec.MaxUnavailable, int(expected), true)
		if err != nil {
			return 0, 0, err
		}
		return expected, max(expected-int32(n), 0), nil
	case b.Spec.MinAvailable != nil && b.Spec.MinAvailable.Type == intstr.Int:
		return int32(len(covered)), b.Spec.MinAvailable.IntVal, nil
	case b.Spec.MinAvailable != nil:
		if expected, err = c.scale(ctx, covered); err != nil {
			return 0, 0, err
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(b.Spec.MinAvailable, int(expected), true)
		return expected, int32(n), err
	}
	return int32(len(covered)), 0, nil
}

// scale adds up how many pods the owners of some pods want: what is meant by a percentage, or by unavailable.
func (c *controller) scale(ctx context.Context, covered []*corev1.Pod) (int32, error) {
	seen := map[types.UID]bool{}
	var sum int32
	for _, p := range covered {
		ref := metav1.GetControllerOfNoCopy(p)
		if ref == nil {
			return 0, fmt.Errorf("found no controller ref for pod %q", p.Name)
		}
		if seen[ref.UID] {
			continue
		}
		seen[ref.UID] = true
		// A Deployment's pods belong to several ReplicaSets while it rolls; it knows how many it wants.
		if ref.Kind == "ReplicaSet" && ref.APIVersion == appsv1.SchemeGroupVersion.String() {
			if rs, err := c.sets.ReplicaSets(p.Namespace).Get(ref.Name); err == nil && rs.UID == ref.UID {
				owner := metav1.GetControllerOfNoCopy(rs)
				if owner == nil {
					sum += *rs.Spec.Replicas
					continue
				}
				if seen[owner.UID] {
					continue
				}
				seen[owner.UID] = true
				ref = owner
			}
		}
		n, err := c.replicas(ctx, p.Namespace, ref)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// replicas asks an owner's scale subresource; one that is gone wants none.
func (c *controller) replicas(ctx context.Context, namespace string, ref *metav1.OwnerReference) (int32, error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return 0, err
	}
	mapping, err := c.mapper.RESTMapping(schema.GroupKind{Group: gv.Group, Kind: ref.Kind}, gv.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset()
		mapping, err = c.mapper.RESTMapping(schema.GroupKind{Group: gv.Group, Kind: ref.Kind}, gv.Version)
	}
	if err != nil {
		return 0, err
	}
	got, err := c.scales.Scales(namespace).Get(ctx, mapping.Resource.GroupResource(), ref.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		// Either the owner is gone, or it has no scale.
		if _, kindErr := scale.NewDiscoveryScaleKindResolver(c.client.Discovery()).ScaleForResource(mapping.Resource); kindErr != nil {
			return 0, fmt.Errorf("%s %s does not implement the scale subresource", ref.Kind, ref.Name)
		}
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("scale of %s %s: %w", ref.Kind, ref.Name, err)
	}
	if got.UID != ref.UID {
		return 0, nil
	}
	return got.Spec.Replicas, nil
}
