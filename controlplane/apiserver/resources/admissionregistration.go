package resources

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/util/webhook"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func admissionRegistration() []*descriptor.Resource {
	gv := admissionv1.SchemeGroupVersion
	binding := func(policy func(o any) string, params func(o any) *admissionv1.ParamRef) []descriptor.Column {
		return []descriptor.Column{
			{Name: "PolicyName", Cell: descriptor.Cell(func(b descriptorObject) string { return policy(b) })},
			{Name: "ParamRef", Cell: descriptor.Cell(func(b descriptorObject) string {
				r := params(b)
				switch {
				case r == nil:
					return "<unset>"
				case r.Selector != nil:
					return "<selector>"
				case r.Namespace == "":
					return r.Name
				}
				return r.Namespace + "/" + r.Name
			})},
			descriptor.Age,
		}
	}
	extension := []string{"api-extensions"}
	return []*descriptor.Resource{
		kind[admissionv1.ValidatingWebhookConfiguration, admissionv1.ValidatingWebhookConfigurationList]("ValidatingWebhookConfiguration", descriptor.Resource{
			GroupVersion: gv, Categories: extension, Generation: true,
			Default: descriptor.Each(func(c *admissionv1.ValidatingWebhookConfiguration) {
				for i := range c.Webhooks {
					w := &c.Webhooks[i]
					defaultWebhook(&w.FailurePolicy, &w.MatchPolicy, &w.TimeoutSeconds, &w.NamespaceSelector, &w.ObjectSelector, &w.ClientConfig, w.Rules)
				}
			}),
			Validate: descriptor.Check(func(c *admissionv1.ValidatingWebhookConfiguration) field.ErrorList {
				var errs field.ErrorList
				names := sets.New[string]()
				for i, w := range c.Webhooks {
					errs = append(errs, validateWebhook(&admissionv1.MutatingWebhook{
						Name: w.Name, ClientConfig: w.ClientConfig, Rules: w.Rules, FailurePolicy: w.FailurePolicy, MatchPolicy: w.MatchPolicy, NamespaceSelector: w.NamespaceSelector, ObjectSelector: w.ObjectSelector,
						SideEffects: w.SideEffects, TimeoutSeconds: w.TimeoutSeconds, AdmissionReviewVersions: w.AdmissionReviewVersions, MatchConditions: w.MatchConditions,
					}, names, field.NewPath("webhooks").Index(i))...)
				}
				return errs
			}),
			Columns: []descriptor.Column{
				{Name: "Webhooks", Type: "integer", Cell: descriptor.Cell(func(c *admissionv1.ValidatingWebhookConfiguration) int64 { return int64(len(c.Webhooks)) })},
				descriptor.Age,
			},
		}),
		kind[admissionv1.MutatingWebhookConfiguration, admissionv1.MutatingWebhookConfigurationList]("MutatingWebhookConfiguration", descriptor.Resource{
			GroupVersion: gv, Categories: extension, Generation: true,
			Default: descriptor.Each(func(c *admissionv1.MutatingWebhookConfiguration) {
				for i := range c.Webhooks {
					w := &c.Webhooks[i]
					defaultWebhook(&w.FailurePolicy, &w.MatchPolicy, &w.TimeoutSeconds, &w.NamespaceSelector, &w.ObjectSelector, &w.ClientConfig, w.Rules)
					set(&w.ReinvocationPolicy, admissionv1.NeverReinvocationPolicy)
				}
			}),
			Validate: descriptor.Check(func(c *admissionv1.MutatingWebhookConfiguration) field.ErrorList {
				var errs field.ErrorList
				names := sets.New[string]()
				for i := range c.Webhooks {
					w, p := &c.Webhooks[i], field.NewPath("webhooks").Index(i)
					errs = append(errs, validateWebhook(w, names, p)...)
					if r := w.ReinvocationPolicy; r != nil {
						errs = append(errs, oneOf(*r, p.Child("reinvocationPolicy"), admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)...)
					}
				}
				return errs
			}),
			Columns: []descriptor.Column{
				{Name: "Webhooks", Type: "integer", Cell: descriptor.Cell(func(c *admissionv1.MutatingWebhookConfiguration) int64 { return int64(len(c.Webhooks)) })},
				descriptor.Age,
			},
		}),
		kind[admissionv1.ValidatingAdmissionPolicy, admissionv1.ValidatingAdmissionPolicyList]("ValidatingAdmissionPolicy", descriptor.Resource{
			GroupVersion: gv, Categories: extension, Plural: "validatingadmissionpolicies", Generation: true, Status: true,
			Default: descriptor.Each(func(p *admissionv1.ValidatingAdmissionPolicy) {
				set(&p.Spec.FailurePolicy, admissionv1.Fail)
				defaultMatch(p.Spec.MatchConstraints)
			}),
			Validate: descriptor.Check(validateValidatingPolicy),
			Columns: []descriptor.Column{
				{Name: "Validations", Type: "integer", Cell: descriptor.Cell(func(p *admissionv1.ValidatingAdmissionPolicy) int64 { return int64(len(p.Spec.Validations)) })},
				{Name: "ParamKind", Cell: descriptor.Cell(func(p *admissionv1.ValidatingAdmissionPolicy) string { return paramKind(p.Spec.ParamKind) })},
				descriptor.Age,
			},
		}),
		kind[admissionv1.ValidatingAdmissionPolicyBinding, admissionv1.ValidatingAdmissionPolicyBindingList]("ValidatingAdmissionPolicyBinding", descriptor.Resource{
			GroupVersion: gv, Categories: extension, Generation: true,
			Default: descriptor.Each(func(b *admissionv1.ValidatingAdmissionPolicyBinding) { defaultMatch(b.Spec.MatchResources) }),
			Validate: descriptor.Check(func(b *admissionv1.ValidatingAdmissionPolicyBinding) field.ErrorList {
				p := field.NewPath("spec")
				errs := validatePolicyBinding(b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources, p)
				ap := p.Child("validationActions")
				if len(b.Spec.ValidationActions) == 0 {
					errs = append(errs, field.Required(ap, "at least one validation action is required"))
				}
				seen := sets.New[admissionv1.ValidationAction]()
				for i, a := range b.Spec.ValidationActions {
					errs = append(errs, oneOf(a, ap.Index(i), admissionv1.Audit, admissionv1.Deny, admissionv1.Warn)...)
					if seen.Has(a) {
						errs = append(errs, field.Duplicate(ap.Index(i), a))
					}
					seen.Insert(a)
				}
				if seen.Has(admissionv1.Deny) && seen.Has(admissionv1.Warn) {
					errs = append(errs, field.Invalid(ap, b.Spec.ValidationActions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)"))
				}
				return errs
			}),
			Columns: binding(func(o any) string { return o.(*admissionv1.ValidatingAdmissionPolicyBinding).Spec.PolicyName }, func(o any) *admissionv1.ParamRef {
				return o.(*admissionv1.ValidatingAdmissionPolicyBinding).Spec.ParamRef
			}),
		}),
		kind[admissionv1.MutatingAdmissionPolicy, admissionv1.MutatingAdmissionPolicyList]("MutatingAdmissionPolicy", descriptor.Resource{
			GroupVersion: gv, Categories: extension, Plural: "mutatingadmissionpolicies", Generation: true,
			Default: descriptor.Each(func(p *admissionv1.MutatingAdmissionPolicy) {
				set(&p.Spec.FailurePolicy, admissionv1.Fail)
				defaultMatch(p.Spec.MatchConstraints)
			}),
			Validate: descriptor.Check(validateMutatingPolicy),
			Columns: []descriptor.Column{
				{Name: "Mutations", Type: "integer", Cell: descriptor.Cell(func(p *admissionv1.MutatingAdmissionPolicy) int64 { return int64(len(p.Spec.Mutations)) })},
				{Name: "ParamKind", Cell: descriptor.Cell(func(p *admissionv1.MutatingAdmissionPolicy) string { return paramKind(p.Spec.ParamKind) })},
				descriptor.Age,
			},
		}),
		kind[admissionv1.MutatingAdmissionPolicyBinding, admissionv1.MutatingAdmissionPolicyBindingList]("MutatingAdmissionPolicyBinding", descriptor.Resource{
			GroupVersion: gv, Categories: extension, Generation: true,
			Default: descriptor.Each(func(b *admissionv1.MutatingAdmissionPolicyBinding) { defaultMatch(b.Spec.MatchResources) }),
			Validate: descriptor.Check(func(b *admissionv1.MutatingAdmissionPolicyBinding) field.ErrorList {
				return validatePolicyBinding(b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources, field.NewPath("spec"))
			}),
			Columns: binding(func(o any) string { return o.(*admissionv1.MutatingAdmissionPolicyBinding).Spec.PolicyName }, func(o any) *admissionv1.ParamRef {
				return o.(*admissionv1.MutatingAdmissionPolicyBinding).Spec.ParamRef
			}),
		}),
	}
}

func paramKind(k *admissionv1.ParamKind) string {
	if k == nil {
		return "<unset>"
	}
	gv, err := schema.ParseGroupVersion(k.APIVersion)
	if err != nil {
		return k.Kind
	}
	return k.APIVersion + "/" + gv.WithKind(k.Kind).Kind
}

func defaultWebhook(failure **admissionv1.FailurePolicyType, match **admissionv1.MatchPolicyType, timeout **int32, namespaces, objects **metav1.LabelSelector, c *admissionv1.WebhookClientConfig, rules []admissionv1.RuleWithOperations) {
	set(failure, admissionv1.Fail)
	set(match, admissionv1.Equivalent)
	set(timeout, int32(10))
	set(namespaces, metav1.LabelSelector{})
	set(objects, metav1.LabelSelector{})
	if c.Service != nil {
		set(&c.Service.Port, int32(443))
	}
	for i := range rules {
		set(&rules[i].Scope, admissionv1.AllScopes)
	}
}

func defaultMatch(m *admissionv1.MatchResources) {
	if m == nil {
		return
	}
	set(&m.MatchPolicy, admissionv1.Equivalent)
	set(&m.NamespaceSelector, metav1.LabelSelector{})
	set(&m.ObjectSelector, metav1.LabelSelector{})
	for _, rules := range [][]admissionv1.NamedRuleWithOperations{m.ResourceRules, m.ExcludeResourceRules} {
		for i := range rules {
			set(&rules[i].Scope, admissionv1.AllScopes)
		}
	}
}

// validateWebhook checks a webhook of either sort.
func validateWebhook(w *admissionv1.MutatingWebhook, names sets.Set[string], p *field.Path) field.ErrorList {
	errs := validation.IsFullyQualifiedName(p.Child("name"), w.Name)
	if names.Has(w.Name) {
		errs = append(errs, field.Duplicate(p.Child("name"), w.Name))
	}
	names.Insert(w.Name)
	for i, r := range w.Rules {
		errs = append(errs, validateOperations(r.Operations, p.Child("rules").Index(i))...)
		errs = append(errs, validateRule(r.Rule, p.Child("rules").Index(i))...)
	}
	errs = append(errs, validateFailure(w.FailurePolicy, p.Child("failurePolicy"))...)
	errs = append(errs, validateMatchPolicy(w.MatchPolicy, p.Child("matchPolicy"))...)
	if s := w.SideEffects; s == nil {
		errs = append(errs, field.Required(p.Child("sideEffects"), fmt.Sprintf("must specify one of %v", []admissionv1.SideEffectClass{admissionv1.SideEffectClassNone, admissionv1.SideEffectClassNoneOnDryRun})))
	} else {
		errs = append(errs, oneOf(*s, p.Child("sideEffects"), admissionv1.SideEffectClassNone, admissionv1.SideEffectClassNoneOnDryRun)...)
	}
	if t := w.TimeoutSeconds; t != nil && (*t < 1 || *t > 30) {
		errs = append(errs, field.Invalid(p.Child("timeoutSeconds"), *t, "the timeout value must be between 1 and 30 seconds"))
	}
	errs = append(errs, validateReviewVersions(w.AdmissionReviewVersions, p.Child("admissionReviewVersions"))...)
	for _, s := range []struct {
		name     string
		selector *metav1.LabelSelector
	}{{"namespaceSelector", w.NamespaceSelector}, {"objectSelector", w.ObjectSelector}} {
		if s.selector != nil {
			errs = append(errs, metav1validation.ValidateLabelSelector(s.selector, metav1validation.LabelSelectorValidationOptions{}, p.Child(s.name))...)
		}
	}
	errs = append(errs, validateWebhookClient(&w.ClientConfig, p.Child("clientConfig"))...)
	return append(errs, newExpressions(false).matchConditions(w.MatchConditions, p.Child("matchConditions"))...)
}

func validateWebhookClient(c *admissionv1.WebhookClientConfig, p *field.Path) field.ErrorList {
	switch {
	case (c.URL == nil) == (c.Service == nil):
		return field.ErrorList{field.Required(p, "exactly one of url or service is required")}
	case c.URL != nil:
		if _, err := url.Parse(*c.URL); err != nil {
			return field.ErrorList{field.Required(p.Child("url"), "url must be a valid URL: "+err.Error())}
		}
		return webhook.ValidateWebhookURL(p.Child("url"), *c.URL, true)
	}
	port := int32(443)
	if c.Service.Port != nil {
		port = *c.Service.Port
	}
	return webhook.ValidateWebhookService(p.Child("service"), c.Service.Namespace, c.Service.Name, c.Service.Path, port)
}

func validateReviewVersions(versions []string, p *field.Path) field.ErrorList {
	known := []string{"v1", "v1beta1"}
	if len(versions) == 0 {
		return field.ErrorList{field.Required(p, fmt.Sprintf("must specify one of %v", strings.Join(known, ", ")))}
	}
	var errs field.ErrorList
	seen := sets.New[string]()
	understood := false
	for i, v := range versions {
		if seen.Has(v) {
			errs = append(errs, field.Invalid(p.Index(i), v, "duplicate version"))
		}
		seen.Insert(v)
		errs = append(errs, invalidIf(validation.IsDNS1035Label(v), p.Index(i), v)...)
		understood = understood || slices.Contains(known, v)
	}
	if !understood && len(errs) == 0 {
		errs = append(errs, field.Invalid(p, versions, "must include at least one of "+strings.Join(known, ", ")))
	}
	return errs
}

func validateFailure(f *admissionv1.FailurePolicyType, p *field.Path) field.ErrorList {
	if f == nil {
		return nil
	}
	return oneOf(*f, p, admissionv1.Fail, admissionv1.Ignore)
}

func validateMatchPolicy(m *admissionv1.MatchPolicyType, p *field.Path) field.ErrorList {
	if m == nil {
		return nil
	}
	return oneOf(*m, p, admissionv1.Equivalent, admissionv1.Exact)
}

func validateOperations(operations []admissionv1.OperationType, p *field.Path) field.ErrorList {
	op := p.Child("operations")
	if len(operations) == 0 {
		return field.ErrorList{field.Required(op, "")}
	}
	var errs field.ErrorList
	if len(operations) > 1 && slices.Contains(operations, admissionv1.OperationAll) {
		errs = append(errs, field.Invalid(op, operations, "if '*' is present, must not specify other operations"))
	}
	for i, o := range operations {
		errs = append(errs, oneOf(o, op.Index(i), admissionv1.OperationAll, admissionv1.Connect, admissionv1.Create, admissionv1.Delete, admissionv1.Update)...)
	}
	return errs
}

// validateRule checks which resources are meant: lists that hold a star hold nothing beside it, and no
// subresource is named twice, once by a star.
func validateRule(r admissionv1.Rule, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, l := range []struct {
		name  string
		items []string
		empty bool // whether an item may be empty, as the core group is
	}{{"apiGroups", r.APIGroups, true}, {"apiVersions", r.APIVersions, false}, {"resources", r.Resources, false}} {
		lp := p.Child(l.name)
		if len(l.items) == 0 {
			errs = append(errs, field.Required(lp, ""))
		}
		if l.name != "resources" && len(l.items) > 1 && slices.Contains(l.items, "*") {
			errs = append(errs, field.Invalid(lp, l.items, "if '*' is present, must not specify other "+map[string]string{"apiGroups": "API groups", "apiVersions": "API versions"}[l.name]))
		}
		for i, item := range l.items {
			if item == "" && !l.empty {
				errs = append(errs, field.Required(lp.Index(i), ""))
			}
		}
	}
	rp := p.Child("resources")
	all, main := slices.Contains(r.Resources, "*/*"), slices.Contains(r.Resources, "*")
	if all && len(r.Resources) > 1 {
		errs = append(errs, field.Invalid(rp, r.Resources, "if '*/*' is present, must not specify other resources"))
	}
	for i, name := range r.Resources {
		res, sub, is := strings.Cut(name, "/")
		switch {
		case !is && main && name != "*":
			errs = append(errs, field.Invalid(rp, r.Resources, "if '*' is present, must not specify other resources without subresources"))
		case is && !all && res != "*" && slices.Contains(r.Resources, "*/"+sub):
			errs = append(errs, field.Invalid(rp.Index(i), name, fmt.Sprintf("if '*/%s' is present, must not specify %s", sub, name)))
		case is && sub != "*" && slices.Contains(r.Resources, res+"/*"):
			errs = append(errs, field.Invalid(rp.Index(i), name, fmt.Sprintf("if '%s/*' is present, must not specify %s", res, name)))
		}
	}
	if s := r.Scope; s != nil {
		errs = append(errs, oneOf(*s, p.Child("scope"), admissionv1.AllScopes, admissionv1.ClusterScope, admissionv1.NamespacedScope)...)
	}
	return errs
}
