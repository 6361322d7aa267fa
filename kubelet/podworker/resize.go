package podworker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/strake-io/strake/kubelet/status"
)

// retryResize is how often a resize is tried again that could not be made.
const retryResize = 30 * time.Second

// allocation is what a pod's containers have been given of the node, which may be other than what its spec says by now (KEP-1287). What was given
// before this kubelet started stands in the pod's status.
type allocation struct {
	given   map[string]corev1.ResourceRequirements // by container
	applied map[string]corev1.ResourceRequirements // by the id of a running container: as it was made, or changed to
	// pending and trouble are why the spec is not given, or what is given not applied; empty: it is.
	pendingReason, pending, trouble string
}

// resizables are the containers whose resources may change while they run.
func resizables(p *corev1.Pod) []*corev1.Container {
	var out []*corev1.Container
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; sidecar(c) {
			out = append(out, c)
		}
	}
	for i := range p.Spec.Containers {
		out = append(out, &p.Spec.Containers[i])
	}
	return out
}

func statusOf(p *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// allocate gives the pod what its spec asks for, if the node has it, and returns the pod as it is to run: with what is given.
func (w *worker) allocate(p *corev1.Pod) *corev1.Pod {
	a := &w.allocation
	if a.given == nil {
		a.given, a.applied = map[string]corev1.ResourceRequirements{}, map[string]corev1.ResourceRequirements{}
		for _, c := range resizables(p) {
			a.given[c.Name] = c.Resources
			if s := statusOf(p, c.Name); s != nil && s.Resources != nil {
				a.given[c.Name] = *s.Resources.DeepCopy()
				if _, id, ok := strings.Cut(s.ContainerID, "://"); ok {
					a.applied[id] = a.given[c.Name]
				}
			}
		}
	}
	a.pendingReason, a.pending = "", ""
	same := true
	for _, c := range resizables(p) {
		same = same && apiequality.Semantic.DeepEqual(a.given[c.Name], c.Resources)
	}
	if same {
		return p
	}
	if a.pendingReason, a.pending = w.k.room(p); a.pendingReason == "" {
		for _, c := range resizables(p) {
			a.given[c.Name] = c.Resources
		}
		return p
	}
	p = p.DeepCopy()
	for _, c := range resizables(p) {
		c.Resources = a.given[c.Name]
	}
	return p
}

// room tells why a pod of this node can't have what it asks for: never, or not as long as others have what they have.
func (k *Pods) room(p *corev1.Pod) (reason, message string) {
	wants, all := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{}), k.Allocatable()
	taken := corev1.ResourceList{}
	for _, other := range k.List() {
		if other.UID == p.UID || ended(other.Status.Phase) {
			continue
		}
		for name, q := range resourcehelper.PodRequests(other, resourcehelper.PodResourcesOptions{UseStatusResources: true}) {
			sum := taken[name]
			sum.Add(q)
			taken[name] = sum
		}
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		want, have, used := wants[name], all[name], taken[name]
		if want.Cmp(have) > 0 {
			return corev1.PodReasonInfeasible, fmt.Sprintf("Node didn't have enough capacity: %s, requested: %s, capacity: %s", name, want.String(), have.String())
		}
		used.Add(want)
		if used.Cmp(have) > 0 {
			return corev1.PodReasonDeferred, fmt.Sprintf("Node didn't have enough resource: %s, requested: %s, used with it: %s, capacity: %s", name, want.String(), used.String(), have.String())
		}
	}
	return "", ""
}

// resize brings running containers to what they are given. Those that must be made anew for it are returned, to be killed.
func (w *worker) resize(ctx context.Context, p *corev1.Pod, o observed) (restart []kill) {
	a := &w.allocation
	a.trouble = ""
	var changed []*corev1.Container
	live := map[string]bool{}
	for _, c := range resizables(p) {
		s := o.current(c.Name)
		if s == nil || s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		live[s.Id] = true
		have, known := a.applied[s.Id]
		if !known {
			a.applied[s.Id] = c.Resources // it was made before anybody told
			continue
		}
		if apiequality.Semantic.DeepEqual(have, c.Resources) {
			continue
		}
		if mustRestart(c, have) {
			restart = append(restart, kill{s.Id, c.Name, fmt.Sprintf("Container %s resize requires restart", c.Name)})
			continue
		}
		changed = append(changed, c)
	}
	for id := range a.applied {
		if !live[id] {
			delete(a.applied, id)
		}
	}
	if len(changed)+len(restart) == 0 {
		return nil
	}
	// Inner limits may never be above the pod's: those that shrink go before it, those that grow behind.
	shrinks := map[string]bool{}
	for _, c := range changed {
		was, is := a.applied[o.current(c.Name).Id].Limits[corev1.ResourceMemory], c.Resources.Limits[corev1.ResourceMemory]
		shrinks[c.Name] = is.Cmp(was) < 0
	}
	var errs []error
	update := func(first bool) {
		for _, c := range changed {
			if shrinks[c.Name] != first {
				continue
			}
			id := o.current(c.Name).Id
			err := w.k.Runtime.UpdateContainerResources(ctx, id, &runtimeapi.ContainerResources{Linux: w.k.Cgroups.ContainerResources(p, c)})
			if err != nil {
				errs = append(errs, fmt.Errorf("container %s: %w", c.Name, err))
				continue
			}
			a.applied[id] = c.Resources
		}
	}
	update(true)
	if _, err := w.k.Cgroups.EnsurePod(p); err != nil {
		errs = append(errs, err)
	}
	update(false)
	if err := errors.Join(errs...); err != nil {
		a.trouble = err.Error()
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "ResizeError", "Pod resize failed: %v", err)
	} else if len(restart) == 0 {
		w.k.Recorder.Event(p, corev1.EventTypeNormal, "ResizeCompleted", "Pod resize completed")
	}
	return restart
}

// mustRestart tells whether a resource changed whose policy is that the container be made anew.
func mustRestart(c *corev1.Container, have corev1.ResourceRequirements) bool {
	for _, policy := range c.ResizePolicy {
		if policy.RestartPolicy != corev1.RestartContainer {
			continue
		}
		for _, l := range [][2]corev1.ResourceList{{have.Limits, c.Resources.Limits}, {have.Requests, c.Resources.Requests}} {
			was, is := l[0][policy.ResourceName], l[1][policy.ResourceName]
			if was.Cmp(is) != 0 {
				return true
			}
		}
	}
	return false
}

// resized is what the status tells of it: what a container is given and has, and how far its pod is.
func (w *worker) resized(c *corev1.Container, id string, s *status.Container) {
	given, ok := w.allocation.given[c.Name]
	if !ok || len(given.Limits)+len(given.Requests) == 0 {
		return
	}
	s.Allocated = given.Requests
	if have, known := w.allocation.applied[id]; known {
		s.Resources = &have
	} else {
		s.Resources = &given
	}
}

// resizing are the conditions of a pod that is not yet as its spec asks.
func (w *worker) resizing(o observed) (pending, progress *corev1.PodCondition) {
	a := &w.allocation
	if a.pendingReason != "" {
		pending = &corev1.PodCondition{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: a.pendingReason, Message: a.pending}
	}
	for name, given := range a.given {
		s := o.current(name)
		if s == nil {
			continue
		}
		if have, known := a.applied[s.Id]; known && !apiequality.Semantic.DeepEqual(have, given) {
			progress = &corev1.PodCondition{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue}
			if a.trouble != "" {
				progress.Reason, progress.Message = corev1.PodReasonError, a.trouble
			}
		}
	}
	return pending, progress
}
