// Package validation tells what is wrong with a policy, as the API does when it is written: with the field's path.
package validation

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// policyCheck is a validation of a NetworkPolicy. What an object had before the rules became stricter may stay in it.
type policyCheck struct {
	selectors metav1validation.LabelSelectorValidationOptions
	oldBlocks []string
	errs      field.ErrorList
}

func (c *policyCheck) add(errs ...*field.Error) { c.errs = append(c.errs, errs...) }

// NetworkPolicy tells what is wrong with a NetworkPolicy that is new.
func NetworkPolicy(n *networkingv1.NetworkPolicy) field.ErrorList {
	var c policyCheck
	c.spec(&n.Spec, field.NewPath("spec"))
	return c.errs
}

// NetworkPolicyUpdate tells what is wrong with a NetworkPolicy that was different.
func NetworkPolicyUpdate(n, old *networkingv1.NetworkPolicy) field.ErrorList {
	var c policyCheck
	had := metav1validation.LabelSelectorHasInvalidLabelValue(&old.Spec.PodSelector)
	for _, peer := range policyPeers(&old.Spec) {
		had = had || metav1validation.LabelSelectorHasInvalidLabelValue(peer.PodSelector) || metav1validation.LabelSelectorHasInvalidLabelValue(peer.NamespaceSelector)
		if b := peer.IPBlock; b != nil {
			c.oldBlocks = append(append(c.oldBlocks, b.CIDR), b.Except...)
		}
	}
	c.selectors.AllowInvalidLabelValueInSelector = had
	c.spec(&n.Spec, field.NewPath("spec"))
	return c.errs
}

func policyPeers(s *networkingv1.NetworkPolicySpec) []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for _, r := range s.Ingress {
		out = append(out, r.From...)
	}
	for _, r := range s.Egress {
		out = append(out, r.To...)
	}
	return out
}

func (c *policyCheck) spec(s *networkingv1.NetworkPolicySpec, p *field.Path) {
	c.selector(&s.PodSelector, p.Child("podSelector"))
	for i, r := range s.Ingress {
		rp := p.Child("ingress").Index(i)
		c.ports(r.Ports, rp.Child("ports"))
		c.peers(r.From, rp.Child("from"))
	}
	for i, r := range s.Egress {
		rp := p.Child("egress").Index(i)
		c.ports(r.Ports, rp.Child("ports"))
		c.peers(r.To, rp.Child("to"))
	}
	types := []networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress}
	if len(s.PolicyTypes) > len(types) {
		c.add(field.Invalid(p.Child("policyTypes"), s.PolicyTypes, "may not specify more than two policyTypes"))
		return
	}
	for i, t := range s.PolicyTypes {
		if !slices.Contains(types, t) {
			c.add(field.NotSupported(p.Child("policyTypes").Index(i), t, types))
		}
	}
}

func (c *policyCheck) selector(s *metav1.LabelSelector, p *field.Path) {
	c.add(metav1validation.ValidateLabelSelector(s, c.selectors, p)...)
}

func (c *policyCheck) ports(ports []networkingv1.NetworkPolicyPort, p *field.Path) {
	protocols := []corev1.Protocol{corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP}
	for i, port := range ports {
		pp := p.Index(i)
		if port.Protocol != nil && !slices.Contains(protocols, *port.Protocol) {
			c.add(field.NotSupported(pp.Child("protocol"), *port.Protocol, protocols))
		}
		end := pp.Child("endPort")
		switch {
		case port.Port == nil:
			if port.EndPort != nil {
				c.add(field.Invalid(end, *port.EndPort, "may not be specified when `port` is not specified"))
			}
		case port.Port.Type == intstr.Int:
			c.add(invalid(validation.IsValidPortNum(int(port.Port.IntVal)), pp.Child("port"), port.Port.IntVal)...)
			if port.EndPort == nil {
				continue
			}
			if *port.EndPort < port.Port.IntVal {
				c.add(field.Invalid(end, *port.EndPort, "must be greater than or equal to `port`"))
			}
			c.add(invalid(validation.IsValidPortNum(int(*port.EndPort)), end, *port.EndPort)...)
		default:
			if port.EndPort != nil {
				c.add(field.Invalid(end, *port.EndPort, "may not be specified when `port` is non-numeric"))
			}
			c.add(invalid(validation.IsValidPortName(port.Port.StrVal), pp.Child("port"), port.Port.StrVal)...)
		}
	}
}

func (c *policyCheck) peers(peers []networkingv1.NetworkPolicyPeer, p *field.Path) {
	for i, peer := range peers {
		pp := p.Index(i)
		if peer.PodSelector != nil {
			c.selector(peer.PodSelector, pp.Child("podSelector"))
		}
		if peer.NamespaceSelector != nil {
			c.selector(peer.NamespaceSelector, pp.Child("namespaceSelector"))
		}
		if peer.IPBlock != nil {
			c.block(peer.IPBlock, pp.Child("ipBlock"))
		}
		selects := peer.PodSelector != nil || peer.NamespaceSelector != nil
		if !selects && peer.IPBlock == nil {
			c.add(field.Required(pp, "must specify a peer"))
		} else if selects && peer.IPBlock != nil {
			c.add(field.Forbidden(pp, "may not specify both ipBlock and another peer"))
		}
	}
}

func (c *policyCheck) block(b *networkingv1.IPBlock, p *field.Path) {
	if b.CIDR == "" {
		c.add(field.Required(p.Child("cidr"), ""))
		return
	}
	if bad := validation.IsValidCIDRForLegacyField(p.Child("cidr"), b.CIDR, true, c.oldBlocks); len(bad) > 0 {
		c.add(bad...)
		return
	}
	for i, e := range b.Except {
		ep := p.Child("except").Index(i)
		c.add(validation.IsValidCIDRForLegacyField(ep, e, true, c.oldBlocks)...)
		if !strictlyWithin(e, b.CIDR) {
			c.add(field.Invalid(ep, e, "must be a strict subset of `cidr`"))
		}
	}
}

// strictlyWithin tells whether a network is part of another, and not all of it. Of one that can't be read nothing is said.
func strictlyWithin(part, whole string) bool {
	p, err := netip.ParsePrefix(part)
	w, wholeErr := netip.ParsePrefix(whole)
	return err != nil || wholeErr != nil || w.Contains(p.Addr()) && p.Bits() > w.Bits()
}

func selector(s *metav1.LabelSelector, p *field.Path) field.ErrorList {
	return metav1validation.ValidateLabelSelector(s, metav1validation.LabelSelectorValidationOptions{}, p)
}

func oneOf[V ~string](v V, p *field.Path, allowed ...V) field.ErrorList {
	if v == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	for _, a := range allowed {
		if v == a {
			return nil
		}
	}
	return field.ErrorList{field.NotSupported(p, v, allowed)}
}

// invalid turns the messages of a check into errors of a field.
func invalid(msgs []string, p *field.Path, value any) field.ErrorList {
	var errs field.ErrorList
	for _, m := range msgs {
		errs = append(errs, field.Invalid(p, value, m))
	}
	return errs
}
