package apiserver

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// evictionREST deletes a pod if its disruption budget allows that (policy/v1).
type evictionREST struct{ pods, budgets *descriptor.Store }

var (
	_ rest.NamedCreater             = (*evictionREST)(nil)
	_ rest.GroupVersionKindProvider = (*evictionREST)(nil)
)

func (r *evictionREST) New() runtime.Object { return &policyv1.Eviction{} }
func (r *evictionREST) Destroy()            {}
func (r *evictionREST) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return policyv1.SchemeGroupVersion.WithKind("Eviction")
}

func (r *evictionREST) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	e, ok := obj.(*policyv1.Eviction)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected an Eviction, got %T", obj))
	}
	if e.Name != "" && e.Name != name {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("name in URL does not match name in Eviction object: %s, %s", name, e.Name))
	}
	if validate != nil {
		if err := validate(ctx, e.DeepCopyObject()); err != nil {
			return nil, err
		}
	}
	got, err := r.pods.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	del := e.DeleteOptions.DeepCopy()
	if del == nil {
		del = &metav1.DeleteOptions{}
	}
	del.DryRun = slices.Concat(o.DryRun, del.DryRun)
	if pod := got.(*corev1.Pod); counts(pod) {
		if err := r.spend(ctx, pod, dryrun.IsDryRun(del.DryRun)); err != nil {
			return nil, err
		}
	}
	if _, _, err := r.pods.Delete(ctx, name, rest.ValidateAllObjectFunc, del); err != nil {
		return nil, err
	}
	return &metav1.Status{Status: metav1.StatusSuccess}, nil
}

// counts tells whether a pod is one of those that a budget keeps: it has started and neither ended nor begun to go.
func counts(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil
}

func ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// spend takes one disruption off the budget that covers the pod.
func (r *evictionREST) spend(ctx context.Context, pod *corev1.Pod, dryRun bool) error {
	got, err := r.budgets.List(ctx, nil)
	if err != nil {
		return err
	}
	var covering []policyv1.PodDisruptionBudget
	for _, b := range got.(*policyv1.PodDisruptionBudgetList).Items {
		sel, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err == nil && b.Namespace == pod.Namespace && sel.Matches(labels.Set(pod.Labels)) {
			covering = append(covering, b)
		}
	}
	switch len(covering) {
	case 0:
		return nil
	case 1:
	default:
		// Half of them could be spent when another refuses.
		return apierrors.NewInternalError(fmt.Errorf("pod %s has more than one PodDisruptionBudget, which the eviction subresource does not support", pod.Name))
	}
	spend := func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
		b := old.DeepCopyObject().(*policyv1.PodDisruptionBudget)
		if !ready(pod) && unhealthyMayGo(b) {
			return b, nil
		}
		if b.Status.ObservedGeneration < b.Generation {
			return nil, exhausted(b, retryEvictionSeconds, fmt.Sprintf("The disruption budget %s is still being processed by the server.", b.Name))
		}
		if b.Status.DisruptionsAllowed <= 0 {
			return nil, exhausted(b, 0, fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, b.Status.DesiredHealthy, b.Status.CurrentHealthy))
		}
		b.Status.DisruptionsAllowed--
		// Until the controller sees the pod go, it counts it as gone.
		if b.Status.DisruptedPods == nil {
			b.Status.DisruptedPods = map[string]metav1.Time{}
		}
		b.Status.DisruptedPods[pod.Name] = metav1.Now()
		return b, nil
	}
	options := &metav1.UpdateOptions{}
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	_, _, err = r.budgets.Replacing(ownWrite).Update(ctx, covering[0].Name, rest.DefaultUpdatedObjectInfo(nil, spend), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, options)
	return err
}

// unhealthyMayGo tells whether a pod that is not ready may be evicted without the budget's leave (KEP-3017).
func unhealthyMayGo(b *policyv1.PodDisruptionBudget) bool {
	if p := b.Spec.UnhealthyPodEvictionPolicy; p != nil && *p == policyv1.AlwaysAllow {
		return true
	}
	return b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

// retryEvictionSeconds is what a client is told to wait until a budget has been counted. How long a spent one stays so nobody knows: clients, which would
// wait by themselves and silently, are told nothing then.
const retryEvictionSeconds = 10

func exhausted(b *policyv1.PodDisruptionBudget, wait int, cause string) error {
	err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", wait)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: cause})
	err.ErrStatus.Details.Name, err.ErrStatus.Details.Kind = b.Name, "poddisruptionbudgets"
	return err
}
