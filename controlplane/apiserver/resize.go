package apiserver

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
	"github.com/strake-io/strake/controlplane/apiserver/resources"
)

// resizeREST changes the resources of a running pod's containers (`kubectl patch --subresource resize`); nothing else of it changes.
type resizeREST struct{ pods *genericregistry.Store }

var _ rest.Patcher = (*resizeREST)(nil)

func newResizeREST(pods *descriptor.Store) *resizeREST {
	return &resizeREST{pods.Replacing(func(s rest.RESTUpdateStrategy) rest.RESTUpdateStrategy { return resizeStrategy{s} })}
}

func (r *resizeREST) New() runtime.Object { return &corev1.Pod{} }
func (r *resizeREST) Destroy()            {}

func (r *resizeREST) Get(ctx context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	return r.pods.Get(ctx, name, o)
}

func (r *resizeREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return r.pods.Update(ctx, name, info, create, update, false, o)
}

type resizeStrategy struct{ rest.RESTUpdateStrategy }

func (resizeStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	resources.TakeResize(obj.(*corev1.Pod), old.(*corev1.Pod))
}

func (resizeStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return resources.ValidateResize(obj.(*corev1.Pod), old.(*corev1.Pod))
}
