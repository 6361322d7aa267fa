package job

import (
	"fmt"
	"slices"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// failurePolicy finds what spec.podFailurePolicy says of a failed pod: the first rule that matches decides
// (KEP-3329). Without one, the failure counts.
func failurePolicy(job *batchv1.Job, p *corev1.Pod) (batchv1.PodFailurePolicyAction, string) {
	if job.Spec.PodFailurePolicy == nil {
		return batchv1.PodFailurePolicyActionCount, ""
	}
	for i, rule := range job.Spec.PodFailurePolicy.Rules {
		if r := rule.OnExitCodes; r != nil {
			if name, code, ok := matchExitCodes(r, p); ok {
				return rule.Action, fmt.Sprintf("Container %s for pod %s/%s failed with exit code %d matching %s rule at index %d", name, p.Namespace, p.Name, code, rule.Action, i)
			}
		}
		for _, pattern := range rule.OnPodConditions {
			if slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == pattern.Type && c.Status == pattern.Status }) {
				return rule.Action, fmt.Sprintf("Pod %s/%s has condition %s matching %s rule at index %d", p.Namespace, p.Name, pattern.Type, rule.Action, i)
			}
		}
	}
	return batchv1.PodFailurePolicyActionCount, ""
}

// matchExitCodes looks at containers that ended with an error; a success never matches, not even by NotIn.
func matchExitCodes(r *batchv1.PodFailurePolicyOnExitCodesRequirement, p *corev1.Pod) (string, int32, bool) {
	for _, s := range slices.Concat(p.Status.ContainerStatuses, p.Status.InitContainerStatuses) {
		end := s.State.Terminated
		if end == nil || end.ExitCode == 0 || r.ContainerName != nil && *r.ContainerName != s.Name {
			continue
		}
		listed := slices.Contains(r.Values, end.ExitCode)
		if listed == (r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
			return s.Name, end.ExitCode, true
		}
	}
	return "", 0, false
}
