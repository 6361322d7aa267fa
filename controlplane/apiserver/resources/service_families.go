package resources

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// FamilyOf is the IP family of an address.
func FamilyOf(a netip.Addr) corev1.IPFamily {
	if a.Unmap().Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// ValidateServiceFamilies checks a Service's addresses, families and policy against each other (KEP-563), but not against
// what the cluster has. It holds for what a client sent as well as for what is stored.
func ValidateServiceFamilies(s *corev1.Service) field.ErrorList {
	p := field.NewPath("spec")
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return familiesOfExternalName(&s.Spec, p)
	}
	var errs field.ErrorList
	if policy := s.Spec.IPFamilyPolicy; policy != nil {
		errs = append(errs, oneOf(*policy, p.Child("ipFamilyPolicy"), corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack)...)
	}
	families := sets.New[corev1.IPFamily]()
	for i, f := range s.Spec.IPFamilies {
		at := p.Child("ipFamilies").Index(i)
		errs = append(errs, oneOf(f, at, corev1.IPv4Protocol, corev1.IPv6Protocol)...)
		if families.Has(f) {
			errs = append(errs, field.Duplicate(at, f))
		}
		families.Insert(f)
	}
	return append(errs, validateClusterIPs(&s.Spec, p)...)
}

func familiesOfExternalName(s *corev1.ServiceSpec, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"clusterIPs", s.ClusterIP != "" || len(s.ClusterIPs) > 0}, {"ipFamilies", len(s.IPFamilies) > 0}, {"ipFamilyPolicy", s.IPFamilyPolicy != nil},
	} {
		if f.set {
			errs = append(errs, field.Forbidden(p.Child(f.name), "may not be set for ExternalName services"))
		}
	}
	return errs
}

// validateClusterIPs checks the list, and that the old field is the first of it.
func validateClusterIPs(s *corev1.ServiceSpec, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	ips := p.Child("clusterIPs")
	switch {
	case s.ClusterIP == "" && len(s.ClusterIPs) > 0:
		return field.ErrorList{field.Invalid(ips, s.ClusterIPs, "must be empty when `clusterIP` is not specified")}
	case s.ClusterIP != "" && len(s.ClusterIPs) > 0 && s.ClusterIPs[0] != s.ClusterIP:
		return field.ErrorList{field.Invalid(ips, s.ClusterIPs, "first value must match `clusterIP`")}
	case len(s.ClusterIPs) > 2:
		return field.ErrorList{field.Invalid(ips, s.ClusterIPs, "may only hold up to 2 values")}
	case slices.Contains(s.ClusterIPs, corev1.ClusterIPNone) && len(s.ClusterIPs) > 1:
		return field.ErrorList{field.Invalid(ips, s.ClusterIPs, "'None' must be the first and only value")}
	}
	seen := sets.New[corev1.IPFamily]()
	all := s.ClusterIPs
	if len(all) == 0 && s.ClusterIP != "" {
		all = []string{s.ClusterIP} // of a client that knows the old field only
	}
	for i, ip := range all {
		if ip == corev1.ClusterIPNone {
			return errs
		}
		if bad := validation.IsValidIPForLegacyField(ips.Index(i), ip, true, nil); len(bad) > 0 {
			errs = append(errs, bad...)
			continue
		}
		a, err := netip.ParseAddr(ip)
		if err != nil {
			errs = append(errs, field.Invalid(ips.Index(i), ip, "must be a valid IP address"))
			continue
		}
		f := FamilyOf(a)
		if i < len(s.IPFamilies) && s.IPFamilies[i] != f {
			errs = append(errs, field.Invalid(ips.Index(i), ip, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%d]`", s.IPFamilies[i], i)))
		}
		if seen.Has(f) {
			errs = append(errs, field.Invalid(ips, s.ClusterIPs, "may specify no more than one IP for each IP family"))
		}
		seen.Insert(f)
	}
	return errs
}

// validateFamiliesUpdate keeps a Service's first address and family. The second ones come and go, but don't change.
func validateFamiliesUpdate(s, old *corev1.Service) field.ErrorList {
	if s.Spec.Type == corev1.ServiceTypeExternalName || old.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	var errs field.ErrorList
	const message = "may not change once set"
	for i := range min(len(s.Spec.ClusterIPs), len(old.Spec.ClusterIPs)) {
		if s.Spec.ClusterIPs[i] != old.Spec.ClusterIPs[i] {
			errs = append(errs, field.Invalid(field.NewPath("spec", "clusterIPs").Index(i), s.Spec.ClusterIPs, message))
		}
	}
	if len(old.Spec.ClusterIPs) > 0 && len(s.Spec.ClusterIPs) == 0 {
		errs = append(errs, field.Invalid(field.NewPath("spec", "clusterIPs").Index(0), s.Spec.ClusterIPs, "primary clusterIP can not be unset"))
	}
	// A headless Service's families say only what its EndpointSlices are.
	if s.Spec.ClusterIP == corev1.ClusterIPNone || old.Spec.ClusterIP == corev1.ClusterIPNone {
		return errs
	}
	for i := range min(len(s.Spec.IPFamilies), len(old.Spec.IPFamilies)) {
		if s.Spec.IPFamilies[i] != old.Spec.IPFamilies[i] {
			errs = append(errs, field.Invalid(field.NewPath("spec", "ipFamilies").Index(i), s.Spec.IPFamilies, message))
		}
	}
	return errs
}
