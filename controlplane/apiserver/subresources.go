package apiserver

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	storeerr "k8s.io/apiserver/pkg/storage/errors"
	"k8s.io/apiserver/pkg/util/dryrun"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// bindingREST binds a pod to a node; the scheduler writes through it.
type bindingREST struct{ pods *genericregistry.Store }

var (
	_ rest.NamedCreater                   = (*bindingREST)(nil)
	_ rest.SubresourceObjectMetaPreserver = (*bindingREST)(nil)
)

// PreserveRequestObjectMetaSystemFieldsOnSubresourceCreate keeps the UID of a Binding, which says what pod is meant:
// one of that name may have been made anew.
func (r *bindingREST) PreserveRequestObjectMetaSystemFieldsOnSubresourceCreate() bool { return true }

// newBindingREST takes the pods' storage without the strategy that forbids changes of the spec.
func newBindingREST(pods *descriptor.Store) *bindingREST {
	return &bindingREST{pods.Replacing(ownWrite)}
}

// ownWrite is the strategy of writes that this server composes itself.
func ownWrite(s rest.RESTUpdateStrategy) rest.RESTUpdateStrategy { return bindStrategy{s} }

type bindStrategy struct{ rest.RESTUpdateStrategy }

func (bindStrategy) PrepareForUpdate(context.Context, runtime.Object, runtime.Object) {}
func (bindStrategy) ValidateUpdate(context.Context, runtime.Object, runtime.Object) field.ErrorList {
	return nil
}

func (r *bindingREST) New() runtime.Object { return &corev1.Binding{} }
func (r *bindingREST) Destroy()            {}

func (r *bindingREST) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	b, ok := obj.(*corev1.Binding)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a Binding, got %T", obj))
	}
	var errs field.ErrorList
	if b.Target.Kind != "" && b.Target.Kind != "Node" {
		errs = append(errs, field.NotSupported(field.NewPath("target", "kind"), b.Target.Kind, []string{"Node"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(field.NewPath("target", "name"), ""))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Binding").GroupKind(), name, errs)
	}
	if validate != nil {
		if err := validate(ctx, b.DeepCopyObject()); err != nil {
			return nil, err
		}
	}
	pods := corev1.Resource("pods/binding")
	bind := func(_ context.Context, _, old runtime.Object) (runtime.Object, error) {
		pod := old.DeepCopyObject().(*corev1.Pod)
		switch {
		case b.UID != "" && b.UID != pod.UID:
			return nil, apierrors.NewConflict(pods, name, fmt.Errorf("uid of the binding (%s) is not that of the pod (%s)", b.UID, pod.UID))
		case pod.DeletionTimestamp != nil:
			return nil, apierrors.NewConflict(pods, name, fmt.Errorf("pod %s is being deleted, cannot be assigned to a host", name))
		case pod.Spec.NodeName != "":
			return nil, apierrors.NewConflict(pods, name, fmt.Errorf("pod %s is already assigned to node %q", name, pod.Spec.NodeName))
		case len(pod.Spec.SchedulingGates) > 0:
			return nil, apierrors.NewConflict(pods, name, fmt.Errorf("pod %s has non-empty .spec.schedulingGates", name))
		}
		pod.Spec.NodeName = b.Target.Name
		if pod.Annotations == nil && len(b.Annotations) > 0 {
			pod.Annotations = map[string]string{}
		}
		for k, v := range b.Annotations {
			pod.Annotations[k] = v
		}
		setPodScheduled(pod)
		return pod, nil
	}
	_, _, err := r.pods.Update(ctx, name, rest.DefaultUpdatedObjectInfo(nil, bind), rest.ValidateAllObjectFunc, rest.ValidateAllObjectUpdateFunc, false, &metav1.UpdateOptions{DryRun: o.DryRun})
	if err != nil {
		return nil, err
	}
	return &metav1.Status{Status: metav1.StatusSuccess}, nil
}

// legacyBindingREST takes Bindings as objects of their own, named as the pod.
type legacyBindingREST struct{ pods *bindingREST }

var (
	_ rest.Creater              = (*legacyBindingREST)(nil)
	_ rest.Scoper               = (*legacyBindingREST)(nil)
	_ rest.SingularNameProvider = (*legacyBindingREST)(nil)
)

func (r *legacyBindingREST) New() runtime.Object     { return &corev1.Binding{} }
func (r *legacyBindingREST) Destroy()                {}
func (r *legacyBindingREST) NamespaceScoped() bool   { return true }
func (r *legacyBindingREST) GetSingularName() string { return "binding" }

func (r *legacyBindingREST) Create(ctx context.Context, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	b, ok := obj.(*corev1.Binding)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a Binding, got %T", obj))
	}
	return r.pods.Create(ctx, b.Name, obj, validate, o)
}

func setPodScheduled(pod *corev1.Pod) {
	c := corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == c.Type {
			pod.Status.Conditions[i] = c
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, c)
}

// namespaceStore marks a deleted namespace as Terminating until its content is gone.
type namespaceStore struct{ *descriptor.Store }

// DeleteCollection hides the registry's, which would remove namespaces and leave their content: without that signature
// the storage is no rest.CollectionDeleter.
func (s *namespaceStore) DeleteCollection() {}

func (s *namespaceStore) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, o *metav1.DeleteOptions) (runtime.Object, bool, error) {
	got, err := s.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, false, err
	}
	ns := got.(*corev1.Namespace)
	if len(ns.Spec.Finalizers) == 0 {
		return s.Store.Delete(ctx, name, validate, o)
	}
	if err := validate(ctx, ns.DeepCopyObject()); err != nil {
		return nil, false, err
	}
	key, err := s.KeyFunc(ctx, name)
	if err != nil {
		return nil, false, err
	}
	pre := &storage.Preconditions{}
	if o.Preconditions != nil {
		pre.UID, pre.ResourceVersion = o.Preconditions.UID, o.Preconditions.ResourceVersion
	}
	// Past the registry's rules for updates: no client may set a deletion timestamp.
	terminate := storage.SimpleUpdate(func(stored runtime.Object) (runtime.Object, error) {
		ns, ok := stored.(*corev1.Namespace)
		if !ok {
			return nil, fmt.Errorf("expected a Namespace, got %T", stored)
		}
		if ns.DeletionTimestamp == nil {
			now, zero := metav1.Now(), int64(0)
			ns.DeletionTimestamp, ns.DeletionGracePeriodSeconds = &now, &zero
		}
		ns.Status.Phase = corev1.NamespaceTerminating
		return ns, nil
	})
	out := s.New()
	if err := s.Storage.GuaranteedUpdate(ctx, key, out, false, pre, terminate, dryrun.IsDryRun(o.DryRun), nil); err != nil {
		return nil, false, storeerr.InterpretUpdateError(err, corev1.Resource("namespaces"), name)
	}
	return out, false, nil
}
