package podworker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
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
	remade  map[string]bool                        // ids of containers that were ended only to be made anew
	podDue  bool                                   // the pod's cgroup allows more than its containers are given by now
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
		a.given, a.applied, a.remade = map[string]corev1.ResourceRequirements{}, map[string]corev1.ResourceRequirements{}, map[string]bool{}
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
	w.k.granting.Lock() // what two pods ask for at once, only one may be there for
	defer w.k.granting.Unlock()
	defer func() { w.grant(maps.Clone(a.given)) }()
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
	return withResources(p, a.given)
}

// withResources is a copy of the pod whose containers ask for these.
func withResources(p *corev1.Pod, by map[string]corev1.ResourceRequirements) *corev1.Pod {
	p = p.DeepCopy()
	for _, c := range resizables(p) {
		if r, ok := by[c.Name]; ok {
			c.Resources = r
		}
	}
	return p
}

// room tells why a pod of this node can't have what it asks for: never, or not as long as others have what they have. What others ask for, and
// are not given, is nobody's.
func (k *Pods) room(p *corev1.Pod) (reason, message string) {
	wants, all := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{}), k.Allocatable()
	taken := corev1.ResourceList{}
	for _, other := range k.granted() {
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
	live, wide := map[string]bool{}, map[string]corev1.ResourceRequirements{}
	for _, c := range resizables(p) {
		s := o.current(c.Name)
		if s == nil {
			continue
		}
		live[s.Id] = true
		if s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			delete(a.applied, s.Id)
			continue
		}
		have, known := a.applied[s.Id]
		if !known {
			a.applied[s.Id] = c.Resources // it was made before anybody told
			continue
		}
		if apiequality.Semantic.DeepEqual(have, c.Resources) {
			continue
		}
		wide[c.Name] = widest(have, c.Resources)
		if mustRestart(c, have) {
			restart = append(restart, kill{s.Id, c.Name, fmt.Sprintf("Container %s resize requires restart", c.Name)})
			continue
		}
		changed = append(changed, c)
	}
	gone := func(id string) bool { return !live[id] }
	maps.DeleteFunc(a.applied, func(id string, _ corev1.ResourceRequirements) bool { return gone(id) })
	maps.DeleteFunc(a.remade, func(id string, _ bool) bool { return gone(id) })
	if len(wide) == 0 && !a.podDue {
		return nil
	}
	if err := w.update(ctx, p, withResources(p, wide), o, changed, len(restart) > 0); err != nil {
		a.trouble = err.Error()
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "ResizeError", "Pod resize failed: %v", err)
		return nil
	}
	for _, r := range restart {
		a.remade[r.id] = true
	}
	if len(restart) == 0 {
		w.k.Recorder.Event(p, corev1.EventTypeNormal, "ResizeCompleted", "Pod resize completed")
	}
	return restart
}

// update changes the limits of running containers and of their pod. A cgroup's limit may never be above that of the one around it (the kernel
// refuses it for cgroup v1's CPU), so the pod has what is before and what is to come until all containers are changed. Those that are to be
// made anew use what they had until then: later says that the pod waits for them.
func (w *worker) update(ctx context.Context, p, wide *corev1.Pod, o observed, changed []*corev1.Container, later bool) error {
	a := &w.allocation
	has, gets := w.k.Cgroups.PodMemory(wide), w.k.Cgroups.PodMemory(p)
	shrinks := !later && gets > 0 && (a.podDue || has == 0 || gets < has)
	a.podDue = true
	if _, err := w.k.Cgroups.EnsurePod(wide); err != nil {
		return err
	}
	if err := w.fitsMemory(ctx, p, o, changed, shrinks); err != nil {
		return err
	}
	var errs []error
	for _, c := range changed {
		id := o.current(c.Name).Id
		err := w.k.Runtime.UpdateContainerResources(ctx, id, &runtimeapi.ContainerResources{Linux: w.k.Cgroups.ContainerResources(p, c)})
		if err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", c.Name, err))
			continue
		}
		a.applied[id] = c.Resources
	}
	if err := errors.Join(errs...); err != nil || later {
		return err
	}
	if _, err := w.k.Cgroups.EnsurePod(p); err != nil {
		return err
	}
	a.podDue = false
	return nil
}

// fitsMemory refuses limits below what is used now: the kernel would kill for them. podShrinks says that the pod's limit is looked at, too.
func (w *worker) fitsMemory(ctx context.Context, p *corev1.Pod, o observed, changed []*corev1.Container, podShrinks bool) error {
	var errs []error
	for _, c := range changed {
		id := o.current(c.Name).Id
		was, is := w.allocation.applied[id].Limits[corev1.ResourceMemory], c.Resources.Limits[corev1.ResourceMemory]
		if is.IsZero() || !was.IsZero() && is.Cmp(was) >= 0 {
			continue
		}
		st, err := w.k.Runtime.ContainerStats(ctx, id)
		if err != nil {
			errs = append(errs, fmt.Errorf("container %s: what memory it uses: %w", c.Name, err))
		} else if used := st.GetMemory().GetUsageBytes().GetValue(); used >= uint64(is.Value()) {
			errs = append(errs, fmt.Errorf("attempting to set container %q memory limit (%d) below current usage (%d)", c.Name, is.Value(), used))
		}
	}
	if podShrinks {
		limit := w.k.Cgroups.PodMemory(p)
		used, err := w.k.Cgroups.PodUsage(p)
		if err != nil {
			errs = append(errs, err)
		} else if used.Memory >= uint64(limit) {
			errs = append(errs, fmt.Errorf("attempting to set pod memory limit (%d) below current usage (%d)", limit, used.Memory))
		}
	}
	return errors.Join(errs...)
}

// widest is what holds both a and b.
func widest(a, b corev1.ResourceRequirements) corev1.ResourceRequirements {
	out := *b.DeepCopy()
	// What only one of them limits is not limited.
	maps.DeleteFunc(out.Limits, func(name corev1.ResourceName, _ resource.Quantity) bool { _, ok := a.Limits[name]; return !ok })
	for _, l := range [][2]corev1.ResourceList{{out.Limits, a.Limits}, {out.Requests, a.Requests}} {
		for name, q := range l[0] {
			if other := l[1][name]; other.Cmp(q) > 0 {
				l[0][name] = other
			}
		}
	}
	return out
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
