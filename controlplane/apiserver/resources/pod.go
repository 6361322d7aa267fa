package resources

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func pods() *descriptor.Resource {
	return kind[corev1.Pod, corev1.PodList]("Pod", descriptor.Resource{
		GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"po"}, Categories: []string{"all"}, Namespaced: true,
		Default: descriptor.Each(func(p *corev1.Pod) {
			defaultPodSpec(&p.Spec)
			defaultPodOnly(&p.Spec)
			defaultPodIPs(&p.Status)
		}),
		Validate:       descriptor.Check(validatePod),
		ValidateUpdate: descriptor.CheckUpdate(validatePodUpdate),
		PrepareCreate: descriptor.Prepare(func(p *corev1.Pod) {
			p.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: qosClass(&p.Spec)}
			if len(p.Spec.SchedulingGates) > 0 {
				p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated, Message: "Scheduling is blocked due to non-empty scheduling gates"}}
			}
		}),
		Generation: true,
		Status:     true,
		PrepareStatus: descriptor.PrepareChange(func(p, old *corev1.Pod) {
			fill(&p.Status.QOSClass, old.Status.QOSClass)
		}),
		ValidateStatus: descriptor.CheckUpdate(func(p, _ *corev1.Pod) field.ErrorList {
			status := field.NewPath("status")
			errs := validateIPPair(len(p.Status.PodIPs), func(i int) string { return p.Status.PodIPs[i].IP }, status.Child("podIPs"))
			return append(errs, validateIPPair(len(p.Status.HostIPs), func(i int) string { return p.Status.HostIPs[i].IP }, status.Child("hostIPs"))...)
		}),
		Graceful: podGraceful,
		Columns:  podColumns,
		Selectable: func(o runtime.Object) fields.Set {
			p := o.(*corev1.Pod)
			return fields.Set{
				"spec.nodeName": p.Spec.NodeName, "spec.restartPolicy": string(p.Spec.RestartPolicy),
				"spec.schedulerName": p.Spec.SchedulerName, "spec.serviceAccountName": p.Spec.ServiceAccountName,
				"spec.hostNetwork": boolText(p.Spec.HostNetwork), "status.phase": string(p.Status.Phase),
				"status.podIP": p.Status.PodIP, "status.nominatedNodeName": p.Status.NominatedNodeName,
			}
		},
		IndexField: "spec.nodeName",
	})
}

// defaultPodIPs keeps the old fields and the first of the lists that took their place the same; clients know only one of
// them, and the old one counts (KEP-563).
func defaultPodIPs(s *corev1.PodStatus) {
	switch {
	case s.PodIP != "" && (len(s.PodIPs) == 0 || s.PodIPs[0].IP != s.PodIP):
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	case s.PodIP == "" && len(s.PodIPs) > 0:
		s.PodIP = s.PodIPs[0].IP
	}
	switch {
	case s.HostIP != "" && (len(s.HostIPs) == 0 || s.HostIPs[0].IP != s.HostIP):
		s.HostIPs = []corev1.HostIP{{IP: s.HostIP}}
	case s.HostIP == "" && len(s.HostIPs) > 0:
		s.HostIP = s.HostIPs[0].IP
	}
}

// validateIPPair wants at most one address of each family.
func validateIPPair(n int, ip func(int) string, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	var all []string
	families := map[corev1.IPFamily]bool{}
	for i := range n {
		errs = append(errs, validation.IsValidIPForLegacyField(p.Index(i), ip(i), true, nil)...)
		if slices.Contains(all, ip(i)) {
			errs = append(errs, field.Duplicate(p.Index(i), ip(i)))
		}
		all = append(all, ip(i))
		if a, err := netip.ParseAddr(ip(i)); err == nil {
			families[FamilyOf(a)] = true
		}
	}
	if len(errs) == 0 && len(families) < n {
		errs = append(errs, field.Invalid(p, all, "may specify no more than one IP for each IP family"))
	}
	return errs
}

func boolText(b bool) string {
	if b {
		return "true"
	}
	return "false"
}

// podGraceful applies the rules of PodSpec.terminationGracePeriodSeconds: a pod that never was on a node, or
// has ended, goes at once.
func podGraceful(obj runtime.Object, o *metav1.DeleteOptions) bool {
	p := obj.(*corev1.Pod)
	var period int64
	switch {
	case o.GracePeriodSeconds != nil:
		period = *o.GracePeriodSeconds
	case p.Spec.TerminationGracePeriodSeconds != nil:
		period = *p.Spec.TerminationGracePeriodSeconds
	}
	if p.Spec.NodeName == "" || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		period = 0
	}
	if period < 0 {
		period = 1
	}
	o.GracePeriodSeconds = &period
	return true
}

// qosClass follows the rules of "Configure Quality of Service for Pods": Guaranteed if each container limits
// cpu and memory to what it requests, BestEffort if none asks for anything, else Burstable.
func qosClass(s *corev1.PodSpec) corev1.PodQOSClass {
	guaranteed, any := true, false
	check := func(r corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			req, hasReq := r.Requests[name]
			lim, hasLim := r.Limits[name]
			any = any || hasReq && !req.IsZero() || hasLim && !lim.IsZero()
			guaranteed = guaranteed && hasLim && !lim.IsZero() && (!hasReq || req.Cmp(lim) == 0)
		}
	}
	for _, c := range s.Containers {
		check(c.Resources)
	}
	for _, c := range s.InitContainers {
		check(c.Resources)
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// validatePodUpdate allows what the API's documentation allows: images, a shorter deadline, more tolerations, fewer
// gates, and a gated pod's node to be narrowed down; labels and annotations as any object.
func validatePodUpdate(p, old *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	path := field.NewPath("spec")
	for name, lists := range map[string][2][]corev1.Container{
		"containers": {p.Spec.Containers, old.Spec.Containers}, "initContainers": {p.Spec.InitContainers, old.Spec.InitContainers},
	} {
		if len(lists[0]) != len(lists[1]) {
			errs = append(errs, field.Forbidden(path.Child(name), "pod updates may not add or remove containers"))
		}
	}
	if len(errs) > 0 {
		return errs
	}
	want := old.Spec.DeepCopy()
	for i := range want.Containers {
		want.Containers[i].Image = p.Spec.Containers[i].Image
	}
	for i := range want.InitContainers {
		want.InitContainers[i].Image = p.Spec.InitContainers[i].Image
	}
	errs = append(errs, validateDeadlineUpdate(p.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds, path.Child("activeDeadlineSeconds"))...)
	want.ActiveDeadlineSeconds = p.Spec.ActiveDeadlineSeconds
	if missing(old.Spec.Tolerations, p.Spec.Tolerations, sameButSeconds) {
		errs = append(errs, field.Forbidden(path.Child("tolerations"), "existing toleration can not be modified except its tolerationSeconds"))
	}
	want.Tolerations = p.Spec.Tolerations
	if missing(p.Spec.SchedulingGates, old.Spec.SchedulingGates, func(a, b corev1.PodSchedulingGate) bool { return a == b }) {
		errs = append(errs, field.Forbidden(path.Child("schedulingGates"), "only deletion is allowed"))
	}
	want.SchedulingGates = p.Spec.SchedulingGates
	if g := p.Spec.TerminationGracePeriodSeconds; g != nil && *g == 1 && old.Spec.TerminationGracePeriodSeconds != nil && *old.Spec.TerminationGracePeriodSeconds < 0 {
		want.TerminationGracePeriodSeconds = g
	}
	if len(old.Spec.SchedulingGates) > 0 {
		for k, v := range old.Spec.NodeSelector {
			if p.Spec.NodeSelector[k] != v {
				errs = append(errs, field.Invalid(path.Child("nodeSelector"), p.Spec.NodeSelector, "only additions are allowed (no mutations or deletions)"))
				break
			}
		}
		want.NodeSelector, want.Affinity = p.Spec.NodeSelector, p.Spec.Affinity
	}
	if !apiequality.Semantic.DeepEqual(want, &p.Spec) {
		errs = append(errs, field.Forbidden(path, "pod updates may not change fields other than "+strings.Join([]string{
			"`spec.containers[*].image`", "`spec.initContainers[*].image`", "`spec.activeDeadlineSeconds`",
			"`spec.tolerations` (only additions to existing tolerations)", "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
		}, ",")))
	}
	return errs
}

// validateDeadlineUpdate lets a deadline be set, and come sooner.
func validateDeadlineUpdate(now, old *int64, p *field.Path) field.ErrorList {
	switch {
	case old == nil:
	case now == nil:
		return field.ErrorList{field.Invalid(p, now, "must not update from a positive integer to nil value")}
	case *now > *old:
		return field.ErrorList{field.Invalid(p, *now, "must be less than or equal to previous value")}
	}
	return nil
}

// missing tells whether all has none like one of some.
func missing[V any](some, all []V, same func(a, b V) bool) bool {
	for _, v := range some {
		if !slices.ContainsFunc(all, func(have V) bool { return same(v, have) }) {
			return true
		}
	}
	return false
}

func sameButSeconds(a, b corev1.Toleration) bool {
	a.TolerationSeconds, b.TolerationSeconds = nil, nil
	return a == b
}
