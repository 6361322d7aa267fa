package validation

import (
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/util/validation/field"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// Limits of the CRD's schema.
const (
	maxPriority = 1000
	maxItems    = 25
	maxRuleName = 100
)

// ClusterNetworkPolicy tells what is wrong with a ClusterNetworkPolicy's spec, by the schema of its CRD.
func ClusterNetworkPolicy(c *policyv1alpha2.ClusterNetworkPolicy) field.ErrorList {
	p := field.NewPath("spec")
	errs := oneOf(c.Spec.Tier, p.Child("tier"), policyv1alpha2.AdminTier, policyv1alpha2.BaselineTier)
	if v := c.Spec.Priority; v < 0 || v > maxPriority {
		errs = append(errs, field.Invalid(p.Child("priority"), v, fmt.Sprintf("must be 0 to %d", maxPriority)))
	}
	s := c.Spec.Subject
	errs = append(errs, exactlyOne(p.Child("subject"), s.Namespaces != nil, s.Pods != nil)...)
	if s.Namespaces != nil {
		errs = append(errs, selector(s.Namespaces, p.Child("subject", "namespaces"))...)
	}
	errs = append(errs, namespacedPod(s.Pods, p.Child("subject", "pods"))...)
	errs = append(errs, count(p.Child("ingress"), len(c.Spec.Ingress), 0)...)
	for i, r := range c.Spec.Ingress {
		rp := p.Child("ingress").Index(i)
		errs = append(errs, rule(r.Name, r.Action, r.Protocols, rp)...)
		errs = append(errs, count(rp.Child("from"), len(r.From), 1)...)
		for j, peer := range r.From {
			pp := rp.Child("from").Index(j)
			errs = append(errs, exactlyOne(pp, peer.Namespaces != nil, peer.Pods != nil)...)
			if peer.Namespaces != nil {
				errs = append(errs, selector(peer.Namespaces, pp.Child("namespaces"))...)
			}
			errs = append(errs, namespacedPod(peer.Pods, pp.Child("pods"))...)
		}
	}
	errs = append(errs, count(p.Child("egress"), len(c.Spec.Egress), 0)...)
	for i, r := range c.Spec.Egress {
		errs = append(errs, egressRule(r, p.Child("egress").Index(i))...)
	}
	return errs
}

func egressRule(r policyv1alpha2.ClusterNetworkPolicyEgressRule, rp *field.Path) field.ErrorList {
	errs := rule(r.Name, r.Action, r.Protocols, rp)
	errs = append(errs, count(rp.Child("to"), len(r.To), 1)...)
	nameless := false
	for j, peer := range r.To {
		pp := rp.Child("to").Index(j)
		errs = append(errs, exactlyOne(pp, peer.Namespaces != nil, peer.Pods != nil, peer.Nodes != nil, peer.Networks != nil, peer.DomainNames != nil)...)
		nameless = nameless || peer.Nodes != nil || peer.Networks != nil || peer.DomainNames != nil
		if peer.Namespaces != nil {
			errs = append(errs, selector(peer.Namespaces, pp.Child("namespaces"))...)
		}
		errs = append(errs, namespacedPod(peer.Pods, pp.Child("pods"))...)
		if peer.Nodes != nil {
			errs = append(errs, selector(peer.Nodes, pp.Child("nodes"))...)
		}
		if peer.Networks != nil {
			errs = append(errs, count(pp.Child("networks"), len(peer.Networks), 1)...)
		}
		for k, n := range peer.Networks {
			if v, err := netip.ParsePrefix(string(n)); err != nil || v.Addr().Is4In6() {
				errs = append(errs, field.Invalid(pp.Child("networks").Index(k), n, "must be a range in CIDR notation, such as 10.0.0.0/8 or fd00::/8"))
			}
		}
		if peer.DomainNames != nil {
			errs = append(errs, field.Forbidden(pp.Child("domainNames"), "of the experimental channel, and not supported: the rule fails closed"))
		}
	}
	for k, v := range r.Protocols {
		if nameless && v.DestinationNamedPort != "" {
			errs = append(errs, field.Forbidden(rp.Child("protocols").Index(k).Child("destinationNamedPort"), "networks, nodes and domainNames have no named ports"))
		}
	}
	return errs
}

func rule(name string, action policyv1alpha2.ClusterNetworkPolicyRuleAction, protocols []policyv1alpha2.ClusterNetworkPolicyProtocol, p *field.Path) field.ErrorList {
	errs := oneOf(action, p.Child("action"), policyv1alpha2.ClusterNetworkPolicyRuleActionAccept, policyv1alpha2.ClusterNetworkPolicyRuleActionDeny, policyv1alpha2.ClusterNetworkPolicyRuleActionPass)
	if len([]rune(name)) > maxRuleName {
		errs = append(errs, field.TooLong(p.Child("name"), name, maxRuleName))
	}
	if protocols != nil {
		errs = append(errs, count(p.Child("protocols"), len(protocols), 1)...)
	}
	for i, v := range protocols {
		pp := p.Child("protocols").Index(i)
		errs = append(errs, exactlyOne(pp, v.TCP != nil, v.UDP != nil, v.SCTP != nil, v.DestinationNamedPort != "")...)
		if v.TCP != nil {
			errs = append(errs, protocolPort(v.TCP.DestinationPort, pp.Child("tcp"))...)
		}
		if v.UDP != nil {
			errs = append(errs, protocolPort(v.UDP.DestinationPort, pp.Child("udp"))...)
		}
		if v.SCTP != nil {
			errs = append(errs, protocolPort(v.SCTP.DestinationPort, pp.Child("sctp"))...)
		}
	}
	return errs
}

func protocolPort(port *policyv1alpha2.Port, p *field.Path) field.ErrorList {
	if port == nil {
		return field.ErrorList{field.Required(p.Child("destinationPort"), "the schema wants at least one property")}
	}
	p = p.Child("destinationPort")
	errs := exactlyOne(p, port.Number != 0, port.Range != nil)
	if n := port.Number; n != 0 && (n < 1 || n > 65535) {
		errs = append(errs, field.Invalid(p.Child("number"), n, "must be 1 to 65535"))
	}
	if r := port.Range; r != nil {
		for name, v := range map[string]int32{"start": r.Start, "end": r.End} {
			if v < 1 || v > 65535 {
				errs = append(errs, field.Invalid(p.Child("range", name), v, "must be 1 to 65535"))
			}
		}
		if r.Start >= r.End {
			errs = append(errs, field.Invalid(p.Child("range"), fmt.Sprintf("%d-%d", r.Start, r.End), "Start port must be less than End port"))
		}
	}
	return errs
}

func namespacedPod(n *policyv1alpha2.NamespacedPod, p *field.Path) field.ErrorList {
	if n == nil {
		return nil
	}
	return append(selector(&n.NamespaceSelector, p.Child("namespaceSelector")), selector(&n.PodSelector, p.Child("podSelector"))...)
}

func exactlyOne(p *field.Path, set ...bool) field.ErrorList {
	n := 0
	for _, s := range set {
		if s {
			n++
		}
	}
	switch {
	case n == 0:
		return field.ErrorList{field.Required(p, "exactly one field must be set, and none is that is known")}
	case n > 1:
		return field.ErrorList{field.Forbidden(p, fmt.Sprintf("exactly one field must be set, and %d are", n))}
	}
	return nil
}

func count(p *field.Path, n, least int) field.ErrorList {
	switch {
	case n < least:
		return field.ErrorList{field.Required(p, fmt.Sprintf("at least %d", least))}
	case n > maxItems:
		return field.ErrorList{field.TooMany(p, n, maxItems)}
	}
	return nil
}
