package resources

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func apps() []*descriptor.Resource {
	return []*descriptor.Resource{deployments(), replicaSets(), statefulSets(), daemonSets(), controllerRevisions()}
}

func deployments() *descriptor.Resource {
	return kind[appsv1.Deployment, appsv1.DeploymentList]("Deployment", descriptor.Resource{
		GroupVersion: appsv1.SchemeGroupVersion, ShortNames: []string{"deploy"}, Categories: []string{"all"}, Namespaced: true,
		Generation: true, Status: true,
		Default: descriptor.Each(func(d *appsv1.Deployment) {
			set(&d.Spec.Replicas, int32(1))
			set(&d.Spec.RevisionHistoryLimit, int32(10))
			set(&d.Spec.ProgressDeadlineSeconds, int32(600))
			s := &d.Spec.Strategy
			fill(&s.Type, appsv1.RollingUpdateDeploymentStrategyType)
			if s.Type == appsv1.RollingUpdateDeploymentStrategyType {
				if s.RollingUpdate == nil {
					s.RollingUpdate = &appsv1.RollingUpdateDeployment{}
				}
				set(&s.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
				set(&s.RollingUpdate.MaxSurge, intstr.FromString("25%"))
			}
			defaultPodSpec(&d.Spec.Template.Spec)
		}),
		Validate: descriptor.Check(func(d *appsv1.Deployment) field.ErrorList {
			p := field.NewPath("spec")
			errs := validateWorkload("Deployment", d.Spec.Replicas, d.Spec.Selector, &d.Spec.Template, p)
			s := d.Spec.Strategy
			errs = append(errs, oneOf(s.Type, p.Child("strategy", "type"), appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType)...)
			if s.Type == appsv1.RecreateDeploymentStrategyType && s.RollingUpdate != nil {
				errs = append(errs, field.Forbidden(p.Child("strategy", "rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'"))
			}
			if r := s.RollingUpdate; r != nil {
				rp := p.Child("strategy", "rollingUpdate")
				errs = append(errs, validateShare(r.MaxUnavailable, rp.Child("maxUnavailable"), true)...)
				errs = append(errs, validateShare(r.MaxSurge, rp.Child("maxSurge"), false)...)
				if isZeroShare(r.MaxUnavailable) && isZeroShare(r.MaxSurge) {
					errs = append(errs, field.Invalid(rp.Child("maxUnavailable"), r.MaxUnavailable, "may not be 0 when `maxSurge` is 0"))
				}
			}
			errs = append(errs, apivalidation.ValidateNonnegativeField(int64(d.Spec.MinReadySeconds), p.Child("minReadySeconds"))...)
			if h := d.Spec.RevisionHistoryLimit; h != nil {
				errs = append(errs, apivalidation.ValidateNonnegativeField(int64(*h), p.Child("revisionHistoryLimit"))...)
			}
			if t := d.Spec.ProgressDeadlineSeconds; t != nil && *t <= d.Spec.MinReadySeconds {
				errs = append(errs, field.Invalid(p.Child("progressDeadlineSeconds"), *t, "must be greater than minReadySeconds"))
			}
			return errs
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(d, old *appsv1.Deployment) field.ErrorList {
			return apivalidation.ValidateImmutableField(d.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))
		}),
		Scale: &descriptor.Scale{
			Replicas:       func(o runtime.Object) int32 { return replicas(o.(*appsv1.Deployment).Spec.Replicas) },
			SetReplicas:    func(o runtime.Object, n int32) { o.(*appsv1.Deployment).Spec.Replicas = &n },
			StatusReplicas: func(o runtime.Object) int32 { return o.(*appsv1.Deployment).Status.Replicas },
			Selector:       func(o runtime.Object) string { return selectorText(o.(*appsv1.Deployment).Spec.Selector) },
		},
		Columns: append([]descriptor.Column{
			{Name: "Ready", Cell: descriptor.Cell(func(d *appsv1.Deployment) string {
				return fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, replicas(d.Spec.Replicas))
			})},
			{Name: "Up-to-date", Type: "integer", Cell: descriptor.Cell(func(d *appsv1.Deployment) int64 { return int64(d.Status.UpdatedReplicas) })},
			{Name: "Available", Type: "integer", Cell: descriptor.Cell(func(d *appsv1.Deployment) int64 { return int64(d.Status.AvailableReplicas) })},
			descriptor.Age,
		}, templateColumns(func(o runtime.Object) (*corev1.PodTemplateSpec, *metav1.LabelSelector) {
			d := o.(*appsv1.Deployment)
			return &d.Spec.Template, d.Spec.Selector
		})...),
	})
}

func replicaSets() *descriptor.Resource {
	return kind[appsv1.ReplicaSet, appsv1.ReplicaSetList]("ReplicaSet", descriptor.Resource{
		GroupVersion: appsv1.SchemeGroupVersion, ShortNames: []string{"rs"}, Categories: []string{"all"}, Namespaced: true,
		Generation: true, Status: true,
		Default: descriptor.Each(func(r *appsv1.ReplicaSet) {
			set(&r.Spec.Replicas, int32(1))
			defaultPodSpec(&r.Spec.Template.Spec)
		}),
		Validate: descriptor.Check(func(r *appsv1.ReplicaSet) field.ErrorList {
			return validateWorkload("ReplicaSet", r.Spec.Replicas, r.Spec.Selector, &r.Spec.Template, field.NewPath("spec"))
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(r, old *appsv1.ReplicaSet) field.ErrorList {
			return apivalidation.ValidateImmutableField(r.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))
		}),
		Selectable: func(o runtime.Object) fields.Set {
			return fields.Set{"status.replicas": fmt.Sprint(o.(*appsv1.ReplicaSet).Status.Replicas)}
		},
		Scale: &descriptor.Scale{
			Replicas:       func(o runtime.Object) int32 { return replicas(o.(*appsv1.ReplicaSet).Spec.Replicas) },
			SetReplicas:    func(o runtime.Object, n int32) { o.(*appsv1.ReplicaSet).Spec.Replicas = &n },
			StatusReplicas: func(o runtime.Object) int32 { return o.(*appsv1.ReplicaSet).Status.Replicas },
			Selector:       func(o runtime.Object) string { return selectorText(o.(*appsv1.ReplicaSet).Spec.Selector) },
		},
		Columns: append([]descriptor.Column{
			{Name: "Desired", Type: "integer", Cell: descriptor.Cell(func(r *appsv1.ReplicaSet) int64 { return int64(replicas(r.Spec.Replicas)) })},
			{Name: "Current", Type: "integer", Cell: descriptor.Cell(func(r *appsv1.ReplicaSet) int64 { return int64(r.Status.Replicas) })},
			{Name: "Ready", Type: "integer", Cell: descriptor.Cell(func(r *appsv1.ReplicaSet) int64 { return int64(r.Status.ReadyReplicas) })},
			descriptor.Age,
		}, templateColumns(func(o runtime.Object) (*corev1.PodTemplateSpec, *metav1.LabelSelector) {
			r := o.(*appsv1.ReplicaSet)
			return &r.Spec.Template, r.Spec.Selector
		})...),
	})
}

// withClaims is a StatefulSet's template with the volumes that its pods get beside those of the template.
func withClaims(s *appsv1.StatefulSet) *corev1.PodTemplateSpec {
	t := s.Spec.Template.DeepCopy()
	for _, c := range s.Spec.VolumeClaimTemplates {
		if c.Name != "" && !slices.ContainsFunc(t.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == c.Name }) {
			t.Spec.Volumes = append(t.Spec.Volumes, corev1.Volume{Name: c.Name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Name},
			}})
		}
	}
	return t
}

func statefulSets() *descriptor.Resource {
	return kind[appsv1.StatefulSet, appsv1.StatefulSetList]("StatefulSet", descriptor.Resource{
		GroupVersion: appsv1.SchemeGroupVersion, ShortNames: []string{"sts"}, Categories: []string{"all"}, Namespaced: true,
		Generation: true, Status: true,
		Default: descriptor.Each(func(s *appsv1.StatefulSet) {
			set(&s.Spec.Replicas, int32(1))
			set(&s.Spec.RevisionHistoryLimit, int32(10))
			fill(&s.Spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
			fill(&s.Spec.UpdateStrategy.Type, appsv1.RollingUpdateStatefulSetStrategyType)
			if s.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
				if s.Spec.UpdateStrategy.RollingUpdate == nil {
					s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{}
				}
				set(&s.Spec.UpdateStrategy.RollingUpdate.Partition, int32(0))
			}
			if s.Spec.PersistentVolumeClaimRetentionPolicy == nil {
				s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{}
			}
			fill(&s.Spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
			fill(&s.Spec.PersistentVolumeClaimRetentionPolicy.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
			defaultPodSpec(&s.Spec.Template.Spec)
			for i := range s.Spec.VolumeClaimTemplates {
				defaultClaim(&s.Spec.VolumeClaimTemplates[i].Spec)
			}
		}),
		Validate: descriptor.Check(func(s *appsv1.StatefulSet) field.ErrorList {
			p := field.NewPath("spec")
			errs := validateWorkload("StatefulSet", s.Spec.Replicas, s.Spec.Selector, withClaims(s), p)
			errs = append(errs, oneOf(s.Spec.PodManagementPolicy, p.Child("podManagementPolicy"), appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement)...)
			u, up := s.Spec.UpdateStrategy, p.Child("updateStrategy")
			errs = append(errs, oneOf(u.Type, up.Child("type"), appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType)...)
			if r := u.RollingUpdate; r != nil {
				if u.Type == appsv1.OnDeleteStatefulSetStrategyType {
					errs = append(errs, field.Invalid(up.Child("rollingUpdate"), r, "only allowed for updateStrategy 'RollingUpdate'"))
				}
				if r.Partition != nil {
					errs = append(errs, apivalidation.ValidateNonnegativeField(int64(*r.Partition), up.Child("rollingUpdate", "partition"))...)
				}
			}
			errs = append(errs, apivalidation.ValidateNonnegativeField(int64(s.Spec.MinReadySeconds), p.Child("minReadySeconds"))...)
			if o := s.Spec.Ordinals; o != nil {
				errs = append(errs, apivalidation.ValidateNonnegativeField(int64(o.Start), p.Child("ordinals", "start"))...)
			}
			return errs
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(s, old *appsv1.StatefulSet) field.ErrorList {
			want := old.Spec.DeepCopy()
			want.Replicas, want.Template, want.UpdateStrategy, want.MinReadySeconds = s.Spec.Replicas, s.Spec.Template, s.Spec.UpdateStrategy, s.Spec.MinReadySeconds
			want.Ordinals, want.RevisionHistoryLimit = s.Spec.Ordinals, s.Spec.RevisionHistoryLimit
			want.PersistentVolumeClaimRetentionPolicy = s.Spec.PersistentVolumeClaimRetentionPolicy
			if !apiequality.Semantic.DeepEqual(want, &s.Spec) {
				return field.ErrorList{field.Forbidden(field.NewPath("spec"), "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden")}
			}
			return nil
		}),
		Scale: &descriptor.Scale{
			Replicas:       func(o runtime.Object) int32 { return replicas(o.(*appsv1.StatefulSet).Spec.Replicas) },
			SetReplicas:    func(o runtime.Object, n int32) { o.(*appsv1.StatefulSet).Spec.Replicas = &n },
			StatusReplicas: func(o runtime.Object) int32 { return o.(*appsv1.StatefulSet).Status.Replicas },
			Selector:       func(o runtime.Object) string { return selectorText(o.(*appsv1.StatefulSet).Spec.Selector) },
		},
		Columns: append([]descriptor.Column{
			{Name: "Ready", Cell: descriptor.Cell(func(s *appsv1.StatefulSet) string {
				return fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, replicas(s.Spec.Replicas))
			})},
			descriptor.Age,
		}, templateColumns(func(o runtime.Object) (*corev1.PodTemplateSpec, *metav1.LabelSelector) {
			s := o.(*appsv1.StatefulSet)
			return &s.Spec.Template, s.Spec.Selector
		})[:2]...),
	})
}

func daemonSets() *descriptor.Resource {
	cell := func(f func(appsv1.DaemonSetStatus) int32) func(runtime.Object) any {
		return func(o runtime.Object) any { return int64(f(o.(*appsv1.DaemonSet).Status)) }
	}
	return kind[appsv1.DaemonSet, appsv1.DaemonSetList]("DaemonSet", descriptor.Resource{
		GroupVersion: appsv1.SchemeGroupVersion, ShortNames: []string{"ds"}, Categories: []string{"all"}, Namespaced: true,
		Generation: true, Status: true,
		Default: descriptor.Each(func(d *appsv1.DaemonSet) {
			set(&d.Spec.RevisionHistoryLimit, int32(10))
			fill(&d.Spec.UpdateStrategy.Type, appsv1.RollingUpdateDaemonSetStrategyType)
			if d.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
				if d.Spec.UpdateStrategy.RollingUpdate == nil {
					d.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{}
				}
				set(&d.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
				set(&d.Spec.UpdateStrategy.RollingUpdate.MaxSurge, intstr.FromInt32(0))
			}
			defaultPodSpec(&d.Spec.Template.Spec)
		}),
		Validate: descriptor.Check(func(d *appsv1.DaemonSet) field.ErrorList {
			p := field.NewPath("spec")
			errs := validateWorkload("DaemonSet", nil, d.Spec.Selector, &d.Spec.Template, p)
			u, up := d.Spec.UpdateStrategy, p.Child("updateStrategy")
			errs = append(errs, oneOf(u.Type, up.Child("type"), appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType)...)
			if r := u.RollingUpdate; u.Type == appsv1.RollingUpdateDaemonSetStrategyType && r != nil {
				rp := up.Child("rollingUpdate")
				errs = append(errs, validateShare(r.MaxUnavailable, rp.Child("maxUnavailable"), true)...)
				errs = append(errs, validateShare(r.MaxSurge, rp.Child("maxSurge"), true)...)
				switch more, less := isZeroShare(r.MaxSurge), isZeroShare(r.MaxUnavailable); {
				case more && less:
					errs = append(errs, field.Required(rp.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0"))
				case !more && !less:
					errs = append(errs, field.Invalid(rp.Child("maxSurge"), r.MaxSurge, "may not be set when maxUnavailable is non-zero"))
				}
			}
			return append(errs, apivalidation.ValidateNonnegativeField(int64(d.Spec.MinReadySeconds), p.Child("minReadySeconds"))...)
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(d, old *appsv1.DaemonSet) field.ErrorList {
			return apivalidation.ValidateImmutableField(d.Spec.Selector, old.Spec.Selector, field.NewPath("spec", "selector"))
		}),
		Columns: append([]descriptor.Column{
			{Name: "Desired", Type: "integer", Cell: cell(func(s appsv1.DaemonSetStatus) int32 { return s.DesiredNumberScheduled })},
			{Name: "Current", Type: "integer", Cell: cell(func(s appsv1.DaemonSetStatus) int32 { return s.CurrentNumberScheduled })},
			{Name: "Ready", Type: "integer", Cell: cell(func(s appsv1.DaemonSetStatus) int32 { return s.NumberReady })},
			{Name: "Up-to-date", Type: "integer", Cell: cell(func(s appsv1.DaemonSetStatus) int32 { return s.UpdatedNumberScheduled })},
			{Name: "Available", Type: "integer", Cell: cell(func(s appsv1.DaemonSetStatus) int32 { return s.NumberAvailable })},
			{Name: "Node Selector", Cell: descriptor.Cell(func(d *appsv1.DaemonSet) string {
				return orNone(metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: d.Spec.Template.Spec.NodeSelector}))
			})},
			descriptor.Age,
		}, templateColumns(func(o runtime.Object) (*corev1.PodTemplateSpec, *metav1.LabelSelector) {
			d := o.(*appsv1.DaemonSet)
			return &d.Spec.Template, d.Spec.Selector
		})...),
	})
}

func controllerRevisions() *descriptor.Resource {
	return kind[appsv1.ControllerRevision, appsv1.ControllerRevisionList]("ControllerRevision", descriptor.Resource{
		GroupVersion: appsv1.SchemeGroupVersion, Namespaced: true,
		Columns: []descriptor.Column{
			{Name: "Controller", Cell: descriptor.Cell(func(r *appsv1.ControllerRevision) string {
				owner := metav1.GetControllerOf(r)
				if owner == nil {
					return "<none>"
				}
				gv, err := schema.ParseGroupVersion(owner.APIVersion)
				if err != nil || gv.Group == "" {
					return strings.ToLower(owner.Kind) + "/" + owner.Name
				}
				return strings.ToLower(owner.Kind) + "." + gv.Group + "/" + owner.Name
			})},
			{Name: "Revision", Type: "integer", Cell: descriptor.Cell(func(r *appsv1.ControllerRevision) int64 { return r.Revision })},
			descriptor.Age,
		},
	})
}

// validateWorkload checks what all owners of pods have in common.
func validateWorkload(kind string, replicas *int32, selector *metav1.LabelSelector, t *corev1.PodTemplateSpec, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if replicas != nil {
		errs = append(errs, apivalidation.ValidateNonnegativeField(int64(*replicas), p.Child("replicas"))...)
	}
	if selector == nil {
		errs = append(errs, field.Required(p.Child("selector"), ""))
	} else {
		errs = append(errs, metav1validation.ValidateLabelSelector(selector, metav1validation.LabelSelectorValidationOptions{}, p.Child("selector"))...)
		if len(selector.MatchLabels)+len(selector.MatchExpressions) == 0 {
			errs = append(errs, field.Invalid(p.Child("selector"), selector, "empty selector is invalid for "+strings.ToLower(kind)))
		}
		if s, err := metav1.LabelSelectorAsSelector(selector); err == nil && !s.Empty() && !s.Matches(labels.Set(t.Labels)) {
			errs = append(errs, field.Invalid(p.Child("template", "metadata", "labels"), t.Labels, "`selector` does not match template `labels`"))
		}
	}
	tp := p.Child("template")
	errs = append(errs, validatePodTemplate(t, tp)...)
	if r := t.Spec.RestartPolicy; r != corev1.RestartPolicyAlways {
		errs = append(errs, field.NotSupported(tp.Child("spec", "restartPolicy"), r, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(tp.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+kind+" is not Supported"))
	}
	return errs
}

// validateShare checks a number or percentage of replicas.
func validateShare(v *intstr.IntOrString, p *field.Path, atMostAll bool) field.ErrorList {
	if v == nil {
		return field.ErrorList{field.Required(p, "")}
	}
	if v.Type == intstr.Int {
		return apivalidation.ValidateNonnegativeField(int64(v.IntVal), p)
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(v, 100, false)
	switch {
	case err != nil || n < 0:
		return field.ErrorList{field.Invalid(p, v, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')")}
	case atMostAll && n > 100:
		return field.ErrorList{field.Invalid(p, v, "must not be greater than 100%")}
	}
	return nil
}

// replicas is one where nobody said: what defaulting would have filled in.
func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

func isZeroShare(v *intstr.IntOrString) bool {
	return v != nil && (v.Type == intstr.Int && v.IntVal == 0 || v.Type == intstr.String && strings.TrimLeft(strings.TrimSuffix(v.StrVal, "%"), "0") == "")
}

func selectorText(s *metav1.LabelSelector) string {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return ""
	}
	return sel.String()
}

// templateColumns are the wide columns of everything that makes pods.
func templateColumns(get func(runtime.Object) (*corev1.PodTemplateSpec, *metav1.LabelSelector)) []descriptor.Column {
	list := func(f func(corev1.Container) string) func(runtime.Object) any {
		return func(o runtime.Object) any {
			t, _ := get(o)
			var out []string
			for _, c := range t.Spec.Containers {
				out = append(out, f(c))
			}
			return strings.Join(out, ",")
		}
	}
	return []descriptor.Column{
		{Name: "Containers", Wide: true, Cell: list(func(c corev1.Container) string { return c.Name })},
		{Name: "Images", Wide: true, Cell: list(func(c corev1.Container) string { return c.Image })},
		{Name: "Selector", Wide: true, Cell: func(o runtime.Object) any { _, s := get(o); return selectorCell(s) }},
	}
}
