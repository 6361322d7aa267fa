// Package autoscaler scales what HorizontalPodAutoscalers name to what the metrics APIs tell, by the documented algorithm. It asks anew every
// fifteen seconds. What it wanted and did before is in memory: after a start it takes fewer pods away only once a window has passed.
package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	autoscalinglisters "k8s.io/client-go/listers/autoscaling/v2"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/scale"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/metrics/pkg/client/custom_metrics"
	"k8s.io/utils/ptr"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

const (
	// every is how often the metrics are asked.
	every = 15 * time.Second
	// forget is how often kinds and versions of metrics are looked up anew.
	forget = 5 * time.Minute
)

type controller struct {
	client   kubernetes.Interface
	scalers  autoscalinglisters.HorizontalPodAutoscalerLister
	pods     corelisters.PodLister
	mapper   meta.ResettableRESTMapper
	scales   scale.ScalesGetter
	metrics  metrics
	recorder record.EventRecorder
	queue    *queue.Queue
	clock    func() time.Time

	mu        sync.Mutex
	past      map[string]*past           // by autoscaler
	selectors map[string]labels.Selector // of what each scales
}

// Setup registers the controller with the informers and returns what runs it. The metrics APIs are asked through cfg.
func Setup(client kubernetes.Interface, cfg *rest.Config, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	scalers, pods := f.Autoscaling().V2().HorizontalPodAutoscalers(), f.Core().V1().Pods()
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))
	cfg = rest.CopyConfig(cfg)
	cfg.ContentType = "application/json" // adapters of metrics speak nothing else
	from, err := newServed(cfg, client.Discovery(), mapper)
	if err != nil {
		return nil, fmt.Errorf("autoscaler: %w", err)
	}
	c := &controller{
		client: client, scalers: scalers.Lister(), pods: pods.Lister(), mapper: mapper, metrics: from, recorder: recorder, queue: queue.New("autoscaler"), clock: time.Now,
		scales: scale.New(client.Discovery().RESTClient(), mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(client.Discovery())),
		past:   map[string]*past{}, selectors: map[string]labels.Selector{},
	}
	_, err = scalers.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: c.queue.AddObject, DeleteFunc: c.queue.AddObject,
		UpdateFunc: func(old, obj any) {
			if old.(*autoscalingv2.HorizontalPodAutoscaler).Generation != obj.(*autoscalingv2.HorizontalPodAutoscaler).Generation {
				c.queue.AddObject(obj)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("autoscaler: %w", err)
	}
	return func(ctx context.Context) {
		go custom_metrics.PeriodicallyInvalidate(from.versions, forget, ctx.Done())
		c.queue.Run(ctx, 4, func(ctx context.Context, namespace, name string) error {
			again, err := c.reconcile(ctx, namespace, name)
			if again && err == nil {
				c.queue.AddAfter(namespace+"/"+name, every)
			}
			return err
		}, scalers.Informer().HasSynced, pods.Informer().HasSynced)
	}, nil
}

// reconcile makes one round. It tells whether there is to be another. What fails is told in the status and tried with the next round; an error
// means that it could not be told.
func (c *controller) reconcile(ctx context.Context, namespace, name string) (bool, error) {
	key := namespace + "/" + name
	shared, err := c.scalers.HorizontalPodAutoscalers(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.past, key)
		delete(c.selectors, key)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	h := shared.DeepCopy()
	c.round(ctx, key, h)
	h.Status.ObservedGeneration = &h.Generation
	if apiequality.Semantic.DeepEqual(h.Status, shared.Status) {
		return true, nil
	}
	_, err = c.client.AutoscalingV2().HorizontalPodAutoscalers(namespace).UpdateStatus(ctx, h, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return true, err
}

// set writes a condition.
func (c *controller) set(h *autoscalingv2.HorizontalPodAutoscaler, kind autoscalingv2.HorizontalPodAutoscalerConditionType, status corev1.ConditionStatus, reason, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	for i := range h.Status.Conditions {
		if old := &h.Status.Conditions[i]; old.Type == kind {
			if old.Status != status {
				old.LastTransitionTime = metav1.NewTime(c.clock())
			}
			old.Status, old.Reason, old.Message = status, reason, message
			return
		}
	}
	h.Status.Conditions = append(h.Status.Conditions, autoscalingv2.HorizontalPodAutoscalerCondition{Type: kind, Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(c.clock())})
}

// round looks at the target and its metrics, and scales it.
func (c *controller) round(ctx context.Context, key string, h *autoscalingv2.HorizontalPodAutoscaler) {
	resource, target, err := c.target(ctx, h)
	if err != nil {
		c.recorder.Event(h, corev1.EventTypeWarning, "FailedGetScale", err.Error())
		c.set(h, autoscalingv2.AbleToScale, corev1.ConditionFalse, "FailedGetScale", "the HPA controller was unable to get the target's current scale: %v", err)
		return
	}
	c.set(h, autoscalingv2.AbleToScale, corev1.ConditionTrue, "SucceededGetScale", "the HPA controller was able to get the target's current scale")
	current, least, most := target.Spec.Replicas, ptr.Deref(h.Spec.MinReplicas, 1), h.Spec.MaxReplicas
	h.Status.CurrentReplicas = target.Status.Replicas
	c.mu.Lock()
	before := c.past[key]
	if before == nil {
		before = &past{wanted: []dated{{current, c.clock()}}}
		c.past[key] = before
	}
	c.mu.Unlock()

	desired, reason := int32(0), ""
	switch {
	case current == 0 && least != 0:
		c.set(h, autoscalingv2.ScalingActive, corev1.ConditionFalse, "ScalingDisabled", "scaling is disabled since the replica count of the target is zero")
		h.Status.DesiredReplicas = 0
		return
	case current > most:
		desired, reason = most, "Current number of replicas above Spec.MaxReplicas"
	case current < least:
		desired, reason = least, "Current number of replicas below Spec.MinReplicas"
	default:
		behavior := behaviorOf(h)
		wanted, metric, ok := c.wanted(ctx, key, h, target, tolerancesOf(behavior))
		if !ok {
			return
		}
		if wanted > current {
			reason = metric + " above target"
		} else if wanted < current {
			reason = "All metrics below target"
		}
		now := c.clock()
		stable, why := before.stabilize(current, wanted, behavior, now)
		c.set(h, autoscalingv2.AbleToScale, corev1.ConditionTrue, why.reason, "%s", why.message)
		desired, why = before.limit(current, stable, least, most, behavior, now)
		status := corev1.ConditionTrue
		if why == withinRange {
			status = corev1.ConditionFalse
		}
		c.set(h, autoscalingv2.ScalingLimited, status, why.reason, "%s", why.message)
	}
	h.Status.DesiredReplicas = desired
	if desired == current {
		return
	}
	target.Spec.Replicas = desired
	if _, err := c.scales.Scales(h.Namespace).Update(ctx, resource, target, metav1.UpdateOptions{}); err != nil {
		h.Status.DesiredReplicas = current
		c.recorder.Eventf(h, corev1.EventTypeWarning, "FailedRescale", "New size: %d; reason: %s; error: %v", desired, reason, err)
		c.set(h, autoscalingv2.AbleToScale, corev1.ConditionFalse, "FailedUpdateScale", "the HPA controller was unable to update the target scale: %v", err)
		return
	}
	c.set(h, autoscalingv2.AbleToScale, corev1.ConditionTrue, "SucceededRescale", "the HPA controller was able to update the target scale to %d", desired)
	c.recorder.Eventf(h, corev1.EventTypeNormal, "SuccessfulRescale", "New size: %d; reason: %s", desired, reason)
	before.changed(desired-current, behaviorOf(h), c.clock())
	h.Status.LastScaleTime = new(metav1.NewTime(c.clock()))
}

// target reads the scale of what the autoscaler names.
func (c *controller) target(ctx context.Context, h *autoscalingv2.HorizontalPodAutoscaler) (schema.GroupResource, *autoscalingv1.Scale, error) {
	ref := h.Spec.ScaleTargetRef
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return schema.GroupResource{}, nil, fmt.Errorf("invalid API version in scale target reference: %w", err)
	}
	kind := schema.GroupKind{Group: gv.Group, Kind: ref.Kind}
	mappings, err := c.mapper.RESTMappings(kind)
	if err != nil {
		c.mapper.Reset() // it may be served since a moment ago
		return schema.GroupResource{}, nil, fmt.Errorf("unable to determine resource for scale target reference: %w", err)
	}
	var errs []error
	for _, m := range mappings {
		resource := m.Resource.GroupResource()
		s, err := c.scales.Scales(h.Namespace).Get(ctx, resource, ref.Name, metav1.GetOptions{})
		if err == nil {
			return resource, s, nil
		}
		errs = append(errs, err)
	}
	return schema.GroupResource{}, nil, errors.Join(errs...)
}

// wanted is the number of pods that the metrics ask for, the highest of all, and which one asks for it.
func (c *controller) wanted(ctx context.Context, key string, h *autoscalingv2.HorizontalPodAutoscaler, target *autoscalingv1.Scale, t tolerances) (int32, string, bool) {
	fail := func(reason, format string, args ...any) (int32, string, bool) {
		message := fmt.Sprintf(format, args...)
		c.recorder.Event(h, corev1.EventTypeWarning, reason, message)
		c.set(h, autoscalingv2.ScalingActive, corev1.ConditionFalse, reason, "%s", message)
		return 0, "", false
	}
	if target.Status.Selector == "" {
		return fail("InvalidSelector", "the HPA target's scale is missing a selector")
	}
	selector, err := labels.Parse(target.Status.Selector)
	if err != nil {
		return fail("InvalidSelector", "couldn't convert selector into a corresponding internal selector object: %v", err)
	}
	pods, err := c.pods.Pods(h.Namespace).List(selector)
	if err != nil {
		return fail("FailedGetPods", "unable to list pods: %v", err)
	}
	if others := c.sharing(key, h.Namespace, selector, pods); len(others) > 1 {
		return fail("AmbiguousSelector", "pods by selector %v are controlled by multiple HPAs: %v", selector, others)
	}
	r := reading{h.Namespace, selector, pods, target, t, c.clock()}
	best, which, statuses := int32(-1), "", []autoscalingv2.MetricStatus{}
	var problem error
	var trouble string
	for i := range h.Spec.Metrics {
		replicas, name, status, reason, err := c.propose(ctx, r, &h.Spec.Metrics[i])
		if err != nil {
			if problem == nil {
				problem, trouble = err, reason
			}
			c.recorder.Event(h, corev1.EventTypeWarning, reason, err.Error())
			continue
		}
		statuses = append(statuses, status)
		if replicas > best {
			best, which = replicas, name
		}
	}
	// Without all that it should know it may add pods, but takes none away.
	if problem != nil && (best < 0 || best < target.Spec.Replicas) {
		h.Status.CurrentMetrics = statuses
		c.recorder.Eventf(h, corev1.EventTypeWarning, "FailedComputeMetricsReplicas", "invalid metrics (of %d in all), first error is: %v", len(h.Spec.Metrics), problem)
		c.set(h, autoscalingv2.ScalingActive, corev1.ConditionFalse, trouble, "the HPA was unable to compute the replica count: %v", problem)
		return 0, "", false
	}
	h.Status.CurrentMetrics = statuses
	c.set(h, autoscalingv2.ScalingActive, corev1.ConditionTrue, "ValidMetricFound", "the HPA was able to successfully calculate a replica count from %s", which)
	return best, which, true
}

// sharing are the autoscalers whose selectors select one of these pods, this one among them.
func (c *controller) sharing(key, namespace string, selector labels.Selector, pods []*corev1.Pod) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.selectors[key] = selector
	all := []string{key}
	for other, s := range c.selectors {
		ns, _, _ := cache.SplitMetaNamespaceKey(other)
		if other == key || ns != namespace {
			continue
		}
		for _, p := range pods {
			if s.Matches(labels.Set(p.Labels)) {
				all = append(all, other)
				break
			}
		}
	}
	return all
}
