package proxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/bpf"
)

// dice makes random Services and EndpointSlices, of everything that they can say. Services are s0 to s3; each has addresses of
// its own, so that none is another's.
type dice struct{ *rand.Rand }

func (d dice) once(in int) bool { return d.IntN(in) == 0 }

func pick[T any](d dice, list ...T) T { return list[d.IntN(len(list))] }

func (d dice) some(list ...string) []string {
	var out []string
	for _, s := range list {
		if d.once(2) {
			out = append(out, s)
		}
	}
	return out
}

const modelServices, modelSlices, modelPlaces = 4, 8, 6

// service is Service i, with the addresses of number at.
func (d dice) service(i, at int) *corev1.Service {
	v4, v6 := fmt.Sprintf("10.96.0.%d", 20+at), fmt.Sprintf("fd00:96::%x", 20+at)
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("s", i), UID: types.UID(fmt.Sprint("uid-", i)), Labels: map[string]string{}, Annotations: map[string]string{}}}
	s.Spec.Type = pick(d, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeLoadBalancer)
	s.Spec.ClusterIPs = pick(d, []string{v4}, []string{v6}, []string{v4, v6}, []string{v6, v4})
	if d.once(10) {
		s.Spec.ClusterIPs = pick(d, []string{"None"}, []string{"10.96.0.10"})
	}
	if d.once(12) {
		s.Labels[pick(d, labelProxyName, corev1.IsHeadlessService)] = pick(d, "", "x")
	}
	if d.once(15) {
		s.Spec.Type = corev1.ServiceTypeExternalName
	}
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	for p, name := range []string{"http", "dns", "peer"}[:1+d.IntN(3)] {
		port := corev1.ServicePort{Name: name, Port: int32(80 + p), Protocol: pick(d, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)}
		if s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer && !d.once(3) {
			port.NodePort = int32(30000 + 10*at + p)
		}
		s.Spec.Ports = append(s.Spec.Ports, port)
	}
	s.Spec.ExternalIPs = d.some(fmt.Sprintf("198.51.100.%d", at), fmt.Sprintf("203.0.113.%d", at), fmt.Sprintf("2001:db8:1::%d", 1+at))
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		for _, ip := range d.some(fmt.Sprintf("203.0.113.%d", at), fmt.Sprintf("2001:db8:2::%d", 1+at)) {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{
				IP: ip, IPMode: pick(d, nil, ptr(corev1.LoadBalancerIPModeVIP), ptr(corev1.LoadBalancerIPModeProxy)),
			})
		}
		ranges := []string{"203.0.113.0/25", "10.244.0.0/16", "2001:db8:9::/64", "0.0.0.0/0"}
		if s.Spec.LoadBalancerSourceRanges = d.some(ranges...); d.once(3) {
			s.Spec.LoadBalancerSourceRanges = nil
		}
		if d.once(4) {
			s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey] = pick(d, "", ranges[0]+", "+ranges[2], ranges[1])
		}
	}
	if d.once(2) {
		s.Spec.InternalTrafficPolicy = ptr(pick(d, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal))
	}
	s.Spec.ExternalTrafficPolicy = pick(d, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	if d.once(3) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = pick(d, nil, &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(1 + d.IntN(86400)))}})
	}
	return s
}

func (d dice) slice(i int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("sl", i), Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprint("s", d.IntN(modelServices))}},
	}
	six := d.once(2)
	s.AddressType = discoveryv1.AddressTypeIPv4
	if six {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	if d.once(15) {
		s.Labels[labelProxyName] = "x"
	}
	for p, name := range []string{"http", "dns", "peer"} {
		if d.once(5) {
			continue
		}
		port := discoveryv1.EndpointPort{Name: &name, Protocol: ptr(pick(d, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)), Port: ptr(int32(8080 + p + 10*d.IntN(2)))}
		if d.once(15) {
			port.Port = nil
		}
		s.Ports = append(s.Ports, port)
	}
	hinted := pick(d, 0, 2, 3) // hints on none, on most, or on all
	for range d.IntN(5) {
		e := discoveryv1.Endpoint{Conditions: pick(d, discoveryv1.EndpointConditions{}, condition(true, true, false), condition(true, true, false), condition(false, true, true), condition(false, false, true), condition(false, true, false))}
		n := 2 + d.IntN(12)
		if e.Addresses = []string{fmt.Sprintf("10.244.0.%d", n)}; six {
			e.Addresses = []string{fmt.Sprintf("fd00:244::%x", n)}
		}
		if !d.once(5) {
			e.NodeName = ptr(pick(d, "n1", "n2", "n3"))
		}
		if hinted == 3 || hinted == 2 && !d.once(4) {
			e.Hints = &discoveryv1.EndpointHints{}
			for _, z := range pick(d, []string{}, []string{"a"}, []string{"b"}, []string{"a", "b"}) {
				e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: z})
			}
			for _, n := range pick(d, []string{}, []string{"n1"}, []string{"n2"}) {
				e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: n})
			}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// places are where a random Service may answer.
func (d dice) places() []netip.AddrPort {
	var out []netip.AddrPort
	for i := range modelPlaces {
		for p := range 3 {
			for _, a := range []string{"10.96.0.%d", "198.51.100.%d", "203.0.113.%d"} {
				n := i
				if a == "10.96.0.%d" {
					n = 20 + i
				}
				out = append(out, netip.MustParseAddrPort(fmt.Sprintf(a+":%d", n, 80+p)))
			}
			for _, a := range []string{fmt.Sprintf("fd00:96::%x", 20+i), fmt.Sprintf("2001:db8:1::%d", 1+i), fmt.Sprintf("2001:db8:2::%d", 1+i)} {
				out = append(out, netip.MustParseAddrPort(fmt.Sprintf("[%s]:%d", a, 80+p)))
			}
			out = append(out, netip.MustParseAddrPort(fmt.Sprintf("192.0.2.1:%d", 30000+10*i+p)), netip.MustParseAddrPort(fmt.Sprintf("[2001:db8::1]:%d", 30000+10*i+p)))
		}
	}
	return out
}

func (d dice) node() Node {
	return Node{Name: "n1", Zone: pick(d, "", "a", "b", "c"), Addrs: addrs("192.0.2.1", "2001:db8::1"), Local: addrs("10.96.0.10")}
}

// Whatever Services and slices say, rows answer every caller at every address as the reference does.
func TestDesiredEqualsTheReference(t *testing.T) {
	d := dice{rand.New(rand.NewPCG(uint64(1), 2))}
	for round := range 1500 {
		r := &reference{services: map[string]*corev1.Service{}, slices: map[string]*discoveryv1.EndpointSlice{}, node: d.node()}
		for i := range modelServices {
			r.services[fmt.Sprint("s", i)] = d.service(i, i)
		}
		for i := range modelSlices {
			r.slices[fmt.Sprint("sl", i)] = d.slice(i)
		}
		var rows []bpf.LoadBalancer
		for _, svc := range r.services {
			var list []*discoveryv1.EndpointSlice
			for _, s := range r.slices {
				if s.Labels[discoveryv1.LabelServiceName] == svc.Name {
					list = append(list, s)
				}
			}
			rows = append(rows, Desired(svc, list, r.node)...)
		}
		if diff := r.differences(rows, d.places()); len(diff) > 0 {
			t.Fatalf("round %d:\n%v", round, diff[0])
		}
	}
}
