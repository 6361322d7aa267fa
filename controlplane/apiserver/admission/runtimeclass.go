package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/informers"
	nodelisters "k8s.io/client-go/listers/node/v1"
)

// runtimeClass gives a pod what its RuntimeClass costs beside its containers, and where its handler runs.
type runtimeClass struct {
	*admission.Handler
	lister nodelisters.RuntimeClassLister
}

func newRuntimeClass() (admission.Interface, error) {
	return &runtimeClass{Handler: admission.NewHandler(admission.Create)}, nil
}

func (r *runtimeClass) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	inf := f.Node().V1().RuntimeClasses()
	r.lister = inf.Lister()
	r.SetReadyFunc(inf.Informer().HasSynced)
}

func (r *runtimeClass) ValidateInitialization() error {
	if r.lister == nil {
		return errors.New("RuntimeClass admission: no informers")
	}
	return nil
}

// class returns the class that a pod names, nil if none.
func (r *runtimeClass) class(pod *corev1.Pod, a admission.Attributes) (*nodev1.RuntimeClass, error) {
	if pod.Spec.RuntimeClassName == nil {
		return nil, nil
	}
	if err := ready(r.Handler, a); err != nil {
		return nil, err
	}
	name := *pod.Spec.RuntimeClassName
	c, err := r.lister.Get(name)
	if apierrors.IsNotFound(err) {
		return nil, admission.NewForbidden(a, fmt.Errorf("pod rejected: RuntimeClass %q not found", name))
	}
	if err != nil {
		return nil, fmt.Errorf("RuntimeClass %s: %w", name, err)
	}
	return c, nil
}

func (r *runtimeClass) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := podOf(a)
	if !ok {
		return nil
	}
	c, err := r.class(pod, a)
	if err != nil || c == nil {
		return err
	}
	if c.Overhead != nil && len(pod.Spec.Overhead) == 0 {
		pod.Spec.Overhead = c.Overhead.DeepCopy().PodFixed
	}
	if c.Scheduling == nil {
		return nil
	}
	for k, v := range c.Scheduling.NodeSelector {
		if have, ok := pod.Spec.NodeSelector[k]; ok && have != v {
			return admission.NewForbidden(a, fmt.Errorf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", k, v, k, have))
		}
		if pod.Spec.NodeSelector == nil {
			pod.Spec.NodeSelector = map[string]string{}
		}
		pod.Spec.NodeSelector[k] = v
	}
	for _, t := range c.Scheduling.Tolerations {
		if !slices.ContainsFunc(pod.Spec.Tolerations, func(have corev1.Toleration) bool { return apiequality.Semantic.DeepEqual(have, t) }) {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, t)
		}
	}
	return nil
}

// Validate keeps users from inventing an overhead.
func (r *runtimeClass) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := podOf(a)
	if !ok {
		return nil
	}
	c, err := r.class(pod, a)
	if err != nil {
		return err
	}
	var want corev1.ResourceList
	if c != nil && c.Overhead != nil {
		want = c.Overhead.PodFixed
	}
	if len(pod.Spec.Overhead)+len(want) > 0 && !apiequality.Semantic.DeepEqual(want, pod.Spec.Overhead) {
		return admission.NewForbidden(a, errors.New("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"))
	}
	return nil
}
