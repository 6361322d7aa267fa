package resources

import (
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
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

func quotas() []*descriptor.Resource {
	return []*descriptor.Resource{
		kind[corev1.LimitRange, corev1.LimitRangeList]("LimitRange", descriptor.Resource{GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"limits"}, Namespaced: true, Columns: []descriptor.Column{createdAt}}),
		kind[corev1.ResourceQuota, corev1.ResourceQuotaList]("ResourceQuota", descriptor.Resource{GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"quota"}, Namespaced: true, Status: true, Columns: []descriptor.Column{
			{Name: "Request", Cell: descriptor.Cell(func(q *corev1.ResourceQuota) string { return quotaCell(q, false) })},
			{Name: "Limit", Cell: descriptor.Cell(func(q *corev1.ResourceQuota) string { return quotaCell(q, true) })},
			descriptor.Age,
		}}),
		kind[corev1.PodTemplate, corev1.PodTemplateList]("PodTemplate", descriptor.Resource{
			GroupVersion: corev1.SchemeGroupVersion, Namespaced: true, Generation: true,
			Default: descriptor.Each(func(t *corev1.PodTemplate) { defaultPodSpec(&t.Template.Spec) }),
		}),
	}
}

func storage() []*descriptor.Resource {
	gv := storagev1.SchemeGroupVersion
	return []*descriptor.Resource{
		kind[storagev1.StorageClass, storagev1.StorageClassList]("StorageClass", descriptor.Resource{
			GroupVersion: gv, Plural: "storageclasses", ShortNames: []string{"sc"},
			Default: descriptor.Each(func(s *storagev1.StorageClass) {
				set(&s.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
				set(&s.VolumeBindingMode, storagev1.VolumeBindingImmediate)
			}),
			Validate: descriptor.Check(func(s *storagev1.StorageClass) field.ErrorList {
				if s.Provisioner == "" {
					return field.ErrorList{field.Required(field.NewPath("provisioner"), "")}
				}
				return nil
			}),
			Columns: []descriptor.Column{
				{Name: "Provisioner", Cell: descriptor.Cell(func(s *storagev1.StorageClass) string { return s.Provisioner })},
				{Name: "ReclaimPolicy", Cell: descriptor.Cell(func(s *storagev1.StorageClass) string { return valueOr(s.ReclaimPolicy, "Delete") })},
				{Name: "VolumeBindingMode", Cell: descriptor.Cell(func(s *storagev1.StorageClass) string { return valueOr(s.VolumeBindingMode, "Immediate") })},
				{Name: "AllowVolumeExpansion", Cell: descriptor.Cell(func(s *storagev1.StorageClass) string { return valueOr(s.AllowVolumeExpansion, "false") })},
				descriptor.Age,
			},
		}),
		kind[storagev1.CSIDriver, storagev1.CSIDriverList]("CSIDriver", descriptor.Resource{GroupVersion: gv}),
		kind[storagev1.CSINode, storagev1.CSINodeList]("CSINode", descriptor.Resource{GroupVersion: gv}),
		kind[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList]("CSIStorageCapacity", descriptor.Resource{GroupVersion: gv, Plural: "csistoragecapacities", Namespaced: true}),
		kind[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList]("VolumeAttachment", descriptor.Resource{GroupVersion: gv, Status: true}),
	}
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

func admissionRegistration() []*descriptor.Resource {
	gv := admissionv1.SchemeGroupVersion
	return []*descriptor.Resource{
		kind[admissionv1.ValidatingWebhookConfiguration, admissionv1.ValidatingWebhookConfigurationList]("ValidatingWebhookConfiguration", descriptor.Resource{
			GroupVersion: gv, Generation: true,
			Default: descriptor.Each(func(c *admissionv1.ValidatingWebhookConfiguration) {
				for i := range c.Webhooks {
					w := &c.Webhooks[i]
					defaultWebhook(&w.FailurePolicy, &w.MatchPolicy, &w.TimeoutSeconds, &w.ClientConfig, w.Rules)
				}
			}),
		}),
		kind[admissionv1.MutatingWebhookConfiguration, admissionv1.MutatingWebhookConfigurationList]("MutatingWebhookConfiguration", descriptor.Resource{
			GroupVersion: gv, Generation: true,
			Default: descriptor.Each(func(c *admissionv1.MutatingWebhookConfiguration) {
				for i := range c.Webhooks {
					w := &c.Webhooks[i]
					defaultWebhook(&w.FailurePolicy, &w.MatchPolicy, &w.TimeoutSeconds, &w.ClientConfig, w.Rules)
					set(&w.ReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
				}
			}),
		}),
		kind[admissionv1.ValidatingAdmissionPolicy, admissionv1.ValidatingAdmissionPolicyList]("ValidatingAdmissionPolicy", descriptor.Resource{
			GroupVersion: gv, Plural: "validatingadmissionpolicies", Generation: true, Status: true,
			Default: descriptor.Each(func(p *admissionv1.ValidatingAdmissionPolicy) { set(&p.Spec.FailurePolicy, admissionv1.Fail) }),
		}),
		kind[admissionv1.ValidatingAdmissionPolicyBinding, admissionv1.ValidatingAdmissionPolicyBindingList]("ValidatingAdmissionPolicyBinding", descriptor.Resource{GroupVersion: gv, Generation: true}),
		kind[admissionv1.MutatingAdmissionPolicy, admissionv1.MutatingAdmissionPolicyList]("MutatingAdmissionPolicy", descriptor.Resource{GroupVersion: gv, Plural: "mutatingadmissionpolicies", Generation: true}),
		kind[admissionv1.MutatingAdmissionPolicyBinding, admissionv1.MutatingAdmissionPolicyBindingList]("MutatingAdmissionPolicyBinding", descriptor.Resource{GroupVersion: gv, Generation: true}),
	}
}

func defaultWebhook(failure **admissionv1.FailurePolicyType, match **admissionv1.MatchPolicyType, timeout **int32, c *admissionv1.WebhookClientConfig, rules []admissionv1.RuleWithOperations) {
	set(failure, admissionv1.Fail)
	set(match, admissionv1.Equivalent)
	set(timeout, int32(10))
	if c.Service != nil {
		set(&c.Service.Port, int32(443))
	}
	for i := range rules {
		set(&rules[i].Scope, admissionv1.AllScopes)
	}
}

func flowControl() []*descriptor.Resource {
	gv := flowcontrolv1.SchemeGroupVersion
	return []*descriptor.Resource{
		kind[flowcontrolv1.FlowSchema, flowcontrolv1.FlowSchemaList]("FlowSchema", descriptor.Resource{
			GroupVersion: gv, Generation: true, Status: true,
			Default: descriptor.Each(func(f *flowcontrolv1.FlowSchema) { fill(&f.Spec.MatchingPrecedence, 1000) }),
		}),
		kind[flowcontrolv1.PriorityLevelConfiguration, flowcontrolv1.PriorityLevelConfigurationList]("PriorityLevelConfiguration", descriptor.Resource{
			GroupVersion: gv, Generation: true, Status: true,
		}),
	}
}

func autoscaling() []*descriptor.Resource {
	return []*descriptor.Resource{kind[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList]("HorizontalPodAutoscaler", descriptor.Resource{
		GroupVersion: autoscalingv2.SchemeGroupVersion, ShortNames: []string{"hpa"}, Categories: []string{"all"}, Namespaced: true, Status: true,
		Default: descriptor.Each(func(h *autoscalingv2.HorizontalPodAutoscaler) { set(&h.Spec.MinReplicas, int32(1)) }),
	})}
}

func runtimeClasses() []*descriptor.Resource {
	return []*descriptor.Resource{kind[nodev1.RuntimeClass, nodev1.RuntimeClassList]("RuntimeClass", descriptor.Resource{
		GroupVersion: nodev1.SchemeGroupVersion, Plural: "runtimeclasses",
		Columns: []descriptor.Column{
			{Name: "Handler", Cell: descriptor.Cell(func(r *nodev1.RuntimeClass) string { return r.Handler })},
			descriptor.Age,
		},
	})}
}
