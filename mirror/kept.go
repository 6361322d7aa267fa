package mirror

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// renamed are the labels or annotations that have another name, by that.
func renamed(all, names map[string]string) map[string]string {
	var out map[string]string
	for name, v := range all {
		if other, ok := names[name]; ok {
			if out == nil {
				out = map[string]string{}
			}
			out[other] = v
		}
	}
	return out
}

// ServiceOf is the key of the Service that a slice belongs to, or empty.
func ServiceOf(s *discoveryv1.EndpointSlice) string {
	if name := s.Labels[discoveryv1.LabelServiceName]; name != "" {
		return s.Namespace + "/" + name
	}
	return ""
}

// ClusterIPs are all cluster addresses of a Service; none of a headless one.
func ClusterIPs(svc *corev1.Service) []netip.Addr {
	texts := svc.Spec.ClusterIPs
	if len(texts) == 0 {
		texts = []string{svc.Spec.ClusterIP} // written by a client that knows the older field only
	}
	return addrs(nil, texts)
}

// addrs appends those of texts that are addresses.
func addrs(to []netip.Addr, texts []string) []netip.Addr {
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			to = append(to, a)
		}
	}
	return to
}

// distinct changes the order.
func distinct(list []netip.Addr) []netip.Addr {
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

func serviceAddresses(s *corev1.Service) []netip.Addr { return distinct(ClusterIPs(s)) }

func sliceAddresses(s *discoveryv1.EndpointSlice) []netip.Addr {
	var out []netip.Addr
	for i := range s.Endpoints {
		out = addrs(out, s.Endpoints[i].Addresses)
	}
	return distinct(out)
}

// podAddresses are those of a pod that runs and has a network of its own.
func podAddresses(p *corev1.Pod) []netip.Addr {
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	var out []netip.Addr
	for _, ip := range p.Status.PodIPs {
		out = addrs(out, []string{ip.IP})
	}
	return distinct(out)
}
