package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/informers"
	schedulinglisters "k8s.io/client-go/listers/scheduling/v1"
)

// systemPriorities exist in every cluster (scheduling.k8s.io).
var systemPriorities = map[string]int32{"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}

// priority turns a pod's priorityClassName into its priority.
type priority struct {
	*admission.Handler
	classes schedulinglisters.PriorityClassLister
}

func newPriority() (admission.Interface, error) {
	return &priority{Handler: admission.NewHandler(admission.Create)}, nil
}

func (p *priority) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	inf := f.Scheduling().V1().PriorityClasses()
	p.classes = inf.Lister()
	p.SetReadyFunc(inf.Informer().HasSynced)
}

func (p *priority) ValidateInitialization() error {
	if p.classes == nil {
		return fmt.Errorf("Priority admission: no informers")
	}
	return nil
}

func (p *priority) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := podOf(a)
	if !ok {
		return nil
	}
	value, policy := int32(0), corev1.PreemptLowerPriority
	if system, ok := systemPriorities[pod.Spec.PriorityClassName]; ok {
		value = system
	} else {
		if err := ready(p.Handler, a); err != nil {
			return err
		}
		class, err := p.class(pod.Spec.PriorityClassName)
		if apierrors.IsNotFound(err) {
			return admission.NewForbidden(a, fmt.Errorf("no PriorityClass with name %s was found", pod.Spec.PriorityClassName))
		}
		if err != nil {
			return fmt.Errorf("PriorityClass %s: %w", pod.Spec.PriorityClassName, err)
		}
		if class != nil {
			pod.Spec.PriorityClassName, value = class.Name, class.Value
			if class.PreemptionPolicy != nil {
				policy = *class.PreemptionPolicy
			}
		}
	}
	if pod.Spec.Priority != nil && *pod.Spec.Priority != value {
		return admission.NewForbidden(a, fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *pod.Spec.Priority, value))
	}
	pod.Spec.Priority, pod.Spec.PreemptionPolicy = &value, &policy
	return nil
}

// class finds the named class, or the lowest of the global defaults, or none.
func (p *priority) class(name string) (*schedulingv1.PriorityClass, error) {
	if name != "" {
		return p.classes.Get(name)
	}
	all, err := p.classes.List(labels.Everything())
	if err != nil {
		return nil, err
	}
	var best *schedulingv1.PriorityClass
	for _, c := range all {
		if c.GlobalDefault && (best == nil || c.Value < best.Value) {
			best = c
		}
	}
	return best, nil
}
