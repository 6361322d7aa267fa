package resources

import (
	"fmt"
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Limits of resolv.conf (KEP-2595).
const (
	maxNameservers   = 3
	maxSearches      = 32
	maxSearchesChars = 2048
)

func validateDNS(s *corev1.PodSpec, p *field.Path) field.ErrorList {
	errs := oneOf(s.DNSPolicy, p.Child("dnsPolicy"), corev1.DNSClusterFirst, corev1.DNSClusterFirstWithHostNet, corev1.DNSDefault, corev1.DNSNone)
	c, p := s.DNSConfig, p.Child("dnsConfig")
	if s.DNSPolicy == corev1.DNSNone {
		switch {
		case c == nil:
			return append(errs, field.Required(p, "must provide `dnsConfig` when `dnsPolicy` is None"))
		case len(c.Nameservers) == 0:
			return append(errs, field.Required(p.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None"))
		}
	}
	if c == nil {
		return errs
	}
	if len(c.Nameservers) > maxNameservers {
		errs = append(errs, field.Invalid(p.Child("nameservers"), c.Nameservers, fmt.Sprintf("must not have more than %d nameservers", maxNameservers)))
	}
	for i, ip := range c.Nameservers {
		errs = append(errs, validation.IsValidIPForLegacyField(p.Child("nameservers").Index(i), ip, true, nil)...)
	}
	if len(c.Searches) > maxSearches {
		errs = append(errs, field.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %d search paths", maxSearches)))
	}
	if len(strings.Join(c.Searches, " ")) > maxSearchesChars {
		errs = append(errs, field.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %d characters (including spaces) in the search list", maxSearchesChars)))
	}
	for i, search := range c.Searches {
		if search != "." { // Underscores are common in such names (RFC 2782).
			name := strings.ReplaceAll(strings.TrimSuffix(search, "."), "_", "a")
			errs = append(errs, invalidIf(validation.IsDNS1123Subdomain(name), p.Child("searches").Index(i), search)...)
		}
	}
	for i, o := range c.Options {
		if o.Name == "" {
			errs = append(errs, field.Required(p.Child("options").Index(i), "must not be empty"))
		}
	}
	return errs
}

func validateHostAliases(aliases []corev1.HostAlias, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, a := range aliases {
		errs = append(errs, validation.IsValidIPForLegacyField(p.Index(i).Child("ip"), a.IP, true, nil)...)
		for _, name := range a.Hostnames {
			errs = append(errs, invalidIf(validation.IsDNS1123Subdomain(name), p.Index(i).Child("hostnames"), name)...)
		}
	}
	return errs
}

func validateID(id *int64, p *field.Path) field.ErrorList {
	if id != nil && (*id < 0 || *id > math.MaxInt32) {
		return field.ErrorList{field.Invalid(p, *id, validation.InclusiveRangeError(0, math.MaxInt32))}
	}
	return nil
}

func validatePodSecurity(c *corev1.PodSecurityContext, p *field.Path) field.ErrorList {
	if c == nil {
		return nil
	}
	errs := validateID(c.RunAsUser, p.Child("runAsUser"))
	errs = append(errs, validateID(c.RunAsGroup, p.Child("runAsGroup"))...)
	errs = append(errs, validateID(c.FSGroup, p.Child("fsGroup"))...)
	for i := range c.SupplementalGroups {
		errs = append(errs, validateID(&c.SupplementalGroups[i], p.Child("supplementalGroups").Index(i))...)
	}
	if c.FSGroupChangePolicy != nil {
		errs = append(errs, oneOf(*c.FSGroupChangePolicy, p.Child("fsGroupChangePolicy"), corev1.FSGroupChangeAlways, corev1.FSGroupChangeOnRootMismatch)...)
	}
	names := map[string]bool{}
	for i, s := range c.Sysctls {
		sp := p.Child("sysctls").Index(i).Child("name")
		switch {
		case s.Name == "":
			errs = append(errs, field.Required(sp, ""))
		case names[s.Name]:
			errs = append(errs, field.Duplicate(sp, s.Name))
		}
		names[s.Name] = true
	}
	return append(errs, validateSeccomp(c.SeccompProfile, p.Child("seccompProfile"))...)
}

func validateSeccomp(s *corev1.SeccompProfile, p *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	errs := oneOf(s.Type, p.Child("type"), corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)
	switch local := p.Child("localhostProfile"); {
	case s.Type == corev1.SeccompProfileTypeLocalhost && s.LocalhostProfile == nil:
		errs = append(errs, field.Required(local, "must be set when seccomp type is Localhost"))
	case s.Type == corev1.SeccompProfileTypeLocalhost:
		errs = append(errs, validateDescendingPath(*s.LocalhostProfile, local)...)
	case s.LocalhostProfile != nil:
		errs = append(errs, field.Invalid(local, *s.LocalhostProfile, "can only be set when seccomp type is Localhost"))
	}
	return errs
}

func validateSecurity(c *corev1.SecurityContext, p *field.Path) field.ErrorList {
	if c == nil {
		return nil
	}
	errs := validateID(c.RunAsUser, p.Child("runAsUser"))
	errs = append(errs, validateID(c.RunAsGroup, p.Child("runAsGroup"))...)
	if c.ProcMount != nil {
		errs = append(errs, oneOf(*c.ProcMount, p.Child("procMount"), corev1.DefaultProcMount, corev1.UnmaskedProcMount)...)
	}
	if c.AllowPrivilegeEscalation != nil && !*c.AllowPrivilegeEscalation {
		if c.Privileged != nil && *c.Privileged {
			errs = append(errs, field.Invalid(p, c, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
		if c.Capabilities != nil {
			for _, added := range c.Capabilities.Add {
				if added == "CAP_SYS_ADMIN" {
					errs = append(errs, field.Invalid(p, c, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
				}
			}
		}
	}
	return append(errs, validateSeccomp(c.SeccompProfile, p.Child("seccompProfile"))...)
}

func validateReadinessGates(gates []corev1.PodReadinessGate, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, g := range gates {
		errs = append(errs, invalidIf(validation.IsQualifiedName(string(g.ConditionType)), p.Index(i).Child("conditionType"), g.ConditionType)...)
	}
	return errs
}

// validateNames checks the names of other objects that a pod gives.
func validateNames(s *corev1.PodSpec, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	for name, check := range map[string]struct {
		value string
		valid func(string) []string
	}{
		"serviceAccountName": {s.ServiceAccountName, subdomain}, "nodeName": {s.NodeName, subdomain}, "priorityClassName": {s.PriorityClassName, subdomain},
		"hostname": {s.Hostname, validation.IsDNS1123Label}, "subdomain": {s.Subdomain, validation.IsDNS1123Label},
	} {
		if check.value != "" {
			errs = append(errs, invalidIf(check.valid(check.value), p.Child(name), check.value)...)
		}
	}
	if s.RuntimeClassName != nil {
		errs = append(errs, invalidIf(subdomain(*s.RuntimeClassName), p.Child("runtimeClassName"), *s.RuntimeClassName)...)
	}
	return errs
}

func subdomain(name string) []string { return apivalidation.NameIsDNSSubdomain(name, false) }
