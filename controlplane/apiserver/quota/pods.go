package quota

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	resourcehelpers "k8s.io/component-helpers/resource"
)

const countPods = corev1.ResourceName("count/pods")

// measured are the resources of containers that quotas know, beside huge pages and extended ones.
var measured = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}

func podNames(name corev1.ResourceName) bool {
	if name == corev1.ResourcePods || name == countPods || slices.Contains(measured, name) || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
		return true
	}
	asked, isRequest := strings.CutPrefix(string(name), corev1.DefaultResourceRequestsPrefix)
	limited, isLimit := strings.CutPrefix(string(name), "limits.")
	switch {
	case isRequest:
		return slices.Contains(measured, corev1.ResourceName(asked)) || strings.HasPrefix(asked, corev1.ResourceHugePagesPrefix) || extended(asked)
	case isLimit:
		return slices.Contains(measured, corev1.ResourceName(limited))
	}
	return false
}

// extended tells names of devices, which belong to a domain, from those of Kubernetes.
func extended(name string) bool {
	return strings.Contains(name, "/") && !strings.Contains(name, "kubernetes.io/")
}

func podUsage(o runtime.Object) (corev1.ResourceList, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("expected a Pod, got %T", o)
	}
	used := corev1.ResourceList{countPods: one()}
	if !takes(p, time.Now()) {
		return used, nil
	}
	used[corev1.ResourcePods] = one()
	for name, q := range resourcehelpers.PodRequests(p, resourcehelpers.PodResourcesOptions{UseStatusResources: true}) {
		switch {
		case slices.Contains(measured, name), strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix):
			used[name] = q
			used[corev1.DefaultResourceRequestsPrefix+name] = q
		case extended(string(name)):
			used[corev1.DefaultResourceRequestsPrefix+name] = q
		}
	}
	for name, q := range resourcehelpers.PodLimits(p, resourcehelpers.PodResourcesOptions{UseStatusResources: true}) {
		if slices.Contains(measured, name) {
			used["limits."+name] = q
		}
	}
	return used, nil
}

// takes tells whether a pod takes anything but its place in the store: it has not ended, and if it is being deleted, the
// node has not had all its time to do so.
func takes(p *corev1.Pod, now time.Time) bool {
	if p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		return false
	}
	if p.DeletionTimestamp != nil && p.DeletionGracePeriodSeconds != nil {
		// The deletion timestamp is the end of the grace period.
		return now.Before(p.DeletionTimestamp.Time)
	}
	return true
}

func podScope(s corev1.ScopedResourceSelectorRequirement, o runtime.Object) (bool, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return false, fmt.Errorf("expected a Pod, got %T", o)
	}
	ends := p.Spec.ActiveDeadlineSeconds != nil && *p.Spec.ActiveDeadlineSeconds >= 0
	switch s.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return ends, nil
	case corev1.ResourceQuotaScopeNotTerminating:
		return !ends, nil
	case corev1.ResourceQuotaScopeBestEffort:
		return bestEffort(p), nil
	case corev1.ResourceQuotaScopeNotBestEffort:
		return !bestEffort(p), nil
	case corev1.ResourceQuotaScopePriorityClass:
		return selects(s, p.Spec.PriorityClassName)
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return crossesNamespaces(p), nil
	}
	return false, nil
}

// selects compares a name, empty for none, with what a scope asks for. A scope without an operator wants any name.
func selects(s corev1.ScopedResourceSelectorRequirement, name string) (bool, error) {
	switch s.Operator {
	case corev1.ScopeSelectorOpIn:
		return slices.Contains(s.Values, name), nil
	case corev1.ScopeSelectorOpNotIn:
		return !slices.Contains(s.Values, name), nil
	case corev1.ScopeSelectorOpExists, "":
		return name != "", nil
	case corev1.ScopeSelectorOpDoesNotExist:
		return name == "", nil
	}
	return false, fmt.Errorf("scope %s: operator %q is not known", s.ScopeName, s.Operator)
}

func bestEffort(p *corev1.Pod) bool {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass == corev1.PodQOSBestEffort
	}
	asks := func(r corev1.ResourceRequirements) bool {
		for _, l := range []corev1.ResourceList{r.Requests, r.Limits} {
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				if q, ok := l[name]; ok && !q.IsZero() {
					return true
				}
			}
		}
		return false
	}
	if p.Spec.Resources != nil && asks(*p.Spec.Resources) {
		return false
	}
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		if asks(c.Resources) {
			return false
		}
	}
	return true
}

func crossesNamespaces(p *corev1.Pod) bool {
	a := p.Spec.Affinity
	if a == nil {
		return false
	}
	var terms []corev1.PodAffinityTerm
	weighted := func(list []corev1.WeightedPodAffinityTerm) {
		for _, w := range list {
			terms = append(terms, w.PodAffinityTerm)
		}
	}
	if a.PodAffinity != nil {
		terms = append(terms, a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution...)
		weighted(a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if a.PodAntiAffinity != nil {
		terms = append(terms, a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution...)
		weighted(a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	return slices.ContainsFunc(terms, func(t corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil })
}

// podConstraints wants every container to say how much it takes of what a quota limits: else nobody could tell.
func podConstraints(required []corev1.ResourceName, o runtime.Object) error {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return fmt.Errorf("expected a Pod, got %T", o)
	}
	missing := map[corev1.ResourceName]sets.Set[string]{}
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		for _, name := range required {
			if !podNames(name) || name == corev1.ResourcePods || name == countPods || said(name, c.Resources) || p.Spec.Resources != nil && said(name, *p.Spec.Resources) {
				continue
			}
			if missing[name] == nil {
				missing[name] = sets.New[string]()
			}
			missing[name].Insert(c.Name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	var texts []string
	for name, containers := range missing {
		texts = append(texts, fmt.Sprintf("%s for: %s", name, strings.Join(sets.List(containers), ",")))
	}
	slices.Sort(texts)
	return fmt.Errorf("must specify %s", strings.Join(texts, "; "))
}

func said(name corev1.ResourceName, r corev1.ResourceRequirements) bool {
	has := func(l corev1.ResourceList, n string) bool {
		q, ok := l[corev1.ResourceName(n)]
		return ok && q.Cmp(resource.Quantity{}) >= 0
	}
	text := string(name)
	if limited, ok := strings.CutPrefix(text, "limits."); ok {
		return has(r.Limits, limited)
	}
	asked := strings.TrimPrefix(text, corev1.DefaultResourceRequestsPrefix)
	// Devices and huge pages are asked for by their limit, and only by who wants them.
	if !slices.Contains(measured, corev1.ResourceName(asked)) {
		return true
	}
	return has(r.Requests, asked)
}
