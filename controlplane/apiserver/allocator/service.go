package allocator

import (
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// A Service's type and headlessness decide what it holds.

func hasClusterIP(s *corev1.Service) bool { return s.Spec.Type != corev1.ServiceTypeExternalName }

func hasNodePorts(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer
}

// mustHaveNodePorts is hasNodePorts unless they are optional and not wanted; those that are there are kept anyway.
func mustHaveNodePorts(s *corev1.Service) bool {
	a := s.Spec.AllocateLoadBalancerNodePorts
	return s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer && (a == nil || *a)
}

// hasHealthCheckPort tells whether load balancers need to ask nodes for local backends.
func hasHealthCheckPort(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// addresses are the ClusterIPs that a Service holds, in the form in which they are claimed.
func addresses(s *corev1.Service) []string {
	if !hasClusterIP(s) || s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone {
		return nil
	}
	var all []string
	for _, ip := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
		if a, err := netip.ParseAddr(ip); err == nil && !slices.Contains(all, a.String()) {
			all = append(all, a.String())
		}
	}
	return all
}

// ports are the node ports that a Service holds, each once.
func ports(s *corev1.Service) []string {
	var all []string
	add := func(n int32) {
		if p := strconv.Itoa(int(n)); n != 0 && !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	if hasNodePorts(s) {
		for _, p := range s.Spec.Ports {
			add(p.NodePort)
		}
	}
	if hasHealthCheckPort(s) {
		add(s.Spec.HealthCheckNodePort)
	}
	return all
}

// inherit makes of what a client sent what it meant: fields that the server had chosen and the client left out
// stay, and fields that the new type no longer has and the client did not touch go.
func inherit(s, old *corev1.Service) {
	inheritAddresses(s, old)
	inheritPorts(s, old)
	if old.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		dropSame(&s.Spec.AllocateLoadBalancerNodePorts, old.Spec.AllocateLoadBalancerNodePorts)
		dropSame(&s.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass)
	}
	external := func(s *corev1.Service) bool { return hasNodePorts(s) || len(s.Spec.ExternalIPs) > 0 }
	if external(old) && !external(s) && s.Spec.ExternalTrafficPolicy == old.Spec.ExternalTrafficPolicy {
		s.Spec.ExternalTrafficPolicy = ""
	}
	if !hasClusterIP(old) && hasClusterIP(s) && s.Spec.ExternalName == old.Spec.ExternalName {
		s.Spec.ExternalName = ""
	}
	if hasClusterIP(old) && !hasClusterIP(s) {
		dropSame(&s.Spec.InternalTrafficPolicy, old.Spec.InternalTrafficPolicy)
	}
}

func dropSame[V comparable](field **V, old *V) {
	if *field != nil && old != nil && **field == *old {
		*field = nil
	}
}

func inheritAddresses(s, old *corev1.Service) {
	n, o := &s.Spec, &old.Spec
	if !hasClusterIP(old) {
		return
	}
	same := n.ClusterIP == o.ClusterIP && slices.Equal(n.ClusterIPs, o.ClusterIPs)
	if !hasClusterIP(s) {
		if same {
			n.ClusterIP, n.ClusterIPs = "", nil
		}
		if slices.Equal(n.IPFamilies, o.IPFamilies) {
			n.IPFamilies = nil
		}
		dropSame(&n.IPFamilyPolicy, o.IPFamilyPolicy)
		return
	}
	// clusterIP and clusterIPs[0] are one value under two names: clients that know only the old one change only that.
	switch {
	case n.ClusterIP == "" && (len(n.ClusterIPs) == 0 || slices.Equal(n.ClusterIPs, o.ClusterIPs)):
		n.ClusterIP, n.ClusterIPs = o.ClusterIP, o.ClusterIPs
	case n.ClusterIP != o.ClusterIP && slices.Equal(n.ClusterIPs, o.ClusterIPs):
		n.ClusterIPs = []string{n.ClusterIP}
	case n.ClusterIP == o.ClusterIP && len(n.ClusterIPs) == 0:
		n.ClusterIPs = o.ClusterIPs
	}
	if len(n.IPFamilies) == 0 {
		n.IPFamilies = o.IPFamilies
	}
	if n.IPFamilyPolicy == nil {
		n.IPFamilyPolicy = o.IPFamilyPolicy
	}
}

func inheritPorts(s, old *corev1.Service) {
	if !hasNodePorts(old) {
		return
	}
	if hasHealthCheckPort(old) {
		switch {
		case hasHealthCheckPort(s) && s.Spec.HealthCheckNodePort == 0:
			s.Spec.HealthCheckNodePort = old.Spec.HealthCheckNodePort
		case !hasHealthCheckPort(s) && s.Spec.HealthCheckNodePort == old.Spec.HealthCheckNodePort:
			s.Spec.HealthCheckNodePort = 0
		}
	}
	type key struct {
		protocol corev1.Protocol
		port     int32
	}
	had, used := map[key]int32{}, map[int32]bool{}
	for _, p := range old.Spec.Ports {
		had[key{p.Protocol, p.Port}] = p.NodePort
	}
	if !hasNodePorts(s) {
		// All or nothing: who changed one port means them.
		for _, p := range s.Spec.Ports {
			if p.NodePort != had[key{p.Protocol, p.Port}] {
				return
			}
		}
		for i := range s.Spec.Ports {
			s.Spec.Ports[i].NodePort = 0
		}
		return
	}
	for _, p := range s.Spec.Ports {
		used[p.NodePort] = true
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if n := had[key{p.Protocol, p.Port}]; p.NodePort == 0 && n != 0 && !used[n] {
			p.NodePort = n
		}
	}
}
