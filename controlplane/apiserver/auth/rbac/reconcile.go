package rbac

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	rbacclient "k8s.io/client-go/kubernetes/typed/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/validation"
)

// Reconcile makes the default roles and bindings, and gives back to those that are there what they lack.
// Additions of the user stay; an object whose annotation autoupdate is "false" is left alone. It fails as long as
// the namespace kube-system is missing; what could be done is done.
func Reconcile(ctx context.Context, client rbacclient.RbacV1Interface) error {
	var steps []func() error
	for _, want := range clusterRoles() {
		steps = append(steps, func() error {
			return reconcile(ctx, client.ClusterRoles(), &want, func(have *rbacv1.ClusterRole) {
				have.Rules, have.AggregationRule = complete(have.Rules, want.Rules), want.AggregationRule
			})
		})
	}
	for _, want := range roles() {
		steps = append(steps, func() error {
			return reconcile(ctx, client.Roles(want.Namespace), &want, func(have *rbacv1.Role) {
				have.Rules = complete(have.Rules, want.Rules)
			})
		})
	}
	for _, want := range clusterRoleBindings() {
		steps = append(steps, func() error {
			same := func(have *rbacv1.ClusterRoleBinding) bool { return have.RoleRef == want.RoleRef }
			return reconcileBinding(ctx, client.ClusterRoleBindings(), &want, same, func(have *rbacv1.ClusterRoleBinding) {
				have.Subjects = with(have.Subjects, want.Subjects)
			})
		})
	}
	for _, want := range roleBindings() {
		steps = append(steps, func() error {
			same := func(have *rbacv1.RoleBinding) bool { return have.RoleRef == want.RoleRef }
			return reconcileBinding(ctx, client.RoleBindings(want.Namespace), &want, same, func(have *rbacv1.RoleBinding) {
				have.Subjects = with(have.Subjects, want.Subjects)
			})
		})
	}
	return together(steps)
}

// together does steps, several at a time: a new cluster's first start waits for the disk once for all that are written meanwhile.
func together(steps []func() error) error {
	errs := make([]error, len(steps))
	var g errgroup.Group
	g.SetLimit(16)
	for i, step := range steps {
		g.Go(func() error {
			errs[i] = step()
			return nil
		})
	}
	_ = g.Wait() // errs has them all
	return errors.Join(errs...)
}

// object is one of the kinds that are reconciled.
type object[T any] interface {
	metav1.Object
	DeepCopy() T
}

// client is what the typed clients of these kinds share.
type client[T any] interface {
	Get(context.Context, string, metav1.GetOptions) (T, error)
	Create(context.Context, T, metav1.CreateOptions) (T, error)
	Update(context.Context, T, metav1.UpdateOptions) (T, error)
	Delete(context.Context, string, metav1.DeleteOptions) error
}

// left tells whether the user has taken an object over.
func left(o metav1.Object) bool {
	return o.GetAnnotations()[rbacv1.AutoUpdateAnnotationKey] == "false"
}

// reconcile makes want, or gives the object that is there what merge and want's labels and annotations add.
func reconcile[T object[T]](ctx context.Context, c client[T], want T, merge func(have T)) error {
	have, err := c.Get(ctx, want.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = c.Create(ctx, want, metav1.CreateOptions{})
	case err == nil && !left(have):
		updated := have.DeepCopy()
		updated.SetLabels(merged(have.GetLabels(), want.GetLabels()))
		updated.SetAnnotations(merged(have.GetAnnotations(), want.GetAnnotations()))
		merge(updated)
		if !apiequality.Semantic.DeepEqual(have, updated) {
			_, err = c.Update(ctx, updated, metav1.UpdateOptions{})
		}
	}
	if err != nil {
		return fmt.Errorf("%T %s: %w", want, want.GetName(), err)
	}
	return nil
}

// reconcileBinding is reconcile for a binding, which is deleted first if it leads to another role: a roleRef can't be changed.
func reconcileBinding[T object[T]](ctx context.Context, c client[T], want T, same func(have T) bool, merge func(have T)) error {
	if err := dropOtherRef(ctx, c, want, same); err != nil {
		return err
	}
	return reconcile(ctx, c, want, merge)
}

func dropOtherRef[T object[T]](ctx context.Context, c client[T], want T, same func(have T) bool) error {
	have, err := c.Get(ctx, want.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) || err == nil && (left(have) || same(have)) {
		return nil
	}
	if err == nil {
		uid := have.GetUID()
		err = c.Delete(ctx, want.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
	}
	if err != nil {
		return fmt.Errorf("%T %s: %w", want, want.GetName(), err)
	}
	return nil
}

// complete returns the rules with those parts of want that they don't cover.
func complete(have, want []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	_, missing := validation.Covers(have, want)
	return append(slices.Clone(have), missing...)
}

func with(have, want []rbacv1.Subject) []rbacv1.Subject {
	have = slices.Clone(have)
	for _, s := range want {
		if !slices.Contains(have, s) {
			have = append(have, s)
		}
	}
	return have
}

func merged(have, want map[string]string) map[string]string {
	m := map[string]string{}
	for _, from := range []map[string]string{have, want} {
		for k, v := range from {
			m[k] = v
		}
	}
	return m
}

// Aggregate returns the rules of a role that is the sum of others.
func Aggregate(role *rbacv1.ClusterRole, roles []*rbacv1.ClusterRole) ([]rbacv1.PolicyRule, error) {
	var rules []rbacv1.PolicyRule
	seen := map[string]bool{}
	roles = slices.SortedFunc(slices.Values(roles), func(a, b *rbacv1.ClusterRole) int { return strings.Compare(a.Name, b.Name) })
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
			for _, x := range r.Rules {
				if !slices.ContainsFunc(rules, func(have rbacv1.PolicyRule) bool { return apiequality.Semantic.DeepEqual(have, x) }) {
					rules = append(rules, x)
				}
			}
		}
	}
	return rules, nil
}

// ReconcileAggregates writes the rules of all sums that changed.
func ReconcileAggregates(ctx context.Context, client rbacclient.ClusterRolesGetter, roles []*rbacv1.ClusterRole) error {
	var errs []error
	for _, r := range roles {
		if r.AggregationRule == nil {
			continue
		}
		rules, err := Aggregate(r, roles)
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
