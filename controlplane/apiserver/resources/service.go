package resources

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func services() *descriptor.Resource {
	return kind[corev1.Service, corev1.ServiceList]("Service", descriptor.Resource{
		GroupVersion: corev1.SchemeGroupVersion, ShortNames: []string{"svc"}, Categories: []string{"all"}, Namespaced: true,
		StoragePrefix: "services/specs",
		ValidName:     apivalidation.NameIsDNS1035Label,
		Default:       descriptor.Each(defaultService),
		Validate:      descriptor.Check(validateService),
		ValidateUpdate: descriptor.CheckUpdate(func(s, old *corev1.Service) field.ErrorList {
			if errs := validateFamiliesUpdate(s, old); len(errs) > 0 {
				return errs
			}
			var errs field.ErrorList
			if s.Spec.Type == corev1.ServiceTypeLoadBalancer && old.Spec.Type == corev1.ServiceTypeLoadBalancer && !apiequality.Semantic.DeepEqual(s.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass) {
				errs = append(errs, field.Invalid(field.NewPath("spec", "loadBalancerClass"), s.Spec.LoadBalancerClass, "may not change once set"))
			}
			if asksHealth(&s.Spec) && asksHealth(&old.Spec) && s.Spec.HealthCheckNodePort != old.Spec.HealthCheckNodePort {
				errs = append(errs, field.Forbidden(field.NewPath("spec", "healthCheckNodePort"), "field is immutable"))
			}
			return errs
		}),
		Status: true,
		PrepareUpdate: descriptor.PrepareChange(func(s, _ *corev1.Service) {
			// What a load balancer wrote is nothing any more without one.
			if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
				s.Status.LoadBalancer = corev1.LoadBalancerStatus{}
			}
		}),
		ValidateStatus: descriptor.CheckUpdate(func(s, _ *corev1.Service) field.ErrorList { return validateBalancerStatus(s) }),
		Selectable: func(o runtime.Object) fields.Set {
			s := o.(*corev1.Service)
			return fields.Set{"spec.type": string(s.Spec.Type), "spec.clusterIP": s.Spec.ClusterIP}
		},
		Columns: []descriptor.Column{
			{Name: "Type", Cell: descriptor.Cell(func(s *corev1.Service) string { return string(s.Spec.Type) })},
			{Name: "Cluster-IP", Cell: descriptor.Cell(func(s *corev1.Service) string { return orNone(s.Spec.ClusterIP) })},
			{Name: "External-IP", Cell: descriptor.Cell(externalIPs)},
			{Name: "Port(s)", Cell: descriptor.Cell(servicePorts)},
			descriptor.Age,
			{Name: "Selector", Wide: true, Cell: descriptor.Cell(func(s *corev1.Service) string {
				return orNone(metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: s.Spec.Selector}))
			})},
		},
	})
}

func defaultService(s *corev1.Service) {
	fill(&s.Spec.SessionAffinity, corev1.ServiceAffinityNone)
	fill(&s.Spec.Type, corev1.ServiceTypeClusterIP)
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		if s.Spec.SessionAffinityConfig == nil || s.Spec.SessionAffinityConfig.ClientIP == nil || s.Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds == nil {
			timeout := corev1.DefaultClientIPServiceAffinitySeconds
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
		}
	} else {
		s.Spec.SessionAffinityConfig = nil
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		fill(&p.Protocol, corev1.ProtocolTCP)
		p.TargetPort = portOrDefault(p.TargetPort, p.Port)
	}
	if s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer || s.Spec.Type == corev1.ServiceTypeClusterIP && len(s.Spec.ExternalIPs) > 0 {
		fill(&s.Spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		set(&s.Spec.AllocateLoadBalancerNodePorts, true)
		for i := range s.Status.LoadBalancer.Ingress {
			if in := &s.Status.LoadBalancer.Ingress[i]; in.IP != "" {
				set(&in.IPMode, corev1.LoadBalancerIPModeVIP)
			}
		}
	}
	if s.Spec.Type != corev1.ServiceTypeExternalName {
		set(&s.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
}

func validateService(s *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	p := field.NewPath("spec")
	errs = append(errs, oneOf(s.Spec.Type, p.Child("type"), corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName)...)
	errs = append(errs, oneOf(s.Spec.SessionAffinity, p.Child("sessionAffinity"), corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)...)
	errs = append(errs, metav1validation.ValidateLabels(s.Spec.Selector, p.Child("selector"))...)
	errs = append(errs, ValidateServiceFamilies(s)...)
	headless := s.Spec.ClusterIP == corev1.ClusterIPNone
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		if s.Spec.ExternalName == "" {
			errs = append(errs, field.Required(p.Child("externalName"), ""))
		} else {
			errs = append(errs, invalidIf(validation.IsDNS1123Subdomain(strings.TrimSuffix(s.Spec.ExternalName, ".")), p.Child("externalName"), s.Spec.ExternalName)...)
		}
	} else {
		if len(s.Spec.Ports) == 0 && !headless {
			errs = append(errs, field.Required(p.Child("ports"), ""))
		}
		if headless && s.Spec.Type != corev1.ServiceTypeClusterIP {
			errs = append(errs, field.Invalid(p.Child("clusterIPs").Index(0), s.Spec.ClusterIP, "may not be set to 'None' for "+string(s.Spec.Type)+" services"))
		}
	}
	names, ports, nodePorts := sets.New[string](), sets.New[string](), sets.New[string]()
	for i, port := range s.Spec.Ports {
		pp := p.Child("ports").Index(i)
		if port.Name == "" {
			if len(s.Spec.Ports) > 1 {
				errs = append(errs, field.Required(pp.Child("name"), ""))
			}
		} else {
			errs = append(errs, invalidIf(validation.IsDNS1123Label(port.Name), pp.Child("name"), port.Name)...)
			if names.Has(port.Name) {
				errs = append(errs, field.Duplicate(pp.Child("name"), port.Name))
			}
			names.Insert(port.Name)
		}
		errs = append(errs, invalidIf(validation.IsValidPortNum(int(port.Port)), pp.Child("port"), port.Port)...)
		errs = append(errs, oneOf(port.Protocol, pp.Child("protocol"), corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		errs = append(errs, validatePortRef(port.TargetPort, pp.Child("targetPort"))...)
		if a := port.AppProtocol; a != nil {
			errs = append(errs, invalidIf(validation.IsQualifiedName(*a), pp.Child("appProtocol"), *a)...)
		}
		if key := fmt.Sprintf("%s/%d", port.Protocol, port.Port); ports.Has(key) {
			errs = append(errs, field.Duplicate(pp, key))
		} else {
			ports.Insert(key)
		}
		if port.NodePort == 0 {
			continue
		}
		if s.Spec.Type == corev1.ServiceTypeClusterIP {
			errs = append(errs, field.Forbidden(pp.Child("nodePort"), "may not be used when `type` is '"+string(s.Spec.Type)+"'"))
		}
		if key := fmt.Sprintf("%s/%d", port.Protocol, port.NodePort); nodePorts.Has(key) {
			errs = append(errs, field.Duplicate(pp.Child("nodePort"), port.NodePort))
		} else {
			nodePorts.Insert(key)
		}
	}
	for i, ip := range s.Spec.ExternalIPs {
		ep := p.Child("externalIPs").Index(i)
		if bad := validation.IsValidIPForLegacyField(ep, ip, true, nil); len(bad) > 0 {
			errs = append(errs, bad...)
		} else {
			errs = append(errs, validateOrdinaryIP(ip, ep)...)
		}
	}
	if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		if t := *c.ClientIP.TimeoutSeconds; t <= 0 || t > 86400 {
			errs = append(errs, field.Invalid(p.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), t, "must be greater than 0 and less than 86400"))
		}
	}
	return append(errs, validateTrafficPolicies(s, p)...)
}

// asksHealth tells whether load balancers ask each node for endpoints of the Service.
func asksHealth(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeLoadBalancer && s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// validateBalancerStatus checks what a load balancer says of itself.
func validateBalancerStatus(s *corev1.Service) field.ErrorList {
	var errs field.ErrorList
	p := field.NewPath("status", "loadBalancer", "ingress")
	if len(s.Status.LoadBalancer.Ingress) > 0 && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return field.ErrorList{field.Forbidden(p, "may only be used when `spec.type` is LoadBalancer")}
	}
	for i, in := range s.Status.LoadBalancer.Ingress {
		ip := p.Index(i)
		if in.IP != "" {
			errs = append(errs, validation.IsValidIPForLegacyField(ip.Child("ip"), in.IP, true, nil)...)
		}
		switch {
		case in.IPMode == nil && in.IP != "":
			errs = append(errs, field.Required(ip.Child("ipMode"), "must be specified when `ip` is set"))
		case in.IPMode != nil && in.IP == "":
			errs = append(errs, field.Forbidden(ip.Child("ipMode"), "may not be specified when `ip` is not set"))
		case in.IPMode != nil:
			errs = append(errs, oneOf(*in.IPMode, ip.Child("ipMode"), corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPModeProxy)...)
		}
		if in.Hostname != "" {
			errs = append(errs, invalidIf(validation.IsDNS1123Subdomain(in.Hostname), ip.Child("hostname"), in.Hostname)...)
			if _, err := netip.ParseAddr(in.Hostname); err == nil {
				errs = append(errs, field.Invalid(ip.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address"))
			}
		}
	}
	return errs
}

// validateOrdinaryIP refuses addresses that mean something else on every host.
func validateOrdinaryIP(ip string, p *field.Path) field.ErrorList {
	a, err := netip.ParseAddr(ip)
	for _, bad := range []struct {
		is   bool
		says string
	}{
		{err == nil && a.IsUnspecified(), "may not be unspecified (0.0.0.0 or ::)"},
		{a.IsLoopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"},
		{a.IsLinkLocalUnicast(), "may not be in the link-local range (169.254.0.0/16, fe80::/10)"},
		{a.IsLinkLocalMulticast(), "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"},
	} {
		if bad.is {
			return field.ErrorList{field.Invalid(p, ip, bad.says)}
		}
	}
	return nil
}

// validateTrafficPolicies checks what only some types of Services may have.
func validateTrafficPolicies(svc *corev1.Service, p *field.Path) field.ErrorList {
	var errs field.ErrorList
	s := &svc.Spec
	balanced := s.Type == corev1.ServiceTypeLoadBalancer
	if external := p.Child("externalTrafficPolicy"); balanced || s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeClusterIP && len(s.ExternalIPs) > 0 {
		errs = append(errs, oneOf(s.ExternalTrafficPolicy, external, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)...)
	} else if s.ExternalTrafficPolicy != "" {
		errs = append(errs, field.Invalid(external, s.ExternalTrafficPolicy, "may only be set for externally-accessible services"))
	}
	if i := s.InternalTrafficPolicy; i != nil {
		errs = append(errs, oneOf(*i, p.Child("internalTrafficPolicy"), corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)...)
	}
	if s.HealthCheckNodePort != 0 && !asksHealth(s) {
		errs = append(errs, field.Invalid(p.Child("healthCheckNodePort"), s.HealthCheckNodePort, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"))
	}
	if d := s.TrafficDistribution; d != nil {
		errs = append(errs, oneOf(*d, p.Child("trafficDistribution"), corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameNode, corev1.ServiceTrafficDistributionPreferSameZone)...)
	}
	ranges := p.Child("LoadBalancerSourceRanges") // with the reference's capital letter
	for i, r := range s.LoadBalancerSourceRanges {
		errs = append(errs, validation.IsValidCIDRForLegacyField(ranges.Index(i), strings.TrimSpace(r), true, nil)...)
	}
	errs = append(errs, validateSourceAnnotation(svc)...)
	if balanced {
		if c := s.LoadBalancerClass; c != nil {
			errs = append(errs, invalidIf(validation.IsQualifiedName(*c), p.Child("loadBalancerClass"), *c)...)
		}
		return errs
	}
	for name, set := range map[string]bool{
		"LoadBalancerSourceRanges": len(s.LoadBalancerSourceRanges) > 0, "allocateLoadBalancerNodePorts": s.AllocateLoadBalancerNodePorts != nil, "loadBalancerClass": s.LoadBalancerClass != nil,
	} {
		if set {
			errs = append(errs, field.Forbidden(p.Child(name), "may only be used when `type` is 'LoadBalancer'"))
		}
	}
	return errs
}

// validateSourceAnnotation checks the form that source ranges had before the field, which counts where both are there.
func validateSourceAnnotation(s *corev1.Service) field.ErrorList {
	text, ok := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]
	if !ok || len(s.Spec.LoadBalancerSourceRanges) > 0 {
		return nil
	}
	var errs field.ErrorList
	p := field.NewPath("metadata", "annotations").Key(corev1.AnnotationLoadBalancerSourceRangesKey)
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		errs = append(errs, field.Forbidden(p, "may only be used when `type` is 'LoadBalancer'"))
	}
	if text = strings.TrimSpace(text); text == "" {
		return errs
	}
	for r := range strings.SplitSeq(text, ",") {
		errs = append(errs, validation.IsValidCIDRForLegacyField(p, strings.TrimSpace(r), true, nil)...)
	}
	return errs
}

func externalIPs(s *corev1.Service) string {
	ips := s.Spec.ExternalIPs
	switch s.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		lb := balanced(s.Status.LoadBalancer.Ingress, func(in corev1.LoadBalancerIngress) (string, string) { return in.IP, in.Hostname })
		if len(lb)+len(ips) == 0 {
			return "<pending>"
		}
		return strings.Join(append(lb, ips...), ",")
	}
	return joined(ips)
}

func servicePorts(s *corev1.Service) string {
	var out []string
	for _, p := range s.Spec.Ports {
		if p.NodePort != 0 {
			out = append(out, fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol))
		} else {
			out = append(out, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
	}
	return joined(out)
}
