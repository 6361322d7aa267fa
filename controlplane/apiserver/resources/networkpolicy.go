package resources

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

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

// warnNetworkPolicy tells of blocks that are valid and not as they are usually written: somebody may have meant another.
func warnNetworkPolicy(n *networkingv1.NetworkPolicy) []string {
	var out []string
	warn := func(peers []networkingv1.NetworkPolicyPeer, p *field.Path) {
		for i, peer := range peers {
			if peer.IPBlock == nil {
				continue
			}
			bp := p.Index(i).Child("ipBlock")
			out = append(out, validation.GetWarningsForCIDR(bp.Child("cidr"), peer.IPBlock.CIDR)...)
			for j, e := range peer.IPBlock.Except {
				out = append(out, validation.GetWarningsForCIDR(bp.Child("except").Index(j), e)...)
			}
		}
	}
	for i, r := range n.Spec.Ingress {
		warn(r.From, field.NewPath("spec", "ingress").Index(i).Child("from"))
	}
	for i, r := range n.Spec.Egress {
		warn(r.To, field.NewPath("spec", "egress").Index(i).Child("to"))
	}
	return out
}
