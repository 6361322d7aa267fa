// Package endpoints keeps the v1 Endpoints of Services with a selector: deprecated, cut off at a thousand addresses,
// of one family, and what Prometheus and others still read.
package endpoints

import (
	"context"
	"fmt"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	sliceutil "k8s.io/endpointslice/util"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/controllers/queue"
	"github.com/strake-io/strake/controlplane/controllers/selected"
)

const (
	// managedLabel tells Endpoints that this controller made from those of users (KEP-4974).
	managedLabel = "endpoints.kubernetes.io/managed-by"
	managedBy    = "endpoint-controller"
	truncated    = "truncated" // value of corev1.EndpointsOverCapacity
)

type controller struct {
	client                 kubernetes.Interface
	services               corelisters.ServiceLister
	pods                   corelisters.PodLister
	endpoints              corelisters.EndpointsLister //nolint:staticcheck // still read
	serviceIndex, podIndex cache.Indexer
	triggers               *sliceutil.TriggerTimeTracker
	queue                  *queue.Queue
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory) (func(context.Context), error) {
	services, pods, all := f.Core().V1().Services(), f.Core().V1().Pods(), f.Core().V1().Endpoints()
	c := &controller{
		client: client, services: services.Lister(), pods: pods.Lister(), endpoints: all.Lister(),
		serviceIndex: services.Informer().GetIndexer(), podIndex: pods.Informer().GetIndexer(),
		triggers: sliceutil.NewTriggerTimeTracker(), queue: queue.New("endpoints"),
	}
	if err := selected.AddIndexes(pods.Informer(), services.Informer()); err != nil {
		return nil, fmt.Errorf("endpoints controller: %w", err)
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		services.Informer(): c.queue.Handlers(),
		pods.Informer(): cache.ResourceEventHandlerFuncs{
			AddFunc:    func(obj any) { c.podChanged(nil, obj) },
			UpdateFunc: c.podChanged,
			DeleteFunc: func(obj any) {
				if p, ok := queue.Object[*corev1.Pod](obj); ok {
					c.podChanged(nil, p)
				}
			},
		},
		// What somebody changed or removed comes back, and what is left of a Service that went while nobody looked goes.
		all.Informer(): cache.FilteringResourceEventHandler{Handler: c.queue.Handlers(), FilterFunc: func(obj any) bool {
			e, ok := queue.Object[*corev1.Endpoints](obj) //nolint:staticcheck // still read
			return ok && e.Labels[managedLabel] == managedBy
		}},
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return nil, fmt.Errorf("endpoints controller: %w", err)
		}
	}
	return func(ctx context.Context) {
		c.queue.Run(ctx, 2, c.reconcile, services.Informer().HasSynced, pods.Informer().HasSynced, all.Informer().HasSynced)
	}, nil
}

func (c *controller) podChanged(old, obj any) {
	names, err := selected.Services(c.serviceIndex, old, obj)
	if err != nil {
		klog.ErrorS(err, "Services of a changed pod")
		return
	}
	for key := range names {
		c.queue.Add(key)
	}
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	svc, err := c.services.Services(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.triggers.DeleteService(namespace, name)
		return c.remove(ctx, namespace, name)
	}
	if err != nil || svc.Spec.Type == corev1.ServiceTypeExternalName || len(svc.Spec.Selector) == 0 {
		return err // the endpoints are the user's
	}
	pods, err := selected.Pods(c.podIndex, c.pods, namespace, svc.Spec.Selector)
	if err != nil {
		return err
	}
	want := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: maps.Clone(svc.Labels)}} //nolint:staticcheck // still read
	if want.Labels == nil {
		want.Labels = map[string]string{}
	}
	want.Labels[managedLabel] = managedBy
	delete(want.Labels, corev1.IsHeadlessService)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		want.Labels[corev1.IsHeadlessService] = ""
	}
	var over bool
	want.Subsets, over = truncate(subsets(svc, pods))
	have, err := c.endpoints.Endpoints(namespace).Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	created := err == nil
	if created {
		if apiequality.Semantic.DeepEqual(have.Subsets, want.Subsets) && apiequality.Semantic.DeepEqual(have.Labels, want.Labels) && (have.Annotations[corev1.EndpointsOverCapacity] == truncated) == over {
			return nil
		}
		want.ResourceVersion, want.Annotations = have.ResourceVersion, maps.Clone(have.Annotations)
	}
	if want.Annotations == nil {
		want.Annotations = map[string]string{}
	}
	delete(want.Annotations, corev1.EndpointsLastChangeTriggerTime)
	if at := c.triggers.ComputeEndpointLastChangeTriggerTime(namespace, svc, pods); !at.IsZero() {
		want.Annotations[corev1.EndpointsLastChangeTriggerTime] = at.UTC().Format(time.RFC3339Nano)
	}
	delete(want.Annotations, corev1.EndpointsOverCapacity)
	if over {
		want.Annotations[corev1.EndpointsOverCapacity] = truncated
	}
	api := c.client.CoreV1().Endpoints(namespace)
	if created {
		_, err = api.Update(ctx, want, metav1.UpdateOptions{})
	} else {
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
	}
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return err
}

// remove takes away the Endpoints of a Service that is gone, a user's too: they went by the same name. Locks of old leader elections stay.
func (c *controller) remove(ctx context.Context, namespace, name string) error {
	have, err := c.endpoints.Endpoints(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, lock := have.Annotations[resourcelock.LeaderElectionRecordAnnotationKey]; lock {
		return nil
	}
	err = c.client.CoreV1().Endpoints(namespace).Delete(ctx, name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(have.UID))})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
