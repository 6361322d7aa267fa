package proxy

import (
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
	Addrs []netip.Addr // where NodePorts answer, each those of its family
	Local []netip.Addr // ClusterIPs that the node serves itself (cluster DNS)
}

// Desired returns the rows of one Service: pure, and the same for the same input. A port has one row of each of the
// Service's families, or two if internal and external traffic have different backends. Rows of external traffic are
// told by a star, those of IPv6 by its name.
func Desired(svc *corev1.Service, endpoints []*discoveryv1.EndpointSlice, node Node) []bpf.LoadBalancer {
	if _, foreign := svc.Labels[labelProxyName]; foreign || svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	var out []bpf.LoadBalancer
	for _, f := range families {
		out = append(out, f.desired(svc, endpoints, node)...)
	}
	return out
}

// family is one of IPv4 and IPv6. What a Service has of one never leads to what it has of the other.
type family struct {
	holds func(netip.Addr) bool
	kind  discoveryv1.AddressType // of its EndpointSlices
	name  string                  // by which its rows are told
}

var families = []family{{netip.Addr.Is4, discoveryv1.AddressTypeIPv4, ""}, {netip.Addr.Is6, discoveryv1.AddressTypeIPv6, " (IPv6)"}}

// of are the addresses of the family.
func (f family) of(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if f.holds(a) {
			out = append(out, a)
		}
	}
	return out
}

func (f family) desired(svc *corev1.Service, endpoints []*discoveryv1.EndpointSlice, node Node) []bpf.LoadBalancer {
	clusterIPs := f.of(clusterAddrs(svc))
	if len(clusterIPs) == 0 {
		return nil // not a family of this Service's; its node ports are none of it either
	}
	clusterIPs = slices.DeleteFunc(clusterIPs, func(a netip.Addr) bool { return slices.Contains(node.Local, a) })
	externalIPs, nodeAddrs := f.of(externalAddrs(svc)), f.of(node.Addrs)
	internalLocal := svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	externalLocal := svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	var out []bpf.LoadBalancer
	for _, port := range svc.Spec.Ports {
		proto, ok := protocol(port.Protocol)
		if !ok {
			continue
		}
		internal, external := at(bpf.ClusterIP, clusterIPs, port.Port), at(bpf.ExternalIP, externalIPs, port.Port)
		external = append(external, at(bpf.NodePort, nodeAddrs, port.NodePort)...)
		name := svc.Namespace + "/" + svc.Name + ":" + port.Name
		row := func(name string, frontends []bpf.Frontend, local bool) {
			if len(frontends) > 0 {
				out = append(out, bpf.LoadBalancer{
					Owner: string(svc.UID), Name: name + f.name, Protocol: proto, Frontends: frontends, Backends: f.backends(endpoints, port, local, node.Name),
				})
			}
		}
		if internalLocal == externalLocal {
			row(name, append(internal, external...), internalLocal)
		} else {
			row(name, internal, internalLocal)
			row(name+"*", external, externalLocal)
		}
	}
	return out
}

// at puts a port to each address; none if there is no port.
func at(kind bpf.FrontendKind, addrs []netip.Addr, port int32) []bpf.Frontend {
	if port <= 0 || port >= 1<<16 {
		return nil
	}
	var out []bpf.Frontend
	for _, a := range addrs {
		out = append(out, bpf.Frontend{Addr: netip.AddrPortFrom(a, uint16(port)), Kind: kind})
	}
	return out
}

// address reads an address that packets can have: no IPv4 written as IPv6, nothing that is of one link only.
func address(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	return a, err == nil && !a.Is4In6() && a.Zone() == ""
}

// clusterAddrs are the Service's cluster addresses.
func clusterAddrs(svc *corev1.Service) []netip.Addr {
	texts := svc.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{svc.Spec.ClusterIP} // written by a client that knows the older field only
	}
	var out []netip.Addr
	for _, t := range texts {
		if a, ok := address(t); ok {
			out = append(out, a)
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
		if a, ok := address(t); ok && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// backends are the endpoints of a port that are ready; if none is, those that still serve while they end (KEP-1669).
func (f family) backends(list []*discoveryv1.EndpointSlice, port corev1.ServicePort, local bool, nodeName string) []bpf.Backend {
	var ready, serving []netip.AddrPort
	for _, s := range list {
		if s.AddressType != f.kind {
			continue
		}
		number, ok := target(s.Ports, port)
		if !ok {
			continue
		}
		for _, e := range s.Endpoints {
			if local && (e.NodeName == nil || *e.NodeName != nodeName) {
				continue
			}
			for _, text := range e.Addresses {
				a, ok := address(text)
				if !ok || !f.holds(a) {
					continue
				}
				ap := netip.AddrPortFrom(a, number)
				if isTrue(e.Conditions.Ready, true) {
					ready = append(ready, ap)
				} else if isTrue(e.Conditions.Serving, false) && isTrue(e.Conditions.Terminating, false) {
					serving = append(serving, ap)
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = serving
	}
	slices.SortFunc(ready, netip.AddrPort.Compare)
	var out []bpf.Backend
	for _, a := range slices.Compact(ready) {
		out = append(out, bpf.Backend{Addr: a, All: true, Weight: 1})
	}
	return out
}

func isTrue(b *bool, unknown bool) bool {
	if b == nil {
		return unknown
	}
	return *b
}

// target finds the number of a Service port in a slice: the slice's ports bear the names of the Service's, so that a
// named target port may differ from pod to pod.
func target(ports []discoveryv1.EndpointPort, port corev1.ServicePort) (uint16, bool) {
	want, _ := protocol(port.Protocol)
	for _, p := range ports {
		name, proto := "", uint8(unix.IPPROTO_TCP)
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			proto, _ = protocol(*p.Protocol)
		}
		if name == port.Name && proto == want && p.Port != nil && *p.Port > 0 && *p.Port < 1<<16 {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}
