package apiserver_test

import (
	"net/netip"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
)

// service is a Service on port 80 that a test changes.
func service(name string, change ...func(*corev1.ServiceSpec)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: 80}},
	}}
	for _, f := range change {
		f(&s.Spec)
	}
	return s
}

// nodePortService asks for a node port; 0 leaves it to the server.
func nodePortService(name string, port int32) *corev1.Service {
	return service(name, func(s *corev1.ServiceSpec) { s.Type, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, port })
}

func withIP(ip string) func(*corev1.ServiceSpec) {
	return func(s *corev1.ServiceSpec) { s.ClusterIP = ip }
}

func testServices(a *api) {
	api, ctx, create := a.client.CoreV1().Services(a.ns), a.Context(), metav1.CreateOptions{}
	made := must(api.Create(ctx, service("web"), create))(a)
	s := made.Spec
	if ip, err := netip.ParseAddr(s.ClusterIP); err != nil || !netip.MustParsePrefix("10.96.0.0/16").Contains(ip) || len(s.ClusterIPs) != 1 || s.ClusterIPs[0] != s.ClusterIP {
		a.Errorf("ClusterIP %q, %q", s.ClusterIP, s.ClusterIPs)
	}
	if s.Type != corev1.ServiceTypeClusterIP || s.SessionAffinity != corev1.ServiceAffinityNone || s.Ports[0].Protocol != corev1.ProtocolTCP ||
		s.Ports[0].TargetPort != intstr.FromInt32(80) || len(s.IPFamilies) != 1 || s.IPFamilyPolicy == nil || s.InternalTrafficPolicy == nil {
		a.Errorf("defaults %+v", s)
	}

	given := must(api.Create(ctx, service("given", withIP("10.96.0.77")), create))(a)
	if given.Spec.ClusterIP != "10.96.0.77" {
		a.Errorf("ClusterIP %s", given.Spec.ClusterIP)
	}
	ported := must(api.Create(ctx, nodePortService("ported", 30007), create))(a)
	if ported.Spec.Ports[0].NodePort != 30007 || ported.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyCluster {
		a.Errorf("ported %+v", ported.Spec)
	}
	if p := must(api.Create(ctx, nodePortService("any", 0), create))(a).Spec.Ports[0].NodePort; p < 30000 || p > 32767 {
		a.Errorf("node port %d", p)
	}
	for _, test := range []struct {
		name   string
		s      *corev1.Service
		fields []string
	}{
		{"an address that is taken", service("x", withIP("10.96.0.77")), []string{"spec.clusterIPs"}},
		{"an address of others", service("x", withIP("192.0.2.1")), []string{"spec.clusterIPs"}},
		{"the network's address", service("x", withIP("10.96.0.0")), []string{"spec.clusterIPs"}},
		{"no address", service("x", withIP("web")), []string{"spec.clusterIPs[0]"}},
		{"IPv6", service("x", func(s *corev1.ServiceSpec) { s.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }), []string{"spec.ipFamilies[0]"}},
		{"a node port that is taken", nodePortService("x", 30007), []string{"spec.ports[0].nodePort"}},
		{"a node port out of range", nodePortService("x", 8080), []string{"spec.ports[0].nodePort"}},
		{"a node port of a ClusterIP Service", service("x", func(s *corev1.ServiceSpec) { s.Ports[0].NodePort = 30008 }), []string{"spec.ports[0].nodePort"}},
		{"no port", service("x", func(s *corev1.ServiceSpec) { s.Ports = nil }), []string{"spec.ports"}},
		{"nameless ports", service("x", func(s *corev1.ServiceSpec) { s.Ports = append(s.Ports, corev1.ServicePort{Port: 81}) }), []string{"spec.ports[0].name", "spec.ports[1].name"}},
		{"a name that is none", service("9web"), []string{"metadata.name"}},
		{"an ExternalName without a name", service("x", func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeExternalName }), []string{"spec.externalName"}},
	} {
		a.Run(test.name, func(t *testing.T) {
			_, err := api.Create(ctx, test.s, create)
			a.in(t).refused(err, 422, test.fields...)
		})
	}

	// What was refused, or only tried, holds nothing.
	must(api.Create(ctx, service("dry", withIP("10.96.0.78")), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}))(a)
	must(api.Create(ctx, service("wet", withIP("10.96.0.78")), create))(a)

	headless := must(api.Create(ctx, service("headless", withIP(corev1.ClusterIPNone)), create))(a)
	if headless.Spec.ClusterIP != corev1.ClusterIPNone || headless.Spec.ClusterIPs[0] != corev1.ClusterIPNone {
		a.Errorf("headless %+v", headless.Spec)
	}
	named := must(api.Create(ctx, service("named", func(s *corev1.ServiceSpec) {
		s.Type, s.ExternalName, s.Ports = corev1.ServiceTypeExternalName, "example.org", nil
	}), create))(a)
	if named.Spec.ClusterIP != "" || named.Spec.IPFamilies != nil {
		a.Errorf("ExternalName %+v", named.Spec)
	}

	// An address stays: left out it is kept, changed it is refused.
	given.Spec.ClusterIP, given.Spec.ClusterIPs = "", nil
	given.Spec.Ports[0].Port = 81
	given = must(api.Update(ctx, given, metav1.UpdateOptions{}))(a)
	if given.Spec.ClusterIP != "10.96.0.77" || given.Spec.Ports[0].Port != 81 {
		a.Errorf("updated to %+v", given.Spec)
	}
	for _, ip := range []string{"10.96.0.79", corev1.ClusterIPNone} {
		moved := given.DeepCopy()
		moved.Spec.ClusterIP, moved.Spec.ClusterIPs = ip, []string{ip}
		_, err := api.Update(ctx, moved, metav1.UpdateOptions{})
		a.refused(err, 422, "spec.clusterIPs[0]")
	}
	must(api.Create(ctx, service("free", withIP("10.96.0.79")), create))(a)

	// A type that has no node port gives it up; a Service that goes gives up everything.
	changed := must(api.Patch(ctx, "ported", types.MergePatchType, []byte(`{"spec":{"type":"ClusterIP"}}`), metav1.PatchOptions{}))(a)
	if changed.Spec.Ports[0].NodePort != 0 || changed.Spec.ExternalTrafficPolicy != "" || changed.Spec.ClusterIP != ported.Spec.ClusterIP {
		a.Errorf("changed to %+v", changed.Spec)
	}
	must(api.Create(ctx, nodePortService("heir", 30007), create))(a)
	for _, name := range []string{"given", "heir"} {
		if err := api.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			a.Fatal(err)
		}
	}
	must(api.Create(ctx, service("heir2", withIP("10.96.0.77"), func(s *corev1.ServiceSpec) {
		s.Type, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30007
	}), create))(a)
}

// testManyServices makes Services at once: none may get what another has.
func testManyServices(a *api) {
	const n = 60
	made := make([]*corev1.Service, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			s := nodePortService("", 0)
			s.GenerateName = "s-"
			var err error
			if made[i], err = a.client.CoreV1().Services(a.ns).Create(a.Context(), s, metav1.CreateOptions{}); err != nil {
				a.Error(err)
			}
		})
	}
	wg.Wait()
	if a.Failed() {
		return
	}
	ips, ports := sets.New[string](), sets.New[int32]()
	for _, s := range made {
		ips.Insert(s.Spec.ClusterIP)
		ports.Insert(s.Spec.Ports[0].NodePort)
	}
	if ips.Len() != n || ports.Len() != n {
		a.Errorf("%d addresses, %d ports of %d Services", ips.Len(), ports.Len(), n)
	}
}
