package resources

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Limits of an EndpointSlice (discovery.k8s.io/v1).
const (
	maxSliceEndpoints = 1000
	maxSliceAddresses = 100
	maxSlicePorts     = 20000
	maxHints          = 8
)

func validateSlicePorts(ports []discoveryv1.EndpointPort, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(ports) > maxSlicePorts {
		return field.ErrorList{field.TooMany(p, len(ports), maxSlicePorts)}
	}
	names := sets.New[string]()
	for i, port := range ports {
		pp := p.Index(i)
		name := ""
		if port.Name != nil {
			name = *port.Name
		}
		if name != "" {
			errs = append(errs, invalidIf(validation.IsDNS1123Label(name), pp.Child("name"), name)...)
		}
		if names.Has(name) {
			errs = append(errs, field.Duplicate(pp.Child("name"), name))
		}
		names.Insert(name)
		if port.Protocol != nil {
			errs = append(errs, oneOf(*port.Protocol, pp.Child("protocol"), corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		}
		if port.Port != nil {
			errs = append(errs, invalidIf(validation.IsValidPortNum(int(*port.Port)), pp.Child("port"), *port.Port)...)
		}
		if a := port.AppProtocol; a != nil {
			errs = append(errs, invalidIf(validation.IsQualifiedName(*a), pp.Child("appProtocol"), *a)...)
		}
	}
	return errs
}

// validateHints checks for which zones and nodes an endpoint is said to be.
func validateHints(h *discoveryv1.EndpointHints, p *field.Path) field.ErrorList {
	if h == nil {
		return nil
	}
	var errs field.ErrorList
	check := func(names []string, p *field.Path, valid func(string) []string) {
		if len(names) > maxHints {
			errs = append(errs, field.TooMany(p, len(names), maxHints))
			return
		}
		seen := sets.New[string]()
		for i, name := range names {
			at := p.Index(i).Child("name")
			if seen.Has(name) {
				errs = append(errs, field.Duplicate(at, name))
			}
			seen.Insert(name)
			errs = append(errs, invalidIf(valid(name), at, name)...)
		}
	}
	var zones, nodes []string
	for _, z := range h.ForZones {
		zones = append(zones, z.Name)
	}
	for _, n := range h.ForNodes {
		nodes = append(nodes, n.Name)
	}
	check(zones, p.Child("forZones"), validation.IsValidLabelValue)
	check(nodes, p.Child("forNodes"), subdomain)
	return errs
}

func validateEndpoints(e *corev1.Endpoints) field.ErrorList { //nolint:staticcheck // still served
	var errs field.ErrorList
	for i := range e.Subsets {
		s, p := &e.Subsets[i], field.NewPath("subsets").Index(i)
		if len(s.Addresses)+len(s.NotReadyAddresses) == 0 {
			errs = append(errs, field.Required(p, "must specify `addresses` or `notReadyAddresses`"))
		}
		for name, list := range map[string][]corev1.EndpointAddress{"addresses": s.Addresses, "notReadyAddresses": s.NotReadyAddresses} {
			for j, a := range list {
				ap := p.Child(name).Index(j)
				if bad := validation.IsValidIPForLegacyField(ap.Child("ip"), a.IP, true, nil); len(bad) > 0 {
					errs = append(errs, bad...)
				} else {
					errs = append(errs, validateOrdinaryIP(a.IP, ap.Child("ip"))...)
				}
				if a.Hostname != "" {
					errs = append(errs, invalidIf(validation.IsDNS1123Label(a.Hostname), ap.Child("hostname"), a.Hostname)...)
				}
			}
		}
		for j, port := range s.Ports {
			pp := p.Child("ports").Index(j)
			if port.Name == "" && len(s.Ports) > 1 {
				errs = append(errs, field.Required(pp.Child("name"), ""))
			} else if port.Name != "" {
				errs = append(errs, invalidIf(validation.IsDNS1123Label(port.Name), pp.Child("name"), port.Name)...)
			}
			errs = append(errs, invalidIf(validation.IsValidPortNum(int(port.Port)), pp.Child("port"), port.Port)...)
			errs = append(errs, oneOf(port.Protocol, pp.Child("protocol"), corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		}
	}
	return errs
}

func validateIngress(in *networkingv1.Ingress) field.ErrorList {
	var errs field.ErrorList
	p := field.NewPath("spec")
	if len(in.Spec.Rules) == 0 && in.Spec.DefaultBackend == nil {
		errs = append(errs, field.Invalid(p, in.Spec.Rules, "either `defaultBackend` or `rules` must be specified"))
	}
	if c := in.Spec.IngressClassName; c != nil {
		errs = append(errs, invalidIf(subdomain(*c), p.Child("ingressClassName"), *c)...)
	}
	if in.Spec.DefaultBackend != nil {
		errs = append(errs, validateIngressBackend(in.Spec.DefaultBackend, p.Child("defaultBackend"))...)
	}
	for i, t := range in.Spec.TLS {
		for j, host := range t.Hosts {
			errs = append(errs, validateHost(host, p.Child("tls").Index(i).Child("hosts").Index(j))...)
		}
	}
	for i, r := range in.Spec.Rules {
		rp := p.Child("rules").Index(i)
		if r.Host != "" {
			errs = append(errs, validateHost(r.Host, rp.Child("host"))...)
		}
		if r.HTTP == nil {
			continue
		}
		pp := rp.Child("http", "paths")
		if len(r.HTTP.Paths) == 0 {
			errs = append(errs, field.Required(pp, ""))
		}
		for j := range r.HTTP.Paths {
			errs = append(errs, validateIngressPath(&r.HTTP.Paths[j], pp.Index(j))...)
		}
	}
	return errs
}

func validateHost(host string, p *field.Path) field.ErrorList {
	if strings.Contains(host, "*") {
		return invalidIf(validation.IsWildcardDNS1123Subdomain(host), p, host)
	}
	return invalidIf(validation.IsDNS1123Subdomain(host), p, host)
}

func validateIngressPath(path *networkingv1.HTTPIngressPath, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	if path.PathType == nil {
		return field.ErrorList{field.Required(p.Child("pathType"), "pathType must be specified")}
	}
	errs = append(errs, oneOf(*path.PathType, p.Child("pathType"), networkingv1.PathTypeExact, networkingv1.PathTypePrefix, networkingv1.PathTypeImplementationSpecific)...)
	if *path.PathType != networkingv1.PathTypeImplementationSpecific && !strings.HasPrefix(path.Path, "/") || path.Path != "" && !strings.HasPrefix(path.Path, "/") {
		errs = append(errs, field.Invalid(p.Child("path"), path.Path, "must be an absolute path"))
	}
	if *path.PathType != networkingv1.PathTypeImplementationSpecific {
		for _, bad := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(path.Path, bad) {
				errs = append(errs, field.Invalid(p.Child("path"), path.Path, "must not contain '"+bad+"'"))
			}
		}
	}
	return append(errs, validateIngressBackend(&path.Backend, p.Child("backend"))...)
}

func validateIngressBackend(b *networkingv1.IngressBackend, p *field.Path) field.ErrorList {
	switch {
	case b.Resource != nil && b.Service != nil:
		return field.ErrorList{field.Invalid(p, "", "cannot set both resource and service backends")}
	case b.Resource != nil:
		var errs field.ErrorList
		for name, value := range map[string]string{"kind": b.Resource.Kind, "name": b.Resource.Name} {
			if value == "" {
				errs = append(errs, field.Required(p.Child("resource", name), ""))
			}
		}
		return errs
	case b.Service == nil:
		return field.ErrorList{field.Required(p, "resource or service backend is required")}
	}
	var errs field.ErrorList
	s, sp := b.Service, p.Child("service")
	if s.Name == "" {
		errs = append(errs, field.Required(sp.Child("name"), ""))
	} else {
		errs = append(errs, invalidIf(validation.IsDNS1035Label(s.Name), sp.Child("name"), s.Name)...)
	}
	pp := sp.Child("port")
	switch {
	case s.Port.Name != "" && s.Port.Number != 0:
		errs = append(errs, field.Invalid(pp, s.Port, "cannot set both port name & port number"))
	case s.Port.Name != "":
		errs = append(errs, invalidIf(validation.IsValidPortName(s.Port.Name), pp.Child("name"), s.Port.Name)...)
	case s.Port.Number == 0:
		errs = append(errs, field.Required(pp, "port name or number is required"))
	default:
		errs = append(errs, invalidIf(validation.IsValidPortNum(int(s.Port.Number)), pp.Child("number"), s.Port.Number)...)
	}
	return errs
}
