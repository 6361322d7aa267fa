package token

import (
	"context"
	"fmt"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
)

const (
	minSeconds     = 10 * 60
	maxSeconds     = 1 << 32
	defaultSeconds = 3600
)

// Getter reads current objects, from the store rather than from a cache that may lag.
type Getter interface {
	Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error)
}

// REST is the token subresource of ServiceAccounts (TokenRequest).
type REST struct {
	Issuer                                *Issuer
	ServiceAccounts, Pods, Secrets, Nodes Getter
}

var (
	_ rest.NamedCreater             = (*REST)(nil)
	_ rest.GroupVersionKindProvider = (*REST)(nil)
)

// New implements rest.Storage.
func (r *REST) New() runtime.Object { return &authenticationv1.TokenRequest{} }

// Destroy implements rest.Storage.
func (r *REST) Destroy() {}

// GroupVersionKind implements rest.GroupVersionKindProvider.
func (r *REST) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")
}

// Create issues a token for the ServiceAccount name of the request's namespace.
func (r *REST) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, o *metav1.CreateOptions) (runtime.Object, error) {
	req, ok := obj.(*authenticationv1.TokenRequest)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a TokenRequest, got %T", obj))
	}
	got, err := r.ServiceAccounts.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	sa := got.(*corev1.ServiceAccount)
	req = req.DeepCopy()
	if req.Namespace == "" {
		req.Namespace = genericapirequest.NamespaceValue(ctx)
	}
	if req.Name == "" {
		req.Name = sa.Name
	}
	if req.Name != sa.Name || req.Namespace != sa.Namespace {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the TokenRequest is named %s/%s, but sent to serviceaccount %s/%s", req.Namespace, req.Name, sa.Namespace, sa.Name))
	}
	if len(req.Spec.Audiences) == 0 {
		req.Spec.Audiences = r.Issuer.audiences
	}
	if req.Spec.ExpirationSeconds == nil {
		d := int64(defaultSeconds)
		req.Spec.ExpirationSeconds = &d
	}
	if s := *req.Spec.ExpirationSeconds; s < minSeconds || s > maxSeconds {
		return nil, apierrors.NewInvalid(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest").GroupKind(), name, field.ErrorList{
			field.Invalid(field.NewPath("spec", "expirationSeconds"), s, "may not specify a duration less than 10 minutes or more than 2^32 seconds"),
		})
	}
	if validate != nil {
		if err := validate(ctx, req); err != nil {
			return nil, err
		}
	}
	bound, err := r.bound(ctx, sa, req.Spec.BoundObjectRef)
	if err != nil {
		return nil, err
	}
	signed, expires, err := r.Issuer.Issue(sa, req.Spec, bound)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	req.Status = authenticationv1.TokenRequestStatus{Token: signed, ExpirationTimestamp: metav1.NewTime(expires)}
	return req, nil
}

// bound finds the object that the token shall die with.
func (r *REST) bound(ctx context.Context, sa *corev1.ServiceAccount, o *authenticationv1.BoundObjectReference) (*Bound, error) {
	if o == nil {
		return nil, nil
	}
	getter := map[string]Getter{"Pod": r.Pods, "Secret": r.Secrets, "Node": r.Nodes}[o.Kind]
	resource := schema.GroupResource{Resource: strings.ToLower(o.Kind) + "s"}
	if getter == nil || o.APIVersion != "" && o.APIVersion != "v1" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to object of type %q", sa.Name, o.Kind))
	}
	obj, err := getter.Get(ctx, o.Name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	m := obj.(metav1.Object)
	if o.UID != "" && o.UID != m.GetUID() {
		return nil, apierrors.NewConflict(resource, o.Name, fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", o.UID))
	}
	b, this := &Bound{}, &ref{Name: m.GetName(), UID: m.GetUID()}
	switch v := obj.(type) {
	case *corev1.Pod:
		if v.Spec.ServiceAccountName != sa.Name {
			return nil, apierrors.NewForbidden(resource, o.Name, fmt.Errorf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name", sa.Name))
		}
		b.Pod = this
		if v.Spec.NodeName != "" {
			// The node is told for the auditor; the token lives as long as the pod.
			if n, err := r.Nodes.Get(ctx, v.Spec.NodeName, &metav1.GetOptions{}); err == nil {
				b.Node = &ref{Name: v.Spec.NodeName, UID: n.(metav1.Object).GetUID()}
			}
		}
	case *corev1.Secret:
		b.Secret = this
	case *corev1.Node:
		b.Node = this
	}
	return b, nil
}
