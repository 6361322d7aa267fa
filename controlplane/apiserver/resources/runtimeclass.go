package resources

import (
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func runtimeClasses() []*descriptor.Resource {
	return []*descriptor.Resource{kind[nodev1.RuntimeClass, nodev1.RuntimeClassList]("RuntimeClass", descriptor.Resource{
		GroupVersion: nodev1.SchemeGroupVersion, Plural: "runtimeclasses",
		Validate: descriptor.Check(func(r *nodev1.RuntimeClass) field.ErrorList {
			errs := invalidIf(validation.IsDNS1123Label(r.Handler), field.NewPath("handler"), r.Handler)
			if o := r.Overhead; o != nil {
				errs = append(errs, validateResources(corev1.ResourceRequirements{Limits: o.PodFixed}, field.NewPath("overhead", "podFixed"))...)
			}
			s, p := r.Scheduling, field.NewPath("scheduling")
			if s == nil {
				return errs
			}
			errs = append(errs, metav1validation.ValidateLabels(s.NodeSelector, p.Child("nodeSelector"))...)
			seen := sets.New[corev1.Toleration]()
			for i, t := range s.Tolerations {
				tp := p.Child("tolerations").Index(i)
				errs = append(errs, validateToleration(t, tp)...)
				t.TolerationSeconds = nil
				if seen.Has(t) {
					errs = append(errs, field.Duplicate(tp, t))
				}
				seen.Insert(t)
			}
			return errs
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(r, old *nodev1.RuntimeClass) field.ErrorList {
			return apivalidation.ValidateImmutableField(r.Handler, old.Handler, field.NewPath("handler"))
		}),
		Columns: []descriptor.Column{
			{Name: "Handler", Cell: descriptor.Cell(func(r *nodev1.RuntimeClass) string { return r.Handler })},
			descriptor.Age,
		},
	})}
}
