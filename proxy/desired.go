package proxy

import (
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strake-io/strake/bpf"
)

// labelProxyName on a Service says that another proxy serves it (KEP-2447).
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// Node is what the rows of one node depend on.
type Node struct {
	Name  string
	Zone  string       // by its label topology.kubernetes.io/zone, or empty
	Addrs []netip.Addr // where NodePorts answer, each those of its family
	Local []netip.Addr // addresses that the node serves itself (cluster DNS): no Service has them here
	// OtherPods says that another plugin makes the pods. Only what the rows say tells the programs which backends are on this node, whether a
	// policy asks for these or not.
	OtherPods bool
}

// Desired returns the rows of one Service: pure, and the same for the same input. A port has one row of each of the
// Service's families; those of IPv6 are told by their name.
func Desired(svc *corev1.Service, endpoints []*discoveryv1.EndpointSlice, node Node) []bpf.LoadBalancer {
	if !proxied(svc) {
		return nil
	}
	var out []bpf.LoadBalancer
	for _, f := range families {
		out = append(out, f.desired(svc, endpoints, node)...)
	}
	return out
}

// proxied tells whether a Service is one for this proxy, and has addresses of its own.
func proxied(svc *corev1.Service) bool {
	return !elsewhere(svc.Labels) && svc.Spec.Type != corev1.ServiceTypeExternalName && svc.Spec.ClusterIP != corev1.ClusterIPNone
}

// elsewhere tells whether a Service or EndpointSlice is labelled as not for this proxy: another one's, or a headless Service's.
func elsewhere(labels map[string]string) bool {
	_, others := labels[labelProxyName]
	_, headless := labels[corev1.IsHeadlessService]
	return others || headless
}

// family is one of IPv4 and IPv6. What a Service has of one never leads to what it has of the other.
type family struct {
	holds  func(netip.Addr) bool
	kind   discoveryv1.AddressType // of its EndpointSlices
	name   string                  // by which its rows are told
	nobody netip.Prefix            // holds the one address that is nobody's
}

// SuffixIPv6 ends the names of rows of IPv6. No port's name can hold it, and one byte is all that the longest names leave of a row's 192.
const SuffixIPv6 = "~"

var families = []family{
	{netip.Addr.Is4, discoveryv1.AddressTypeIPv4, "", netip.MustParsePrefix("0.0.0.0/32")},
	{netip.Addr.Is6, discoveryv1.AddressTypeIPv6, SuffixIPv6, netip.MustParsePrefix("::/128")},
}

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
	at, ok := f.addresses(svc, node)
	if !ok {
		return nil // not a family of this Service's; its node ports are none of it either
	}
	var out []bpf.LoadBalancer
	taken := map[frontendKey]bool{} // a port may be asked for by two of the Service's: the first has it
	for i := range svc.Spec.Ports {
		port := &svc.Spec.Ports[i]
		proto, ok := protocol(port.Protocol)
		if !ok {
			continue
		}
		frontends := at.frontends(port, proto, taken)
		if len(frontends) == 0 {
			continue
		}
		out = append(out, bpf.LoadBalancer{
			Owner: string(svc.UID), Name: svc.Namespace + "/" + svc.Name + ":" + port.Name + f.name, Protocol: proto,
			Frontends: frontends, Backends: f.backends(endpoints, port, at.local, node), Affinity: affinity(&svc.Spec),
		})
	}
	return out
}

// maxAffinity is what the API allows, in seconds.
const maxAffinity = 86400

// affinity is how long a client stays with its backend (sessionAffinity ClientIP); 0: not at all.
func affinity(s *corev1.ServiceSpec) time.Duration {
	if s.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := s.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil && *c.ClientIP.TimeoutSeconds > 0 {
		seconds = min(*c.ClientIP.TimeoutSeconds, maxAffinity)
	}
	return time.Duration(seconds) * time.Second
}

func protocol(p corev1.Protocol) (uint8, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return unix.IPPROTO_TCP, true
	case corev1.ProtocolUDP:
		return unix.IPPROTO_UDP, true
	case corev1.ProtocolSCTP:
		return unix.IPPROTO_SCTP, true
	}
	return 0, false
}

// address reads an address that packets can have: no IPv4 written as IPv6, nothing that is of one link only.
func address(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(text)
	return a, err == nil && !a.Is4In6() && a.Zone() == ""
}

// add appends the addresses among texts that are valid, of the family, and not among without.
func (f family) add(list []netip.Addr, without []netip.Addr, texts ...string) []netip.Addr {
	for _, t := range texts {
		if a, ok := address(t); ok && f.holds(a) && !slices.Contains(without, a) {
			list = append(list, a)
		}
	}
	return list
}
