package resources

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/strake-io/strake/controlplane/apiserver/descriptor"
)

// serviceAddresses are the ranges of ClusterIPs and the addresses taken of them. The allocator writes an IPAddress for each.
func serviceAddresses() []*descriptor.Resource {
	return []*descriptor.Resource{
		kind[networkingv1.IPAddress, networkingv1.IPAddressList]("IPAddress", descriptor.Resource{
			GroupVersion: networkingv1.SchemeGroupVersion, Plural: "ipaddresses", ShortNames: []string{"ip"}, Generation: true,
			ValidName: func(name string, _ bool) []string {
				if a, err := netip.ParseAddr(name); err != nil || a.String() != name || a.Is4In6() {
					return []string{"must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff), in canonical format"}
				}
				return nil
			},
			Validate: descriptor.Check(func(a *networkingv1.IPAddress) field.ErrorList {
				p := field.NewPath("spec", "parentRef")
				r := a.Spec.ParentRef
				if r == nil {
					return field.ErrorList{field.Required(p, "")}
				}
				var errs field.ErrorList
				if r.Resource == "" {
					errs = append(errs, field.Required(p.Child("resource"), ""))
				}
				if r.Name == "" {
					errs = append(errs, field.Required(p.Child("name"), ""))
				}
				return errs
			}),
			ValidateUpdate: descriptor.CheckUpdate(func(a, old *networkingv1.IPAddress) field.ErrorList {
				return apivalidation.ValidateImmutableField(a.Spec.ParentRef, old.Spec.ParentRef, field.NewPath("spec", "parentRef"))
			}),
			Selectable: func(o runtime.Object) fields.Set {
				name := ""
				if r := o.(*networkingv1.IPAddress).Spec.ParentRef; r != nil {
					name = r.Name
				}
				return fields.Set{"spec.parentRef.name": name}
			},
			Columns: []descriptor.Column{
				{Name: "ParentRef", Cell: descriptor.Cell(func(a *networkingv1.IPAddress) string {
					r := a.Spec.ParentRef
					if r == nil {
						return "<none>"
					}
					return strings.Join(nonEmpty(r.Group, r.Resource, r.Namespace, r.Name), "/")
				})},
				descriptor.Age,
			},
		}),
		kind[networkingv1.ServiceCIDR, networkingv1.ServiceCIDRList]("ServiceCIDR", descriptor.Resource{
			GroupVersion: networkingv1.SchemeGroupVersion, Generation: true, Status: true,
			Validate: descriptor.Check(func(c *networkingv1.ServiceCIDR) field.ErrorList {
				p := field.NewPath("spec", "cidrs")
				switch n := len(c.Spec.CIDRs); {
				case n == 0:
					return field.ErrorList{field.Required(p, "at least one CIDR required")}
				case n > 2:
					return field.ErrorList{field.TooMany(p, n, 2)}
				}
				var errs field.ErrorList
				families := sets.New[corev1.IPFamily]()
				for i, s := range c.Spec.CIDRs {
					bad := validation.IsValidCIDR(p.Index(i), s)
					if prefix, err := netip.ParsePrefix(s); len(bad) == 0 && err == nil {
						families.Insert(FamilyOf(prefix.Addr()))
						if prefix.Masked().String() != s {
							bad = field.ErrorList{field.Invalid(p.Index(i), s, "must be in canonical form ("+prefix.Masked().String()+")")}
						}
					}
					errs = append(errs, bad...)
				}
				if len(errs) == 0 && families.Len() < len(c.Spec.CIDRs) {
					errs = append(errs, field.Invalid(p, c.Spec.CIDRs, "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"))
				}
				return errs
			}),
			ValidateUpdate: descriptor.CheckUpdate(func(c, old *networkingv1.ServiceCIDR) field.ErrorList {
				if now, was := c.Spec.CIDRs, old.Spec.CIDRs; len(was) == 1 && len(now) == 2 && now[0] == was[0] {
					return nil // a cluster that becomes dual-stack
				}
				return apivalidation.ValidateImmutableField(c.Spec.CIDRs, old.Spec.CIDRs, field.NewPath("spec", "cidrs"))
			}),
			Columns: []descriptor.Column{
				{Name: "CIDRs", Cell: descriptor.Cell(func(c *networkingv1.ServiceCIDR) string { return strings.Join(c.Spec.CIDRs, ",") })},
				descriptor.Age,
			},
		}),
	}
}
