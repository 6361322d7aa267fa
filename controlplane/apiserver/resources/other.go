package resources

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func volumes() []*descriptor.Resource {
	return []*descriptor.Resource{
		kind[corev1.PersistentVolume, corev1.PersistentVolumeList]("PersistentVolume", descriptor.Resource{
			GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"pv"}, Status: true,
			Default: descriptor.Each(func(v *corev1.PersistentVolume) {
				fill(&v.Spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
				set(&v.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
			}),
			PrepareCreate:  descriptor.Prepare(func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumePending }),
			Validate:       descriptor.Check(validateVolume),
			ValidateUpdate: descriptor.CheckUpdate(validateVolumeUpdate),
			Columns: []descriptor.Column{
				{Name: "Capacity", Cell: descriptor.Cell(func(v *corev1.PersistentVolume) string { return capacity(v.Spec.Capacity) })},
				{Name: "Access Modes", Cell: descriptor.Cell(func(v *corev1.PersistentVolume) string { return accessModes(v.Spec.AccessModes) })},
				{Name: "Reclaim Policy", Cell: descriptor.Cell(func(v *corev1.PersistentVolume) string { return string(v.Spec.PersistentVolumeReclaimPolicy) })},
				{Name: "Status", Cell: descriptor.Cell(func(v *corev1.PersistentVolume) string {
					if v.DeletionTimestamp != nil {
						return "Terminating"
					}
					return string(v.Status.Phase)
				})},
				{Name: "Claim", Cell: descriptor.Cell(func(v *corev1.PersistentVolume) string {
					if v.Spec.ClaimRef == nil {
						return ""
					}
					return v.Spec.ClaimRef.Namespace + "/" + v.Spec.ClaimRef.Name
				})},
				{Name: "StorageClass", Cell: descriptor.Cell(func(v *corev1.PersistentVolume) string { return v.Spec.StorageClassName })},
				{Name: "VolumeAttributesClass", Cell: descriptor.Cell(func(v *corev1.PersistentVolume) string { return valueOr(v.Spec.VolumeAttributesClassName, "<unset>") })},
				{Name: "Reason", Cell: descriptor.Cell(func(v *corev1.PersistentVolume) string { return v.Status.Reason })},
				descriptor.Age,
				{Name: "VolumeMode", Wide: true, Cell: descriptor.Cell(func(v *corev1.PersistentVolume) string { return modeOf(v.Spec.VolumeMode) })},
			},
		}),
		kind[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList]("PersistentVolumeClaim", descriptor.Resource{
			GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"pvc"}, Namespaced: true, Status: true,
			Default:        descriptor.Each(func(c *corev1.PersistentVolumeClaim) { defaultClaim(&c.Spec) }),
			PrepareCreate:  descriptor.Prepare(func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimPending }),
			Validate:       descriptor.Check(validateClaim),
			ValidateUpdate: descriptor.CheckUpdate(validateClaimUpdate),
			Columns: []descriptor.Column{
				{Name: "Status", Cell: descriptor.Cell(func(c *corev1.PersistentVolumeClaim) string {
					if c.DeletionTimestamp != nil {
						return "Terminating"
					}
					return string(c.Status.Phase)
				})},
				{Name: "Volume", Cell: descriptor.Cell(func(c *corev1.PersistentVolumeClaim) string { return c.Spec.VolumeName })},
				{Name: "Capacity", Cell: descriptor.Cell(func(c *corev1.PersistentVolumeClaim) string { return capacity(c.Status.Capacity) })},
				{Name: "Access Modes", Cell: descriptor.Cell(func(c *corev1.PersistentVolumeClaim) string { return accessModes(c.Status.AccessModes) })},
				{Name: "StorageClass", Cell: descriptor.Cell(func(c *corev1.PersistentVolumeClaim) string { return valueOr(c.Spec.StorageClassName, "") })},
				{Name: "VolumeAttributesClass", Cell: descriptor.Cell(func(c *corev1.PersistentVolumeClaim) string {
					return valueOr(c.Spec.VolumeAttributesClassName, "<unset>")
				})},
				descriptor.Age,
				{Name: "VolumeMode", Wide: true, Cell: descriptor.Cell(func(c *corev1.PersistentVolumeClaim) string { return modeOf(c.Spec.VolumeMode) })},
			},
		}),
	}
}

func defaultClaim(s *corev1.PersistentVolumeClaimSpec) {
	set(&s.VolumeMode, corev1.PersistentVolumeFilesystem)
}

func scheduling() []*descriptor.Resource {
	return []*descriptor.Resource{kind[schedulingv1.PriorityClass, schedulingv1.PriorityClassList]("PriorityClass", descriptor.Resource{
		GroupVersion: schedulingv1.SchemeGroupVersion, Plural: "priorityclasses", ShortNames: []string{"pc"}, Generation: true,
		Default: descriptor.Each(func(c *schedulingv1.PriorityClass) { set(&c.PreemptionPolicy, corev1.PreemptLowerPriority) }),
		Validate: descriptor.Check(func(c *schedulingv1.PriorityClass) field.ErrorList {
			// User classes stay below the system's (SchedulingV1 doc: "system-" names are reserved).
			const highestUser = 1_000_000_000
			if c.Value > highestUser && !strings.HasPrefix(c.Name, "system-") {
				return field.ErrorList{field.Forbidden(field.NewPath("value"), "maximum allowed value of a user defined priority is 1000000000")}
			}
			return nil
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(c, old *schedulingv1.PriorityClass) field.ErrorList {
			return apivalidation.ValidateImmutableField(c.Value, old.Value, field.NewPath("value"))
		}),
		Columns: []descriptor.Column{
			{Name: "Value", Type: "integer", Cell: descriptor.Cell(func(c *schedulingv1.PriorityClass) int64 { return int64(c.Value) })},
			{Name: "Global-Default", Type: "boolean", Cell: descriptor.Cell(func(c *schedulingv1.PriorityClass) bool { return c.GlobalDefault })},
			descriptor.Age,
			{Name: "PreemptionPolicy", Cell: descriptor.Cell(func(c *schedulingv1.PriorityClass) string { return valueOr(c.PreemptionPolicy, "") })},
		},
	})}
}

func policy() []*descriptor.Resource {
	share := func(v *intstr.IntOrString) string {
		if v == nil {
			return "N/A"
		}
		return v.String()
	}
	return []*descriptor.Resource{kind[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList]("PodDisruptionBudget", descriptor.Resource{
		GroupVersion: policyv1.SchemeGroupVersion, ShortNames: []string{"pdb"}, Namespaced: true, Generation: true, Status: true,
		Validate: descriptor.Check(func(b *policyv1.PodDisruptionBudget) field.ErrorList {
			var errs field.ErrorList
			p := field.NewPath("spec")
			if b.Spec.MinAvailable != nil && b.Spec.MaxUnavailable != nil {
				errs = append(errs, field.Invalid(p, "", "minAvailable and maxUnavailable cannot be both set"))
			}
			for name, v := range map[string]*intstr.IntOrString{"minAvailable": b.Spec.MinAvailable, "maxUnavailable": b.Spec.MaxUnavailable} {
				if v != nil {
					errs = append(errs, validateShare(v, p.Child(name), true)...)
				}
			}
			if u := b.Spec.UnhealthyPodEvictionPolicy; u != nil {
				errs = append(errs, oneOf(*u, p.Child("unhealthyPodEvictionPolicy"), policyv1.AlwaysAllow, policyv1.IfHealthyBudget)...)
			}
			return append(errs, metav1validation.ValidateLabelSelector(b.Spec.Selector, metav1validation.LabelSelectorValidationOptions{}, p.Child("selector"))...)
		}),
		Columns: []descriptor.Column{
			{Name: "Min Available", Cell: descriptor.Cell(func(b *policyv1.PodDisruptionBudget) string { return share(b.Spec.MinAvailable) })},
			{Name: "Max Unavailable", Cell: descriptor.Cell(func(b *policyv1.PodDisruptionBudget) string { return share(b.Spec.MaxUnavailable) })},
			{Name: "Allowed Disruptions", Type: "integer", Cell: descriptor.Cell(func(b *policyv1.PodDisruptionBudget) int64 { return int64(b.Status.DisruptionsAllowed) })},
			descriptor.Age,
		},
	})}
}
