package endpoints

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/endpointslice"
	sliceutil "k8s.io/endpointslice/util"
	netutils "k8s.io/utils/net"
	"k8s.io/utils/ptr"
)

// maxAddresses is how many addresses Endpoints hold: what is more is in the EndpointSlices alone.
const maxAddresses = 1000

// subsets are the addresses of pods by the ports that they have, ports of the same addresses together, in an order that does not depend
// on that of the pods.
func subsets(svc *corev1.Service, pods []*corev1.Pod) []corev1.EndpointSubset { //nolint:staticcheck // still read
	ofPort := map[string]*corev1.EndpointSubset{} //nolint:staticcheck // still read
	for _, p := range pods {
		if !sliceutil.ShouldPodBeInEndpoints(p, svc.Spec.PublishNotReadyAddresses) {
			continue
		}
		address, ok := addressOf(svc, p)
		if !ok {
			continue
		}
		add := func(key string, ports []corev1.EndpointPort) {
			s := ofPort[key]
			if s == nil {
				s = &corev1.EndpointSubset{Ports: ports} //nolint:staticcheck // still read
				ofPort[key] = s
			}
			if svc.Spec.PublishNotReadyAddresses || sliceutil.IsPodReady(p) {
				s.Addresses = append(s.Addresses, address)
			} else {
				s.NotReadyAddresses = append(s.NotReadyAddresses, address)
			}
		}
		if len(svc.Spec.Ports) == 0 {
			add("", nil)
		}
		for _, port := range portsOf(svc, p) {
			add(fmt.Sprintf("%s/%d/%s/%s", port.Name, port.Port, port.Protocol, ptr.Deref(port.AppProtocol, "")), []corev1.EndpointPort{port})
		}
	}
	byAddresses := map[string]int{}
	var out []corev1.EndpointSubset //nolint:staticcheck // still read
	for _, key := range slices.Sorted(maps.Keys(ofPort)) {
		s := ofPort[key]
		var same strings.Builder
		for _, list := range [][]corev1.EndpointAddress{s.Addresses, s.NotReadyAddresses} {
			slices.SortFunc(list, func(a, b corev1.EndpointAddress) int {
				return cmp.Or(strings.Compare(a.IP, b.IP), strings.Compare(string(a.TargetRef.UID), string(b.TargetRef.UID)))
			})
			for _, a := range list {
				fmt.Fprintf(&same, "%s/%s,", a.IP, a.TargetRef.UID)
			}
			same.WriteByte(';')
		}
		if i, ok := byAddresses[same.String()]; ok {
			out[i].Ports = append(out[i].Ports, s.Ports...)
			continue
		}
		byAddresses[same.String()] = len(out)
		out = append(out, *s)
	}
	return out
}

// addressOf is the pod's address of the Service's first family.
func addressOf(svc *corev1.Service, p *corev1.Pod) (corev1.EndpointAddress, bool) {
	v6 := len(svc.Spec.IPFamilies) > 0 && svc.Spec.IPFamilies[0] == corev1.IPv6Protocol
	if len(svc.Spec.IPFamilies) == 0 { // the cluster's own
		v6 = netutils.IsIPv6String(p.Status.PodIP)
	}
	ips := p.Status.PodIPs
	if len(ips) == 0 {
		ips = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	i := slices.IndexFunc(ips, func(ip corev1.PodIP) bool { return ip.IP != "" && netutils.IsIPv6String(ip.IP) == v6 })
	if i < 0 {
		return corev1.EndpointAddress{}, false
	}
	a := corev1.EndpointAddress{IP: ips[i].IP, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}}
	if p.Spec.NodeName != "" {
		a.NodeName = &p.Spec.NodeName
	}
	if sliceutil.ShouldSetHostname(p, svc) {
		a.Hostname = p.Spec.Hostname
	}
	return a, true
}

// portsOf are the Service's ports as the pod has them; a named one that it has not is left out.
func portsOf(svc *corev1.Service, p *corev1.Pod) []corev1.EndpointPort {
	var out []corev1.EndpointPort
	for i := range svc.Spec.Ports {
		port := &svc.Spec.Ports[i]
		number, err := endpointslice.FindPort(p, port)
		if err != nil {
			continue
		}
		e := corev1.EndpointPort{Name: port.Name, Port: int32(number), Protocol: port.Protocol}
		if port.AppProtocol != nil {
			e.AppProtocol = new(*port.AppProtocol)
		}
		out = append(out, e)
	}
	return out
}

// truncate keeps as many addresses as Endpoints hold, ready ones before others, of each subset its share. It tells whether there were more.
func truncate(all []corev1.EndpointSubset) ([]corev1.EndpointSubset, bool) { //nolint:staticcheck // still read
	ready, others := 0, 0
	for _, s := range all {
		ready, others = ready+len(s.Addresses), others+len(s.NotReadyAddresses)
	}
	if ready+others <= maxAddresses {
		return all, false
	}
	cut := func(list func(*corev1.EndpointSubset) *[]corev1.EndpointAddress, have, room int) { //nolint:staticcheck // still read
		for i := range all {
			l := list(&all[i])
			share := len(*l)
			if have > 0 && have > room {
				share = share * room / have
			}
			*l = (*l)[:share]
		}
	}
	cut(func(s *corev1.EndpointSubset) *[]corev1.EndpointAddress { return &s.Addresses }, ready, maxAddresses)                        //nolint:staticcheck // still read
	cut(func(s *corev1.EndpointSubset) *[]corev1.EndpointAddress { return &s.NotReadyAddresses }, others, max(maxAddresses-ready, 0)) //nolint:staticcheck // still read
	return slices.DeleteFunc(all, func(s corev1.EndpointSubset) bool { return len(s.Addresses)+len(s.NotReadyAddresses) == 0 }), true //nolint:staticcheck // still read
}
