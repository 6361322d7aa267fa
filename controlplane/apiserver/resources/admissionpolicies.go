package resources

import (
	"strings"
	"sync"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/cel/environment"
)

// descriptorObject is what columns that several kinds share get.
type descriptorObject = runtime.Object

// environments is the CEL environment of all expressions that clients bring, made once: it is large.
var environments = sync.OnceValue(func() *environment.EnvSet {
	return environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
})

// expressions compiles the CEL of one object, variables that came before known to what comes after.
type expressions struct {
	compiler *plugincel.CompositedCompiler
	err      error
	declared plugincel.OptionalVariableDeclarations
}

func newExpressions(params bool) *expressions {
	return &expressions{declared: plugincel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}}
}

// ready makes the compiler when the first expression needs it.
func (e *expressions) ready(p *field.Path) field.ErrorList {
	if e.compiler == nil && e.err == nil {
		e.compiler, e.err = plugincel.NewCompositedCompiler(environments())
	}
	if e.err != nil {
		return field.ErrorList{field.InternalError(p, e.err)}
	}
	return nil
}

// check compiles one expression.
func (e *expressions) check(a plugincel.ExpressionAccessor, declared plugincel.OptionalVariableDeclarations, p *field.Path) field.ErrorList {
	if strings.TrimSpace(a.GetExpression()) == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	if errs := e.ready(p); len(errs) > 0 {
		return errs
	}
	return compileError(e.compiler.CompileCELExpression(a, declared, environment.NewExpressions), a, p)
}

func compileError(r plugincel.CompilationResult, a plugincel.ExpressionAccessor, p *field.Path) field.ErrorList {
	if r.Error == nil {
		return nil
	}
	return field.ErrorList{field.Invalid(p, a.GetExpression(), r.Error.Detail)}
}

// maxMatchConditions is what a webhook or a policy may have (API documentation of matchConditions).
const maxMatchConditions = 64

func (e *expressions) matchConditions(conditions []admissionv1.MatchCondition, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(conditions) > maxMatchConditions {
		return field.ErrorList{field.TooMany(p, len(conditions), maxMatchConditions)}
	}
	names := sets.New[string]()
	for i := range conditions {
		c, cp := &conditions[i], p.Index(i)
		switch {
		case c.Name == "":
			errs = append(errs, field.Required(cp.Child("name"), ""))
		case names.Has(c.Name):
			errs = append(errs, field.Duplicate(cp.Child("name"), c.Name))
		default:
			errs = append(errs, invalidIf(validation.IsQualifiedName(c.Name), cp.Child("name"), c.Name)...)
		}
		names.Insert(c.Name)
		errs = append(errs, e.check((*matchconditions.MatchCondition)(c), e.declared, cp.Child("expression"))...)
	}
	return errs
}

// variables compiles the variables of a policy, in their order.
func (e *expressions) variables(variables []admissionv1.Variable, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := sets.New[string]()
	for i, v := range variables {
		vp := p.Index(i)
		switch {
		case v.Name == "":
			errs = append(errs, field.Required(vp.Child("name"), "name is required"))
		case !isIdentifier(v.Name):
			errs = append(errs, field.Invalid(vp.Child("name"), v.Name, "name is not a valid CEL identifier"))
		case names.Has(v.Name):
			errs = append(errs, field.Duplicate(vp.Child("name"), v.Name))
		}
		names.Insert(v.Name)
		if strings.TrimSpace(v.Expression) == "" {
			errs = append(errs, field.Required(vp.Child("expression"), "expression is required"))
			continue
		}
		if bad := e.ready(vp); len(bad) > 0 {
			return append(errs, bad...)
		}
		a := &validating.Variable{Name: v.Name, Expression: v.Expression}
		errs = append(errs, compileError(e.compiler.CompileAndStoreVariable(a, e.declared, environment.NewExpressions), a, vp.Child("expression"))...)
	}
	return errs
}

// isIdentifier follows the grammar of CEL.
func isIdentifier(name string) bool {
	for i, r := range name {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	reserved := sets.New("as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in", "let", "loop", "namespace", "null", "package", "return", "true", "var", "void", "while")
	return name != "" && !reserved.Has(name)
}

func validateParamKind(k *admissionv1.ParamKind, p *field.Path) field.ErrorList {
	if k == nil {
		return nil
	}
	var errs field.ErrorList
	if k.APIVersion == "" {
		errs = append(errs, field.Required(p.Child("apiVersion"), ""))
	} else if gv, err := schema.ParseGroupVersion(k.APIVersion); err != nil {
		errs = append(errs, field.Invalid(p.Child("apiVersion"), k.APIVersion, err.Error()))
	} else {
		errs = append(errs, invalidIf(validation.IsDNS1035Label(gv.Version), p.Child("apiVersion"), k.APIVersion)...)
	}
	if k.Kind == "" {
		return append(errs, field.Required(p.Child("kind"), ""))
	}
	return append(errs, invalidIf(validation.IsDNS1035Label(strings.ToLower(k.Kind)), p.Child("kind"), k.Kind)...)
}

func validateMatchResources(m *admissionv1.MatchResources, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	errs = append(errs, validateMatchPolicy(m.MatchPolicy, p.Child("matchPolicy"))...)
	for _, s := range []struct {
		name     string
		selector *metav1.LabelSelector
	}{{"namespaceSelector", m.NamespaceSelector}, {"objectSelector", m.ObjectSelector}} {
		if s.selector != nil {
			errs = append(errs, metav1validation.ValidateLabelSelector(s.selector, metav1validation.LabelSelectorValidationOptions{}, p.Child(s.name))...)
		}
	}
	for _, l := range []struct {
		name  string
		rules []admissionv1.NamedRuleWithOperations
	}{{"resourceRules", m.ResourceRules}, {"excludeResourceRules", m.ExcludeResourceRules}} {
		for i, r := range l.rules {
			rp := p.Child(l.name).Index(i)
			errs = append(errs, validateOperations(r.Operations, rp)...)
			errs = append(errs, validateRule(r.Rule, rp)...)
		}
	}
	return errs
}

func validateConstraints(m *admissionv1.MatchResources, p *field.Path) field.ErrorList {
	if m == nil {
		return field.ErrorList{field.Required(p, "")}
	}
	errs := validateMatchResources(m, p)
	if len(m.ResourceRules) == 0 {
		errs = append(errs, field.Required(p.Child("resourceRules"), ""))
	}
	return errs
}

func validateValidatingPolicy(policy *admissionv1.ValidatingAdmissionPolicy) field.ErrorList {
	s, p := &policy.Spec, field.NewPath("spec")
	e := newExpressions(s.ParamKind != nil)
	errs := validateFailure(s.FailurePolicy, p.Child("failurePolicy"))
	errs = append(errs, validateParamKind(s.ParamKind, p.Child("paramKind"))...)
	errs = append(errs, validateConstraints(s.MatchConstraints, p.Child("matchConstraints"))...)
	errs = append(errs, e.variables(s.Variables, p.Child("variables"))...)
	errs = append(errs, e.matchConditions(s.MatchConditions, p.Child("matchConditions"))...)
	if len(s.Validations)+len(s.AuditAnnotations) == 0 {
		errs = append(errs, field.Required(p.Child("validations"), "validations or auditAnnotations must contain at least one item"))
	}
	for i, v := range s.Validations {
		vp := p.Child("validations").Index(i)
		errs = append(errs, e.check(&validating.ValidationCondition{Expression: v.Expression}, e.declared, vp.Child("expression"))...)
		if strings.Contains(v.Message, "\n") {
			errs = append(errs, field.Invalid(vp.Child("message"), v.Message, "message must not contain line breaks"))
		}
		if strings.TrimSpace(v.MessageExpression) != "" {
			declared := plugincel.OptionalVariableDeclarations{HasParams: e.declared.HasParams}
			errs = append(errs, e.check(&validating.MessageExpressionCondition{MessageExpression: v.MessageExpression}, declared, vp.Child("messageExpression"))...)
		}
		if r := v.Reason; r != nil {
			errs = append(errs, oneOf(*r, vp.Child("reason"), metav1.StatusReasonForbidden, metav1.StatusReasonInvalid, metav1.StatusReasonRequestEntityTooLarge, metav1.StatusReasonUnauthorized)...)
		}
	}
	keys := sets.New[string]()
	for i, a := range s.AuditAnnotations {
		ap := p.Child("auditAnnotations").Index(i)
		if keys.Has(a.Key) {
			errs = append(errs, field.Duplicate(ap.Child("key"), a.Key))
		}
		keys.Insert(a.Key)
		errs = append(errs, invalidIf(validation.IsQualifiedName(policy.Name+"/"+a.Key), ap.Child("key"), a.Key)...)
		errs = append(errs, e.check(&validating.AuditAnnotationCondition{Key: a.Key, ValueExpression: a.ValueExpression}, e.declared, ap.Child("valueExpression"))...)
	}
	return errs
}

func validateMutatingPolicy(policy *admissionv1.MutatingAdmissionPolicy) field.ErrorList {
	s, p := &policy.Spec, field.NewPath("spec")
	e := newExpressions(s.ParamKind != nil)
	errs := validateFailure(s.FailurePolicy, p.Child("failurePolicy"))
	errs = append(errs, validateParamKind(s.ParamKind, p.Child("paramKind"))...)
	errs = append(errs, validateConstraints(s.MatchConstraints, p.Child("matchConstraints"))...)
	errs = append(errs, e.variables(s.Variables, p.Child("variables"))...)
	errs = append(errs, e.matchConditions(s.MatchConditions, p.Child("matchConditions"))...)
	if s.ReinvocationPolicy == "" {
		errs = append(errs, field.Required(p.Child("reinvocationPolicy"), ""))
	} else {
		errs = append(errs, oneOf(s.ReinvocationPolicy, p.Child("reinvocationPolicy"), admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)...)
	}
	if len(s.Mutations) == 0 {
		errs = append(errs, field.Required(p.Child("mutations"), "mutations must contain at least one item"))
	}
	declared := e.declared
	declared.HasPatchTypes = true
	for i, m := range s.Mutations {
		mp := p.Child("mutations").Index(i)
		errs = append(errs, oneOf(m.PatchType, mp.Child("patchType"), admissionv1.PatchTypeApplyConfiguration, admissionv1.PatchTypeJSONPatch)...)
		ac, jp := m.PatchType == admissionv1.PatchTypeApplyConfiguration, m.PatchType == admissionv1.PatchTypeJSONPatch
		switch {
		case ac && m.ApplyConfiguration == nil:
			errs = append(errs, field.Required(mp.Child("applyConfiguration"), "must be specified when patchType is ApplyConfiguration"))
		case ac:
			errs = append(errs, e.check(&patch.ApplyConfigurationCondition{Expression: m.ApplyConfiguration.Expression}, declared, mp.Child("applyConfiguration", "expression"))...)
		case m.ApplyConfiguration != nil:
			errs = append(errs, field.Invalid(mp.Child("applyConfiguration"), "{applyConfiguration}", "must not be specified when patchType is not ApplyConfiguration"))
		}
		switch {
		case jp && m.JSONPatch == nil:
			errs = append(errs, field.Required(mp.Child("jsonPatch"), "must be specified when patchType is JSONPatch"))
		case jp:
			errs = append(errs, e.check(&patch.JSONPatchCondition{Expression: m.JSONPatch.Expression}, declared, mp.Child("jsonPatch", "expression"))...)
		case m.JSONPatch != nil:
			errs = append(errs, field.Invalid(mp.Child("jsonPatch"), "{jsonPatch}", "must not be specified when patchType is not JSONPatch"))
		}
	}
	return errs
}

func validatePolicyBinding(policy string, ref *admissionv1.ParamRef, m *admissionv1.MatchResources, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if policy == "" {
		errs = append(errs, field.Required(p.Child("policyName"), ""))
	} else {
		errs = append(errs, invalidIf(subdomain(policy), p.Child("policyName"), policy)...)
	}
	if ref != nil {
		rp := p.Child("paramRef")
		switch {
		case ref.Name != "" && ref.Selector != nil:
			errs = append(errs, field.Forbidden(rp.Child("name"), "name and selector are mutually exclusive"))
		case ref.Name == "" && ref.Selector == nil:
			errs = append(errs, field.Required(rp, "one of name or selector must be specified"))
		case ref.Selector != nil:
			errs = append(errs, metav1validation.ValidateLabelSelector(ref.Selector, metav1validation.LabelSelectorValidationOptions{}, rp.Child("selector"))...)
		}
		if a := ref.ParameterNotFoundAction; a == nil {
			errs = append(errs, field.Required(rp.Child("parameterNotFoundAction"), ""))
		} else {
			errs = append(errs, oneOf(*a, rp.Child("parameterNotFoundAction"), admissionv1.AllowAction, admissionv1.DenyAction)...)
		}
	}
	if m != nil {
		errs = append(errs, validateMatchResources(m, p.Child("matchResources"))...)
	}
	return errs
}
