package resources

import (
	"fmt"
	"net/netip"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

func discovery() []*descriptor.Resource {
	return []*descriptor.Resource{kind[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList]("EndpointSlice", descriptor.Resource{
		GroupVersion: discoveryv1.SchemeGroupVersion, Namespaced: true, Generation: true,
		Default: descriptor.Each(func(s *discoveryv1.EndpointSlice) {
			for i := range s.Ports {
				set(&s.Ports[i].Name, "")
				set(&s.Ports[i].Protocol, corev1.ProtocolTCP)
			}
		}),
		Validate: descriptor.Check(func(s *discoveryv1.EndpointSlice) field.ErrorList {
			errs := oneOf(s.AddressType, field.NewPath("addressType"), discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)
			if len(s.Endpoints) > maxSliceEndpoints {
				errs = append(errs, field.TooMany(field.NewPath("endpoints"), len(s.Endpoints), maxSliceEndpoints))
			}
			errs = append(errs, validateSlicePorts(s.Ports, field.NewPath("ports"))...)
			for i, e := range s.Endpoints {
				p := field.NewPath("endpoints").Index(i).Child("addresses")
				if len(e.Addresses) > maxSliceAddresses {
					errs = append(errs, field.TooMany(p, len(e.Addresses), maxSliceAddresses))
				}
				if h := e.Hostname; h != nil {
					errs = append(errs, invalidIf(validation.IsDNS1123Label(*h), field.NewPath("endpoints").Index(i).Child("hostname"), *h)...)
				}
				if n := e.NodeName; n != nil {
					errs = append(errs, invalidIf(subdomain(*n), field.NewPath("endpoints").Index(i).Child("nodeName"), *n)...)
				}
				errs = append(errs, validateHints(e.Hints, field.NewPath("endpoints").Index(i).Child("hints"))...)
				if len(e.Addresses) == 0 {
					errs = append(errs, field.Required(p, "must contain at least 1 endpoint"))
				}
				for j, a := range e.Addresses {
					switch s.AddressType {
					case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
						if bad := validation.IsValidIPForLegacyField(p.Index(j), a, true, nil); len(bad) > 0 {
							errs = append(errs, bad...)
						} else if ip, err := netip.ParseAddr(a); err == nil && ip.Is4() != (s.AddressType == discoveryv1.AddressTypeIPv4) {
							errs = append(errs, field.Invalid(p.Index(j), a, "must be an "+string(s.AddressType)+" address"))
						} else {
							errs = append(errs, validateOrdinaryIP(a, p.Index(j))...)
						}
					case discoveryv1.AddressTypeFQDN:
						errs = append(errs, invalidIf(validation.IsDNS1123Subdomain(a), p.Index(j), a)...)
					}
				}
			}
			return errs
		}),
		ValidateUpdate: descriptor.CheckUpdate(func(s, old *discoveryv1.EndpointSlice) field.ErrorList {
			return apivalidation.ValidateImmutableField(s.AddressType, old.AddressType, field.NewPath("addressType"))
		}),
		Columns: []descriptor.Column{
			{Name: "AddressType", Cell: descriptor.Cell(func(s *discoveryv1.EndpointSlice) string { return string(s.AddressType) })},
			{Name: "Ports", Cell: descriptor.Cell(func(s *discoveryv1.EndpointSlice) string {
				var out []string
				for _, p := range s.Ports {
					if p.Port == nil {
						out = append(out, "*")
					} else {
						out = append(out, fmt.Sprint(*p.Port))
					}
				}
				return unset(out)
			})},
			{Name: "Endpoints", Cell: descriptor.Cell(func(s *discoveryv1.EndpointSlice) string {
				var out []string
				for _, e := range s.Endpoints {
					out = append(out, e.Addresses...)
				}
				if len(out) > 3 {
					return strings.Join(out[:3], ",") + fmt.Sprintf(" + %d more...", len(out)-3)
				}
				return unset(out)
			})},
			descriptor.Age,
		},
	})}
}

func unset(items []string) string {
	if len(items) == 0 {
		return "<unset>"
	}
	return strings.Join(items, ",")
}

func coordination() []*descriptor.Resource {
	return []*descriptor.Resource{kind[coordinationv1.Lease, coordinationv1.LeaseList]("Lease", descriptor.Resource{
		GroupVersion: coordinationv1.SchemeGroupVersion, Namespaced: true, AllowCreateOnUpdate: true,
		Validate: descriptor.Check(func(l *coordinationv1.Lease) field.ErrorList {
			var errs field.ErrorList
			if d := l.Spec.LeaseDurationSeconds; d != nil && *d <= 0 {
				errs = append(errs, field.Invalid(field.NewPath("spec", "leaseDurationSeconds"), *d, "must be greater than 0"))
			}
			if n := l.Spec.LeaseTransitions; n != nil && *n < 0 {
				errs = append(errs, field.Invalid(field.NewPath("spec", "leaseTransitions"), *n, "must be greater than or equal to 0"))
			}
			return errs
		}),
		Columns: []descriptor.Column{
			{Name: "Holder", Cell: descriptor.Cell(func(l *coordinationv1.Lease) string {
				if l.Spec.HolderIdentity == nil {
					return ""
				}
				return *l.Spec.HolderIdentity
			})},
			descriptor.Age,
		},
	})}
}

func networking() []*descriptor.Resource {
	return []*descriptor.Resource{
		kind[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList]("NetworkPolicy", descriptor.Resource{
			GroupVersion: networkingv1.SchemeGroupVersion, Plural: "networkpolicies", ShortNames: []string{"netpol"}, Namespaced: true, Generation: true,
			Default:  descriptor.Each(defaultNetworkPolicy),
			Validate: descriptor.Check(validateNetworkPolicy),
			Columns: []descriptor.Column{
				{Name: "Pod-Selector", Cell: descriptor.Cell(func(n *networkingv1.NetworkPolicy) string { return selectorCell(&n.Spec.PodSelector) })},
				descriptor.Age,
			},
		}),
		kind[networkingv1.Ingress, networkingv1.IngressList]("Ingress", descriptor.Resource{
			GroupVersion: networkingv1.SchemeGroupVersion, Plural: "ingresses", ShortNames: []string{"ing"}, Namespaced: true, Generation: true, Status: true,
			Validate: descriptor.Check(validateIngress),
			Columns: []descriptor.Column{
				{Name: "Class", Cell: descriptor.Cell(func(i *networkingv1.Ingress) string {
					if i.Spec.IngressClassName == nil {
						return "<none>"
					}
					return *i.Spec.IngressClassName
				})},
				{Name: "Hosts", Cell: descriptor.Cell(func(i *networkingv1.Ingress) string {
					var hosts []string
					for _, r := range i.Spec.Rules {
						hosts = append(hosts, nonEmpty(r.Host)...)
					}
					if len(hosts) == 0 {
						return "*"
					}
					return strings.Join(hosts, ",")
				})},
				{Name: "Address", Cell: descriptor.Cell(func(i *networkingv1.Ingress) string {
					var out []string
					for _, in := range i.Status.LoadBalancer.Ingress {
						out = append(out, nonEmpty(in.IP, in.Hostname)...)
					}
					return strings.Join(out, ",")
				})},
				{Name: "Ports", Cell: descriptor.Cell(func(i *networkingv1.Ingress) string {
					if len(i.Spec.TLS) > 0 {
						return "80, 443"
					}
					return "80"
				})},
				descriptor.Age,
			},
		}),
		kind[networkingv1.IngressClass, networkingv1.IngressClassList]("IngressClass", descriptor.Resource{
			GroupVersion: networkingv1.SchemeGroupVersion, Plural: "ingressclasses", Generation: true,
			Validate: descriptor.Check(func(c *networkingv1.IngressClass) field.ErrorList {
				if c.Spec.Controller == "" {
					return field.ErrorList{field.Required(field.NewPath("spec", "controller"), "")}
				}
				return nil
			}),
			ValidateUpdate: descriptor.CheckUpdate(func(c, old *networkingv1.IngressClass) field.ErrorList {
				return apivalidation.ValidateImmutableField(c.Spec.Controller, old.Spec.Controller, field.NewPath("spec", "controller"))
			}),
			Columns: []descriptor.Column{
				{Name: "Controller", Cell: descriptor.Cell(func(i *networkingv1.IngressClass) string { return i.Spec.Controller })},
				descriptor.Age,
			},
		}),
	}
}

func defaultNetworkPolicy(n *networkingv1.NetworkPolicy) {
	for i := range n.Spec.Ingress {
		defaultPolicyPorts(n.Spec.Ingress[i].Ports)
	}
	for i := range n.Spec.Egress {
		defaultPolicyPorts(n.Spec.Egress[i].Ports)
	}
	if len(n.Spec.PolicyTypes) == 0 {
		n.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(n.Spec.Egress) > 0 {
			n.Spec.PolicyTypes = append(n.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

func defaultPolicyPorts(ports []networkingv1.NetworkPolicyPort) {
	for i := range ports {
		set(&ports[i].Protocol, corev1.ProtocolTCP)
	}
}

// strictlyWithin tells whether a network is part of another, and not all of it. Of one that can't be read nothing is said.
func strictlyWithin(part, whole string) bool {
	p, err := netip.ParsePrefix(part)
	w, wholeErr := netip.ParsePrefix(whole)
	return err != nil || wholeErr != nil || w.Contains(p.Addr()) && p.Bits() > w.Bits()
}

func validateNetworkPolicy(n *networkingv1.NetworkPolicy) field.ErrorList {
	p := field.NewPath("spec")
	opts := metav1validation.LabelSelectorValidationOptions{}
	errs := metav1validation.ValidateLabelSelector(&n.Spec.PodSelector, opts, p.Child("podSelector"))
	check := func(ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer, rp *field.Path, peerName string) {
		for i, port := range ports {
			pp := rp.Child("ports").Index(i)
			if port.Protocol != nil {
				errs = append(errs, oneOf(*port.Protocol, pp.Child("protocol"), corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
			}
			if port.Port != nil {
				errs = append(errs, validatePortRef(*port.Port, pp.Child("port"))...)
			}
			if port.EndPort != nil {
				switch {
				case port.Port == nil:
					errs = append(errs, field.Required(pp.Child("port"), "must be specified when `endPort` is specified"))
				case port.Port.StrVal != "":
					errs = append(errs, field.Invalid(pp.Child("endPort"), *port.EndPort, "may not be specified when `port` is non-numeric"))
				case *port.EndPort < port.Port.IntVal:
					errs = append(errs, field.Invalid(pp.Child("endPort"), *port.EndPort, "must be greater than or equal to `port`"))
				}
			}
		}
		for i, peer := range peers {
			pp := rp.Child(peerName).Index(i)
			if peer.IPBlock != nil && (peer.PodSelector != nil || peer.NamespaceSelector != nil) {
				errs = append(errs, field.Forbidden(pp, "may not specify both ipBlock and another peer"))
			}
			if peer.IPBlock == nil && peer.PodSelector == nil && peer.NamespaceSelector == nil {
				errs = append(errs, field.Required(pp, "must specify a peer"))
			}
			if peer.PodSelector != nil {
				errs = append(errs, metav1validation.ValidateLabelSelector(peer.PodSelector, opts, pp.Child("podSelector"))...)
			}
			if peer.NamespaceSelector != nil {
				errs = append(errs, metav1validation.ValidateLabelSelector(peer.NamespaceSelector, opts, pp.Child("namespaceSelector"))...)
			}
			if peer.IPBlock != nil {
				errs = append(errs, validation.IsValidCIDRForLegacyField(pp.Child("ipBlock", "cidr"), peer.IPBlock.CIDR, true, nil)...)
				for j, e := range peer.IPBlock.Except {
					ep := pp.Child("ipBlock", "except").Index(j)
					if bad := validation.IsValidCIDRForLegacyField(ep, e, true, nil); len(bad) > 0 {
						errs = append(errs, bad...)
					} else if !strictlyWithin(e, peer.IPBlock.CIDR) {
						errs = append(errs, field.Invalid(ep, e, "must be a strict subset of `cidr`"))
					}
				}
			}
		}
	}
	for i, r := range n.Spec.Ingress {
		check(r.Ports, r.From, p.Child("ingress").Index(i), "from")
	}
	for i, r := range n.Spec.Egress {
		check(r.Ports, r.To, p.Child("egress").Index(i), "to")
	}
	for i, t := range n.Spec.PolicyTypes {
		errs = append(errs, oneOf(t, p.Child("policyTypes").Index(i), networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress)...)
	}
	return errs
}
