package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
)

// evictAfterSeconds is how long a pod stays bound to a node that is not ready or unreachable.
const evictAfterSeconds = 300

// defaultTolerations lets pods stay a while on a node that fails.
type defaultTolerations struct{ *admission.Handler }

func newDefaultTolerations() (admission.Interface, error) {
	return &defaultTolerations{admission.NewHandler(admission.Create)}, nil
}

func (d *defaultTolerations) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := podOf(a)
	if !ok {
		return nil
	}
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		taint, found := corev1.Taint{Key: key, Effect: corev1.TaintEffectNoExecute}, false
		for _, t := range pod.Spec.Tolerations {
			if (t.Key == taint.Key || t.Key == "") && (t.Effect == taint.Effect || t.Effect == "") {
				found = true
			}
		}
		if !found {
			seconds := int64(evictAfterSeconds)
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: taint.Effect, TolerationSeconds: &seconds})
		}
	}
	return nil
}
