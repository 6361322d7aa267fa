// Package endpointslice keeps the EndpointSlices of Services with a selector.
// What goes into a slice is the published reconciler's decision; this package
// tells it when, and with which pods.
package endpointslice

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/endpointslice"
	"k8s.io/endpointslice/topologycache"
	sliceutil "k8s.io/endpointslice/util"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/controllers/queue"
	"github.com/strake-io/strake/controlplane/controllers/selected"
)

const (
	managedBy    = "endpointslice-controller.k8s.io"
	maxEndpoints = 100
)

type controller struct {
	services corelisters.ServiceLister
	pods     corelisters.PodLister
	nodes    corelisters.NodeLister
	// What the listers have, by the indexes of package selected and slicesByOwner.
	serviceIndex, podIndex, sliceIndex cache.Indexer

	tracker    *sliceutil.EndpointSliceTracker
	triggers   *sliceutil.TriggerTimeTracker // when pods changed, for who measures how long it takes until clients know
	topology   *topologycache.TopologyCache  // zones and their processors, for Services with topology-mode Auto
	reading    sync.Mutex                    // what was read last is what topology has
	reconciler *endpointslice.Reconciler
	queue      *queue.Queue
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	services, pods, nodes, slices := f.Core().V1().Services(), f.Core().V1().Pods(), f.Core().V1().Nodes(), f.Discovery().V1().EndpointSlices()
	c := &controller{
		services: services.Lister(), pods: pods.Lister(), nodes: nodes.Lister(),
		serviceIndex: services.Informer().GetIndexer(), podIndex: pods.Informer().GetIndexer(), sliceIndex: slices.Informer().GetIndexer(),
		tracker: sliceutil.NewEndpointSliceTracker(), triggers: sliceutil.NewTriggerTimeTracker(), topology: topologycache.NewTopologyCache(), queue: queue.New("endpointslice"),
	}
	c.reconciler = endpointslice.NewReconciler(client, nodes.Lister(), maxEndpoints, c.tracker, c.topology, recorder, managedBy, endpointslice.WithPreferSameTrafficDistributionEnabled(true))
	if err := errors.Join(selected.AddIndexes(pods.Informer(), services.Informer()), slices.Informer().AddIndexers(cache.Indexers{slicesByOwner: sliceOwner})); err != nil {
		return nil, fmt.Errorf("endpointslice controller: %w", err)
	}
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
	_, err = nodes.Informer().AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(obj any, isInInitialList bool) {
			// Those of the first list are looked at together before the first reconcile.
			if n, ok := obj.(*corev1.Node); ok && !isInInitialList {
				c.nodeChanged(&corev1.Node{}, n)
			}
		},
		UpdateFunc: func(old, obj any) {
			o, ok1 := old.(*corev1.Node)
			n, ok2 := obj.(*corev1.Node)
			if ok1 && ok2 {
				c.nodeChanged(o, n)
			}
		},
		DeleteFunc: func(obj any) {
			if n, ok := queue.Object[*corev1.Node](obj); ok {
				c.nodeChanged(n, &corev1.Node{})
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
		if !cache.WaitForCacheSync(ctx.Done(), nodes.Informer().HasSynced) {
			return
		}
		c.readNodes()
		c.queue.Run(ctx, 4, c.reconcile, services.Informer().HasSynced, pods.Informer().HasSynced, nodes.Informer().HasSynced, slices.Informer().HasSynced)
	}, nil
}

// slicesByOwner is the index of our slices by the key of their Service.
const slicesByOwner = "endpointslice: slices by Service"

func sliceOwner(obj any) ([]string, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok || s.Labels[discoveryv1.LabelManagedBy] != managedBy {
		return nil, nil
	}
	key, err := endpointslice.ServiceControllerKey(s)
	if err != nil {
		return nil, nil // of no Service
	}
	return []string{key}, nil
}

func (c *controller) addOwner(s *discoveryv1.EndpointSlice) {
	if key, err := endpointslice.ServiceControllerKey(s); err == nil {
		c.queue.Add(key)
	}
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

// nodeChanged has slices made anew that depend on nodes: by the zones of their endpoints, or by the share of each zone in all processors.
func (c *controller) nodeChanged(old, now *corev1.Node) {
	zone := func(n *corev1.Node) string { return n.Labels[corev1.LabelTopologyZone] }
	moved := zone(old) != zone(now)
	if !moved && nodeReady(old) == nodeReady(now) && apiequality.Semantic.DeepEqual(old.Labels, now.Labels) && old.Status.Allocatable.Cpu().Equal(*now.Status.Allocatable.Cpu()) {
		return
	}
	c.readNodes()
	services, err := c.services.List(labels.Everything())
	if err != nil {
		klog.ErrorS(err, "Services of a changed node")
		return
	}
	for _, s := range services {
		if moved || strings.EqualFold(s.Annotations[corev1.AnnotationTopologyMode], "auto") {
			c.queue.AddObject(s)
		}
	}
}

// readNodes has the share of each zone reckoned anew.
func (c *controller) readNodes() {
	c.reading.Lock()
	defer c.reading.Unlock()
	nodes, err := c.nodes.List(labels.Everything())
	if err != nil {
		klog.ErrorS(err, "Nodes of the cluster")
		return
	}
	c.topology.SetNodes(klog.Background(), nodes)
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (c *controller) reconcile(_ context.Context, namespace, name string) error {
	svc, err := c.services.Services(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		// Its slices go with it by their owner reference.
		c.reconciler.DeleteService(namespace, name)
		c.tracker.DeleteService(namespace, name)
		c.triggers.DeleteService(namespace, name)
		return nil
	}
	if err != nil || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.Selector == nil {
		return err // without a selector, the endpoints are the user's
	}
	pods, err := selected.Pods(c.podIndex, c.pods, namespace, svc.Spec.Selector)
	if err != nil {
		return err
	}
	have, err := selected.Under[*discoveryv1.EndpointSlice](c.sliceIndex, slicesByOwner, namespace+"/"+name)
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
	return c.reconciler.Reconcile(klog.Background(), svc, pods, live, c.triggers.ComputeEndpointLastChangeTriggerTime(namespace, svc, pods))
}
