package resources

import (
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func replicationControllers() *descriptor.Resource {
	return kind[corev1.ReplicationController, corev1.ReplicationControllerList]("ReplicationController", descriptor.Resource{
		GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"rc"}, Categories: []string{"all"}, Namespaced: true, Generation: true, Status: true,
		StoragePrefix: "controllers",
		Default: descriptor.Each(func(r *corev1.ReplicationController) {
			set(&r.Spec.Replicas, int32(1))
			if t := r.Spec.Template; t != nil {
				// The pods' labels are those of the controller and what it selects, where nobody says otherwise.
				if len(t.Labels) > 0 {
					if len(r.Spec.Selector) == 0 {
						r.Spec.Selector = maps.Clone(t.Labels)
					}
					if len(r.Labels) == 0 {
						r.Labels = maps.Clone(t.Labels)
					}
				}
				defaultPodSpec(&t.Spec)
			}
		}),
		Validate: descriptor.Check(func(r *corev1.ReplicationController) field.ErrorList {
			p := field.NewPath("spec")
			var errs field.ErrorList
			if r.Spec.Replicas != nil {
				errs = append(errs, apivalidation.ValidateNonnegativeField(int64(*r.Spec.Replicas), p.Child("replicas"))...)
			}
			errs = append(errs, apivalidation.ValidateNonnegativeField(int64(r.Spec.MinReadySeconds), p.Child("minReadySeconds"))...)
			if len(r.Spec.Selector) == 0 {
				errs = append(errs, field.Required(p.Child("selector"), ""))
			}
			t, tp := r.Spec.Template, p.Child("template")
			if t == nil {
				return append(errs, field.Required(tp, ""))
			}
			if !labels.SelectorFromSet(r.Spec.Selector).Matches(labels.Set(t.Labels)) {
				errs = append(errs, field.Invalid(tp.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
			}
			errs = append(errs, validatePodTemplate(t, tp)...)
			if rp := t.Spec.RestartPolicy; rp != corev1.RestartPolicyAlways {
				errs = append(errs, field.NotSupported(tp.Child("spec", "restartPolicy"), rp, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
			}
			if t.Spec.ActiveDeadlineSeconds != nil {
				errs = append(errs, field.Forbidden(tp.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in ReplicationController is not Supported"))
			}
			return errs
		}),
		Selectable: func(o runtime.Object) fields.Set {
			return fields.Set{"status.replicas": fmt.Sprint(o.(*corev1.ReplicationController).Status.Replicas)}
		},
		OrphanByDefault: true,
		Scale: &descriptor.Scale{
			Replicas:       func(o runtime.Object) int32 { return replicas(o.(*corev1.ReplicationController).Spec.Replicas) },
			SetReplicas:    func(o runtime.Object, n int32) { o.(*corev1.ReplicationController).Spec.Replicas = &n },
			StatusReplicas: func(o runtime.Object) int32 { return o.(*corev1.ReplicationController).Status.Replicas },
			Selector: func(o runtime.Object) string {
				return labels.SelectorFromSet(o.(*corev1.ReplicationController).Spec.Selector).String()
			},
		},
		Columns: append([]descriptor.Column{
			{Name: "Desired", Type: "integer", Cell: descriptor.Cell(func(r *corev1.ReplicationController) int64 { return int64(replicas(r.Spec.Replicas)) })},
			{Name: "Current", Type: "integer", Cell: descriptor.Cell(func(r *corev1.ReplicationController) int64 { return int64(r.Status.Replicas) })},
			{Name: "Ready", Type: "integer", Cell: descriptor.Cell(func(r *corev1.ReplicationController) int64 { return int64(r.Status.ReadyReplicas) })},
			descriptor.Age,
		}, templateColumns(func(o runtime.Object) (*corev1.PodTemplateSpec, *metav1.LabelSelector) {
			r := o.(*corev1.ReplicationController)
			t := r.Spec.Template
			if t == nil {
				t = &corev1.PodTemplateSpec{}
			}
			return t, &metav1.LabelSelector{MatchLabels: r.Spec.Selector}
		})...),
	})
}
