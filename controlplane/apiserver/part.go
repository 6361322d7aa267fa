package apiserver

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// partREST is a subresource by which a part of an object is written, and nothing else of it.
type partREST struct{ store *genericregistry.Store }

// readablePartREST is one that can be read, and patched, too: what is read is the whole object.
type readablePartREST struct{ *partREST }

var (
	_ rest.Updater = (*partREST)(nil)
	_ rest.Patcher = readablePartREST{}
)

// newPartREST makes one. prepare undoes what is not the part's; validate judges the rest, as an update of the whole does if it is nil.
func newPartREST[T runtime.Object](store *descriptor.Store, prepare func(obj, old T), validate func(obj, old T) field.ErrorList) *partREST {
	return &partREST{store.Replacing(func(s rest.RESTUpdateStrategy) rest.RESTUpdateStrategy { return partStrategy[T]{s, prepare, validate} })}
}

func (r *partREST) New() runtime.Object { return r.store.New() }
func (r *partREST) Destroy()            {}

func (r *partREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return r.store.Update(ctx, name, info, create, update, false, o)
}

func (r readablePartREST) Get(ctx context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	return r.store.Get(ctx, name, o)
}

type partStrategy[T runtime.Object] struct {
	rest.RESTUpdateStrategy
	prepare  func(obj, old T)
	validate func(obj, old T) field.ErrorList
}

func (s partStrategy[T]) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	s.prepare(obj.(T), old.(T))
}

func (s partStrategy[T]) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	if s.validate == nil {
		return s.RESTUpdateStrategy.ValidateUpdate(ctx, obj, old)
	}
	return s.validate(obj.(T), old.(T))
}
