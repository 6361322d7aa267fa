package descriptor

import (
	"context"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
)

// scaleREST is the scale subresource: a Scale object that is a view of the resource.
type scaleREST struct {
	store *genericregistry.Store
	r     *Resource
}

var (
	_ rest.Patcher                  = (*scaleREST)(nil)
	_ rest.GroupVersionKindProvider = (*scaleREST)(nil)
	_ rest.TableConvertor           = (*scaleREST)(nil)
)

func (s *scaleREST) New() runtime.Object { return &autoscalingv1.Scale{} }

// Destroy leaves the shared store to its main storage.
func (s *scaleREST) Destroy() {}

func (s *scaleREST) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return autoscalingv1.SchemeGroupVersion.WithKind("Scale")
}

func (s *scaleREST) Get(ctx context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	obj, err := s.store.Get(ctx, name, o)
	if err != nil {
		return nil, err
	}
	return s.view(obj)
}

func (s *scaleREST) view(obj runtime.Object) (*autoscalingv1.Scale, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, fmt.Errorf("scale of %s: %w", s.r.Kind, err)
	}
	return &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUID(),
			ResourceVersion: m.GetResourceVersion(), CreationTimestamp: m.GetCreationTimestamp(),
		},
		Spec:   autoscalingv1.ScaleSpec{Replicas: s.r.Scale.Replicas(obj)},
		Status: autoscalingv1.ScaleStatus{Replicas: s.r.Scale.StatusReplicas(obj), Selector: s.r.Scale.Selector(obj)},
	}, nil
}

func (s *scaleREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	obj, _, err := s.store.Update(ctx, name, &scaleChange{UpdatedObjectInfo: info, s: s, name: name, validate: update}, create, rest.ValidateAllObjectUpdateFunc, false, o)
	if err != nil {
		return nil, false, err
	}
	scale, err := s.view(obj)
	return scale, false, err
}

func (s *scaleREST) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return Table(
		Column{Name: "Desired", Type: "integer", Cell: Cell(func(s *autoscalingv1.Scale) int64 { return int64(s.Spec.Replicas) })},
		Column{Name: "Available", Type: "integer", Cell: Cell(func(s *autoscalingv1.Scale) int64 { return int64(s.Status.Replicas) })},
		Age,
	).ConvertToTable(ctx, obj, options)
}

// scaleChange applies a change of the Scale to the resource behind it.
type scaleChange struct {
	rest.UpdatedObjectInfo
	s        *scaleREST
	name     string
	validate rest.ValidateObjectUpdateFunc
}

func (c *scaleChange) UpdatedObject(ctx context.Context, old runtime.Object) (runtime.Object, error) {
	before, err := c.s.view(old)
	if err != nil {
		return nil, err
	}
	changed, err := c.UpdatedObjectInfo.UpdatedObject(ctx, before)
	if err != nil {
		return nil, err
	}
	scale, ok := changed.(*autoscalingv1.Scale)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a Scale, got %T", changed))
	}
	if scale.Spec.Replicas < 0 {
		return nil, apierrors.NewInvalid(autoscalingv1.SchemeGroupVersion.WithKind("Scale").GroupKind(), c.name, field.ErrorList{
			field.Invalid(field.NewPath("spec", "replicas"), scale.Spec.Replicas, "must be greater than or equal to 0"),
		})
	}
	if c.validate != nil {
		if err := c.validate(ctx, scale, before); err != nil {
			return nil, err
		}
	}
	obj := old.DeepCopyObject()
	c.s.r.Scale.SetReplicas(obj, scale.Spec.Replicas)
	if scale.ResourceVersion != "" {
		m, err := meta.Accessor(obj)
		if err != nil {
			return nil, fmt.Errorf("scale of %s: %w", c.s.r.Kind, err)
		}
		m.SetResourceVersion(scale.ResourceVersion)
	}
	return obj, nil
}
