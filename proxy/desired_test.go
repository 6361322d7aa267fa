package proxy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/bpf"
)

func ptr[T any](v T) *T { return &v }

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var testNode = Node{Name: "n1", Zone: "a", Addrs: addrs("192.0.2.1"), Local: addrs("10.96.0.10")}

func service(change func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.5", ClusterIPs: []string{"10.96.0.5"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		},
	}
	change(s)
	return s
}

// slice has an endpoint on the node and one elsewhere.
func slice(change func(*discoveryv1.EndpointSlice)) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
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

// scene is what a row follows from.
type scene struct {
	Service *corev1.Service
	Slices  []*discoveryv1.EndpointSlice
	Node    Node
}

// all changes each endpoint of the scene.
func (s *scene) all(change func(i int, e *discoveryv1.Endpoint)) {
	for _, sl := range s.Slices {
		for i := range sl.Endpoints {
			change(i, &sl.Endpoints[i])
		}
	}
}

// external makes the Service one with every kind of address.
func (s *scene) external() {
	s.Service.Spec.Type, s.Service.Spec.Ports[0].NodePort = corev1.ServiceTypeLoadBalancer, 30080
	s.Service.Spec.ExternalIPs = []string{"198.51.100.1"}
	s.Service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
}

func (s *scene) internalLocal() {
	s.Service.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
}
func (s *scene) externalLocal() {
	s.Service.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

// more adds a slice like the first.
func (s *scene) more(change func(*discoveryv1.EndpointSlice)) {
	s.Slices = append(s.Slices, slice(func(sl *discoveryv1.EndpointSlice) {
		sl.Name = fmt.Sprint("web-", len(s.Slices)+1)
		change(sl)
	}))
}

func condition(ready, serving, terminating bool) discoveryv1.EndpointConditions {
	return discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
}

func zoneHint(names ...string) *discoveryv1.EndpointHints {
	h := &discoveryv1.EndpointHints{}
	for _, n := range names {
		h.ForZones = append(h.ForZones, discoveryv1.ForZone{Name: n})
	}
	return h
}

func nodeHint(name string, zones ...string) *discoveryv1.EndpointHints {
	h := zoneHint(zones...)
	h.ForNodes = []discoveryv1.ForNode{{Name: name}}
	return h
}

var v4Address = regexp.MustCompile(`\b(\d+)\.(\d+)\.(\d+)\.(\d+)(/\d+)?(:\d+)?`)

// inIPv6 writes a scene, or what is wanted of it, with IPv6 addresses instead.
func inIPv6(text string) string {
	text = strings.ReplaceAll(text, `"IPv4"`, `"IPv6"`)
	return v4Address.ReplaceAllStringFunc(text, func(m string) string {
		p := v4Address.FindStringSubmatch(m)
		a := fmt.Sprintf("fd00::%s:%s:%s:%s", p[1], p[2], p[3], p[4])
		if strings.HasPrefix(m, "0.0.0.0") {
			a = "::"
		}
		if p[5] != "" {
			bits, _ := strconv.Atoi(p[5][1:])
			if bits > 0 {
				bits = 64 + 2*bits
			}
			a += fmt.Sprint("/", bits)
		}
		if p[6] != "" {
			a = "[" + a + "]" + p[6]
		}
		return a
	})
}

// describe writes rows for people: first line the port, then where it answers for clients inside/outside, then backends.
func describe(rows []bpf.LoadBalancer) string {
	kinds := map[bpf.FrontendKind]string{bpf.ClusterIP: "ClusterIP", bpf.NodePort: "NodePort", bpf.ExternalIP: "ExternalIP", bpf.LoadBalancerIP: "LoadBalancerIP"}
	scopes := map[bpf.Scope]string{bpf.All: "all", bpf.Local: "local"}
	var b strings.Builder
	for _, lb := range rows {
		fmt.Fprintf(&b, "%s %d", strings.TrimSuffix(lb.Name, SuffixIPv6), lb.Protocol)
		if lb.Affinity > 0 {
			fmt.Fprintf(&b, " affinity %s", lb.Affinity)
		}
		b.WriteString("\n")
		for _, f := range lb.Frontends {
			fmt.Fprintf(&b, "%s %s %s/%s", kinds[f.Kind], f.Addr, scopes[f.Inside], scopes[f.Outside])
			for _, p := range f.Sources {
				fmt.Fprintf(&b, " from %s", p)
			}
			b.WriteString("\n")
		}
		for _, be := range lb.Backends {
			fmt.Fprintf(&b, "-> %s", be.Addr)
			if be.All {
				b.WriteString(" all")
			}
			if be.Local {
				b.WriteString(" local")
			}
			if be.Weight != 1 {
				fmt.Fprintf(&b, " weight %d", be.Weight)
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// What rows follow from a Service and its slices: each line of the semantics, in both families, and held against the reference.
func TestDesired(t *testing.T) {
	const front = "ns/web:http 6\nClusterIP 10.96.0.5:80 all/all\n"
	const both = "-> 10.244.0.2:8080 all\n-> 10.244.1.2:8080 all\n"
	const bothLocal = "-> 10.244.0.2:8080 all local\n-> 10.244.1.2:8080 all\n"
	const everywhere = front + "LoadBalancerIP 203.0.113.1:80 all/all\nExternalIP 198.51.100.1:80 all/all\nNodePort 192.0.2.1:30080 all/all\n"
	for name, c := range map[string]struct {
		change func(*scene)
		want   string
	}{
		"ClusterIP":                         {nop[scene], front + both},
		"the field that came first only":    {func(s *scene) { s.Service.Spec.ClusterIPs = nil }, front + both},
		"headless":                          {func(s *scene) { s.Service.Spec.ClusterIP, s.Service.Spec.ClusterIPs = "None", []string{"None"} }, ""},
		"ExternalName":                      {func(s *scene) { s.Service.Spec.Type = corev1.ServiceTypeExternalName }, ""},
		"no address yet":                    {func(s *scene) { s.Service.Spec.ClusterIP, s.Service.Spec.ClusterIPs = "", nil }, ""},
		"label of another proxy":            {func(s *scene) { s.Service.Labels = map[string]string{labelProxyName: "x"} }, ""},
		"label of another proxy, empty":     {func(s *scene) { s.Service.Labels = map[string]string{labelProxyName: ""} }, ""},
		"label of headless Services":        {func(s *scene) { s.Service.Labels = map[string]string{corev1.IsHeadlessService: ""} }, ""},
		"slice labelled as another proxy's": {func(s *scene) { s.Slices[0].Labels[labelProxyName] = "x" }, front},
		"served by the node itself": {func(s *scene) {
			s.Service.Spec.ClusterIP, s.Service.Spec.ClusterIPs = "10.96.0.10", []string{"10.96.0.10"}
		}, ""},
		"no endpoints": {func(s *scene) { s.Slices[0].Endpoints = nil }, front},
		"no slices":    {func(s *scene) { s.Slices = nil }, front},
		"selector-less with a slice of its own": {func(s *scene) {
			s.Service.Spec.Selector = nil
			s.Slices[0].Labels["endpointslice.kubernetes.io/managed-by"] = "me"
		}, front + both},
		"UDP": {func(s *scene) {
			s.Service.Spec.Ports[0].Protocol, s.Slices[0].Ports[0].Protocol = corev1.ProtocolUDP, ptr(corev1.ProtocolUDP)
		}, strings.Replace(front, " 6\n", " 17\n", 1) + both},
		"SCTP": {func(s *scene) {
			s.Service.Spec.Ports[0].Protocol, s.Slices[0].Ports[0].Protocol = corev1.ProtocolSCTP, ptr(corev1.ProtocolSCTP)
		}, strings.Replace(front, " 6\n", " 132\n", 1) + both},
		"a protocol of another age":  {func(s *scene) { s.Service.Spec.Ports[0].Protocol = "QUIC" }, ""},
		"a protocol left out is TCP": {func(s *scene) { s.Service.Spec.Ports[0].Protocol, s.Slices[0].Ports[0].Protocol = "", nil }, front + both},
		"the same port of two protocols": {func(s *scene) {
			s.Service.Spec.Ports = append(s.Service.Spec.Ports, corev1.ServicePort{Name: "http3", Port: 80, Protocol: corev1.ProtocolUDP})
			s.Slices[0].Ports = append(s.Slices[0].Ports, discoveryv1.EndpointPort{Name: ptr("http3"), Port: ptr(int32(8443)), Protocol: ptr(corev1.ProtocolUDP)})
		}, front + both + "ns/web:http3 17\nClusterIP 10.96.0.5:80 all/all\n-> 10.244.0.2:8443 all\n-> 10.244.1.2:8443 all\n"},
		"several ports": {func(s *scene) {
			s.Service.Spec.Ports = append(s.Service.Spec.Ports, corev1.ServicePort{Name: "admin", Port: 81, Protocol: corev1.ProtocolTCP})
			s.Slices[0].Ports = append(s.Slices[0].Ports, discoveryv1.EndpointPort{Name: ptr("admin"), Port: ptr(int32(9090)), Protocol: ptr(corev1.ProtocolTCP)})
		}, front + both + "ns/web:admin 6\nClusterIP 10.96.0.5:81 all/all\n-> 10.244.0.2:9090 all\n-> 10.244.1.2:9090 all\n"},
		"a port without a name": {func(s *scene) { s.Service.Spec.Ports[0].Name, s.Slices[0].Ports[0].Name = "", ptr("") },
			"ns/web: 6\nClusterIP 10.96.0.5:80 all/all\n" + both},
		"a port that no slice has":        {func(s *scene) { s.Slices[0].Ports[0].Name = ptr("grpc") }, front},
		"a port of another protocol":      {func(s *scene) { s.Slices[0].Ports[0].Protocol = ptr(corev1.ProtocolUDP) }, front},
		"a slice's port without a number": {func(s *scene) { s.Slices[0].Ports[0].Port = nil }, front},
		"a named target port that differs from pod to pod": {func(s *scene) {
			s.more(func(sl *discoveryv1.EndpointSlice) {
				sl.Ports[0].Port, sl.Endpoints = ptr(int32(9999)), []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.3"}}}
			})
		}, front + both + "-> 10.244.1.3:9999 all\n"},
		"an endpoint in two slices": {func(s *scene) { s.more(nop[discoveryv1.EndpointSlice]) }, front + both},
		"an endpoint in two slices, ready in one": {func(s *scene) {
			s.more(nop[discoveryv1.EndpointSlice])
			s.Slices[1].Endpoints[0].Conditions = condition(false, false, false)
			s.Slices[0].Endpoints[1].Conditions = condition(false, true, true)
		}, front + both},
		"an endpoint in two slices, on the node by one": {func(s *scene) {
			s.internalLocal()
			s.more(func(sl *discoveryv1.EndpointSlice) { sl.Endpoints[0].NodeName = nil })
		}, "ns/web:http 6\nClusterIP 10.96.0.5:80 local/local\n" + bothLocal},
		"only the first address of an endpoint": {func(s *scene) { s.Slices[0].Endpoints[0].Addresses = []string{"10.244.0.2", "10.244.0.99"} }, front + both},
		"an endpoint's address that is none":    {func(s *scene) { s.Slices[0].Endpoints[0].Addresses = []string{"web.example"} }, front + "-> 10.244.1.2:8080 all\n"},
		"a slice of names":                      {func(s *scene) { s.Slices[0].AddressType = discoveryv1.AddressTypeFQDN }, front},

		"endpoints that are not ready keep what they have": {func(s *scene) { s.Slices[0].Endpoints[0].Conditions = condition(false, false, false) },
			front + "-> 10.244.0.2:8080\n-> 10.244.1.2:8080 all\n"},
		"unknown readiness is readiness": {func(s *scene) { s.all(func(_ int, e *discoveryv1.Endpoint) { e.Conditions.Ready = nil }) }, front + both},
		"a terminating endpoint beside a ready one": {func(s *scene) { s.Slices[0].Endpoints[0].Conditions = condition(false, true, true) },
			front + "-> 10.244.0.2:8080\n-> 10.244.1.2:8080 all\n"},
		"terminating ones that serve, where none is ready": {func(s *scene) {
			s.Slices[0].Endpoints[0].Conditions, s.Slices[0].Endpoints[1].Conditions = condition(false, true, true), condition(false, false, true)
		}, front + "-> 10.244.0.2:8080 all\n-> 10.244.1.2:8080\n"},
		"unknown serving is serving": {func(s *scene) {
			s.all(func(_ int, e *discoveryv1.Endpoint) {
				e.Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Terminating: ptr(true)}
			})
		}, front + both},
		"one that is not ready and does not terminate is never used": {func(s *scene) {
			s.all(func(_ int, e *discoveryv1.Endpoint) { e.Conditions = condition(false, true, false) })
		}, front + "-> 10.244.0.2:8080\n-> 10.244.1.2:8080\n"},
		"a terminating one that is ready still (publishNotReadyAddresses)": {func(s *scene) { s.Slices[0].Endpoints[0].Conditions = condition(true, true, true) }, front + both},
		"terminating on the node, ready elsewhere, policy Local": {func(s *scene) {
			s.internalLocal()
			s.Slices[0].Endpoints[0].Conditions = condition(false, true, true)
		}, "ns/web:http 6\nClusterIP 10.96.0.5:80 local/local\n-> 10.244.0.2:8080 local\n-> 10.244.1.2:8080 all\n"},

		"every kind of address": {func(s *scene) { s.external() }, everywhere + both},
		"NodePort": {func(s *scene) {
			s.Service.Spec.Type, s.Service.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
		},
			front + "NodePort 192.0.2.1:30080 all/all\n" + both},
		"NodePort on several addresses": {func(s *scene) {
			s.Service.Spec.Type, s.Service.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
			s.Node.Addrs = addrs("192.0.2.1", "192.0.2.2")
		}, front + "NodePort 192.0.2.1:30080 all/all\nNodePort 192.0.2.2:30080 all/all\n" + both},
		"a load balancer without node ports": {func(s *scene) { s.external(); s.Service.Spec.Ports[0].NodePort = 0 },
			strings.Replace(everywhere, "NodePort 192.0.2.1:30080 all/all\n", "", 1) + both},
		"a load balancer that delivers by itself": {func(s *scene) {
			s.Service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
				{IP: "203.0.113.1", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}, {IP: "203.0.113.2", IPMode: ptr(corev1.LoadBalancerIPModeVIP)}, {Hostname: "lb.example"},
			}
		}, front + "LoadBalancerIP 203.0.113.2:80 all/all\n" + both},
		"external addresses that are none": {func(s *scene) { s.Service.Spec.ExternalIPs = []string{"rubbish", "::ffff:1.2.3.4", "fe80::1%eth0", ""} }, front + both},
		"an external address that the node serves itself": {func(s *scene) { s.Service.Spec.ExternalIPs = []string{"10.96.0.10", "198.51.100.1"} },
			front + "ExternalIP 198.51.100.1:80 all/all\n" + both},
		"an address that is there for several reasons": {func(s *scene) {
			s.external()
			s.Service.Spec.ExternalIPs = []string{"10.96.0.5", "203.0.113.1", "198.51.100.1", "198.51.100.1", "192.0.2.1"}
			s.Service.Spec.Ports[0].NodePort = 80
		}, front + "LoadBalancerIP 203.0.113.1:80 all/all\nExternalIP 198.51.100.1:80 all/all\nExternalIP 192.0.2.1:80 all/all\n" + both},
		"two ports that ask for one": {func(s *scene) {
			s.Service.Spec.ExternalIPs = []string{"192.0.2.1"}
			s.Service.Spec.Ports = append(s.Service.Spec.Ports, corev1.ServicePort{Name: "admin", Port: 81, Protocol: corev1.ProtocolTCP, NodePort: 80})
		}, front + "ExternalIP 192.0.2.1:80 all/all\n" + both + "ns/web:admin 6\nClusterIP 10.96.0.5:81 all/all\nExternalIP 192.0.2.1:81 all/all\n"},

		"internal policy Local": {func(s *scene) { s.external(); s.internalLocal() }, strings.Replace(everywhere, "80 all/all", "80 local/local", 1) + bothLocal},
		"external policy Local: from inside all are reached": {func(s *scene) { s.external(); s.externalLocal() },
			front + strings.ReplaceAll(strings.TrimPrefix(everywhere, front), "/all", "/local") + bothLocal},
		"both policies Local": {func(s *scene) { s.external(); s.internalLocal(); s.externalLocal() },
			strings.Replace(front, "all/all", "local/local", 1) + strings.ReplaceAll(strings.TrimPrefix(everywhere, front), "/all", "/local") + bothLocal},
		"an endpoint of no known node is not local": {func(s *scene) { s.internalLocal(); s.Slices[0].Endpoints[0].NodeName = nil },
			strings.Replace(front, "all/all", "local/local", 1) + both},

		"affinity": {func(s *scene) { s.Service.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }, strings.Replace(front, " 6\n", " 6 affinity 3h0m0s\n", 1) + both},
		"affinity of a day": {func(s *scene) {
			s.Service.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Service.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(86400))}}
		}, strings.Replace(front, " 6\n", " 6 affinity 24h0m0s\n", 1) + both},

		"source ranges": {func(s *scene) {
			s.external()
			s.Service.Spec.LoadBalancerSourceRanges = []string{" 203.0.113.0/25", "198.51.100.7/24"}
		},
			strings.Replace(everywhere, "203.0.113.1:80 all/all", "203.0.113.1:80 all/all from 203.0.113.0/25 from 198.51.100.0/24", 1) + both},
		"source ranges of the annotation": {func(s *scene) {
			s.external()
			s.Service.Annotations = map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: " 203.0.113.0/25, 198.51.100.0/24 "}
		}, strings.Replace(everywhere, "203.0.113.1:80 all/all", "203.0.113.1:80 all/all from 203.0.113.0/25 from 198.51.100.0/24", 1) + both},
		"source ranges of the field count": {func(s *scene) {
			s.external()
			s.Service.Annotations = map[string]string{corev1.AnnotationLoadBalancerSourceRangesKey: "203.0.113.0/25"}
			s.Service.Spec.LoadBalancerSourceRanges = []string{"198.51.100.0/24"}
		}, strings.Replace(everywhere, "203.0.113.1:80 all/all", "203.0.113.1:80 all/all from 198.51.100.0/24", 1) + both},
		"a source range of everybody": {func(s *scene) {
			s.external()
			s.Service.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/25", "0.0.0.0/0"}
		}, everywhere + both},
		"source ranges that can't be read let nobody in": {func(s *scene) { s.external(); s.Service.Spec.LoadBalancerSourceRanges = []string{"rubbish"} },
			strings.Replace(everywhere, "203.0.113.1:80 all/all", "203.0.113.1:80 all/all from 0.0.0.0/32", 1) + both},

		"hints for our zone": {func(s *scene) {
			s.all(func(i int, e *discoveryv1.Endpoint) { e.Hints = zoneHint([]string{"a", "b"}[i]) })
		}, front + "-> 10.244.0.2:8080 all\n-> 10.244.1.2:8080\n"},
		"hints for several zones":                      {func(s *scene) { s.all(func(i int, e *discoveryv1.Endpoint) { e.Hints = zoneHint("b", "a") }) }, front + both},
		"hints for other zones only don't count":       {func(s *scene) { s.all(func(i int, e *discoveryv1.Endpoint) { e.Hints = zoneHint("b") }) }, front + both},
		"hints of a part of the endpoints don't count": {func(s *scene) { s.Slices[0].Endpoints[0].Hints = zoneHint("a") }, front + both},
		"hints on a node of no zone": {func(s *scene) {
			s.Node.Zone = ""
			s.all(func(i int, e *discoveryv1.Endpoint) { e.Hints = zoneHint([]string{"a", "b"}[i]) })
		}, front + both},
		"an endpoint that is not ready needs no hint": {func(s *scene) {
			s.more(func(sl *discoveryv1.EndpointSlice) {
				sl.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.3"}, Conditions: condition(false, false, false)}}
			})
			s.Slices[0].Endpoints[0].Hints, s.Slices[0].Endpoints[1].Hints = zoneHint("a"), zoneHint("b")
		}, front + "-> 10.244.0.2:8080 all\n-> 10.244.1.2:8080\n-> 10.244.1.3:8080\n"},
		"hints don't count for terminating endpoints": {func(s *scene) {
			s.all(func(i int, e *discoveryv1.Endpoint) {
				e.Hints, e.Conditions = zoneHint([]string{"a", "b"}[i]), condition(false, true, true)
			})
		}, front + both},
		"hints for our node": {func(s *scene) {
			s.all(func(i int, e *discoveryv1.Endpoint) { e.Hints = nodeHint([]string{"n1", "n2"}[i], "a") })
		}, front + "-> 10.244.0.2:8080 all\n-> 10.244.1.2:8080\n"},
		"hints for other nodes, then zones count": {func(s *scene) {
			s.all(func(i int, e *discoveryv1.Endpoint) {
				e.Hints = nodeHint([]string{"n2", "n3"}[i], []string{"b", "a"}[i])
			})
		}, front + "-> 10.244.0.2:8080\n-> 10.244.1.2:8080 all\n"},
		"hints for nodes of a part, then zones count": {func(s *scene) {
			s.Slices[0].Endpoints[0].Hints, s.Slices[0].Endpoints[1].Hints = nodeHint("n1", "b"), zoneHint("a")
		}, front + "-> 10.244.0.2:8080\n-> 10.244.1.2:8080 all\n"},
		"hints don't count for policy Local": {func(s *scene) {
			s.external()
			s.externalLocal()
			s.all(func(i int, e *discoveryv1.Endpoint) { e.Hints = zoneHint([]string{"b", "a"}[i]) })
		}, front + strings.ReplaceAll(strings.TrimPrefix(everywhere, front), "/all", "/local") + "-> 10.244.0.2:8080 local\n-> 10.244.1.2:8080 all\n"},

		"weights": {func(s *scene) {
			s.Slices[0].Annotations = map[string]string{AnnotationWeight: "3"}
			s.more(func(sl *discoveryv1.EndpointSlice) {
				sl.Annotations, sl.Endpoints = map[string]string{AnnotationWeight: "0"}, []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.3"}}}
			})
		}, front + "-> 10.244.0.2:8080 all weight 3\n-> 10.244.1.2:8080 all weight 3\n-> 10.244.1.3:8080\n"},
		"a weight that is none": {func(s *scene) { s.Slices[0].Annotations = map[string]string{AnnotationWeight: "65536"} }, front + both},
	} {
		for _, v4 := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, IPv4 %v", name, v4), func(t *testing.T) {
				s := scene{service(nop), []*discoveryv1.EndpointSlice{slice(nop)}, testNode}
				c.change(&s)
				text, err := json.Marshal(s)
				must(t, err)
				want := c.want
				if !v4 {
					text, want = []byte(inIPv6(string(text))), inIPv6(want)
				}
				s = scene{}
				must(t, json.Unmarshal(text, &s))
				got := Desired(s.Service, s.Slices, s.Node)
				if describe(got) != want {
					t.Fatalf("got\n%s\nwant\n%s", describe(got), want)
				}
				for _, lb := range got {
					if lb.Owner != "u" || strings.HasSuffix(lb.Name, SuffixIPv6) == v4 {
						t.Errorf("a row of %q with the name %q", lb.Owner, lb.Name)
					}
				}
				slices.Reverse(s.Slices)
				if again := describe(Desired(s.Service, s.Slices, s.Node)); again != want {
					t.Errorf("with the slices in another order\n%s", again)
				}
			})
		}
	}
}

// The longest names that the API allows fit into a row of the kernel, whose names have 192 bytes.
func TestLongestNames(t *testing.T) {
	long := strings.Repeat("a", 63)
	svc := service(func(s *corev1.Service) {
		s.Namespace, s.Name, s.Spec.Ports[0].Name = long, long, long
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP, "fd00::5"}
	})
	rows := Desired(svc, nil, testNode)
	if len(rows) != 2 || rows[0].Name == rows[1].Name {
		t.Fatalf("%+v, want a row of each family", rows)
	}
	for _, lb := range rows {
		if len(lb.Name) > 192 {
			t.Errorf("%d bytes: %s", len(lb.Name), lb.Name)
		}
	}
}

// A Service of two families has each of its rows twice, and nothing of the one leads to the other.
func TestDesiredOfBothFamilies(t *testing.T) {
	svc := service(func(s *corev1.Service) {
		s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.Type, s.Spec.Ports[0].NodePort = "fd00::5", []string{"fd00::5", "10.96.0.5"}, corev1.ServiceTypeLoadBalancer, 30080
		s.Spec.ExternalTrafficPolicy, s.Spec.ExternalIPs = corev1.ServiceExternalTrafficPolicyLocal, []string{"198.51.100.1", "2001:db8:1::1"}
		s.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/25"}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}, {IP: "2001:db8:1::2"}}
	})
	six := slice(func(s *discoveryv1.EndpointSlice) {
		s.AddressType, s.Endpoints[0].Addresses, s.Endpoints[1].Addresses = discoveryv1.AddressTypeIPv6, []string{"fd00:244::2"}, []string{"fd00:244:1::2"}
		s.Ports[0].Port = ptr(int32(8086))
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{"10.244.0.9"}})
	})
	node := testNode
	node.Addrs = addrs("192.0.2.1", "2001:db8::1")
	// Source ranges of IPv4 alone name no IPv6 client: none comes in.
	want := `ns/web:http 6
ClusterIP 10.96.0.5:80 all/all
LoadBalancerIP 203.0.113.1:80 all/local from 203.0.113.0/25
ExternalIP 198.51.100.1:80 all/local
NodePort 192.0.2.1:30080 all/local
-> 10.244.0.2:8080 all local
-> 10.244.1.2:8080 all
ns/web:http 6
ClusterIP [fd00::5]:80 all/all
LoadBalancerIP [2001:db8:1::2]:80 all/local from ::/128
ExternalIP [2001:db8:1::1]:80 all/local
NodePort [2001:db8::1]:30080 all/local
-> [fd00:244::2]:8086 all local
-> [fd00:244:1::2]:8086 all
`
	if got := describe(Desired(svc, []*discoveryv1.EndpointSlice{slice(nop), six}, node)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	svc.Spec.ClusterIPs = []string{"fd00::5"}
	if got := describe(Desired(svc, []*discoveryv1.EndpointSlice{slice(nop), six}, node)); got != want[strings.LastIndex(want, "ns/web"):] {
		t.Errorf("of one family only:\n%s", got)
	}
}
