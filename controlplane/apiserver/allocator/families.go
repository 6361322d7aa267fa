package allocator

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/resources"
)

// settleFamilies fills in a Service's ipFamilyPolicy and ipFamilies as far as they follow from what it says, was, and the
// cluster has (KEP-563). What is stored changes its number of families only where the client asks for it.
func (a *Allocator) settleFamilies(s, old *corev1.Service) field.ErrorList {
	if old != nil && stillPrefersDualStack(s, old) {
		return nil
	}
	spec, headless := &s.Spec, s.Spec.ClusterIP == corev1.ClusterIPNone
	if spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		if headless && len(spec.Selector) == 0 {
			policy = corev1.IPFamilyPolicyRequireDualStack // its endpoints are the user's, who may have any
		}
		spec.IPFamilyPolicy = &policy
	}
	if errs := resources.ValidateServiceFamilies(s); len(errs) > 0 {
		return errs
	}
	errs := narrow(s, old)
	if len(errs) == 0 {
		errs = a.inferFamilies(spec)
	}
	if len(errs) > 0 {
		return errs
	}
	if headless && len(spec.Selector) == 0 {
		if len(spec.IPFamilies) == 0 {
			spec.IPFamilies = []corev1.IPFamily{a.families[0]}
		}
		if *spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack && len(spec.IPFamilies) == 1 {
			spec.IPFamilies = []corev1.IPFamily{spec.IPFamilies[0], other(spec.IPFamilies[0])}
		}
		return nil
	}
	if *spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack && len(a.families) < 2 {
		errs = append(errs, field.Invalid(policyPath, *spec.IPFamilyPolicy, "this cluster is not configured for dual-stack services"))
	}
	for i, f := range spec.IPFamilies {
		if !slices.Contains(a.families, f) {
			errs = append(errs, field.Invalid(field.NewPath("spec", "ipFamilies").Index(i), f, "not configured on this cluster"))
		}
	}
	if len(errs) > 0 {
		return errs
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = []corev1.IPFamily{a.families[0]}
	}
	if *spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack && len(spec.IPFamilies) == 1 && len(a.families) == 2 {
		spec.IPFamilies = []corev1.IPFamily{spec.IPFamilies[0], other(spec.IPFamilies[0])}
	}
	return nil
}

var policyPath = field.NewPath("spec", "ipFamilyPolicy")

func other(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

// stillPrefersDualStack tells whether an update leaves a Service of policy PreferDualStack what it is: a cluster that has
// become dual-stack, or has ceased to be, doesn't change those that it had.
func stillPrefersDualStack(s, old *corev1.Service) bool {
	prefers := func(s *corev1.Service) bool {
		return s.Spec.IPFamilyPolicy != nil && *s.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyPreferDualStack && hasClusterIP(s)
	}
	return prefers(s) && prefers(old) && len(s.Spec.ClusterIPs) > 0 && slices.Equal(s.Spec.ClusterIPs, old.Spec.ClusterIPs) && slices.Equal(s.Spec.IPFamilies, old.Spec.IPFamilies) &&
		(len(s.Spec.Selector) == 0) == (len(old.Spec.Selector) == 0)
}

// narrow takes the second family away where the policy says SingleStack and the client left the rest alone. Two of
// anything don't go with that policy, and less than before only goes with it.
func narrow(s, old *corev1.Service) field.ErrorList {
	spec := &s.Spec
	var errs field.ErrorList
	invalid := func(message string) {
		errs = append(errs, field.Invalid(policyPath, *spec.IPFamilyPolicy, message))
	}
	single := *spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
	if old != nil {
		fewerIPs := len(old.Spec.ClusterIPs) == 2 && len(spec.ClusterIPs) == 1 && spec.ClusterIPs[0] != corev1.ClusterIPNone
		fewerFamilies := len(old.Spec.IPFamilies) == 2 && len(spec.IPFamilies) == 1
		switch {
		case single:
			if len(spec.ClusterIPs) > 1 && slices.Equal(spec.ClusterIPs, old.Spec.ClusterIPs) {
				spec.ClusterIPs = spec.ClusterIPs[:1]
			}
			if len(spec.IPFamilies) > 1 && slices.Equal(spec.IPFamilies, old.Spec.IPFamilies) {
				spec.IPFamilies = spec.IPFamilies[:1]
			}
		default:
			if fewerIPs {
				invalid("must be 'SingleStack' to release the secondary cluster IP")
			}
			if fewerFamilies {
				invalid("must be 'SingleStack' to release the secondary IP family")
			}
		}
	}
	if single && len(spec.ClusterIPs) == 2 {
		invalid("must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified")
	}
	if single && len(spec.IPFamilies) == 2 {
		invalid("must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified")
	}
	return errs
}

// inferFamilies adds the families of addresses that the client asked for.
func (a *Allocator) inferFamilies(spec *corev1.ServiceSpec) field.ErrorList {
	var errs field.ErrorList
	for i, ip := range spec.ClusterIPs {
		addr, err := netip.ParseAddr(ip)
		if err != nil || i < len(spec.IPFamilies) {
			continue // None, or said already
		}
		f := resources.FamilyOf(addr)
		if !slices.Contains(a.families, f) {
			errs = append(errs, field.Invalid(field.NewPath("spec", "clusterIPs").Index(i), spec.ClusterIPs, fmt.Sprintf("%s is not configured on this cluster", f)))
			continue
		}
		spec.IPFamilies = append(slices.Clip(spec.IPFamilies), f)
	}
	return errs
}
