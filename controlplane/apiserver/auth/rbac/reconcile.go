package rbac

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	rbacclient "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/validation"
)

// Reconcile makes the default roles and bindings, and gives back to those that are there what they lack.
// Additions of the user stay; an object whose annotation autoupdate is "false" is left alone.
func Reconcile(ctx context.Context, client rbacclient.RbacV1Interface) error {
	var errs []error
	for _, want := range clusterRoles() {
		if err := reconcileRole(ctx, client.ClusterRoles(), want); err != nil {
			errs = append(errs, fmt.Errorf("ClusterRole %s: %w", want.Name, err))
		}
	}
	for _, want := range clusterRoleBindings() {
		if err := reconcileBinding(ctx, client.ClusterRoleBindings(), want); err != nil {
			errs = append(errs, fmt.Errorf("ClusterRoleBinding %s: %w", want.Name, err))
		}
	}
	return errors.Join(errs...)
}

func reconcileRole(ctx context.Context, client rbacclient.ClusterRoleInterface, want rbacv1.ClusterRole) error {
	have, err := client.Get(ctx, want.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = client.Create(ctx, &want, metav1.CreateOptions{})
		return err
	}
	if err != nil || have.Annotations[rbacv1.AutoUpdateAnnotationKey] == "false" {
		return err
	}
	updated := have.DeepCopy()
	if _, missing := validation.Covers(have.Rules, want.Rules); len(missing) > 0 {
		updated.Rules = append(updated.Rules, missing...)
	}
	updated.AggregationRule = want.AggregationRule
	if apiequality.Semantic.DeepEqual(have, updated) {
		return nil
	}
	_, err = client.Update(ctx, updated, metav1.UpdateOptions{})
	return err
}

func reconcileBinding(ctx context.Context, client rbacclient.ClusterRoleBindingInterface, want rbacv1.ClusterRoleBinding) error {
	have, err := client.Get(ctx, want.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = client.Create(ctx, &want, metav1.CreateOptions{})
		return err
	}
	if err != nil || have.Annotations[rbacv1.AutoUpdateAnnotationKey] == "false" {
		return err
	}
	updated := have.DeepCopy()
	for _, s := range want.Subjects {
		if !slices.Contains(updated.Subjects, s) {
			updated.Subjects = append(updated.Subjects, s)
		}
	}
	if len(updated.Subjects) == len(have.Subjects) {
		return nil
	}
	_, err = client.Update(ctx, updated, metav1.UpdateOptions{})
	return err
}

// Aggregate returns the rules of a role that is the sum of others.
func Aggregate(role *rbacv1.ClusterRole, roles []*rbacv1.ClusterRole) ([]rbacv1.PolicyRule, error) {
	var rules []rbacv1.PolicyRule
	seen := map[string]bool{}
	slices.SortFunc(roles, func(a, b *rbacv1.ClusterRole) int { return strings.Compare(a.Name, b.Name) })
	for i := range role.AggregationRule.ClusterRoleSelectors {
		sel, err := metav1.LabelSelectorAsSelector(&role.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, fmt.Errorf("ClusterRole %s: %w", role.Name, err)
		}
		for _, r := range roles {
			if r.Name == role.Name || seen[r.Name] || !sel.Matches(labels.Set(r.Labels)) {
				continue
			}
			seen[r.Name] = true
			rules = append(rules, r.Rules...)
		}
	}
	return rules, nil
}

// ReconcileAggregates writes the rules of all sums that changed.
func ReconcileAggregates(ctx context.Context, client rbacclient.ClusterRolesGetter, roles []*rbacv1.ClusterRole) error {
	var errs []error
	for _, r := range slices.Clone(roles) {
		if r.AggregationRule == nil {
			continue
		}
		rules, err := Aggregate(r, slices.Clone(roles))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if apiequality.Semantic.DeepEqual(rules, r.Rules) {
			continue
		}
		updated := r.DeepCopy()
		updated.Rules = rules
		if _, err := client.ClusterRoles().Update(ctx, updated, metav1.UpdateOptions{}); err != nil {
			errs = append(errs, fmt.Errorf("ClusterRole %s: %w", r.Name, err))
		}
	}
	return errors.Join(errs...)
}
