package proxy

import (
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/bpf"
)

func ptr[T any](v T) *T { return &v }

func aps(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, s := range list {
		out = append(out, netip.MustParseAddrPort(s))
	}
	return out
}

// row is a LoadBalancer without what follows from the Service alone.
type row struct {
	Owner, Name         string
	Protocol            uint8
	Frontends, Backends []netip.AddrPort
}

func addresses(l []bpf.LoadBalancer) []row {
	var out []row
	for _, lb := range l {
		r := row{Owner: lb.Owner, Name: lb.Name, Protocol: lb.Protocol}
		for _, f := range lb.Frontends {
			r.Frontends = append(r.Frontends, f.Addr)
		}
		for _, b := range lb.Backends {
			r.Backends = append(r.Backends, b.Addr)
		}
		out = append(out, r)
	}
	return out
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var testNode = Node{Name: "n1", Addrs: addrs("192.0.2.1", "2001:db8::1"), Local: addrs("10.96.0.10", "fd00:96::a")}

func service(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.5", Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
	}
	change(s)
	return s
}

func slice(change func(*discoveryv1.EndpointSlice)) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr(int32(8080)), Protocol: ptr(corev1.ProtocolTCP)}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.244.0.2"}, NodeName: ptr("n1"), Conditions: discoveryv1.EndpointConditions{Ready: ptr(true)}},
			{Addresses: []string{"10.244.1.2"}, NodeName: ptr("n2"), Conditions: discoveryv1.EndpointConditions{Ready: ptr(true)}},
		},
	}
	change(s)
	return s
}

func nop[T any](*T) {}

func TestDesired(t *testing.T) {
	line := func(name string, proto uint8, frontends, backends []netip.AddrPort) row {
		return row{"u", name, proto, frontends, backends}
	}
	both := aps("10.244.0.2:8080", "10.244.1.2:8080")
	for name, c := range map[string]struct {
		svc   *corev1.Service
		slice *discoveryv1.EndpointSlice
		want  []row
	}{
		"ClusterIP":                {service(nop), slice(nop), []row{line("ns/web:http", 6, aps("10.96.0.5:80"), both)}},
		"headless has no entry":    {service(func(s *corev1.Service) { s.Spec.ClusterIP = "None" }), slice(nop), nil},
		"ExternalName has none":    {service(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }), slice(nop), nil},
		"another proxy's":          {service(func(s *corev1.Service) { s.Labels = map[string]string{labelProxyName: "x"} }), slice(nop), nil},
		"served by the node":       {service(func(s *corev1.Service) { s.Spec.ClusterIP = "10.96.0.10" }), slice(nop), nil},
		"UDP":                      {service(func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolUDP }), slice(func(s *discoveryv1.EndpointSlice) { s.Ports[0].Protocol = ptr(corev1.ProtocolUDP) }), []row{line("ns/web:http", 17, aps("10.96.0.5:80"), both)}},
		"SCTP is not read as TCP":  {service(func(s *corev1.Service) { s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP }), slice(nop), nil},
		"a port of another name":   {service(func(s *corev1.Service) { s.Spec.Ports[0].Name = "grpc" }), slice(nop), []row{line("ns/web:grpc", 6, aps("10.96.0.5:80"), nil)}},
		"no endpoints":             {service(nop), slice(func(s *discoveryv1.EndpointSlice) { s.Endpoints = nil }), []row{line("ns/web:http", 6, aps("10.96.0.5:80"), nil)}},
		"IPv6 slices are left out": {service(nop), slice(func(s *discoveryv1.EndpointSlice) { s.AddressType = discoveryv1.AddressTypeIPv6 }), []row{line("ns/web:http", 6, aps("10.96.0.5:80"), nil)}},
		"unready endpoints are left out": {service(nop), slice(func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions.Ready = ptr(false) }),
			[]row{line("ns/web:http", 6, aps("10.96.0.5:80"), aps("10.244.1.2:8080"))}},
		"serving ones that end, if none is ready": {service(nop), slice(func(s *discoveryv1.EndpointSlice) {
			s.Endpoints = s.Endpoints[:1]
			s.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}
		}), []row{line("ns/web:http", 6, aps("10.96.0.5:80"), aps("10.244.0.2:8080"))}},
		"NodePort": {service(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort; s.Spec.Ports[0].NodePort = 30080 }), slice(nop),
			[]row{line("ns/web:http", 6, aps("10.96.0.5:80", "192.0.2.1:30080"), both)}},
		"NodePort, external policy Local": {service(func(s *corev1.Service) {
			s.Spec.Type, s.Spec.Ports[0].NodePort, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, 30080, corev1.ServiceExternalTrafficPolicyLocal
		}), slice(nop), []row{line("ns/web:http", 6, aps("10.96.0.5:80"), both), line("ns/web:http*", 6, aps("192.0.2.1:30080"), aps("10.244.0.2:8080"))}},
		"internal policy Local": {service(func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal) }), slice(nop),
			[]row{line("ns/web:http", 6, aps("10.96.0.5:80"), aps("10.244.0.2:8080"))}},
		"both policies Local": {service(func(s *corev1.Service) {
			s.Spec.Type, s.Spec.Ports[0].NodePort, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, 30080, corev1.ServiceExternalTrafficPolicyLocal
			s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
		}), slice(nop), []row{line("ns/web:http", 6, aps("10.96.0.5:80", "192.0.2.1:30080"), aps("10.244.0.2:8080"))}},
		"internal policy Local, NodePort for all": {service(func(s *corev1.Service) {
			s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
			s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
		}), slice(nop), []row{line("ns/web:http", 6, aps("10.96.0.5:80"), aps("10.244.0.2:8080")), line("ns/web:http*", 6, aps("192.0.2.1:30080"), both)}},
		"an endpoint of no known node is not local": {service(func(s *corev1.Service) { s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal) }), slice(func(s *discoveryv1.EndpointSlice) {
			s.Endpoints[0].NodeName = nil
		}), []row{line("ns/web:http", 6, aps("10.96.0.5:80"), nil)}},
		"several ports": {service(func(s *corev1.Service) {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, corev1.ServicePort{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP})
		}), slice(func(s *discoveryv1.EndpointSlice) {
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr("dns"), Port: ptr(int32(1053)), Protocol: ptr(corev1.ProtocolUDP)}, discoveryv1.EndpointPort{Name: ptr("dns-tcp"), Port: ptr(int32(2053)), Protocol: ptr(corev1.ProtocolTCP)})
		}), []row{
			line("ns/web:http", 6, aps("10.96.0.5:80"), both),
			line("ns/web:dns", 17, aps("10.96.0.5:53"), aps("10.244.0.2:1053", "10.244.1.2:1053")),
			line("ns/web:dns-tcp", 6, aps("10.96.0.5:53"), aps("10.244.0.2:2053", "10.244.1.2:2053")),
		}},
		"a port without a name": {service(func(s *corev1.Service) { s.Spec.Ports[0].Name = "" }), slice(func(s *discoveryv1.EndpointSlice) { s.Ports[0].Name = ptr("") }),
			[]row{line("ns/web:", 6, aps("10.96.0.5:80"), both)}},
		"a protocol left out is TCP": {service(func(s *corev1.Service) { s.Spec.Ports[0].Protocol = "" }), slice(func(s *discoveryv1.EndpointSlice) { s.Ports[0].Protocol = nil }),
			[]row{line("ns/web:http", 6, aps("10.96.0.5:80"), both)}},
		"another protocol's port": {service(nop), slice(func(s *discoveryv1.EndpointSlice) { s.Ports[0].Protocol = ptr(corev1.ProtocolUDP) }),
			[]row{line("ns/web:http", 6, aps("10.96.0.5:80"), nil)}},
		"unknown readiness is readiness": {service(nop), slice(func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Conditions.Ready = nil }), []row{line("ns/web:http", 6, aps("10.96.0.5:80"), both)}},
		"what neither serves nor is ready": {service(nop), slice(func(s *discoveryv1.EndpointSlice) {
			for i := range s.Endpoints {
				s.Endpoints[i].Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(false), Terminating: ptr(true)}
			}
		}), []row{line("ns/web:http", 6, aps("10.96.0.5:80"), nil)}},
		"the same endpoint twice": {service(nop), slice(func(s *discoveryv1.EndpointSlice) { s.Endpoints = append(s.Endpoints, s.Endpoints[0]) }), []row{line("ns/web:http", 6, aps("10.96.0.5:80"), both)}},
		"IPv6 first, IPv4 second": {service(func(s *corev1.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "fd00::5", []string{"fd00::5", "10.96.0.5"}
		}), slice(nop), []row{line("ns/web:http", 6, aps("10.96.0.5:80"), both), line("ns/web:http (IPv6)", 6, aps("[fd00::5]:80"), nil)}},
		"IPv6 only": {service(func(s *corev1.Service) { s.Spec.ClusterIP = "fd00::5" }), slice(func(s *discoveryv1.EndpointSlice) {
			s.AddressType, s.Endpoints[0].Addresses, s.Endpoints[1].Addresses = discoveryv1.AddressTypeIPv6, []string{"fd00:244::2"}, []string{"fd00:244:1::2"}
		}), []row{line("ns/web:http (IPv6)", 6, aps("[fd00::5]:80"), aps("[fd00:244::2]:8080", "[fd00:244:1::2]:8080"))}},
		"a NodePort of one family": {service(func(s *corev1.Service) {
			s.Spec.ClusterIP, s.Spec.Type, s.Spec.Ports[0].NodePort = "fd00::5", corev1.ServiceTypeNodePort, 30080
		}), slice(nop), []row{line("ns/web:http (IPv6)", 6, aps("[fd00::5]:80", "[2001:db8::1]:30080"), nil)}},
		"an address in a slice of the other family": {service(nop), slice(func(s *discoveryv1.EndpointSlice) { s.Endpoints[0].Addresses = []string{"fd00:244::2"} }),
			[]row{line("ns/web:http", 6, aps("10.96.0.5:80"), aps("10.244.1.2:8080"))}},
		"served by the node in one family": {service(func(s *corev1.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "10.96.0.10", []string{"10.96.0.10", "fd00::5"}
		}), slice(nop), []row{line("ns/web:http (IPv6)", 6, aps("[fd00::5]:80"), nil)}},
		"no address yet": {service(func(s *corev1.Service) { s.Spec.ClusterIP = "" }), slice(nop), nil},
		"served by the node, but its NodePort is not": {service(func(s *corev1.Service) {
			s.Spec.ClusterIP, s.Spec.Type, s.Spec.Ports[0].NodePort = "10.96.0.10", corev1.ServiceTypeNodePort, 30080
		}), slice(nop), []row{line("ns/web:http", 6, aps("192.0.2.1:30080"), both)}},
		"external addresses": {service(func(s *corev1.Service) {
			s.Spec.ExternalIPs = []string{"198.51.100.1", "rubbish", "fd00::1", "::ffff:198.51.100.9", "fe80::1%eth0"}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.2"}, {IP: "198.51.100.3", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}}
		}), slice(nop), []row{line("ns/web:http", 6, aps("10.96.0.5:80", "198.51.100.1:80", "198.51.100.2:80"), both)}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := addresses(Desired(c.svc, []*discoveryv1.EndpointSlice{c.slice}, testNode)); !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// A Service of two families has each of its rows twice.
func TestDesiredOfBothFamilies(t *testing.T) {
	svc := service(func(s *corev1.Service) {
		s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.Type, s.Spec.Ports[0].NodePort = "fd00::5", []string{"fd00::5", "10.96.0.5"}, corev1.ServiceTypeNodePort, 30080
		s.Spec.ExternalTrafficPolicy, s.Spec.ExternalIPs = corev1.ServiceExternalTrafficPolicyLocal, []string{"198.51.100.1", "2001:db8:1::1", "::ffff:198.51.100.9", "fe80::1%eth0"}
	})
	six := slice(func(s *discoveryv1.EndpointSlice) {
		s.AddressType, s.Endpoints[0].Addresses, s.Endpoints[1].Addresses = discoveryv1.AddressTypeIPv6, []string{"fd00:244::2"}, []string{"fd00:244:1::2"}
		s.Ports[0].Port = ptr(int32(8086))
	})
	want := []row{
		{Owner: "u", Name: "ns/web:http", Protocol: 6, Frontends: aps("10.96.0.5:80"), Backends: aps("10.244.0.2:8080", "10.244.1.2:8080")},
		{Owner: "u", Name: "ns/web:http*", Protocol: 6, Frontends: aps("198.51.100.1:80", "192.0.2.1:30080"), Backends: aps("10.244.0.2:8080")},
		{Owner: "u", Name: "ns/web:http (IPv6)", Protocol: 6, Frontends: aps("[fd00::5]:80"), Backends: aps("[fd00:244::2]:8086", "[fd00:244:1::2]:8086")},
		{Owner: "u", Name: "ns/web:http* (IPv6)", Protocol: 6, Frontends: aps("[2001:db8:1::1]:80", "[2001:db8::1]:30080"), Backends: aps("[fd00:244::2]:8086")},
	}
	for _, list := range [][]*discoveryv1.EndpointSlice{{slice(nop[discoveryv1.EndpointSlice]), six}, {six, slice(nop[discoveryv1.EndpointSlice])}} {
		if got := addresses(Desired(svc, list, testNode)); !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}
