package rbac

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	rbaclisters "k8s.io/client-go/listers/rbac/v1"
)

// Authorizer allows what a binding of the user grants; about all else it has no opinion.
type Authorizer struct {
	Roles               rbaclisters.RoleLister
	RoleBindings        rbaclisters.RoleBindingLister
	ClusterRoles        rbaclisters.ClusterRoleLister
	ClusterRoleBindings rbaclisters.ClusterRoleBindingLister
}

var (
	_ authorizer.Authorizer   = (*Authorizer)(nil)
	_ authorizer.RuleResolver = (*Authorizer)(nil)
)

// Authorize implements authorizer.Authorizer.
func (a *Authorizer) Authorize(_ context.Context, attr authorizer.Attributes) (authorizer.Decision, string, error) {
	var reason string
	allowed := false
	err := a.visit(attr.GetUser(), attr.GetNamespace(), func(binding string, rule *rbacv1.PolicyRule) bool {
		if ruleAllows(attr, rule) {
			allowed, reason = true, "RBAC: allowed by "+binding
		}
		return !allowed
	})
	if allowed {
		return authorizer.DecisionAllow, reason, nil
	}
	if err != nil {
		reason = "RBAC: " + err.Error()
	}
	return authorizer.DecisionNoOpinion, reason, nil
}

// ConditionsAwareAuthorize implements authorizer.Authorizer; RBAC knows no conditions.
func (a *Authorizer) ConditionsAwareAuthorize(ctx context.Context, attr authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(a.Authorize(ctx, attr))
}

// EvaluateConditions implements authorizer.Authorizer; RBAC knows no conditions.
func (a *Authorizer) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}

// RulesFor implements authorizer.RuleResolver, for `kubectl auth can-i --list`.
func (a *Authorizer) RulesFor(_ context.Context, u user.Info, namespace string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	var resources []authorizer.ResourceRuleInfo
	var urls []authorizer.NonResourceRuleInfo
	err := a.visit(u, namespace, func(_ string, r *rbacv1.PolicyRule) bool {
		if len(r.Resources) > 0 {
			resources = append(resources, &authorizer.DefaultResourceRuleInfo{Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames})
		}
		if len(r.NonResourceURLs) > 0 {
			urls = append(urls, &authorizer.DefaultNonResourceRuleInfo{Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs})
		}
		return true
	})
	return resources, urls, err != nil, err
}

// Rules returns all that a user may do in a namespace ("" for the whole cluster).
func (a *Authorizer) Rules(u user.Info, namespace string) ([]rbacv1.PolicyRule, error) {
	var rules []rbacv1.PolicyRule
	err := a.visit(u, namespace, func(_ string, r *rbacv1.PolicyRule) bool {
		rules = append(rules, *r)
		return true
	})
	return rules, err
}

// visit calls f with each rule that the user's bindings grant, until f returns false. A binding whose role
// is missing grants nothing and is reported in the error.
func (a *Authorizer) visit(u user.Info, namespace string, f func(binding string, rule *rbacv1.PolicyRule) bool) error {
	if u == nil {
		return nil
	}
	var errs []error
	clusterBindings, err := a.ClusterRoleBindings.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, b := range clusterBindings {
		if !applies(u, b.Subjects, "") {
			continue
		}
		rules, err := a.rulesOf(b.RoleRef, "")
		if err != nil {
			errs = append(errs, err)
		}
		for i := range rules {
			if !f(fmt.Sprintf("ClusterRoleBinding %q of %s %q", b.Name, b.RoleRef.Kind, b.RoleRef.Name), &rules[i]) {
				return nil
			}
		}
	}
	if namespace == "" {
		return errors.Join(errs...)
	}
	bindings, err := a.RoleBindings.RoleBindings(namespace).List(labels.Everything())
	if err != nil {
		return err
	}
	for _, b := range bindings {
		if !applies(u, b.Subjects, namespace) {
			continue
		}
		rules, err := a.rulesOf(b.RoleRef, namespace)
		if err != nil {
			errs = append(errs, err)
		}
		for i := range rules {
			if !f(fmt.Sprintf("RoleBinding %q of %s %q", b.Namespace+"/"+b.Name, b.RoleRef.Kind, b.RoleRef.Name), &rules[i]) {
				return nil
			}
		}
	}
	return errors.Join(errs...)
}

func (a *Authorizer) rulesOf(ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	if ref.Kind == "Role" {
		r, err := a.Roles.Roles(namespace).Get(ref.Name)
		if err != nil {
			return nil, err
		}
		return r.Rules, nil
	}
	r, err := a.ClusterRoles.Get(ref.Name)
	if err != nil {
		return nil, err
	}
	return r.Rules, nil
}

// applies tells whether a binding's subjects name the user.
func applies(u user.Info, subjects []rbacv1.Subject, bindingNamespace string) bool {
	for _, s := range subjects {
		switch s.Kind {
		case rbacv1.UserKind:
			if s.Name == u.GetName() {
				return true
			}
		case rbacv1.GroupKind:
			if slices.Contains(u.GetGroups(), s.Name) {
				return true
			}
		case rbacv1.ServiceAccountKind:
			ns := s.Namespace
			if ns == "" {
				ns = bindingNamespace
			}
			if ns != "" && serviceaccount.MatchesUsername(ns, s.Name, u.GetName()) {
				return true
			}
		}
	}
	return false
}

// ruleAllows matches one request with one rule.
func ruleAllows(a authorizer.Attributes, r *rbacv1.PolicyRule) bool {
	if !has(r.Verbs, a.GetVerb(), rbacv1.VerbAll) {
		return false
	}
	if !a.IsResourceRequest() {
		for _, url := range r.NonResourceURLs {
			if prefix, ok := strings.CutSuffix(url, "*"); url == a.GetPath() || ok && strings.HasPrefix(a.GetPath(), prefix) {
				return true
			}
		}
		return false
	}
	if !has(r.APIGroups, a.GetAPIGroup(), rbacv1.APIGroupAll) {
		return false
	}
	resource := a.GetResource()
	if a.GetSubresource() != "" {
		resource += "/" + a.GetSubresource()
	}
	if !has(r.Resources, resource, rbacv1.ResourceAll) && !(a.GetSubresource() != "" && slices.Contains(r.Resources, "*/"+a.GetSubresource())) {
		return false
	}
	return len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, a.GetName())
}

func has(list []string, v, all string) bool {
	return slices.Contains(list, all) || slices.Contains(list, v)
}
