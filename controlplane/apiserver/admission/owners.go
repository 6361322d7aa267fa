package admission

import (
	"context"
	"errors"
	"fmt"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// ownerReferences wants of who changes an object's owners that they might delete it, for that is what the garbage
// collector may do then; and of who blocks an owner's deletion that they might set the owner's finalizers.
type ownerReferences struct {
	*admission.Handler
	authz  authorizer.Authorizer
	mapper meta.RESTMapper
}

var (
	_ admission.ValidationInterface = (*ownerReferences)(nil)
	_ initializer.WantsAuthorizer   = (*ownerReferences)(nil)
	_ initializer.WantsRESTMapper   = (*ownerReferences)(nil)
)

func newOwnerReferences() (admission.Interface, error) {
	return &ownerReferences{Handler: admission.NewHandler(admission.Create, admission.Update)}, nil
}

func (o *ownerReferences) SetAuthorizer(a authorizer.Authorizer) { o.authz = a }
func (o *ownerReferences) SetRESTMapper(m meta.RESTMapper)       { o.mapper = m }

func (o *ownerReferences) ValidateInitialization() error {
	if o.authz == nil || o.mapper == nil {
		return errors.New("OwnerReferencesPermissionEnforcement admission: no authorizer or no REST mapper")
	}
	return nil
}

func (o *ownerReferences) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	now, was := refs(a.GetObject()), refs(a.GetOldObject())
	if apiequality.Semantic.DeepEqual(now, was) {
		return nil
	}
	allowed := func(rec authorizer.AttributesRecord) bool {
		rec.User, rec.ResourceRequest = a.GetUserInfo(), true
		decision, _, err := o.authz.Authorize(ctx, rec)
		return err == nil && decision == authorizer.DecisionAllow
	}
	// Who makes an object may give it owners.
	if a.GetOperation() == admission.Update {
		gvr := a.GetResource()
		if !allowed(authorizer.AttributesRecord{Verb: "delete", Namespace: a.GetNamespace(), APIGroup: gvr.Group, APIVersion: gvr.Version, Resource: gvr.Resource, Subresource: a.GetSubresource(), Name: a.GetName()}) {
			return admission.NewForbidden(a, errors.New("cannot set an ownerRef on a resource you can't delete"))
		}
	}
	blocking := map[types.UID]bool{}
	for _, r := range was {
		blocking[r.UID] = r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion
	}
	for _, r := range now {
		if r.BlockOwnerDeletion == nil || !*r.BlockOwnerDeletion || blocking[r.UID] {
			continue
		}
		gv, err := schema.ParseGroupVersion(r.APIVersion)
		if err != nil {
			return admission.NewForbidden(a, fmt.Errorf("owner %s: %w", r.Name, err))
		}
		mapping, err := o.mapper.RESTMapping(schema.GroupKind{Group: gv.Group, Kind: r.Kind}, gv.Version)
		if err != nil {
			return admission.NewForbidden(a, fmt.Errorf("cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion %v Kind %v: %w", r.APIVersion, r.Kind, err))
		}
		rec := authorizer.AttributesRecord{Verb: "update", APIGroup: mapping.Resource.Group, APIVersion: mapping.Resource.Version, Resource: mapping.Resource.Resource, Subresource: "finalizers", Name: r.Name}
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			rec.Namespace = a.GetNamespace()
		}
		if !allowed(rec) {
			return admission.NewForbidden(a, errors.New("cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on"))
		}
	}
	return nil
}

func refs(obj any) []metav1.OwnerReference {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil
	}
	return m.GetOwnerReferences()
}
