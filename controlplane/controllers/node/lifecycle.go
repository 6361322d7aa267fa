// Package node watches over nodes: it gives each its part of the pod range,
// notices those that have gone silent, keeps their taints in step with their
// conditions, and moves pods off nodes that stay away.
package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	coordinationlisters "k8s.io/client-go/listers/coordination/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

// gracePeriod is how long a node may be silent before it counts as unreachable: five of its Lease's renewals
// and a bit (the reference's default since 1.32).
const gracePeriod = 50 * time.Second

const nodeIndex = "spec.nodeName"

type controller struct {
	client    kubernetes.Interface
	collector kubernetes.Interface // for what becomes of the pods of nodes that are gone
	nodes     corelisters.NodeLister
	leases    coordinationlisters.LeaseLister
	pods      cache.Indexer
	recorder  record.EventRecorder
	queue     *queue.Queue
	subnets   *subnets

	mu sync.Mutex
	// heard is when each node's Lease was last seen to change, by our own clock: clocks of nodes may be off.
	heard map[string]sighting
	// tainted is since when we know of the NoExecute taints of each node that don't say when they came.
	tainted map[string]map[corev1.Taint]time.Time
}

type sighting struct {
	renewed metav1.MicroTime
	at      time.Time
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client, collector kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder, podCIDRs []netip.Prefix, nodeBits func(netip.Prefix) int) (func(context.Context), error) {
	sub, err := newSubnets(podCIDRs, nodeBits)
	if err != nil {
		return nil, fmt.Errorf("node controller: %w", err)
	}
	nodes, pods, leases := f.Core().V1().Nodes(), f.Core().V1().Pods(), f.Coordination().V1().Leases()
	err = pods.Informer().AddIndexers(cache.Indexers{nodeIndex: func(obj any) ([]string, error) {
		if p, ok := obj.(*corev1.Pod); ok && p.Spec.NodeName != "" {
			return []string{p.Spec.NodeName}, nil
		}
		return nil, nil
	}})
	if err != nil {
		return nil, fmt.Errorf("node controller: %w", err)
	}
	c := &controller{
		client: client, collector: collector, nodes: nodes.Lister(), leases: leases.Lister(), pods: pods.Informer().GetIndexer(), recorder: recorder,
		queue: queue.New("node"), subnets: sub, heard: map[string]sighting{}, tainted: map[string]map[corev1.Taint]time.Time{},
	}
	if _, err := nodes.Informer().AddEventHandler(c.queue.Handlers()); err != nil {
		return nil, fmt.Errorf("node controller: %w", err)
	}
	hear := func(obj any) {
		if l, ok := obj.(*coordinationv1.Lease); ok && l.Namespace == corev1.NamespaceNodeLease && c.hear(l) {
			c.queue.Add(l.Name)
		}
	}
	if _, err := leases.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: hear, UpdateFunc: func(_, obj any) { hear(obj) }}); err != nil {
		return nil, fmt.Errorf("node controller: %w", err)
	}
	// A pod that came to a bad node, or outlived its own.
	ofPod := func(obj any) {
		if p, ok := obj.(*corev1.Pod); ok && p.Spec.NodeName != "" {
			if n, err := c.nodes.Get(p.Spec.NodeName); apierrors.IsNotFound(err) || err == nil && hasNoExecute(n) {
				c.queue.Add(p.Spec.NodeName)
			}
		}
	}
	if _, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: ofPod, UpdateFunc: func(_, obj any) { ofPod(obj) }}); err != nil {
		return nil, fmt.Errorf("node controller: %w", err)
	}
	return func(ctx context.Context) {
		// Ranges that nodes hold are known before the first is given.
		synced := func() bool {
			if !nodes.Informer().HasSynced() {
				return false
			}
			for _, o := range nodes.Informer().GetStore().List() {
				n := o.(*corev1.Node)
				if err := c.subnets.occupy(n.Name, n.Spec.PodCIDRs); err != nil {
					recorder.Event(n, corev1.EventTypeWarning, "CIDROverlap", err.Error())
				}
			}
			return true
		}
		c.queue.Run(ctx, 2, c.reconcile, synced, pods.Informer().HasSynced, leases.Informer().HasSynced)
	}, nil
}

// hear notes a sign of life and tells whether the node had been silent.
func (c *controller) hear(l *coordinationv1.Lease) bool {
	if l.Spec.RenewTime == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old, known := c.heard[l.Name]
	if known && old.renewed.Equal(l.Spec.RenewTime) {
		return false
	}
	c.heard[l.Name] = sighting{renewed: *l.Spec.RenewTime, at: time.Now()}
	return !known || time.Since(old.at) > gracePeriod
}

// silentIn is how long from now the node counts as unreachable if nothing is heard; zero or less: it does now.
func (c *controller) silentIn(n *corev1.Node) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.heard[n.Name]
	if !ok {
		// Never heard since we started: the grace period begins now.
		s = sighting{at: time.Now()}
		c.heard[n.Name] = s
	}
	return gracePeriod - time.Since(s.at)
}

func (c *controller) reconcile(ctx context.Context, _, name string) error {
	n, err := c.nodes.Get(name)
	if apierrors.IsNotFound(err) {
		if c.subnets.release(name) {
			if err := c.feedStarving(); err != nil {
				return err
			}
		}
		c.mu.Lock()
		delete(c.heard, name)
		delete(c.tainted, name)
		c.mu.Unlock()
		return c.deleteOrphans(ctx, name)
	}
	if err != nil {
		return err
	}
	if err := c.ensurePodCIDRs(ctx, n); err != nil {
		return err
	}
	left := c.silentIn(n)
	if left <= 0 {
		if n, err = c.markSilent(ctx, n); err != nil {
			return err
		}
		if err := c.markPodsNotReady(ctx, name); err != nil {
			return err
		}
	} else {
		c.queue.AddAfter(name, left+time.Second)
	}
	if n, err = c.keepTaints(ctx, n); err != nil {
		return err
	}
	return c.evict(ctx, n)
}

// markSilent sets the conditions that the kubelet no longer speaks for to Unknown.
func (c *controller) markSilent(ctx context.Context, n *corev1.Node) (*corev1.Node, error) {
	want := n.DeepCopy()
	for i := range want.Status.Conditions {
		cond := &want.Status.Conditions[i]
		if cond.Status != corev1.ConditionUnknown && cond.Type != corev1.NodeNetworkUnavailable { // that is for controllers to say
			cond.Status, cond.Reason, cond.Message = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status."
			cond.LastTransitionTime = metav1.Now()
		}
	}
	if apiequality.Semantic.DeepEqual(want.Status, n.Status) {
		return n, nil
	}
	c.recorder.Eventf(n, corev1.EventTypeNormal, "NodeNotReady", "Node %s status is now: NodeNotReady", n.Name)
	return c.client.CoreV1().Nodes().UpdateStatus(ctx, want, metav1.UpdateOptions{})
}

// markPodsNotReady takes the pods of a silent node out of their Services.
func (c *controller) markPodsNotReady(ctx context.Context, node string) error {
	pods, err := c.pods.ByIndex(nodeIndex, node)
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range pods {
		p := o.(*corev1.Pod).DeepCopy()
		for i := range p.Status.Conditions {
			if cond := &p.Status.Conditions[i]; cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
				cond.Status, cond.Reason, cond.LastTransitionTime = corev1.ConditionFalse, "NodeNotReady", metav1.Now()
				if _, err := c.client.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, p, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
					errs = append(errs, err) // a conflict too: the cache lags, and the pod would stay in its Services
				}
			}
		}
	}
	return errors.Join(errs...)
}

// conditionTaints are the taints that follow from the node's conditions (API: TaintNodeNotReady …).
func conditionTaints(n *corev1.Node) []corev1.Taint {
	var taints []corev1.Taint
	both := func(key string) {
		for _, e := range []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute} {
			taints = append(taints, corev1.Taint{Key: key, Effect: e})
		}
	}
	ready := corev1.ConditionFalse
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			ready = c.Status
		}
		for t, key := range map[corev1.NodeConditionType]string{
			corev1.NodeMemoryPressure: corev1.TaintNodeMemoryPressure, corev1.NodeDiskPressure: corev1.TaintNodeDiskPressure,
			corev1.NodePIDPressure: corev1.TaintNodePIDPressure, corev1.NodeNetworkUnavailable: corev1.TaintNodeNetworkUnavailable,
		} {
			if c.Type == t && c.Status == corev1.ConditionTrue {
				taints = append(taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
			}
		}
	}
	switch ready {
	case corev1.ConditionFalse:
		both(corev1.TaintNodeNotReady)
	case corev1.ConditionUnknown:
		both(corev1.TaintNodeUnreachable)
	}
	if n.Spec.Unschedulable {
		taints = append(taints, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	return taints
}

// ownTaints are the keys that this controller sets and removes; all others are the user's.
var ownTaints = []string{
	corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeUnschedulable, corev1.TaintNodeMemoryPressure,
	corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure, corev1.TaintNodeNetworkUnavailable,
}

func (c *controller) keepTaints(ctx context.Context, n *corev1.Node) (*corev1.Node, error) {
	want := conditionTaints(n)
	var taints []corev1.Taint
	for _, t := range n.Spec.Taints {
		keep := !slices.Contains(ownTaints, t.Key)
		want = slices.DeleteFunc(want, func(w corev1.Taint) bool {
			same := w.MatchTaint(&t)
			keep = keep || same
			return same
		})
		if keep {
			taints = append(taints, t)
		}
	}
	for _, t := range want {
		if t.Effect == corev1.TaintEffectNoExecute {
			now := metav1.Now()
			t.TimeAdded = &now
		}
		taints = append(taints, t)
	}
	if apiequality.Semantic.DeepEqual(taints, n.Spec.Taints) {
		return n, nil
	}
	n = n.DeepCopy()
	n.Spec.Taints = taints
	return c.client.CoreV1().Nodes().Update(ctx, n, metav1.UpdateOptions{})
}
