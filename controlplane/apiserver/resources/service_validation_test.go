package resources

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestServices(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*corev1.ServiceSpec)
		want   []string
	}{
		"good":                {func(*corev1.ServiceSpec) {}, nil},
		"type":                {func(s *corev1.ServiceSpec) { s.Type, s.SessionAffinity = "Mesh", "Sticky" }, []string{"spec.type: Unsupported value", "spec.sessionAffinity: Unsupported value"}},
		"ports":               {func(s *corev1.ServiceSpec) { s.Ports = nil }, []string{"spec.ports: Required value"}},
		"headless, no ports":  {func(s *corev1.ServiceSpec) { s.ClusterIP, s.Ports = "None", nil }, nil},
		"headless, node port": {func(s *corev1.ServiceSpec) { s.ClusterIP, s.Type = "None", "NodePort" }, []string{"spec.clusterIPs[0]: Invalid value"}},
		"a port": {func(s *corev1.ServiceSpec) {
			s.Ports = []corev1.ServicePort{{Name: "A", Port: 0, Protocol: "X", TargetPort: intstr.FromInt32(70000), AppProtocol: ptr("a b")}, {Name: "b", Port: 1}, {Name: "b", Port: 2, TargetPort: intstr.FromString("--")}, {Name: "c", Port: 1}}
		}, []string{
			"spec.ports[0].name: Invalid value", "spec.ports[0].port: Invalid value", "spec.ports[0].protocol: Unsupported value", "spec.ports[0].targetPort: Invalid value", "spec.ports[0].appProtocol: Invalid value",
			"spec.ports[2].name: Duplicate value", "spec.ports[2].targetPort: Invalid value", "spec.ports[2].targetPort: Invalid value", "spec.ports[2].targetPort: Invalid value", "spec.ports[3]: Duplicate value",
		}},
		"node ports": {func(s *corev1.ServiceSpec) {
			s.Type, s.Ports = "NodePort", []corev1.ServicePort{{Name: "a", Port: 1, NodePort: 30000}, {Name: "b", Port: 2, NodePort: 30000}}
		}, []string{"spec.ports[1].nodePort: Duplicate value"}},
		"ClusterIP":    {func(s *corev1.ServiceSpec) { s.ClusterIP, s.Ports[0].NodePort = "10.0.0", 30000 }, []string{"spec.clusterIPs[0]: Invalid value", "spec.ports[0].nodePort: Forbidden"}},
		"ExternalName": {func(s *corev1.ServiceSpec) { s.Type, s.ClusterIP, s.ExternalName = "ExternalName", "10.0.0.1", "A B" }, []string{"spec.clusterIPs: Forbidden", "spec.externalName: Invalid value"}},
		"nowhere":      {func(s *corev1.ServiceSpec) { s.Type = "ExternalName" }, []string{"spec.externalName: Required value"}},
		"external IPs": {func(s *corev1.ServiceSpec) {
			s.ExternalIPs = []string{"x", "127.0.0.1", "0.0.0.0", "169.254.1.1", "198.51.100.7"}
		}, []string{"spec.externalIPs[0]: Invalid value", "spec.externalIPs[1]: Invalid value", "spec.externalIPs[2]: Invalid value", "spec.externalIPs[3]: Invalid value"}},
		"policies": {func(s *corev1.ServiceSpec) {
			s.Type, s.ExternalTrafficPolicy, s.InternalTrafficPolicy, s.TrafficDistribution = "NodePort", "Far", ptr(corev1.ServiceInternalTrafficPolicy("Near")), ptr("Even")
		}, []string{"spec.externalTrafficPolicy: Unsupported value", "spec.internalTrafficPolicy: Unsupported value", "spec.trafficDistribution: Unsupported value"}},
		"not external": {func(s *corev1.ServiceSpec) { s.ExternalTrafficPolicy, s.HealthCheckNodePort = "Local", 30001 }, []string{"spec.externalTrafficPolicy: Invalid value", "spec.healthCheckNodePort: Invalid value"}},
		"no balancer": {func(s *corev1.ServiceSpec) {
			s.LoadBalancerSourceRanges, s.LoadBalancerClass, s.AllocateLoadBalancerNodePorts = []string{"10.0.0.0/8"}, ptr("a/b"), ptr(true)
		}, []string{"spec.LoadBalancerSourceRanges: Forbidden", "spec.loadBalancerClass: Forbidden", "spec.allocateLoadBalancerNodePorts: Forbidden"}},
		"source ranges": {func(s *corev1.ServiceSpec) { s.Type, s.LoadBalancerSourceRanges = "LoadBalancer", []string{"10.0.0.0"} }, []string{"spec.LoadBalancerSourceRanges[0]: Invalid value"}},
		"affinity": {func(s *corev1.ServiceSpec) {
			s.SessionAffinity, s.SessionAffinityConfig = "ClientIP", &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(86401))}}
		}, []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value"}},
		"affinity without a timeout": {func(s *corev1.ServiceSpec) {
			s.SessionAffinity, s.SessionAffinityConfig = "ClientIP", &corev1.SessionAffinityConfig{}
		}, nil},
		"affinity of no seconds": {func(s *corev1.ServiceSpec) {
			s.SessionAffinity, s.SessionAffinityConfig = "ClientIP", &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(0))}}
		}, []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value"}},
		"a balancer's class":  {func(s *corev1.ServiceSpec) { s.Type, s.LoadBalancerClass = "LoadBalancer", ptr("a b") }, []string{"spec.loadBalancerClass: Invalid value"}},
		"a balancer's health": {func(s *corev1.ServiceSpec) { s.Type, s.HealthCheckNodePort = "LoadBalancer", 30001 }, []string{"spec.healthCheckNodePort: Invalid value"}},
		"SCTP, near": {func(s *corev1.ServiceSpec) {
			s.Ports[0].Protocol, s.TrafficDistribution = "SCTP", ptr(corev1.ServiceTrafficDistributionPreferSameNode)
		}, nil},
		"selector": {func(s *corev1.ServiceSpec) { s.Selector = map[string]string{"a": "b c"} }, []string{"spec.selector: Invalid value"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
			test.change(&s.Spec)
			refused(t, s, test.want...)
		})
	}
}

// TestServicesOfBalancers: what a load balancer may say, and what of a Service stays.
func TestServicesOfBalancers(t *testing.T) {
	balanced := func(change func(*corev1.Service)) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Type: "LoadBalancer", ExternalTrafficPolicy: "Local", HealthCheckNodePort: 30001, Ports: []corev1.ServicePort{{Port: 80}}}}
		change(s)
		of(t, s).Default(s)
		return s
	}
	old := balanced(func(*corev1.Service) {})
	for name, test := range map[string]struct {
		change func(*corev1.Service)
		want   []string
	}{
		"good": {func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}, {Hostname: "lb.example"}}
		}, nil},
		"addresses": {func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113"}, {Hostname: "203.0.113.1"}, {Hostname: "-"}}
		}, []string{"status.loadBalancer.ingress[0].ip: Invalid value", "status.loadBalancer.ingress[1].hostname: Invalid value", "status.loadBalancer.ingress[2].hostname: Invalid value"}},
		"modes": {func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1", IPMode: ptr(corev1.LoadBalancerIPMode("Odd"))}, {Hostname: "lb.example", IPMode: ptr(corev1.LoadBalancerIPModeVIP)}}
		}, []string{"status.loadBalancer.ingress[0].ipMode: Unsupported value", "status.loadBalancer.ingress[1].ipMode: Forbidden"}},
		"of none": {func(s *corev1.Service) {
			s.Spec.Type, s.Status.LoadBalancer.Ingress = "ClusterIP", []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
		}, []string{"status.loadBalancer.ingress: Forbidden"}},
	} {
		t.Run("status, "+name, func(t *testing.T) {
			s := balanced(test.change)
			if got := told(of(t, s).ValidateStatus(s, old)); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if in := s.Status.LoadBalancer.Ingress; name == "good" && (in[0].IPMode == nil || *in[0].IPMode != corev1.LoadBalancerIPModeVIP || in[1].IPMode != nil) {
				t.Errorf("ipMode %+v", in)
			}
		})
	}
	for name, test := range map[string]struct {
		change func(*corev1.Service)
		want   []string
	}{
		"nothing":     {func(*corev1.Service) {}, nil},
		"health port": {func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 30002 }, []string{"spec.healthCheckNodePort: Forbidden"}},
		"class":       {func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr("a/b") }, []string{"spec.loadBalancerClass: Invalid value"}},
		"policy":      {func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = "Cluster", 0 }, nil},
	} {
		t.Run("update, "+name, func(t *testing.T) {
			s := balanced(test.change)
			if got := told(of(t, s).ValidateUpdate(s, old)); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	s := balanced(func(s *corev1.Service) {
		s.Spec.Type, s.Status.LoadBalancer.Ingress = "NodePort", []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
	})
	if of(t, s).PrepareUpdate(t.Context(), s, old); len(s.Status.LoadBalancer.Ingress) > 0 {
		t.Errorf("a balancer's status stays with a NodePort Service: %+v", s.Status)
	}
	const key = corev1.AnnotationLoadBalancerSourceRangesKey
	annotated := func(value string, change func(*corev1.Service)) *corev1.Service {
		return balanced(func(s *corev1.Service) { s.Annotations = map[string]string{key: value}; change(s) })
	}
	refused(t, annotated(" 10.0.0.0/8, fd00::/8 ", func(*corev1.Service) {}))
	refused(t, annotated("10.0.0.0", func(*corev1.Service) {}), "metadata.annotations["+key+"]: Invalid value")
	refused(t, annotated("rubbish", func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/8"} }))
	refused(t, annotated("10.0.0.0/8", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.HealthCheckNodePort, s.Spec.AllocateLoadBalancerNodePorts = "NodePort", 0, nil
	}), "metadata.annotations["+key+"]: Forbidden")
}
