// Package endpointslice keeps the EndpointSlices of Services with a selector.
// What goes into a slice is the published reconciler's decision; this package
// tells it when, and with which pods.
package endpointslice

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/endpointslice"
	sliceutil "k8s.io/endpointslice/util"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

const (
	managedBy    = "endpointslice-controller.k8s.io"
	maxEndpoints = 100
)

type controller struct {
	services   corelisters.ServiceLister
	pods       corelisters.PodLister
	slices     discoverylisters.EndpointSliceLister
	tracker    *sliceutil.EndpointSliceTracker
	reconciler *endpointslice.Reconciler
	queue      *queue.Queue
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	services, pods, nodes, slices := f.Core().V1().Services(), f.Core().V1().Pods(), f.Core().V1().Nodes(), f.Discovery().V1().EndpointSlices()
	c := &controller{
		services: services.Lister(), pods: pods.Lister(), slices: slices.Lister(),
		tracker: sliceutil.NewEndpointSliceTracker(), queue: queue.New("endpointslice"),
	}
	c.reconciler = endpointslice.NewReconciler(client, nodes.Lister(), maxEndpoints, c.tracker, nil, recorder, managedBy)
	if _, err := services.Informer().AddEventHandler(c.queue.Handlers()); err != nil {
		return nil, fmt.Errorf("endpointslice controller: %w", err)
	}
	_, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { c.podChanged(nil, obj) },
		UpdateFunc: c.podChanged,
		DeleteFunc: func(obj any) {
			if p, ok := queue.Object[*corev1.Pod](obj); ok {
				c.podChanged(nil, p)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("endpointslice controller: %w", err)
	}
	_, err = slices.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if s := obj.(*discoveryv1.EndpointSlice); c.reconciler.ManagedByController(s) && c.tracker.ShouldSync(s) {
				c.addOwner(s)
			}
		},
		UpdateFunc: func(_, obj any) {
			if s := obj.(*discoveryv1.EndpointSlice); c.reconciler.ManagedByController(s) && c.tracker.ShouldSync(s) {
				c.addOwner(s)
			}
		},
		DeleteFunc: func(obj any) {
			if s, ok := queue.Object[*discoveryv1.EndpointSlice](obj); ok && c.reconciler.ManagedByController(s) && c.tracker.Has(s) {
				// One that we did not delete ourselves comes back.
				if !c.tracker.HandleDeletion(s) {
					c.addOwner(s)
				}
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("endpointslice controller: %w", err)
	}
	return func(ctx context.Context) {
		c.queue.Run(ctx, 4, c.reconcile, services.Informer().HasSynced, pods.Informer().HasSynced, nodes.Informer().HasSynced, slices.Informer().HasSynced)
	}, nil
}

func (c *controller) addOwner(s *discoveryv1.EndpointSlice) {
	if key, err := endpointslice.ServiceControllerKey(s); err == nil {
		c.queue.Add(key)
	}
}

func (c *controller) podChanged(old, obj any) {
	var names sets.Set[string]
	if key := sliceutil.GetPodUpdateProjectionKey(old, obj); key != nil {
		var err error
		if names, err = sliceutil.GetServicesToUpdate(c.services, key); err != nil {
			klog.ErrorS(err, "Services of a changed pod")
			return
		}
	}
	for key := range names {
		c.queue.Add(key)
	}
}

func (c *controller) reconcile(_ context.Context, namespace, name string) error {
	svc, err := c.services.Services(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		// Its slices go with it by their owner reference.
		c.reconciler.DeleteService(namespace, name)
		c.tracker.DeleteService(namespace, name)
		return nil
	}
	if err != nil || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.Selector == nil {
		return err // without a selector, the endpoints are the user's
	}
	pods, err := c.pods.Pods(namespace).List(labels.SelectorFromSet(svc.Spec.Selector))
	if err != nil {
		return err
	}
	have, err := c.slices.EndpointSlices(namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: managedBy}))
	if err != nil {
		return err
	}
	live := have[:0:0]
	for _, s := range have {
		if s.DeletionTimestamp == nil {
			live = append(live, s)
		}
	}
	if c.tracker.StaleSlices(svc, live) {
		return fmt.Errorf("the cache of EndpointSlices of Service %s/%s lags", namespace, name)
	}
	return c.reconciler.Reconcile(klog.Background(), svc, pods, live, time.Time{})
}
