package proxy

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/strake-io/strake/bpf"
)

// addresses are where a Service answers in one family, and for whom.
type addresses struct {
	cluster, external, balancer, node []netip.Addr
	sources                           []netip.Prefix // who may ask at a load balancer's address; none: everybody
	internal, outside                 bpf.Scope      // by internalTrafficPolicy and externalTrafficPolicy
	local                             bool           // one of them is Local, or the node's backends are to be known all the same
}

// frontendKey tells frontends apart.
type frontendKey struct {
	at    netip.AddrPort
	proto uint8
}

// addresses collects them; ok says whether the Service is of the family at all.
func (f family) addresses(svc *corev1.Service, node Node) (at addresses, ok bool) {
	texts := svc.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{svc.Spec.ClusterIP} // written by a client that knows the older field only
	}
	if len(f.add(nil, nil, texts...)) == 0 {
		return at, false
	}
	at.cluster = f.add(nil, node.Local, texts...)
	at.external = f.add(nil, node.Local, svc.Spec.ExternalIPs...)
	for _, in := range svc.Status.LoadBalancer.Ingress {
		// An address of a load balancer that delivers by itself (KEP-1860: ipMode Proxy) is not ours to answer for.
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			at.balancer = f.add(at.balancer, node.Local, in.IP)
		}
	}
	at.node = f.of(node.Addrs)
	at.sources = f.sources(svc)
	at.internal, at.outside, at.local = bpf.All, bpf.All, node.OtherPods
	if p := svc.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		at.internal, at.local = bpf.Local, true
	}
	if svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		at.outside, at.local = bpf.Local, true
	}
	return at, true
}

// frontends of one port. internalTrafficPolicy counts for whoever comes to the ClusterIP, externalTrafficPolicy for who comes from
// outside to the other addresses: who comes there from inside of the cluster has come to the right node already, and gets every backend.
// An address that is there for two reasons counts for the first; a load balancer's comes before the others that may be the
// same, for it alone limits who may ask.
func (at addresses) frontends(port *corev1.ServicePort, proto uint8, taken map[frontendKey]bool) []bpf.Frontend {
	var out []bpf.Frontend
	add := func(list []netip.Addr, number int32, f bpf.Frontend) {
		if number <= 0 || number >= 1<<16 {
			return
		}
		for _, a := range list {
			f.Addr = netip.AddrPortFrom(a, uint16(number))
			if key := (frontendKey{f.Addr, proto}); !taken[key] {
				taken[key] = true
				out = append(out, f)
			}
		}
	}
	add(at.cluster, port.Port, bpf.Frontend{Kind: bpf.ClusterIP, Inside: at.internal, Outside: at.internal})
	add(at.balancer, port.Port, bpf.Frontend{Kind: bpf.LoadBalancerIP, Inside: bpf.All, Outside: at.outside, Sources: at.sources})
	add(at.external, port.Port, bpf.Frontend{Kind: bpf.ExternalIP, Inside: bpf.All, Outside: at.outside})
	add(at.node, port.NodePort, bpf.Frontend{Kind: bpf.NodePort, Inside: bpf.All, Outside: at.outside})
	return out
}

// sources are loadBalancerSourceRanges, or those of the annotation that came before the field. Ranges of the other family only, or
// that can't be read, let nobody in: somebody wanted a limit.
func (f family) sources(svc *corev1.Service) []netip.Prefix {
	texts := svc.Spec.LoadBalancerSourceRanges
	if text := strings.TrimSpace(svc.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]); len(texts) == 0 && text != "" {
		texts = strings.Split(text, ",")
	}
	if len(texts) == 0 {
		return nil
	}
	var out []netip.Prefix
	for _, t := range texts {
		p, err := netip.ParsePrefix(strings.TrimSpace(t))
		if err != nil || !f.holds(p.Addr()) || p.Addr().Is4In6() {
			continue
		}
		if p.Bits() == 0 {
			return nil
		}
		out = append(out, p.Masked())
	}
	if len(out) == 0 {
		return []netip.Prefix{f.nobody}
	}
	return out
}
