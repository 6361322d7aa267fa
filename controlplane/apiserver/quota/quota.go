// Package quota measures what objects take of a ResourceQuota: what admission asks before an object is
// made, and what the quota controller adds up afterwards.
package quota

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	quota "k8s.io/apiserver/pkg/quota/v1"
	"k8s.io/apiserver/pkg/quota/v1/generic"
)

// Lister lists the objects of a resource in a namespace.
type Lister = func(resource schema.GroupVersionResource, namespace string) ([]runtime.Object, error)

// ignored are resources that no quota counts: they are not kept, or kept for an hour.
var ignored = map[schema.GroupResource]struct{}{
	{Resource: "bindings"}: {}, {Resource: "componentstatuses"}: {}, {Resource: "events"}: {}, {Group: "events.k8s.io", Resource: "events"}: {},
	{Group: "authentication.k8s.io", Resource: "tokenreviews"}: {}, {Group: "authentication.k8s.io", Resource: "selfsubjectreviews"}: {},
	{Group: "authorization.k8s.io", Resource: "subjectaccessreviews"}: {}, {Group: "authorization.k8s.io", Resource: "localsubjectaccessreviews"}: {},
	{Group: "authorization.k8s.io", Resource: "selfsubjectaccessreviews"}: {}, {Group: "authorization.k8s.io", Resource: "selfsubjectrulesreviews"}: {},
}

// Configuration is what admission needs: it never lists.
func Configuration() quota.Configuration {
	return generic.NewConfiguration(Evaluators(func(schema.GroupVersionResource, string) ([]runtime.Object, error) { return nil, nil }), ignored)
}

// Evaluators measure the resources that quotas know by names of their own. All others are counted by "count/…".
func Evaluators(list Lister) []quota.Evaluator {
	all := []quota.Evaluator{
		&evaluator{
			resource: "pods", list: list, names: podNames, scope: podScope, usage: podUsage, constraints: podConstraints,
			handles: func(a admission.Attributes) bool {
				return a.GetSubresource() == "" && a.GetOperation() == admission.Create || a.GetSubresource() == "resize" && a.GetOperation() == admission.Update
			},
		},
		&evaluator{resource: "services", list: list, names: exactly(serviceNames...), scope: generic.MatchesNoScopeFunc, usage: serviceUsage, handles: writes},
		&evaluator{resource: "persistentvolumeclaims", list: list, names: claimNames, scope: claimScope, usage: claimUsage, handles: writes},
	}
	for _, alias := range []corev1.ResourceName{corev1.ResourceConfigMaps, corev1.ResourceSecrets, corev1.ResourceQuotas, corev1.ResourceReplicationControllers} {
		gr := corev1.Resource(string(alias))
		all = append(all, generic.NewObjectCountEvaluator(gr, func(namespace string) ([]runtime.Object, error) {
			return list(gr.WithVersion("v1"), namespace)
		}, alias))
	}
	return all
}

func writes(a admission.Attributes) bool {
	return a.GetSubresource() == "" && (a.GetOperation() == admission.Create || a.GetOperation() == admission.Update)
}

// evaluator measures one resource of the core group.
type evaluator struct {
	resource    string
	list        Lister
	handles     func(admission.Attributes) bool
	names       func(name corev1.ResourceName) bool // what of a quota this resource takes
	scope       generic.MatchesScopeFunc
	usage       func(obj runtime.Object) (corev1.ResourceList, error)
	constraints func(required []corev1.ResourceName, obj runtime.Object) error // nil: none
}

var _ quota.Evaluator = (*evaluator)(nil)

func (e *evaluator) GroupResource() schema.GroupResource                 { return corev1.Resource(e.resource) }
func (e *evaluator) Handles(a admission.Attributes) bool                 { return e.handles(a) }
func (e *evaluator) Usage(o runtime.Object) (corev1.ResourceList, error) { return e.usage(o) }

func (e *evaluator) Constraints(required []corev1.ResourceName, o runtime.Object) error {
	if e.constraints == nil {
		return nil
	}
	return e.constraints(required, o)
}

func (e *evaluator) MatchingResources(input []corev1.ResourceName) []corev1.ResourceName {
	var out []corev1.ResourceName
	for _, name := range input {
		if e.names(name) {
			out = append(out, name)
		}
	}
	return out
}

func (e *evaluator) Matches(q *corev1.ResourceQuota, o runtime.Object) (bool, error) {
	return generic.Matches(q, o, e.MatchingResources, e.scope)
}

func (e *evaluator) MatchingScopes(o runtime.Object, scopes []corev1.ScopedResourceSelectorRequirement) ([]corev1.ScopedResourceSelectorRequirement, error) {
	var out []corev1.ScopedResourceSelectorRequirement
	for _, s := range scopes {
		ok, err := e.scope(s, o)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, s)
		}
	}
	return out, nil
}

func (e *evaluator) UncoveredQuotaScopes(limited, matched []corev1.ScopedResourceSelectorRequirement) ([]corev1.ScopedResourceSelectorRequirement, error) {
	var out []corev1.ScopedResourceSelectorRequirement
	for _, l := range limited {
		covered := false
		for _, m := range matched {
			covered = covered || m.ScopeName == l.ScopeName
		}
		if !covered {
			out = append(out, l)
		}
	}
	return out, nil
}

func (e *evaluator) UsageStats(options quota.UsageStatsOptions) (quota.UsageStats, error) {
	return generic.CalculateUsageStats(options, func(namespace string) ([]runtime.Object, error) {
		return e.list(corev1.SchemeGroupVersion.WithResource(e.resource), namespace)
	}, e.scope, e.usage)
}

func exactly(names ...corev1.ResourceName) func(corev1.ResourceName) bool {
	return func(name corev1.ResourceName) bool { return quota.Contains(names, name) }
}

func one() resource.Quantity { return *resource.NewQuantity(1, resource.DecimalSI) }
