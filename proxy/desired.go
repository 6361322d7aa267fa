package proxy

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strake-io/strake/bpf"
)

// labelProxyName on a Service says that another proxy serves it (KEP-2447: well-known label service.kubernetes.io/service-proxy-name).
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// Node is what the rows of one node depend on.
type Node struct {
	Name  string
	Addrs []netip.Addr // where NodePorts answer
	Local []netip.Addr // ClusterIPs that the node serves itself (cluster DNS)
}

// Desired returns the rows of one Service: pure, and the same for the same input.
func Desired(svc *corev1.Service, endpoints []*discoveryv1.EndpointSlice, node Node) []bpf.LoadBalancer {
	if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone || svc.Spec.ClusterIP == "" || svc.Labels[labelProxyName] != "" {
		return nil
	}
	clusterIP, err := netip.ParseAddr(svc.Spec.ClusterIP)
	if err != nil || !clusterIP.Is4() || slices.Contains(node.Local, clusterIP) {
		return nil
	}
	var out []bpf.LoadBalancer
	for _, port := range svc.Spec.Ports {
		proto, ok := protocol(port.Protocol)
		if !ok {
			continue
		}
		name := fmt.Sprintf("%s/%s:%s", svc.Namespace, svc.Name, port.Name)
		internal := bpf.LoadBalancer{
			Owner: string(svc.UID), Name: name, Protocol: proto,
			Frontends: []netip.AddrPort{netip.AddrPortFrom(clusterIP, uint16(port.Port))},
			Backends:  backends(endpoints, port, localOnly(svc.Spec.InternalTrafficPolicy), node.Name),
		}
		var external []netip.AddrPort
		for _, a := range externalAddrs(svc) {
			external = append(external, netip.AddrPortFrom(a, uint16(port.Port)))
		}
		if port.NodePort != 0 {
			for _, a := range node.Addrs {
				external = append(external, netip.AddrPortFrom(a, uint16(port.NodePort)))
			}
		}
		localExternal := svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
		if len(external) > 0 && localExternal == localOnly(svc.Spec.InternalTrafficPolicy) {
			internal.Frontends = append(internal.Frontends, external...)
			external = nil
		}
		out = append(out, internal)
		if len(external) > 0 {
			// Another policy, so other backends: a row of its own.
			out = append(out, bpf.LoadBalancer{
				Owner: string(svc.UID), Name: name + ":external", Protocol: proto, Frontends: external,
				Backends: backends(endpoints, port, localExternal, node.Name),
			})
		}
	}
	return out
}

func protocol(p corev1.Protocol) (uint8, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return unix.IPPROTO_TCP, true
	case corev1.ProtocolUDP:
		return unix.IPPROTO_UDP, true
	}
	return 0, false
}

func localOnly(p *corev1.ServiceInternalTrafficPolicy) bool {
	return p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal
}

// externalAddrs are externalIPs and the addresses that a load balancer has given (ipMode VIP).
func externalAddrs(svc *corev1.Service) []netip.Addr {
	texts := slices.Clone(svc.Spec.ExternalIPs)
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			texts = append(texts, in.IP)
		}
	}
	var out []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil && a.Is4() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// backends are the endpoints of a port that are ready; if none is, those that still serve while they end (KEP-1669).
func backends(list []*discoveryv1.EndpointSlice, port corev1.ServicePort, local bool, nodeName string) []netip.AddrPort {
	var ready, serving []netip.AddrPort
	for _, s := range list {
		if s.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		number := uint16(0)
		for _, p := range s.Ports {
			name, proto := "", corev1.ProtocolTCP
			if p.Name != nil {
				name = *p.Name
			}
			if p.Protocol != nil {
				proto = *p.Protocol
			}
			if name == port.Name && proto == port.Protocol && p.Port != nil && *p.Port > 0 && *p.Port < 1<<16 {
				number = uint16(*p.Port)
			}
		}
		if number == 0 {
			continue
		}
		for _, e := range s.Endpoints {
			if local && (e.NodeName == nil || *e.NodeName != nodeName) {
				continue
			}
			for _, text := range e.Addresses {
				a, err := netip.ParseAddr(text)
				if err != nil || !a.Is4() {
					continue
				}
				ap := netip.AddrPortFrom(a, number)
				if e.Conditions.Ready == nil || *e.Conditions.Ready {
					ready = append(ready, ap)
				} else if e.Conditions.Serving != nil && *e.Conditions.Serving && e.Conditions.Terminating != nil && *e.Conditions.Terminating {
					serving = append(serving, ap)
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = serving
	}
	slices.SortFunc(ready, netip.AddrPort.Compare)
	return slices.Compact(ready)
}
