package resources

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// resizable tells whether a container's resources may change while its pod runs: an init container's that goes on running too.
func resizable(c *corev1.Container, init bool) bool {
	return !init || c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// TakeResize is the old pod with the new one's resources of containers: all that the subresource resize writes.
func TakeResize(p, old *corev1.Pod) {
	lists := [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers}
	version, fields := p.ResourceVersion, p.ManagedFields
	old.DeepCopyInto(p)
	p.ResourceVersion, p.ManagedFields = version, fields
	for i, have := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for j := range have {
			// By name: a client may send fewer, which validation must not take for a removal of resources.
			k := slices.IndexFunc(lists[i], func(c corev1.Container) bool { return c.Name == have[j].Name })
			if k >= 0 && resizable(&have[j], i == 1) {
				have[j].Resources = lists[i][k].Resources
			}
		}
	}
	if !apiequality.Semantic.DeepEqual(p.Spec, old.Spec) {
		p.Generation++
	}
}

// ValidateResize allows what the API documents: CPU and memory change, what was said once is not taken back, and the class of service stays.
func ValidateResize(p, old *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec")
	if old.Status.Phase == corev1.PodSucceeded || old.Status.Phase == corev1.PodFailed {
		return field.ErrorList{field.Forbidden(path, "a pod that has ended can't be resized")}
	}
	for name, lists := range map[string][2][]corev1.Container{
		"containers": {p.Spec.Containers, old.Spec.Containers}, "initContainers": {p.Spec.InitContainers, old.Spec.InitContainers},
	} {
		for i := range lists[0] {
			now, was := lists[0][i].Resources, lists[1][i].Resources
			if apiequality.Semantic.DeepEqual(now, was) {
				continue
			}
			rp := path.Child(name).Index(i).Child("resources")
			errs = append(errs, validateResources(now, rp)...)
			for kind, l := range map[string][2]corev1.ResourceList{"limits": {now.Limits, was.Limits}, "requests": {now.Requests, was.Requests}} {
				for res := range l[1] {
					if _, ok := l[0][res]; !ok {
						errs = append(errs, field.Forbidden(rp.Child(kind), "resource "+kind+" cannot be removed"))
					}
				}
				for _, res := range slices.Sorted(maps.Keys(l[0])) {
					before, is := l[1][res], l[0][res]
					if before.Cmp(is) != 0 && res != corev1.ResourceCPU && res != corev1.ResourceMemory {
						errs = append(errs, field.Forbidden(rp.Child(kind).Key(string(res)), "only cpu and memory resources are mutable"))
					}
				}
			}
			if !apiequality.Semantic.DeepEqual(now.Claims, was.Claims) {
				errs = append(errs, field.Forbidden(rp.Child("claims"), "only cpu and memory resources are mutable"))
			}
		}
	}
	if class, was := qosClass(&p.Spec), qosClass(&old.Spec); class != was {
		errs = append(errs, field.Invalid(path, class, fmt.Sprintf("Pod QOS Class may not change as a result of resizing (it is %s)", was)))
	}
	return errs
}

// validateResizePolicy allows one policy for each of CPU and memory; where nothing is ever restarted, nothing is for a resize either.
func validateResizePolicy(policies []corev1.ContainerResizePolicy, p *field.Path, restart corev1.RestartPolicy) field.ErrorList {
	var errs field.ErrorList
	seen := map[corev1.ResourceName]bool{}
	for i, policy := range policies {
		if seen[policy.ResourceName] {
			errs = append(errs, field.Duplicate(p.Index(i), policy.ResourceName))
		}
		seen[policy.ResourceName] = true
		errs = append(errs, oneOf(policy.ResourceName, p, corev1.ResourceCPU, corev1.ResourceMemory)...)
		errs = append(errs, oneOf(policy.RestartPolicy, p, corev1.NotRequired, corev1.RestartContainer)...)
		if restart == corev1.RestartPolicyNever && policy.RestartPolicy != corev1.NotRequired {
			errs = append(errs, field.Invalid(p, policy.RestartPolicy, "must be 'NotRequired' when `restartPolicy` is 'Never'"))
		}
	}
	return errs
}
