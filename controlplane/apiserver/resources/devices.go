package resources

import (
	"encoding/json"
	"fmt"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	dracel "k8s.io/dynamic-resource-allocation/cel"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// devices are the kinds of dynamic resource allocation (KEP-4381).
func devices() []*descriptor.Resource {
	gv := resourcev1.SchemeGroupVersion
	return []*descriptor.Resource{
		kind[resourcev1.DeviceClass, resourcev1.DeviceClassList]("DeviceClass", descriptor.Resource{
			GroupVersion: gv, Plural: "deviceclasses", Generation: true,
			Validate: descriptor.Check(func(c *resourcev1.DeviceClass) field.ErrorList {
				p := field.NewPath("spec")
				errs := validateDeviceSelectors(c.Spec.Selectors, p.Child("selectors"))
				if n := len(c.Spec.Config); n > resourcev1.DeviceConfigMaxSize {
					errs = append(errs, field.TooMany(p.Child("config"), n, resourcev1.DeviceConfigMaxSize))
				}
				for i, cfg := range c.Spec.Config {
					errs = append(errs, validateDeviceConfig(cfg.DeviceConfiguration, p.Child("config").Index(i))...)
				}
				if n := c.Spec.ExtendedResourceName; n != nil {
					errs = append(errs, invalidIf(validation.IsQualifiedName(*n), p.Child("extendedResourceName"), *n)...)
				}
				return errs
			}),
		}),
		kind[resourcev1.ResourceClaim, resourcev1.ResourceClaimList]("ResourceClaim", descriptor.Resource{
			GroupVersion: gv, Namespaced: true, Status: true,
			Default: descriptor.Each(func(c *resourcev1.ResourceClaim) { defaultDeviceClaim(&c.Spec.Devices) }),
			Validate: descriptor.Check(func(c *resourcev1.ResourceClaim) field.ErrorList {
				return validateDeviceClaim(&c.Spec.Devices, field.NewPath("spec", "devices"))
			}),
			Revalidate: unchangeable,
			ValidateUpdate: descriptor.CheckUpdate(func(c, old *resourcev1.ResourceClaim) field.ErrorList {
				return apivalidation.ValidateImmutableField(c.Spec, old.Spec, field.NewPath("spec"))
			}),
			ValidateStatus: descriptor.CheckUpdate(validateClaimStatus),
			Columns: []descriptor.Column{
				{Name: "State", Cell: descriptor.Cell(func(c *resourcev1.ResourceClaim) string {
					var states []string
					if c.DeletionTimestamp != nil {
						states = append(states, "deleted")
					}
					if c.Status.Allocation != nil {
						states = append(states, "allocated")
						if len(c.Status.ReservedFor) > 0 {
							states = append(states, "reserved")
						}
					} else if c.DeletionTimestamp == nil {
						states = append(states, "pending")
					}
					return strings.Join(states, ",")
				})},
				descriptor.Age,
			},
		}),
		kind[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList]("ResourceClaimTemplate", descriptor.Resource{
			GroupVersion: gv, Namespaced: true,
			Default: descriptor.Each(func(t *resourcev1.ResourceClaimTemplate) { defaultDeviceClaim(&t.Spec.Spec.Devices) }),
			Validate: descriptor.Check(func(t *resourcev1.ResourceClaimTemplate) field.ErrorList {
				p := field.NewPath("spec")
				errs := metav1validation.ValidateLabels(t.Spec.Labels, p.Child("metadata", "labels"))
				errs = append(errs, apivalidation.ValidateAnnotations(t.Spec.Annotations, p.Child("metadata", "annotations"))...)
				return append(errs, validateDeviceClaim(&t.Spec.Spec.Devices, p.Child("spec", "devices"))...)
			}),
			Revalidate: unchangeable,
			ValidateUpdate: descriptor.CheckUpdate(func(t, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
				return apivalidation.ValidateImmutableField(t.Spec, old.Spec, field.NewPath("spec"))
			}),
		}),
		kind[resourcev1.ResourceSlice, resourcev1.ResourceSliceList]("ResourceSlice", descriptor.Resource{
			GroupVersion: gv, Generation: true,
			Validate: descriptor.Check(validateResourceSlice),
			ValidateUpdate: descriptor.CheckUpdate(func(s, old *resourcev1.ResourceSlice) field.ErrorList {
				p := field.NewPath("spec")
				errs := apivalidation.ValidateImmutableField(s.Spec.Driver, old.Spec.Driver, p.Child("driver"))
				errs = append(errs, apivalidation.ValidateImmutableField(s.Spec.Pool.Name, old.Spec.Pool.Name, p.Child("pool", "name"))...)
				return append(errs, apivalidation.ValidateImmutableField(s.Spec.NodeName, old.Spec.NodeName, p.Child("nodeName"))...)
			}),
			Selectable: func(o runtime.Object) fields.Set {
				s := &o.(*resourcev1.ResourceSlice).Spec
				return fields.Set{resourcev1.ResourceSliceSelectorNodeName: valueOr(s.NodeName, ""), resourcev1.ResourceSliceSelectorDriver: s.Driver, resourcev1.ResourceSliceSelectorPoolName: s.Pool.Name}
			},
			IndexField: resourcev1.ResourceSliceSelectorNodeName,
			Columns: []descriptor.Column{
				{Name: "Node", Cell: descriptor.Cell(func(s *resourcev1.ResourceSlice) string { return valueOr(s.Spec.NodeName, "<unset>") })},
				{Name: "Driver", Cell: descriptor.Cell(func(s *resourcev1.ResourceSlice) string { return s.Spec.Driver })},
				{Name: "Pool", Cell: descriptor.Cell(func(s *resourcev1.ResourceSlice) string { return s.Spec.Pool.Name })},
				descriptor.Age,
			},
		}),
		kind[resourcev1.DeviceTaintRule, resourcev1.DeviceTaintRuleList]("DeviceTaintRule", descriptor.Resource{
			GroupVersion: gv, Generation: true, Status: true,
			Validate: descriptor.Check(func(r *resourcev1.DeviceTaintRule) field.ErrorList {
				return validateDeviceTaint(r.Spec.Taint, field.NewPath("spec", "taint"))
			}),
		}),
	}
}

// unchangeable is the Revalidate of what has no content but a spec that never changes: one that an older server took must stay possible to label, and to
// let go.
func unchangeable(_, _ runtime.Object) field.ErrorList { return nil }

func defaultDeviceClaim(c *resourcev1.DeviceClaim) {
	for i := range c.Requests {
		r := &c.Requests[i]
		if e := r.Exactly; e != nil {
			defaultAllocation(&e.AllocationMode, &e.Count, e.Tolerations)
		}
		for j := range r.FirstAvailable {
			defaultAllocation(&r.FirstAvailable[j].AllocationMode, &r.FirstAvailable[j].Count, r.FirstAvailable[j].Tolerations)
		}
	}
}

func defaultAllocation(mode *resourcev1.DeviceAllocationMode, count *int64, tolerations []resourcev1.DeviceToleration) {
	fill(mode, resourcev1.DeviceAllocationModeExactCount)
	if *mode == resourcev1.DeviceAllocationModeExactCount {
		fill(count, 1)
	}
	for i := range tolerations {
		fill(&tolerations[i].Operator, resourcev1.DeviceTolerationOpEqual)
	}
}

func validateDeviceSelectors(selectors []resourcev1.DeviceSelector, p *field.Path) field.ErrorList {
	if n := len(selectors); n > resourcev1.DeviceSelectorsMaxSize {
		return field.ErrorList{field.TooMany(p, n, resourcev1.DeviceSelectorsMaxSize)}
	}
	var errs field.ErrorList
	for i, s := range selectors {
		ep := p.Index(i).Child("cel")
		switch {
		case s.CEL == nil:
			errs = append(errs, field.Required(ep, ""))
		case len(s.CEL.Expression) > resourcev1.CELSelectorExpressionMaxLength:
			errs = append(errs, field.TooLong(ep.Child("expression"), "", resourcev1.CELSelectorExpressionMaxLength))
		default:
			if r := dracel.GetCompiler(dracel.Features{}).CompileCELExpression(s.CEL.Expression, dracel.Options{}); r.Error != nil {
				errs = append(errs, field.Invalid(ep.Child("expression"), s.CEL.Expression, r.Error.Detail))
			}
		}
	}
	return errs
}

func validateDeviceConfig(c resourcev1.DeviceConfiguration, p *field.Path) field.ErrorList {
	if c.Opaque == nil {
		return field.ErrorList{field.Required(p, "exactly one field must be specified: `opaque`")}
	}
	op := p.Child("opaque")
	errs := validateDriverName(c.Opaque.Driver, op.Child("driver"))
	raw := c.Opaque.Parameters.Raw
	switch {
	case len(raw) == 0:
		errs = append(errs, field.Required(op.Child("parameters"), ""))
	case len(raw) > resourcev1.OpaqueParametersMaxLength:
		errs = append(errs, field.TooLong(op.Child("parameters"), "", resourcev1.OpaqueParametersMaxLength))
	default:
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			errs = append(errs, field.Invalid(op.Child("parameters"), "<value omitted>", fmt.Sprintf("error parsing data as JSON: %v", err)))
		} else if m, ok := v.(map[string]any); !ok || m == nil {
			errs = append(errs, field.Invalid(op.Child("parameters"), "<value omitted>", "parameters must be a valid JSON object"))
		}
	}
	return errs
}

func validateDeviceClaim(c *resourcev1.DeviceClaim, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if n := len(c.Requests); n > resourcev1.DeviceRequestsMaxSize {
		errs = append(errs, field.TooMany(p.Child("requests"), n, resourcev1.DeviceRequestsMaxSize))
	}
	names := sets.New[string]()
	for i := range c.Requests {
		r, rp := &c.Requests[i], p.Child("requests").Index(i)
		errs = append(errs, validateRequestName(r.Name, names, rp.Child("name"))...)
		switch {
		case r.Exactly == nil && len(r.FirstAvailable) == 0:
			errs = append(errs, field.Required(rp, "exactly one of `exactly` or `firstAvailable` is required"))
		case r.Exactly != nil && len(r.FirstAvailable) > 0:
			errs = append(errs, field.Invalid(rp, nil, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"))
		case r.Exactly != nil:
			e := r.Exactly
			errs = append(errs, validateRequest(e.DeviceClassName, e.Selectors, e.AllocationMode, e.Count, e.Tolerations, rp.Child("exactly"))...)
		}
		fp := rp.Child("firstAvailable")
		if n := len(r.FirstAvailable); n > resourcev1.FirstAvailableDeviceRequestMaxSize {
			errs = append(errs, field.TooMany(fp, n, resourcev1.FirstAvailableDeviceRequestMaxSize))
		}
		subs := sets.New[string]()
		for j, s := range r.FirstAvailable {
			errs = append(errs, validateRequestName(s.Name, subs, fp.Index(j).Child("name"))...)
			errs = append(errs, validateRequest(s.DeviceClassName, s.Selectors, s.AllocationMode, s.Count, s.Tolerations, fp.Index(j))...)
		}
		for s := range subs {
			names.Insert(r.Name + "/" + s)
		}
	}
	known := func(requests []string, lp *field.Path) {
		for i, name := range requests {
			if !names.Has(name) {
				errs = append(errs, field.Invalid(lp.Index(i), name, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"))
			}
		}
	}
	if n := len(c.Constraints); n > resourcev1.DeviceConstraintsMaxSize {
		errs = append(errs, field.TooMany(p.Child("constraints"), n, resourcev1.DeviceConstraintsMaxSize))
	}
	for i, k := range c.Constraints {
		kp := p.Child("constraints").Index(i)
		known(k.Requests, kp.Child("requests"))
		if (k.MatchAttribute == nil) == (k.DistinctAttribute == nil) {
			errs = append(errs, field.Required(kp, "exactly one of `matchAttribute` or `distinctAttribute` is required"))
		}
		for child, name := range map[string]*resourcev1.FullyQualifiedName{"matchAttribute": k.MatchAttribute, "distinctAttribute": k.DistinctAttribute} {
			if name != nil {
				errs = append(errs, validateFullAttributeName(string(*name), kp.Child(child))...)
			}
		}
	}
	if n := len(c.Config); n > resourcev1.DeviceConfigMaxSize {
		errs = append(errs, field.TooMany(p.Child("config"), n, resourcev1.DeviceConfigMaxSize))
	}
	for i, cfg := range c.Config {
		known(cfg.Requests, p.Child("config").Index(i).Child("requests"))
		errs = append(errs, validateDeviceConfig(cfg.DeviceConfiguration, p.Child("config").Index(i))...)
	}
	return errs
}

func validateRequestName(name string, seen sets.Set[string], p *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	errs := invalidIf(validation.IsDNS1123Label(name), p, name)
	if seen.Has(name) {
		errs = append(errs, field.Duplicate(p, name))
	}
	seen.Insert(name)
	return errs
}

func validateRequest(class string, selectors []resourcev1.DeviceSelector, mode resourcev1.DeviceAllocationMode, count int64, tolerations []resourcev1.DeviceToleration, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if class == "" {
		errs = append(errs, field.Required(p.Child("deviceClassName"), ""))
	} else {
		errs = append(errs, invalidIf(subdomain(class), p.Child("deviceClassName"), class)...)
	}
	errs = append(errs, validateDeviceSelectors(selectors, p.Child("selectors"))...)
	switch mode {
	case resourcev1.DeviceAllocationModeAll:
		if count != 0 {
			errs = append(errs, field.Invalid(p.Child("count"), count, fmt.Sprintf("must not be specified when allocationMode is '%s'", mode)))
		}
	case resourcev1.DeviceAllocationModeExactCount:
		if count <= 0 {
			errs = append(errs, field.Invalid(p.Child("count"), count, "must be greater than zero"))
		}
	default:
		errs = append(errs, oneOf(mode, p.Child("allocationMode"), resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount)...)
	}
	for i, t := range tolerations {
		tp := p.Child("tolerations").Index(i)
		errs = append(errs, oneOf(t.Operator, tp.Child("operator"), resourcev1.DeviceTolerationOpEqual, resourcev1.DeviceTolerationOpExists)...)
		if t.Key != "" {
			errs = append(errs, metav1validation.ValidateLabelName(t.Key, tp.Child("key"))...)
		} else if t.Operator != resourcev1.DeviceTolerationOpExists {
			errs = append(errs, field.Required(tp.Child("key"), "must not be empty when `operator` is not 'Exists'"))
		}
		if t.Operator == resourcev1.DeviceTolerationOpExists && t.Value != "" {
			errs = append(errs, field.Invalid(tp.Child("value"), t.Value, "must be empty when `operator` is 'Exists'"))
		}
	}
	return errs
}

func validateClaimStatus(c, old *resourcev1.ResourceClaim) field.ErrorList {
	p := field.NewPath("status")
	var errs field.ErrorList
	if n := len(c.Status.ReservedFor); n > resourcev1.ResourceClaimReservedForMaxSize {
		errs = append(errs, field.TooMany(p.Child("reservedFor"), n, resourcev1.ResourceClaimReservedForMaxSize))
	}
	seen := sets.New[string]()
	for i, r := range c.Status.ReservedFor {
		rp := p.Child("reservedFor").Index(i)
		for _, f := range []struct{ name, value string }{{"resource", r.Resource}, {"name", r.Name}, {"uid", string(r.UID)}} {
			if f.value == "" {
				errs = append(errs, field.Required(rp.Child(f.name), ""))
			}
		}
		if seen.Has(string(r.UID)) {
			errs = append(errs, field.Duplicate(rp.Child("uid"), r.UID))
		}
		seen.Insert(string(r.UID))
	}
	if c.Status.Allocation == nil && len(c.Status.ReservedFor) > 0 {
		errs = append(errs, field.Forbidden(p.Child("reservedFor"), "may not be specified when `allocated` is not set"))
	}
	if c.Status.Allocation != nil && old.Status.Allocation != nil {
		errs = append(errs, apivalidation.ValidateImmutableField(c.Status.Allocation, old.Status.Allocation, p.Child("allocation"))...)
	}
	if old.Status.Allocation == nil && c.DeletionTimestamp != nil && c.Status.Allocation != nil {
		errs = append(errs, field.Forbidden(p.Child("allocation"), "new allocation may not be set while the claim is deleted"))
	}
	return errs
}

func validateResourceSlice(s *resourcev1.ResourceSlice) field.ErrorList {
	p := field.NewPath("spec")
	errs := validateDriverName(s.Spec.Driver, p.Child("driver"))
	pool := p.Child("pool")
	if name := s.Spec.Pool.Name; name == "" {
		errs = append(errs, field.Required(pool.Child("name"), ""))
	} else {
		if len(name) > resourcev1.PoolNameMaxLength {
			errs = append(errs, field.TooLong(pool.Child("name"), "", resourcev1.PoolNameMaxLength))
		}
		for _, part := range strings.Split(name, "/") {
			errs = append(errs, invalidIf(validation.IsDNS1123Subdomain(part), pool.Child("name"), name)...)
		}
	}
	if n := s.Spec.Pool.ResourceSliceCount; n <= 0 {
		errs = append(errs, field.Invalid(pool.Child("resourceSliceCount"), n, "must be greater than zero"))
	}
	if n := s.Spec.Pool.Generation; n < 0 {
		errs = append(errs, field.Invalid(pool.Child("generation"), n, "must be greater than or equal to zero"))
	}
	if s.Spec.NodeName != nil {
		errs = append(errs, invalidIf(subdomain(*s.Spec.NodeName), p.Child("nodeName"), *s.Spec.NodeName)...)
	}
	switch given := count(s.Spec.NodeName != nil, s.Spec.NodeSelector != nil, isTrue(s.Spec.AllNodes), isTrue(s.Spec.PerDeviceNodeSelection)); {
	case given == 0 && len(s.Spec.SharedCounters) == 0:
		errs = append(errs, field.Required(p, "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"))
	case given > 1:
		errs = append(errs, field.Invalid(p, "{}", "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set"))
	}
	if n := len(s.Spec.Devices); n > resourcev1.ResourceSliceMaxDevices {
		errs = append(errs, field.TooMany(p.Child("devices"), n, resourcev1.ResourceSliceMaxDevices))
	}
	names := sets.New[string]()
	for i, d := range s.Spec.Devices {
		dp := p.Child("devices").Index(i)
		errs = append(errs, validateRequestName(d.Name, names, dp.Child("name"))...)
		if n := len(d.Attributes) + len(d.Capacity); n > resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice {
			errs = append(errs, field.Invalid(dp, n, fmt.Sprintf("the total number of attributes and capacities must not exceed %d", resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice)))
		}
		errs = append(errs, validateAttributes(d, dp)...)
		if n := len(d.Taints); n > resourcev1.DeviceTaintsMaxLength {
			errs = append(errs, field.TooMany(dp.Child("taints"), n, resourcev1.DeviceTaintsMaxLength))
		}
		for j, t := range d.Taints {
			errs = append(errs, validateDeviceTaint(t, dp.Child("taints").Index(j))...)
		}
	}
	return errs
}

func validateDeviceTaint(t resourcev1.DeviceTaint, p *field.Path) field.ErrorList {
	errs := metav1validation.ValidateLabelName(t.Key, p.Child("key"))
	if t.Value != "" {
		errs = append(errs, invalidIf(validation.IsValidLabelValue(t.Value), p.Child("value"), t.Value)...)
	}
	if t.Effect == "" {
		return append(errs, field.Required(p.Child("effect"), ""))
	}
	return append(errs, oneOf(t.Effect, p.Child("effect"), resourcev1.DeviceTaintEffectNoExecute, resourcev1.DeviceTaintEffectNoSchedule, resourcev1.DeviceTaintEffectNone)...)
}
