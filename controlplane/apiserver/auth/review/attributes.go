package review

import (
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

func invalid(kind string, errs field.ErrorList) error {
	return apierrors.NewInvalid(authorizationv1.SchemeGroupVersion.WithKind(kind).GroupKind(), "", errs)
}

func validateSubject(s authorizationv1.SubjectAccessReviewSpec) field.ErrorList {
	if s.User == "" && len(s.Groups) == 0 {
		return field.ErrorList{field.Invalid(field.NewPath("spec", "user"), s.User, "at least one of user or group must be specified")}
	}
	return nil
}

func validateAttributes(r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) field.ErrorList {
	p := field.NewPath("spec")
	switch {
	case r == nil && n == nil:
		return field.ErrorList{field.Invalid(p.Child("resourceAttributes"), r, "exactly one of nonResourceAttributes or resourceAttributes must be specified")}
	case r != nil && n != nil:
		return field.ErrorList{field.Invalid(p.Child("nonResourceAttributes"), n, "cannot be specified in combination with resourceAttributes")}
	case r == nil:
		return nil
	}
	var errs field.ErrorList
	if s := r.FieldSelector; s != nil && s.RawSelector != "" && len(s.Requirements) > 0 {
		errs = append(errs, field.Invalid(p.Child("resourceAttributes", "fieldSelector", "rawSelector"), s.RawSelector, "may not specified at the same time as requirements"))
	}
	if s := r.LabelSelector; s != nil && s.RawSelector != "" && len(s.Requirements) > 0 {
		errs = append(errs, field.Invalid(p.Child("resourceAttributes", "labelSelector", "rawSelector"), s.RawSelector, "may not specified at the same time as requirements"))
	}
	return errs
}

func subject(s authorizationv1.SubjectAccessReviewSpec) user.Info {
	u := &user.DefaultInfo{Name: s.User, UID: s.UID, Groups: s.Groups}
	for k, v := range s.Extra {
		if u.Extra == nil {
			u.Extra = map[string][]string{}
		}
		u.Extra[k] = v
	}
	return u
}

// attributes is the request that a review (validated before) asks about.
func attributes(u user.Info, r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) authorizer.AttributesRecord {
	if r == nil {
		return authorizer.AttributesRecord{User: u, Verb: n.Verb, Path: n.Path}
	}
	a := authorizer.AttributesRecord{
		User: u, Verb: r.Verb, Namespace: r.Namespace, APIGroup: r.Group, APIVersion: r.Version,
		Resource: r.Resource, Subresource: r.Subresource, Name: r.Name, ResourceRequest: true,
	}
	a.FieldSelectorRequirements, a.FieldSelectorParsingErr = fieldRequirements(r.FieldSelector)
	a.LabelSelectorRequirements, a.LabelSelectorParsingErr = labelRequirements(r.LabelSelector)
	return a
}

// fieldRequirements returns the requirements that can be expressed. Those that can't are left out with an error: that
// asks about a broader request, so that nothing is said to be allowed that isn't (KEP-4601).
func fieldRequirements(s *authorizationv1.FieldSelectorAttributes) (fields.Requirements, error) {
	if s == nil {
		return nil, nil
	}
	if s.RawSelector != "" {
		sel, err := fields.ParseSelector(s.RawSelector)
		if err != nil {
			return nil, err
		}
		return sel.Requirements(), nil
	}
	var reqs fields.Requirements
	var err error
	for _, q := range s.Requirements {
		op := map[metav1.FieldSelectorOperator]selection.Operator{metav1.FieldSelectorOpIn: selection.Equals, metav1.FieldSelectorOpNotIn: selection.NotEquals}[q.Operator]
		if op == "" || len(q.Values) != 1 {
			err = fmt.Errorf("field selector on %q: operator %q with %d values is not supported", q.Key, q.Operator, len(q.Values))
			continue
		}
		reqs = append(reqs, fields.Requirement{Field: q.Key, Operator: op, Value: q.Values[0]})
	}
	return reqs, err
}

// labelRequirements is to labels what fieldRequirements is to fields.
func labelRequirements(s *authorizationv1.LabelSelectorAttributes) (labels.Requirements, error) {
	if s == nil {
		return nil, nil
	}
	if s.RawSelector != "" {
		sel, err := labels.Parse(s.RawSelector)
		if err != nil {
			return nil, err
		}
		reqs, _ := sel.Requirements()
		return reqs, nil
	}
	var reqs labels.Requirements
	var err error
	for _, q := range s.Requirements {
		op := map[metav1.LabelSelectorOperator]selection.Operator{
			metav1.LabelSelectorOpIn: selection.In, metav1.LabelSelectorOpNotIn: selection.NotIn,
			metav1.LabelSelectorOpExists: selection.Exists, metav1.LabelSelectorOpDoesNotExist: selection.DoesNotExist,
		}[q.Operator]
		r, bad := labels.NewRequirement(q.Key, op, q.Values)
		if bad != nil {
			err = bad
			continue
		}
		reqs = append(reqs, *r)
	}
	return reqs, err
}
