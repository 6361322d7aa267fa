package rbac

import (
	"context"
	"fmt"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	genericapirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/component-helpers/auth/rbac/validation"
)

// everything is what who may do anything holds.
var everything = []rbacv1.PolicyRule{
	{Verbs: []string{rbacv1.VerbAll}, APIGroups: []string{rbacv1.APIGroupAll}, Resources: []string{rbacv1.ResourceAll}},
	{Verbs: []string{rbacv1.VerbAll}, NonResourceURLs: []string{rbacv1.NonResourceAll}},
}

// ConfirmWrite keeps the user of a request from granting what he doesn't hold by writing obj, a Role, ClusterRole,
// RoleBinding or ClusterRoleBinding. old is nil on create. Requests without a user are the server's own.
func (a *Authorizer) ConfirmWrite(ctx context.Context, auth authorizer.Authorizer, obj, old runtime.Object) error {
	u, ok := genericapirequest.UserFrom(ctx)
	if !ok || old != nil && sameGrant(obj, old) {
		return nil
	}
	switch o := obj.(type) {
	case *rbacv1.Role:
		return a.ConfirmNoEscalation(ctx, auth, u, "escalate", "roles", o.Namespace, o.Name, o.Rules)
	case *rbacv1.ClusterRole:
		rules := o.Rules
		// What a selector will gather nobody knows: only who holds everything may write one.
		if was, _ := old.(*rbacv1.ClusterRole); o.AggregationRule != nil && (was == nil || !apiequality.Semantic.DeepEqual(o.AggregationRule, was.AggregationRule)) {
			rules = everything
		}
		return a.ConfirmNoEscalation(ctx, auth, u, "escalate", "clusterroles", "", o.Name, rules)
	case *rbacv1.RoleBinding:
		resource := "clusterroles"
		if o.RoleRef.Kind == "Role" {
			resource = "roles"
		}
		return a.ConfirmNoEscalation(ctx, auth, u, "bind", resource, o.Namespace, o.RoleRef.Name, a.granted(o.RoleRef, o.Namespace))
	case *rbacv1.ClusterRoleBinding:
		return a.ConfirmNoEscalation(ctx, auth, u, "bind", "clusterroles", "", o.RoleRef.Name, a.granted(o.RoleRef, ""))
	}
	return nil
}

// granted returns what a binding of ref grants. A role that is not there (yet) grants nothing today, but whoever makes it
// later must not grant through the binding unseen: only who holds everything, or may bind that name, can bind it.
func (a *Authorizer) granted(ref rbacv1.RoleRef, namespace string) []rbacv1.PolicyRule {
	rules, err := a.rulesOf(ref, namespace)
	if err != nil {
		return everything
	}
	return rules
}

// sameGrant tells whether two versions of an object differ only in what the garbage collector writes, so that a
// finalizer can be taken off by who couldn't grant the rules.
func sameGrant(obj, old runtime.Object) bool {
	a, ok := obj.DeepCopyObject().(metav1.Object)
	b, was := old.DeepCopyObject().(metav1.Object)
	if !ok || !was {
		return false
	}
	for _, o := range []metav1.Object{a, b} {
		o.SetOwnerReferences(nil)
		o.SetFinalizers(nil)
		o.SetManagedFields(nil)
		o.SetResourceVersion("")
	}
	return apiequality.Semantic.DeepEqual(a, b)
}

// ConfirmNoEscalation holds writes of roles and bindings to what the writer may do himself, or may
// explicitly hand on (the verbs escalate and bind).
func (a *Authorizer) ConfirmNoEscalation(ctx context.Context, auth authorizer.Authorizer, u user.Info, verb, resource, namespace, name string, rules []rbacv1.PolicyRule) error {
	if slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup) {
		return nil
	}
	decision, _, err := auth.Authorize(ctx, authorizer.AttributesRecord{
		User: u, Verb: verb, APIGroup: rbacv1.GroupName, APIVersion: "v1", Resource: resource, Namespace: namespace, Name: name, ResourceRequest: true,
	})
	if err == nil && decision == authorizer.DecisionAllow {
		return nil
	}
	own, _ := a.Rules(u, namespace) // what can't be resolved grants nothing
	if ok, missing := validation.Covers(own, rules); !ok {
		gr := rbacv1.Resource(resource)
		return apierrors.NewForbidden(gr, name, fmt.Errorf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held: %v", u.GetName(), u.GetGroups(), missing))
	}
	return nil
}

// RulesOfRef resolves a binding's role, for the check of what a new binding grants.
func (a *Authorizer) RulesOfRef(ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	return a.rulesOf(ref, namespace)
}
