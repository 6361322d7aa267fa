package resources

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func quotas() []*descriptor.Resource {
	return []*descriptor.Resource{
		kind[corev1.LimitRange, corev1.LimitRangeList]("LimitRange", descriptor.Resource{
			GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"limits"}, Namespaced: true,
			Default:  descriptor.Each(defaultLimitRange),
			Validate: descriptor.Check(validateLimitRange),
			Columns:  []descriptor.Column{createdAt},
		}),
		kind[corev1.ResourceQuota, corev1.ResourceQuotaList]("ResourceQuota", descriptor.Resource{
			GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"quota"}, Namespaced: true, Status: true,
			Validate: descriptor.Check(validateQuota),
			ValidateUpdate: descriptor.CheckUpdate(func(q, old *corev1.ResourceQuota) field.ErrorList {
				// What a quota counts is settled when it is made: its usage would be of something else.
				if sets.New(q.Spec.Scopes...).Equal(sets.New(old.Spec.Scopes...)) {
					return nil
				}
				return field.ErrorList{field.Invalid(field.NewPath("spec", "scopes"), q.Spec.Scopes, "field is immutable")}
			}),
			ValidateStatus: descriptor.CheckUpdate(func(q, _ *corev1.ResourceQuota) field.ErrorList {
				return append(validateQuotaList(q.Status.Hard, field.NewPath("status", "hard")), validateQuotaList(q.Status.Used, field.NewPath("status", "used"))...)
			}),
			Columns: []descriptor.Column{
				{Name: "Request", Cell: descriptor.Cell(func(q *corev1.ResourceQuota) string { return quotaCell(q, false) })},
				{Name: "Limit", Cell: descriptor.Cell(func(q *corev1.ResourceQuota) string { return quotaCell(q, true) })},
				descriptor.Age,
			},
		}),
		kind[corev1.PodTemplate, corev1.PodTemplateList]("PodTemplate", descriptor.Resource{
			GroupVersion: corev1.SchemeGroupVersion, Namespaced: true, Generation: true,
			Default: descriptor.Each(func(t *corev1.PodTemplate) { defaultPodSpec(&t.Template.Spec) }),
			Validate: descriptor.Check(func(t *corev1.PodTemplate) field.ErrorList {
				return validatePodTemplate(&t.Template, field.NewPath("template"))
			}),
			Columns: append(narrow(templateColumns(func(o descriptorObject) (*corev1.PodTemplateSpec, *metav1.LabelSelector) {
				t := &o.(*corev1.PodTemplate).Template
				return t, &metav1.LabelSelector{MatchLabels: t.Labels}
			})[:2]), descriptor.Column{Name: "Pod Labels", Cell: descriptor.Cell(func(t *corev1.PodTemplate) string {
				return selectorCell(&metav1.LabelSelector{MatchLabels: t.Template.Labels})
			})}),
		}),
	}
}

// defaultLimitRange gives containers the largest limit as their default, that as their default request, or the smallest.
func defaultLimitRange(l *corev1.LimitRange) {
	for i := range l.Spec.Limits {
		item := &l.Spec.Limits[i]
		if item.Type != corev1.LimitTypeContainer {
			continue
		}
		fillFrom := func(dst *corev1.ResourceList, src corev1.ResourceList) {
			for name, q := range src {
				if *dst == nil {
					*dst = corev1.ResourceList{}
				}
				if _, ok := (*dst)[name]; !ok {
					(*dst)[name] = q.DeepCopy()
				}
			}
		}
		fillFrom(&item.Default, item.Max)
		fillFrom(&item.DefaultRequest, item.Default)
		fillFrom(&item.DefaultRequest, item.Min)
	}
}

func validateLimitRange(l *corev1.LimitRange) field.ErrorList {
	var errs field.ErrorList
	types := sets.New[corev1.LimitType]()
	for i := range l.Spec.Limits {
		item, p := &l.Spec.Limits[i], field.NewPath("spec", "limits").Index(i)
		if !slices.Contains([]corev1.LimitType{corev1.LimitTypePod, corev1.LimitTypeContainer, corev1.LimitTypePersistentVolumeClaim}, item.Type) {
			errs = append(errs, invalidIf(validation.IsQualifiedName(string(item.Type)), p.Child("type"), item.Type)...)
		}
		if types.Has(item.Type) {
			errs = append(errs, field.Duplicate(p.Child("type"), item.Type))
		}
		types.Insert(item.Type)
		lists := map[string]corev1.ResourceList{"max": item.Max, "min": item.Min, "default": item.Default, "defaultRequest": item.DefaultRequest}
		names := sets.New[corev1.ResourceName]()
		for child, list := range lists {
			for name, q := range list {
				names.Insert(name)
				errs = append(errs, validateResourceName(string(name), p.Child(child).Key(string(name)))...)
				if q.Sign() < 0 {
					errs = append(errs, field.Invalid(p.Child(child).Key(string(name)), q.String(), "must be greater than or equal to 0"))
				}
			}
		}
		if item.Type == corev1.LimitTypePod {
			for child, list := range map[string]corev1.ResourceList{"default": item.Default, "defaultRequest": item.DefaultRequest} {
				if len(list) > 0 {
					errs = append(errs, field.Forbidden(p.Child(child), "may not be specified when `type` is 'Pod'"))
				}
			}
		}
		if item.Type == corev1.LimitTypePersistentVolumeClaim {
			_, least := item.Min[corev1.ResourceStorage]
			if _, most := item.Max[corev1.ResourceStorage]; !least && !most {
				errs = append(errs, field.Required(p.Child("limits"), "either minimum or maximum storage value is required, but neither was provided"))
			}
		}
		// Of two that contradict each other the reference blames the default.
		above := func(name corev1.ResourceName, a corev1.ResourceList, more string, b corev1.ResourceList, less, blamed string) {
			x, ok := a[name]
			y, has := b[name]
			if ok && has && x.Cmp(y) > 0 {
				errs = append(errs, field.Invalid(p.Child(blamed).Key(string(name)), lists[blamed][name], more+" value "+x.String()+" is greater than "+less+" value "+y.String()))
			}
		}
		for name := range names {
			above(name, item.Min, "min", item.Max, "max", "min")
			above(name, item.Min, "min", item.DefaultRequest, "default request", "defaultRequest")
			above(name, item.DefaultRequest, "default request", item.Max, "max", "defaultRequest")
			above(name, item.DefaultRequest, "default request", item.Default, "default limit", "defaultRequest")
			above(name, item.Min, "min", item.Default, "default", "default")
			above(name, item.Default, "default", item.Max, "max", "default")
			if ratio, ok := item.MaxLimitRequestRatio[name]; ok {
				errs = append(errs, validateRatio(ratio, item.Min, item.Max, name, p.Child("maxLimitRequestRatio").Key(string(name)))...)
			}
		}
	}
	return errs
}

// validateRatio wants a ratio of at least one, which the smallest request and the largest limit allow.
func validateRatio(ratio resource.Quantity, least, most corev1.ResourceList, name corev1.ResourceName, p *field.Path) field.ErrorList {
	if ratio.Cmp(*resource.NewQuantity(1, resource.DecimalSI)) < 0 {
		return field.ErrorList{field.Invalid(p, ratio.String(), "ratio "+ratio.String()+" is less than 1")}
	}
	lo, ok := least[name]
	hi, has := most[name]
	if ok && has && lo.AsApproximateFloat64() > 0 && ratio.AsApproximateFloat64() > hi.AsApproximateFloat64()/lo.AsApproximateFloat64() {
		return field.ErrorList{field.Invalid(p, ratio.String(), "ratio "+ratio.String()+" is greater than max/min")}
	}
	return nil
}

func validateQuotaList(list corev1.ResourceList, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	for name, q := range list {
		errs = append(errs, validateQuotaName(string(name), p.Key(string(name)))...)
		if q.Sign() < 0 {
			errs = append(errs, field.Invalid(p.Key(string(name)), q.String(), "must be greater than or equal to 0"))
		}
		if (counted.Has(name) || extended(string(name))) && q.MilliValue()%1000 != 0 {
			errs = append(errs, field.Invalid(p.Key(string(name)), q.String(), "must be an integer"))
		}
	}
	return errs
}

// counted are resources of which there are only whole ones.
var counted = sets.New(corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets,
	corev1.ResourcePersistentVolumeClaims, corev1.ResourceConfigMaps, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers)

// extended tells whether a resource is of a domain that is not the project's. What is counted by kind (count/...) is such a one to the reference, too.
func extended(name string) bool {
	return strings.Contains(name, "/") && !strings.Contains(name, corev1.ResourceDefaultNamespacePrefix) && !strings.HasPrefix(name, corev1.DefaultResourceRequestsPrefix)
}

// validateQuotaName accepts the resources that a quota can count.
func validateQuotaName(name string, p *field.Path) field.ErrorList {
	if errs := invalidIf(validation.IsQualifiedName(name), p, name); len(errs) > 0 {
		return errs
	}
	if strings.Contains(name, "/") || strings.HasPrefix(name, corev1.ResourceHugePagesPrefix) || strings.HasPrefix(name, corev1.ResourceRequestsHugePagesPrefix) {
		return nil
	}
	switch corev1.ResourceName(name) {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourceStorage,
		corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsStorage, corev1.ResourceRequestsEphemeralStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage:
		return nil
	}
	if counted.Has(corev1.ResourceName(name)) {
		return nil
	}
	return field.ErrorList{field.Invalid(p, name, "must be a standard resource for quota")}
}

// podScopes are the scopes that choose among pods only.
var podScopes = sets.New(corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity)

func validateQuota(q *corev1.ResourceQuota) field.ErrorList {
	p := field.NewPath("spec")
	errs := validateQuotaList(q.Spec.Hard, p.Child("hard"))
	var scopes []corev1.ResourceQuotaScope
	for _, s := range q.Spec.Scopes {
		errs = append(errs, validateQuotaScope(s, q.Spec.Hard, p.Child("scopes"), p.Child("scopes"))...)
		scopes = append(scopes, s)
	}
	if len(q.Spec.Scopes) > sets.New(q.Spec.Scopes...).Len() {
		errs = append(errs, field.Invalid(p.Child("scopes"), q.Spec.Scopes, "must not repeat a scope"))
	}
	errs = append(errs, contradictory(scopes, q.Spec.Scopes, p.Child("scopes"))...)
	if sel := q.Spec.ScopeSelector; sel != nil {
		mp := p.Child("scopeSelector", "matchExpressions")
		scopes = nil
		// As with the reference, paths don't tell which of the expressions is wrong.
		for _, e := range sel.MatchExpressions {
			errs = append(errs, validateQuotaScope(e.ScopeName, q.Spec.Hard, mp.Child("scopeName"), mp)...)
			valued := e.ScopeName == corev1.ResourceQuotaScopePriorityClass || e.ScopeName == corev1.ResourceQuotaScopeVolumeAttributesClass
			if !valued && e.Operator != corev1.ScopeSelectorOpExists {
				errs = append(errs, field.Invalid(mp.Child("operator"), e.Operator, "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity"))
			}
			switch e.Operator {
			case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
				if len(e.Values) == 0 {
					errs = append(errs, field.Required(mp.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"))
				}
			case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
				if len(e.Values) > 0 {
					errs = append(errs, field.Invalid(mp.Child("values"), e.Values, "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector"))
				}
			default:
				errs = append(errs, field.Invalid(mp.Child("operator"), e.Operator, "not a valid selector operator"))
			}
			scopes = append(scopes, e.ScopeName)
		}
		errs = append(errs, contradictory(scopes, sel.MatchExpressions, mp)...)
	}
	return errs
}

func contradictory(scopes []corev1.ResourceQuotaScope, value any, p *field.Path) field.ErrorList {
	for _, pair := range [][2]corev1.ResourceQuotaScope{
		{corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating}, {corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort},
	} {
		if slices.Contains(scopes, pair[0]) && slices.Contains(scopes, pair[1]) {
			return field.ErrorList{field.Invalid(p, value, "conflicting scopes")}
		}
	}
	return nil
}

// validateQuotaScope refuses scopes that there are not, at named, and those that say nothing of a resource that the quota counts, at p.
func validateQuotaScope(s corev1.ResourceQuotaScope, hard corev1.ResourceList, named, p *field.Path) field.ErrorList {
	if !podScopes.Has(s) && s != corev1.ResourceQuotaScopeVolumeAttributesClass {
		return field.ErrorList{field.Invalid(named, s, "unsupported scope")}
	}
	for name := range hard {
		n := string(name)
		claims := name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage || strings.Contains(n, ".storageclass.storage.k8s.io/")
		compute := name == corev1.ResourcePods || name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage || strings.HasPrefix(n, corev1.DefaultResourceRequestsPrefix) && !claims || strings.HasPrefix(n, "limits.") || n == "count/pods" || strings.HasPrefix(n, corev1.ResourceHugePagesPrefix)
		fits := compute
		switch s {
		case corev1.ResourceQuotaScopeBestEffort:
			fits = name == corev1.ResourcePods || n == "count/pods"
		case corev1.ResourceQuotaScopeVolumeAttributesClass:
			fits = claims
		}
		if !fits {
			return field.ErrorList{field.Invalid(p, s, "unsupported scope applied to resource")}
		}
	}
	return nil
}
