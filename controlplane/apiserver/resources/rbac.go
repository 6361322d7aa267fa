package resources

import (
	rbacv1 "k8s.io/api/rbac/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// createdAt is the column of what has no age: roles and limits.
var createdAt = descriptor.Column{Name: "Created At", Cell: func(o runtime.Object) any {
	return o.(metav1.Object).GetCreationTimestamp().UTC().Format("2006-01-02T15:04:05Z")
}}

func rbac() []*descriptor.Resource {
	name := func(name string, _ bool) []string { return path.IsValidPathSegmentName(name) }
	role := descriptor.Column{Name: "Role", Cell: func(o runtime.Object) any {
		switch b := o.(type) {
		case *rbacv1.RoleBinding:
			return b.RoleRef.Kind + "/" + b.RoleRef.Name
		case *rbacv1.ClusterRoleBinding:
			return b.RoleRef.Kind + "/" + b.RoleRef.Name
		}
		return ""
	}}
	columns := append([]descriptor.Column{role, descriptor.Age}, subjectColumns(func(o runtime.Object) []rbacv1.Subject {
		switch b := o.(type) {
		case *rbacv1.RoleBinding:
			return b.Subjects
		case *rbacv1.ClusterRoleBinding:
			return b.Subjects
		}
		return nil
	})...)
	return []*descriptor.Resource{
		kind[rbacv1.Role, rbacv1.RoleList]("Role", descriptor.Resource{
			GroupVersion: rbacv1.SchemeGroupVersion, Namespaced: true, ValidName: name, Columns: []descriptor.Column{createdAt},
			Validate: descriptor.Check(func(r *rbacv1.Role) field.ErrorList { return validateRules(r.Rules, true) }),
		}),
		kind[rbacv1.ClusterRole, rbacv1.ClusterRoleList]("ClusterRole", descriptor.Resource{
			GroupVersion: rbacv1.SchemeGroupVersion, ValidName: name, Columns: []descriptor.Column{createdAt},
			Validate: descriptor.Check(func(r *rbacv1.ClusterRole) field.ErrorList { return validateRules(r.Rules, false) }),
		}),
		kind[rbacv1.RoleBinding, rbacv1.RoleBindingList]("RoleBinding", descriptor.Resource{
			GroupVersion: rbacv1.SchemeGroupVersion, Namespaced: true, ValidName: name, Columns: columns,
			Default: descriptor.Each(func(b *rbacv1.RoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) }),
			Validate: descriptor.Check(func(b *rbacv1.RoleBinding) field.ErrorList {
				return validateBinding(b.RoleRef, b.Subjects, "Role", "ClusterRole")
			}),
			ValidateUpdate: descriptor.CheckUpdate(func(b, old *rbacv1.RoleBinding) field.ErrorList {
				return apivalidation.ValidateImmutableField(b.RoleRef, old.RoleRef, field.NewPath("roleRef"))
			}),
		}),
		kind[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList]("ClusterRoleBinding", descriptor.Resource{
			GroupVersion: rbacv1.SchemeGroupVersion, ValidName: name, Columns: columns,
			Default: descriptor.Each(func(b *rbacv1.ClusterRoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) }),
			Validate: descriptor.Check(func(b *rbacv1.ClusterRoleBinding) field.ErrorList {
				return validateBinding(b.RoleRef, b.Subjects, "ClusterRole")
			}),
			ValidateUpdate: descriptor.CheckUpdate(func(b, old *rbacv1.ClusterRoleBinding) field.ErrorList {
				return apivalidation.ValidateImmutableField(b.RoleRef, old.RoleRef, field.NewPath("roleRef"))
			}),
		}),
	}
}

func defaultBinding(ref *rbacv1.RoleRef, subjects []rbacv1.Subject) {
	fill(&ref.APIGroup, rbacv1.GroupName)
	for i := range subjects {
		if s := &subjects[i]; s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind {
			fill(&s.APIGroup, rbacv1.GroupName)
		}
	}
}

func validateRules(rules []rbacv1.PolicyRule, namespaced bool) field.ErrorList {
	var errs field.ErrorList
	for i, r := range rules {
		p := field.NewPath("rules").Index(i)
		if len(r.Verbs) == 0 {
			errs = append(errs, field.Required(p.Child("verbs"), "verbs must contain at least one value"))
		}
		if len(r.NonResourceURLs) > 0 {
			if namespaced {
				errs = append(errs, field.Invalid(p.Child("nonResourceURLs"), r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs"))
			}
			if len(r.APIGroups)+len(r.Resources)+len(r.ResourceNames) > 0 {
				errs = append(errs, field.Invalid(p.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
			}
			continue
		}
		if len(r.APIGroups) == 0 {
			errs = append(errs, field.Required(p.Child("apiGroups"), "resource rules must supply at least one api group"))
		}
		if len(r.Resources) == 0 {
			errs = append(errs, field.Required(p.Child("resources"), "resource rules must supply at least one resource"))
		}
	}
	return errs
}

func validateBinding(ref rbacv1.RoleRef, subjects []rbacv1.Subject, kinds ...string) field.ErrorList {
	p := field.NewPath("roleRef")
	var errs field.ErrorList
	if ref.APIGroup != rbacv1.GroupName {
		errs = append(errs, field.NotSupported(p.Child("apiGroup"), ref.APIGroup, []string{rbacv1.GroupName}))
	}
	errs = append(errs, oneOf(ref.Kind, p.Child("kind"), kinds...)...)
	if ref.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), ""))
	}
	for i, s := range subjects {
		sp := field.NewPath("subjects").Index(i)
		if s.Name == "" {
			errs = append(errs, field.Required(sp.Child("name"), ""))
		}
		errs = append(errs, oneOf(s.Kind, sp.Child("kind"), rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind)...)
		if s.Kind == rbacv1.ServiceAccountKind && s.Namespace == "" && len(kinds) == 1 {
			errs = append(errs, field.Required(sp.Child("namespace"), ""))
		}
	}
	return errs
}
