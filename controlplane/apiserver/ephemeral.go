package apiserver

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// ephemeralREST adds containers to a running pod (`kubectl debug`); nothing else of it changes.
type ephemeralREST struct{ pods *genericregistry.Store }

var _ rest.Patcher = (*ephemeralREST)(nil)

func newEphemeralREST(pods *descriptor.Store) *ephemeralREST {
	return &ephemeralREST{pods.Replacing(func(s rest.RESTUpdateStrategy) rest.RESTUpdateStrategy { return ephemeralStrategy{s} })}
}

func (r *ephemeralREST) New() runtime.Object { return &corev1.Pod{} }
func (r *ephemeralREST) Destroy()            {}

func (r *ephemeralREST) Get(ctx context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	return r.pods.Get(ctx, name, o)
}

func (r *ephemeralREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return r.pods.Update(ctx, name, info, create, update, false, o)
}

type ephemeralStrategy struct{ rest.RESTUpdateStrategy }

func (ephemeralStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	p, was := obj.(*corev1.Pod), old.(*corev1.Pod)
	added := p.Spec.EphemeralContainers
	meta := p.ObjectMeta
	was.DeepCopyInto(p)
	p.ResourceVersion, p.ManagedFields = meta.ResourceVersion, meta.ManagedFields
	p.Spec.EphemeralContainers = added
	if !apiequality.Semantic.DeepEqual(added, was.Spec.EphemeralContainers) {
		p.Generation++
	}
}

func (ephemeralStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validateEphemeral(&obj.(*corev1.Pod).Spec, &old.(*corev1.Pod).Spec)
}

// validateEphemeral allows what the API documents: containers are only ever added, with neither ports, probes,
// lifecycle hooks nor resources.
func validateEphemeral(s, old *corev1.PodSpec) field.ErrorList {
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
		c, p := &s.EphemeralContainers[i], path.Index(i)
		now[c.Name] = c
		for _, msg := range validation.IsDNS1123Label(c.Name) {
			errs = append(errs, field.Invalid(p.Child("name"), c.Name, msg))
		}
		if names.Has(c.Name) {
			errs = append(errs, field.Duplicate(p.Child("name"), c.Name))
		}
		names.Insert(c.Name)
		if c.Image == "" {
			errs = append(errs, field.Required(p.Child("image"), ""))
		}
		if c.TargetContainerName != "" && !targets.Has(c.TargetContainerName) {
			errs = append(errs, field.NotFound(p.Child("targetContainerName"), c.TargetContainerName))
		}
		for name, set := range map[string]bool{
			"ports": len(c.Ports) > 0, "livenessProbe": c.LivenessProbe != nil, "readinessProbe": c.ReadinessProbe != nil,
			"startupProbe": c.StartupProbe != nil, "lifecycle": c.Lifecycle != nil,
			"resources": len(c.Resources.Limits)+len(c.Resources.Requests) > 0,
		} {
			if set {
				errs = append(errs, field.Forbidden(p.Child(name), "cannot be set for an Ephemeral Container"))
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
