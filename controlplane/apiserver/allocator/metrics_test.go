package allocator

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/component-base/metrics/testutil"
)

// TestMetrics counts as kube-apiserver does, by its names and labels.
func TestMetrics(t *testing.T) {
	for _, m := range []interface{ Reset() }{addressesGiven, addressesRefused, addressTakes, portsGiven, portsRefused} {
		m.Reset()
	}
	c := newClusterOf(t, "10.0.0.0/27", "fd00::/112")
	asked := c.must(service("asked", nodePort(30001), clusterIP("10.0.0.5")))
	c.must(service("chosen", nodePort(0)))
	c.must(service("six", func(s *corev1.ServiceSpec) { s.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} }))
	refused := func(s *corev1.Service) {
		t.Helper()
		if _, err := c.write(s, nil); err == nil {
			t.Errorf("%s was given what it asks for", s.Name)
		}
	}
	refused(service("taken", clusterIP("10.0.0.5")))
	refused(service("taken-port", nodePort(30001)))
	refused(service("outside-port", nodePort(29000)))
	// A dry run, and a change that keeps what the Service has, count nothing.
	if err := c.assign(t.Context(), service("dry", nodePort(29000)), nil, true); err == nil {
		t.Error("a port outside is taken")
	}
	asked.Labels = map[string]string{"a": "b"}
	c.must(asked)
	// Addresses that the refused ones were given meanwhile count as given, and are free again.
	for _, name := range []string{"a", "b", "c"} {
		c.must(service(name, nodePort(0)))
	}
	refused(service("full", nodePort(0)))
	c.delete("b")

	want := `
		# HELP kube_apiserver_clusterip_allocator_allocated_ips [ALPHA] Gauge measuring the number of allocated IPs for Services
		# TYPE kube_apiserver_clusterip_allocator_allocated_ips gauge
		kube_apiserver_clusterip_allocator_allocated_ips{cidr="10.0.0.0/27"} 4
		kube_apiserver_clusterip_allocator_allocated_ips{cidr="fd00::/112"} 1
		# HELP kube_apiserver_clusterip_allocator_available_ips [ALPHA] Gauge measuring the number of available IPs for Services
		# TYPE kube_apiserver_clusterip_allocator_available_ips gauge
		kube_apiserver_clusterip_allocator_available_ips{cidr="10.0.0.0/27"} 26
		kube_apiserver_clusterip_allocator_available_ips{cidr="fd00::/112"} 65534
		# HELP kube_apiserver_clusterip_allocator_allocation_total [ALPHA] Number of Cluster IPs allocations
		# TYPE kube_apiserver_clusterip_allocator_allocation_total counter
		kube_apiserver_clusterip_allocator_allocation_total{cidr="10.0.0.0/27",scope="dynamic"} 7
		kube_apiserver_clusterip_allocator_allocation_total{cidr="10.0.0.0/27",scope="static"} 1
		kube_apiserver_clusterip_allocator_allocation_total{cidr="fd00::/112",scope="dynamic"} 1
		# HELP kube_apiserver_clusterip_allocator_allocation_errors_total [ALPHA] Number of errors trying to allocate Cluster IPs
		# TYPE kube_apiserver_clusterip_allocator_allocation_errors_total counter
		kube_apiserver_clusterip_allocator_allocation_errors_total{cidr="10.0.0.0/27",scope="static"} 1
		# HELP kube_apiserver_nodeport_allocator_allocated_ports [ALPHA] Gauge measuring the number of allocated NodePorts for Services
		# TYPE kube_apiserver_nodeport_allocator_allocated_ports gauge
		kube_apiserver_nodeport_allocator_allocated_ports 4
		# HELP kube_apiserver_nodeport_allocator_available_ports [ALPHA] Gauge measuring the number of available NodePorts for Services
		# TYPE kube_apiserver_nodeport_allocator_available_ports gauge
		kube_apiserver_nodeport_allocator_available_ports 1
		# HELP kube_apiserver_nodeport_allocator_allocation_total [ALPHA] Number of NodePort allocations
		# TYPE kube_apiserver_nodeport_allocator_allocation_total counter
		kube_apiserver_nodeport_allocator_allocation_total{scope="dynamic"} 4
		kube_apiserver_nodeport_allocator_allocation_total{scope="static"} 1
		# HELP kube_apiserver_nodeport_allocator_allocation_errors_total [ALPHA] Number of errors trying to allocate NodePort
		# TYPE kube_apiserver_nodeport_allocator_allocation_errors_total counter
		kube_apiserver_nodeport_allocator_allocation_errors_total{scope="dynamic"} 1
		kube_apiserver_nodeport_allocator_allocation_errors_total{scope="static"} 2
	`
	names := []string{}
	for _, line := range strings.Split(want, "\n") {
		if f := strings.Fields(line); len(f) > 2 && f[1] == "TYPE" {
			names = append(names, f[2])
		}
	}
	if err := testutil.GatherAndCompare(legacyregistry.DefaultGatherer, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GetHistogramMetricCount(addressTakes.WithLabelValues("10.0.0.0/27")); err != nil || n != 8 {
		t.Errorf("the time of %d claims was taken, want 8: %v", n, err)
	}
}
