package scheduler

import (
	"encoding/json"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/tools/cache"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/kube-scheduler/framework"
)

func quoteJSON(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		return `""`
	}
	return string(b)
}

// last unwraps what a delete handler gets.
func last[T any](obj any) (T, bool) {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	o, ok := obj.(T)
	return o, ok
}

func (s *scheduler) nodeAdded(obj any) {
	n := obj.(*v1.Node)
	s.cache.setNode(n)
	s.queue.event(clusterEvent{framework.Node, framework.Add, nil, n})
}

func (s *scheduler) nodeUpdated(oldObj, obj any) {
	old, n := oldObj.(*v1.Node), obj.(*v1.Node)
	action := nodeAction(old, n)
	if action == 0 {
		return // a heartbeat
	}
	s.cache.setNode(n)
	s.queue.event(clusterEvent{framework.Node, action, old, n})
}

func (s *scheduler) nodeDeleted(obj any) {
	if n, ok := last[*v1.Node](obj); ok {
		s.cache.dropNode(n.Name)
		s.queue.event(clusterEvent{framework.Node, framework.Delete, n, nil})
	}
}

// nodeAction tells what of a node changed that may matter to a pod.
func nodeAction(old, n *v1.Node) framework.ActionType {
	var a framework.ActionType
	if !apiequality.Semantic.DeepEqual(old.Status.Allocatable, n.Status.Allocatable) {
		a |= framework.UpdateNodeAllocatable
	}
	if !maps.Equal(old.Labels, n.Labels) {
		a |= framework.UpdateNodeLabel
	}
	if old.Spec.Unschedulable != n.Spec.Unschedulable || !apiequality.Semantic.DeepEqual(old.Spec.Taints, n.Spec.Taints) {
		a |= framework.UpdateNodeTaint
	}
	if !maps.Equal(old.Annotations, n.Annotations) {
		a |= framework.UpdateNodeAnnotation
	}
	states := func(n *v1.Node) map[v1.NodeConditionType]v1.ConditionStatus {
		m := map[v1.NodeConditionType]v1.ConditionStatus{}
		for _, c := range n.Status.Conditions {
			m[c.Type] = c.Status
		}
		return m
	}
	if !maps.Equal(states(old), states(n)) {
		a |= framework.UpdateNodeCondition
	}
	return a
}

// tells has pods tried again that wait for what became of objects of a kind.
func (s *scheduler) tells(resource framework.EventResource) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { s.queue.event(clusterEvent{resource, framework.Add, nil, obj}) },
		UpdateFunc: func(old, obj any) { s.queue.event(clusterEvent{resource, framework.Update, old, obj}) },
		DeleteFunc: func(obj any) { s.queue.event(clusterEvent{resource, framework.Delete, obj, nil}) },
	}
}

func finished(p *v1.Pod) bool {
	return p.Status.Phase == v1.PodSucceeded || p.Status.Phase == v1.PodFailed
}

// podChanged takes a new or changed pod to where it belongs: the cache, the queue, or nowhere.
func (s *scheduler) podChanged(oldObj, obj any) {
	p := obj.(*v1.Pod)
	old, _ := oldObj.(*v1.Pod)
	if old != nil && old.UID != p.UID { // deleted and made again while the watch was away
		s.podDeleted(old)
		old = nil
	}
	switch {
	case finished(p):
		s.podGone(p)
	case p.Spec.NodeName != "":
		s.queue.forget(p.UID)
		s.DeleteNominatedPodIfExists(p)
		action := framework.Add
		if old != nil && old.Spec.NodeName != "" {
			if action = podAction(old, p); action == 0 {
				return // its status
			}
		}
		s.cache.setPod(p)
		s.queue.event(clusterEvent{framework.AssignedPod, action, oldObj, p})
	case p.Spec.SchedulerName != s.name || p.DeletionTimestamp != nil:
		if s.queue.forget(p.UID) {
			s.DeleteNominatedPodIfExists(p)
		}
	case s.cache.assumed(p.UID):
		// Its binding is under way; the queue still knows it, in case that fails.
		s.queue.known(p)
	default:
		s.queue.add(p)
	}
}

func (s *scheduler) podDeleted(obj any) {
	if p, ok := last[*v1.Pod](obj); ok {
		s.podGone(p)
	}
}

// podGone frees what a pod used.
func (s *scheduler) podGone(p *v1.Pod) {
	if w := s.permits.get(p.UID); w != nil {
		w.Reject("", "removed")
	}
	s.queue.forget(p.UID)
	s.DeleteNominatedPodIfExists(p)
	if s.cache.placed(p.UID) {
		s.cache.dropPod(p.UID)
		s.queue.event(clusterEvent{framework.AssignedPod, framework.Delete, p, nil})
	}
}

// podAction tells what of a pod changed that may matter to it or to others.
func podAction(old, p *v1.Pod) framework.ActionType {
	var a framework.ActionType
	if !maps.Equal(old.Labels, p.Labels) {
		a |= framework.UpdatePodLabel
	}
	if len(p.Spec.Tolerations) != len(old.Spec.Tolerations) {
		a |= framework.UpdatePodToleration
	}
	if len(old.Spec.SchedulingGates) > 0 && len(p.Spec.SchedulingGates) == 0 {
		a |= framework.UpdatePodSchedulingGatesEliminated
	}
	if !slices.EqualFunc(old.Spec.Containers, p.Spec.Containers, func(a, b v1.Container) bool {
		return apiequality.Semantic.DeepEqual(a.Resources, b.Resources)
	}) || !apiequality.Semantic.DeepEqual(old.Status.ContainerStatuses, p.Status.ContainerStatuses) {
		opts := resourcehelper.PodResourcesOptions{UseStatusResources: true}
		before, now := resourcehelper.PodRequests(old, opts), resourcehelper.PodRequests(p, opts)
		for name := range before {
			was, is := before[name], now[name]
			switch is.Cmp(was) {
			case -1:
				a |= framework.UpdatePodScaleDown
			case 1:
				a |= framework.UpdatePodScaleUp
			}
		}
		for name := range now {
			if _, ok := before[name]; !ok {
				a |= framework.UpdatePodScaleUp
			}
		}
	}
	return a
}
