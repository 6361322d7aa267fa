package apiserver

import (
	"context"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
	"github.com/strake-io/strake/controlplane/apiserver/resources"
)

// approvalREST is where a CertificateSigningRequest is approved or denied; nothing else of it changes there.
type approvalREST struct{ requests *genericregistry.Store }

var _ rest.Patcher = (*approvalREST)(nil)

func newApprovalREST(requests *descriptor.Store) *approvalREST {
	return &approvalREST{requests.Replacing(func(s rest.RESTUpdateStrategy) rest.RESTUpdateStrategy { return approvalStrategy{s} })}
}

func (r *approvalREST) New() runtime.Object { return &certificatesv1.CertificateSigningRequest{} }
func (r *approvalREST) Destroy()            {}

func (r *approvalREST) Get(ctx context.Context, name string, o *metav1.GetOptions) (runtime.Object, error) {
	return r.requests.Get(ctx, name, o)
}

func (r *approvalREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool, o *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return r.requests.Update(ctx, name, info, create, update, false, o)
}

type approvalStrategy struct{ rest.RESTUpdateStrategy }

func (approvalStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	resources.PrepareApproval(obj.(*certificatesv1.CertificateSigningRequest), old.(*certificatesv1.CertificateSigningRequest))
}

func (approvalStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return resources.ValidateApproval(obj.(*certificatesv1.CertificateSigningRequest), old.(*certificatesv1.CertificateSigningRequest))
}
