package resources

import (
	"fmt"
	"strings"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func autoscaling() []*descriptor.Resource {
	return []*descriptor.Resource{kind[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList]("HorizontalPodAutoscaler", descriptor.Resource{
		GroupVersion: autoscalingv2.SchemeGroupVersion, ShortNames: []string{"hpa"}, Categories: []string{"all"}, Namespaced: true, Generation: true, Status: true,
		Default:  descriptor.Each(defaultAutoscaler),
		Validate: descriptor.Check(validateAutoscaler),
		Columns: []descriptor.Column{
			{Name: "Reference", Cell: descriptor.Cell(func(h *autoscalingv2.HorizontalPodAutoscaler) string {
				return h.Spec.ScaleTargetRef.Kind + "/" + h.Spec.ScaleTargetRef.Name
			})},
			{Name: "Targets", Cell: descriptor.Cell(targetsCell)},
			{Name: "MinPods", Cell: descriptor.Cell(func(h *autoscalingv2.HorizontalPodAutoscaler) string { return valueOr(h.Spec.MinReplicas, "<unset>") })},
			{Name: "MaxPods", Type: "integer", Cell: descriptor.Cell(func(h *autoscalingv2.HorizontalPodAutoscaler) int64 { return int64(h.Spec.MaxReplicas) })},
			{Name: "Replicas", Type: "integer", Cell: descriptor.Cell(func(h *autoscalingv2.HorizontalPodAutoscaler) int64 { return int64(h.Status.CurrentReplicas) })},
			descriptor.Age,
		},
	})}
}

// defaultUtilization is what pods may use of the CPU that they request where an autoscaler names no metric.
const defaultUtilization = 80

func defaultAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) {
	set(&h.Spec.MinReplicas, int32(1))
	if len(h.Spec.Metrics) == 0 {
		n := int32(defaultUtilization)
		h.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &n},
		}}}
	}
	b := h.Spec.Behavior
	if b == nil {
		return
	}
	// A hundred per cent or four pods in 15 s upwards, all at once downwards (KEP-853).
	b.ScaleUp = defaultScaling(b.ScaleUp, 0, autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PodsScalingPolicy, Value: 4, PeriodSeconds: 15}, autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15})
	b.ScaleDown = defaultScaling(b.ScaleDown, -1, autoscalingv2.HPAScalingPolicy{Type: autoscalingv2.PercentScalingPolicy, Value: 100, PeriodSeconds: 15})
}

// defaultScaling fills in the rules of one direction; a negative window is left to the controller.
func defaultScaling(r *autoscalingv2.HPAScalingRules, window int32, policies ...autoscalingv2.HPAScalingPolicy) *autoscalingv2.HPAScalingRules {
	if r == nil {
		r = &autoscalingv2.HPAScalingRules{}
	}
	set(&r.SelectPolicy, autoscalingv2.MaxChangePolicySelect)
	if window >= 0 {
		set(&r.StabilizationWindowSeconds, window)
	}
	if len(r.Policies) == 0 {
		r.Policies = policies
	}
	return r
}

func validateAutoscaler(h *autoscalingv2.HorizontalPodAutoscaler) field.ErrorList {
	p := field.NewPath("spec")
	var errs field.ErrorList
	least := int32(1)
	if m := h.Spec.MinReplicas; m != nil {
		least = *m
		outside := false // whether a metric works without pods
		for _, s := range h.Spec.Metrics {
			outside = outside || s.Type == autoscalingv2.ObjectMetricSourceType || s.Type == autoscalingv2.ExternalMetricSourceType
		}
		switch {
		case *m < 0:
			errs = append(errs, field.Invalid(p.Child("minReplicas"), *m, "must be greater than or equal to 0"))
		case *m == 0 && !outside:
			errs = append(errs, field.Forbidden(p.Child("metrics"), "must specify at least one Object or External metric to support scaling to zero replicas"))
		}
	}
	if h.Spec.MaxReplicas < 1 {
		errs = append(errs, field.Invalid(p.Child("maxReplicas"), h.Spec.MaxReplicas, "must be greater than 0"))
	}
	if h.Spec.MaxReplicas < least {
		errs = append(errs, field.Invalid(p.Child("maxReplicas"), h.Spec.MaxReplicas, "must be greater than or equal to `minReplicas`"))
	}
	errs = append(errs, validateScaleTarget(h.Spec.ScaleTargetRef, p.Child("scaleTargetRef"))...)
	for i := range h.Spec.Metrics {
		errs = append(errs, validateMetric(&h.Spec.Metrics[i], p.Child("metrics").Index(i))...)
	}
	if b := h.Spec.Behavior; b != nil {
		errs = append(errs, validateScaling(b.ScaleUp, p.Child("behavior", "scaleUp"))...)
		errs = append(errs, validateScaling(b.ScaleDown, p.Child("behavior", "scaleDown"))...)
	}
	return errs
}

func validateScaleTarget(r autoscalingv2.CrossVersionObjectReference, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct{ name, value string }{{"kind", r.Kind}, {"name", r.Name}} {
		if f.value == "" {
			errs = append(errs, field.Required(p.Child(f.name), ""))
		} else {
			errs = append(errs, invalidIf(pathvalidation.IsValidPathSegmentName(f.value), p.Child(f.name), f.value)...)
		}
	}
	return errs
}

func validateMetric(m *autoscalingv2.MetricSpec, p *field.Path) field.ErrorList {
	if m.Type == "" {
		return field.ErrorList{field.Required(p.Child("type"), "must specify a metric source type")}
	}
	sources := map[autoscalingv2.MetricSourceType]struct {
		name string
		set  bool
	}{
		autoscalingv2.ObjectMetricSourceType: {"object", m.Object != nil}, autoscalingv2.PodsMetricSourceType: {"pods", m.Pods != nil}, autoscalingv2.ResourceMetricSourceType: {"resource", m.Resource != nil},
		autoscalingv2.ContainerResourceMetricSourceType: {"containerResource", m.ContainerResource != nil}, autoscalingv2.ExternalMetricSourceType: {"external", m.External != nil},
	}
	errs := oneOf(m.Type, p.Child("type"), autoscalingv2.ContainerResourceMetricSourceType, autoscalingv2.ExternalMetricSourceType, autoscalingv2.ObjectMetricSourceType, autoscalingv2.PodsMetricSourceType, autoscalingv2.ResourceMetricSourceType)
	for t, s := range sources {
		switch {
		case t == m.Type && !s.set:
			errs = append(errs, field.Required(p.Child(s.name), "must populate information for the given metric source"))
		case t != m.Type && s.set:
			errs = append(errs, field.Forbidden(p.Child(s.name), "must populate the given metric source only"))
		}
	}
	if len(errs) > 0 {
		return errs
	}
	switch m.Type {
	case autoscalingv2.ObjectMetricSourceType:
		op := p.Child("object")
		errs = append(validateScaleTarget(m.Object.DescribedObject, op.Child("describedObject")), validateMetricName(m.Object.Metric, op.Child("metric"))...)
		errs = append(errs, validateTarget(m.Object.Target, op.Child("target"), true, true, false)...)
	case autoscalingv2.PodsMetricSourceType:
		pp := p.Child("pods")
		errs = append(validateMetricName(m.Pods.Metric, pp.Child("metric")), validateTarget(m.Pods.Target, pp.Child("target"), false, true, false)...)
	case autoscalingv2.ExternalMetricSourceType:
		ep := p.Child("external")
		errs = append(validateMetricName(m.External.Metric, ep.Child("metric")), validateTarget(m.External.Target, ep.Child("target"), true, true, false)...)
	case autoscalingv2.ResourceMetricSourceType:
		errs = validateResourceMetric(m.Resource.Name, m.Resource.Target, p.Child("resource"))
	case autoscalingv2.ContainerResourceMetricSourceType:
		cp := p.Child("containerResource")
		errs = validateResourceMetric(m.ContainerResource.Name, m.ContainerResource.Target, cp)
		if m.ContainerResource.Container == "" {
			errs = append(errs, field.Required(cp.Child("container"), "must specify a container"))
		}
	}
	return errs
}

func validateResourceMetric(name corev1.ResourceName, t autoscalingv2.MetricTarget, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if name == "" {
		errs = append(errs, field.Required(p.Child("name"), "must specify a resource name"))
	}
	return append(errs, validateTarget(t, p.Child("target"), false, true, true)...)
}

func validateMetricName(m autoscalingv2.MetricIdentifier, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if m.Name == "" {
		errs = append(errs, field.Required(p.Child("name"), "must specify a metric name"))
	} else {
		errs = append(errs, invalidIf(pathvalidation.IsValidPathSegmentName(m.Name), p.Child("name"), m.Name)...)
	}
	if m.Selector != nil {
		errs = append(errs, metav1validation.ValidateLabelSelector(m.Selector, metav1validation.LabelSelectorValidationOptions{}, p.Child("selector"))...)
	}
	return errs
}

// validateTarget wants exactly one of the values that make sense for a source, each more than nothing.
func validateTarget(t autoscalingv2.MetricTarget, p *field.Path, value, average, utilization bool) field.ErrorList {
	errs := oneOf(t.Type, p.Child("type"), autoscalingv2.UtilizationMetricType, autoscalingv2.ValueMetricType, autoscalingv2.AverageValueMetricType)
	given := 0
	for _, q := range []struct {
		name    string
		v       *resource.Quantity
		allowed bool
	}{{"value", t.Value, value}, {"averageValue", t.AverageValue, average}} {
		switch {
		case q.v == nil:
			continue
		case !q.allowed:
			errs = append(errs, field.Forbidden(p.Child(q.name), "may not be set for this metric source"))
		case q.v.Sign() != 1:
			errs = append(errs, field.Invalid(p.Child(q.name), q.v, "must be positive"))
		}
		given++
	}
	if u := t.AverageUtilization; u != nil {
		given++
		switch {
		case !utilization:
			errs = append(errs, field.Forbidden(p.Child("averageUtilization"), "may not be set for this metric source"))
		case *u < 1:
			errs = append(errs, field.Invalid(p.Child("averageUtilization"), *u, "must be greater than 0"))
		}
	}
	switch {
	case given == 0 && utilization:
		errs = append(errs, field.Required(p.Child("averageUtilization"), "must set either a target raw value or a target utilization"))
	case given == 0 && value:
		errs = append(errs, field.Required(p.Child("averageValue"), "must set either a target value for metric or a per-pod target"))
	case given == 0:
		errs = append(errs, field.Required(p.Child("averageValue"), "must specify a positive target averageValue"))
	case given > 1:
		errs = append(errs, field.Forbidden(p, "may not set more than one target value"))
	}
	return errs
}

// Limits of what an autoscaler may be told about its pace, in seconds.
const (
	maxScalingPeriod = 1800
	maxStabilization = 3600
)

func validateScaling(r *autoscalingv2.HPAScalingRules, p *field.Path) field.ErrorList {
	if r == nil {
		return nil
	}
	var errs field.ErrorList
	if w := r.StabilizationWindowSeconds; w != nil && (*w < 0 || *w > maxStabilization) {
		errs = append(errs, field.Invalid(p.Child("stabilizationWindowSeconds"), *w, fmt.Sprintf("must be between 0 and %d", maxStabilization)))
	}
	if s := r.SelectPolicy; s != nil {
		errs = append(errs, oneOf(*s, p.Child("selectPolicy"), autoscalingv2.DisabledPolicySelect, autoscalingv2.MaxChangePolicySelect, autoscalingv2.MinChangePolicySelect)...)
	}
	if t := r.Tolerance; t != nil && t.Sign() < 0 {
		errs = append(errs, field.Invalid(p.Child("tolerance"), t, "must be greater or equal to 0"))
	}
	if len(r.Policies) == 0 {
		errs = append(errs, field.Required(p.Child("policies"), "must specify at least one Policy"))
	}
	for i, policy := range r.Policies {
		pp := p.Child("policies").Index(i)
		errs = append(errs, oneOf(policy.Type, pp.Child("type"), autoscalingv2.PercentScalingPolicy, autoscalingv2.PodsScalingPolicy)...)
		if policy.Value <= 0 {
			errs = append(errs, field.Invalid(pp.Child("value"), policy.Value, "must be greater than zero"))
		}
		if policy.PeriodSeconds <= 0 || policy.PeriodSeconds > maxScalingPeriod {
			errs = append(errs, field.Invalid(pp.Child("periodSeconds"), policy.PeriodSeconds, fmt.Sprintf("must be greater than zero and less than or equal to %d", maxScalingPeriod)))
		}
	}
	return errs
}

// targetsCell prints what each metric is and what it should be.
func targetsCell(h *autoscalingv2.HorizontalPodAutoscaler) string {
	if len(h.Spec.Metrics) == 0 {
		return "<none>"
	}
	const shown = 2 // metrics that have room in the column
	var out []string
	for i, m := range h.Spec.Metrics {
		if i == shown {
			out = append(out, fmt.Sprintf("%d more...", len(h.Spec.Metrics)-shown))
			break
		}
		var now *autoscalingv2.MetricValueStatus
		if i < len(h.Status.CurrentMetrics) {
			now = currentValue(&h.Status.CurrentMetrics[i])
		}
		switch {
		case m.Type == autoscalingv2.ResourceMetricSourceType && m.Resource != nil:
			out = append(out, string(m.Resource.Name)+": "+targetCell(m.Resource.Target, now))
		case m.Type == autoscalingv2.ContainerResourceMetricSourceType && m.ContainerResource != nil:
			out = append(out, string(m.ContainerResource.Name)+": "+targetCell(m.ContainerResource.Target, now))
		case m.Type == autoscalingv2.PodsMetricSourceType && m.Pods != nil:
			out = append(out, targetCell(m.Pods.Target, now))
		case m.Type == autoscalingv2.ObjectMetricSourceType && m.Object != nil:
			out = append(out, targetCell(m.Object.Target, now))
		case m.Type == autoscalingv2.ExternalMetricSourceType && m.External != nil:
			out = append(out, targetCell(m.External.Target, now))
		default:
			out = append(out, "<unknown type>")
		}
	}
	return strings.Join(out, ", ")
}

func currentValue(s *autoscalingv2.MetricStatus) *autoscalingv2.MetricValueStatus {
	switch {
	case s.Resource != nil:
		return &s.Resource.Current
	case s.ContainerResource != nil:
		return &s.ContainerResource.Current
	case s.Pods != nil:
		return &s.Pods.Current
	case s.Object != nil:
		return &s.Object.Current
	case s.External != nil:
		return &s.External.Current
	}
	return nil
}

func targetCell(t autoscalingv2.MetricTarget, now *autoscalingv2.MetricValueStatus) string {
	if now == nil {
		now = &autoscalingv2.MetricValueStatus{}
	}
	is := func(q *resource.Quantity) string {
		if q == nil {
			return "<unknown>"
		}
		return q.String()
	}
	switch {
	case t.AverageValue != nil:
		return is(now.AverageValue) + "/" + t.AverageValue.String() + " (avg)"
	case t.AverageUtilization != nil:
		return valueOr(percent(now.AverageUtilization), "<unknown>") + "/" + valueOr(percent(t.AverageUtilization), "<auto>")
	case t.Value != nil:
		return is(now.Value) + "/" + t.Value.String()
	}
	return is(now.Value) + "/<auto>"
}

func percent(n *int32) *string {
	if n == nil {
		return nil
	}
	s := fmt.Sprintf("%d%%", *n)
	return &s
}
