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
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
	policyvalidation "github.com/strake-io/strake/netpol/validation"
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
					switch {
					case p.Port != nil:
						out = append(out, fmt.Sprint(*p.Port))
					case p.Name != nil:
						out = append(out, *p.Name)
					default:
						out = append(out, "*")
					}
				}
				return few(out, "<unset>")
			})},
			{Name: "Endpoints", Cell: descriptor.Cell(func(s *discoveryv1.EndpointSlice) string {
				var out []string
				for _, e := range s.Endpoints {
					out = append(out, e.Addresses...)
				}
				return few(out, "<unset>")
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
			Default:    descriptor.Each(defaultNetworkPolicy),
			Validate:   descriptor.Check(policyvalidation.NetworkPolicy),
			Revalidate: descriptor.CheckUpdate(policyvalidation.NetworkPolicyUpdate),
			Warn:       descriptor.Warn(warnNetworkPolicy),
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
					return few(hosts, "*")
				})},
				{Name: "Address", Cell: descriptor.Cell(func(i *networkingv1.Ingress) string {
					return strings.Join(balanced(i.Status.LoadBalancer.Ingress, func(in networkingv1.IngressLoadBalancerIngress) (string, string) { return in.IP, in.Hostname }), ",")
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
				{Name: "Parameters", Cell: descriptor.Cell(func(i *networkingv1.IngressClass) string {
					p := i.Spec.Parameters
					if p == nil {
						return "<none>"
					}
					return strings.Join(append([]string{p.Kind}, nonEmpty(valueOr(p.APIGroup, ""))...), ".") + "/" + p.Name
				})},
				descriptor.Age,
			},
		}),
	}
}
