package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
)

// alwaysPull makes nodes pull every image anew: who may not pull it can't use it because another pod on the node does.
type alwaysPull struct{ *admission.Handler }

var (
	_ admission.MutationInterface   = alwaysPull{}
	_ admission.ValidationInterface = alwaysPull{}
)

func newAlwaysPull() (admission.Interface, error) {
	return alwaysPull{admission.NewHandler(admission.Create, admission.Update)}, nil
}

// policies calls f for each container of a pod, also when debugging containers are added.
func policies(a admission.Attributes, f func(p *corev1.PullPolicy, path *field.Path)) {
	if a.GetResource().GroupResource() != corev1.Resource("pods") || a.GetSubresource() != "" && a.GetSubresource() != "ephemeralcontainers" {
		return
	}
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok {
		return
	}
	spec := field.NewPath("spec")
	for i := range pod.Spec.InitContainers {
		f(&pod.Spec.InitContainers[i].ImagePullPolicy, spec.Child("initContainers").Index(i))
	}
	for i := range pod.Spec.Containers {
		f(&pod.Spec.Containers[i].ImagePullPolicy, spec.Child("containers").Index(i))
	}
	for i := range pod.Spec.EphemeralContainers {
		f(&pod.Spec.EphemeralContainers[i].ImagePullPolicy, spec.Child("ephemeralContainers").Index(i))
	}
	for i := range pod.Spec.Volumes {
		if v := pod.Spec.Volumes[i].Image; v != nil {
			f(&v.PullPolicy, spec.Child("volumes").Index(i).Child("image"))
		}
	}
}

func (alwaysPull) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	// Pods that are there already can't change this; new debugging containers can.
	if a.GetOperation() == admission.Update && a.GetSubresource() == "" {
		return nil
	}
	policies(a, func(p *corev1.PullPolicy, _ *field.Path) { *p = corev1.PullAlways })
	return nil
}

func (alwaysPull) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetOperation() == admission.Update {
		return nil
	}
	var errs field.ErrorList
	policies(a, func(p *corev1.PullPolicy, path *field.Path) {
		if *p != corev1.PullAlways {
			errs = append(errs, field.NotSupported(path.Child("imagePullPolicy"), *p, []corev1.PullPolicy{corev1.PullAlways}))
		}
	})
	if len(errs) > 0 {
		return apierrors.NewInvalid(a.GetKind().GroupKind(), a.GetName(), errs)
	}
	return nil
}
