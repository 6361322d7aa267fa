package apiserver

import (
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// takeEphemeral leaves of an update what adds containers to a running pod (`kubectl debug`).
func takeEphemeral(p, was *corev1.Pod) {
	added := p.Spec.EphemeralContainers
	meta := p.ObjectMeta
	was.DeepCopyInto(p)
	p.ResourceVersion, p.ManagedFields = meta.ResourceVersion, meta.ManagedFields
	p.Spec.EphemeralContainers = added
	if !apiequality.Semantic.DeepEqual(added, was.Spec.EphemeralContainers) {
		p.Generation++
	}
}

// validateEphemeral allows what the API documents: containers are only ever added, with neither ports, probes,
// lifecycle hooks nor resources.
func validateEphemeral(p, was *corev1.Pod) field.ErrorList {
	s, old := &p.Spec, &was.Spec
	var errs field.ErrorList
	path := field.NewPath("spec", "ephemeralContainers")
	names, targets := sets.New[string](), sets.New[string]()
	for _, c := range s.InitContainers {
		names.Insert(c.Name)
	}
	for _, c := range s.Containers {
		names.Insert(c.Name)
		targets.Insert(c.Name)
	}
	now := map[string]*corev1.EphemeralContainer{}
	for i := range s.EphemeralContainers {
		c, at := &s.EphemeralContainers[i], path.Index(i)
		now[c.Name] = c
		for _, msg := range validation.IsDNS1123Label(c.Name) {
			errs = append(errs, field.Invalid(at.Child("name"), c.Name, msg))
		}
		if names.Has(c.Name) {
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		}
		names.Insert(c.Name)
		if c.Image == "" {
			errs = append(errs, field.Required(at.Child("image"), ""))
		}
		if c.TargetContainerName != "" && !targets.Has(c.TargetContainerName) {
			errs = append(errs, field.NotFound(at.Child("targetContainerName"), c.TargetContainerName))
		}
		for name, set := range map[string]bool{
			"ports": len(c.Ports) > 0, "livenessProbe": c.LivenessProbe != nil, "readinessProbe": c.ReadinessProbe != nil,
			"startupProbe": c.StartupProbe != nil, "lifecycle": c.Lifecycle != nil,
			"resources": len(c.Resources.Limits)+len(c.Resources.Requests) > 0,
		} {
			if set {
				errs = append(errs, field.Forbidden(at.Child(name), "cannot be set for an Ephemeral Container"))
			}
		}
	}
	for _, c := range old.EphemeralContainers {
		switch n := now[c.Name]; {
		case n == nil:
			errs = append(errs, field.Forbidden(path, "existing ephemeral containers "+c.Name+" may not be removed"))
		case !apiequality.Semantic.DeepEqual(*n, c):
			errs = append(errs, field.Forbidden(path, "existing ephemeral containers "+c.Name+" may not be changed"))
		}
	}
	return errs
}
