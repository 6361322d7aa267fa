package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strake-io/strake/bpf"
)

// caller is who opens a connection: a process of the node, one of its pods, or somebody outside of the cluster.
type caller struct {
	from         netip.Addr
	process, pod bool
	what         string // for people
}

// answer is what becomes of a connection.
type answer struct {
	how  string // "", no Service is there; "dropped"; "refused"; "reaches"
	whom string // backends, any of which it may reach
	stay int64  // seconds for which the client comes to the same one again
}

func reaches(whom []string, stay int64) answer {
	slices.Sort(whom)
	return answer{"reaches", strings.Join(slices.Compact(whom), " "), stay}
}

// reference answers from the doc comments of Service and EndpointSlice (k8s.io/api) and the KEPs, by a look at all there is. It knows
// nothing of rows.
type reference struct {
	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
	node     Node
}

var ipProtocols = map[corev1.Protocol]uint8{corev1.ProtocolTCP: 6, corev1.ProtocolUDP: 17, corev1.ProtocolSCTP: 132}

func (r *reference) ask(who caller, dst netip.AddrPort, proto uint8) answer {
	for _, svc := range r.services {
		_, foreign := svc.Labels["service.kubernetes.io/service-proxy-name"]
		_, labelled := svc.Labels["service.kubernetes.io/headless"]
		if foreign || labelled || svc.Spec.Type == "ExternalName" || svc.Spec.ClusterIP == "None" {
			continue
		}
		for _, port := range svc.Spec.Ports {
			if ipProtocols[port.Protocol] != proto {
				continue
			}
			if way := r.way(svc, port, dst); way != "" {
				return r.answer(svc, port, who, way, dst.Addr().Is4())
			}
		}
	}
	return answer{}
}

// way is by which of its addresses dst is this Service's port.
func (r *reference) way(svc *corev1.Service, port corev1.ServicePort, dst netip.AddrPort) string {
	ofFamily := false
	for _, ip := range svc.Spec.ClusterIPs {
		ofFamily = ofFamily || strings.Contains(ip, ":") == dst.Addr().Is6()
	}
	if !ofFamily || slices.Contains(r.node.Local, dst.Addr()) {
		return ""
	}
	to := dst.Addr().String()
	if int32(dst.Port()) == port.Port {
		if slices.Contains(svc.Spec.ClusterIPs, to) {
			return "cluster"
		}
		for _, in := range svc.Status.LoadBalancer.Ingress {
			if in.IP == to && (in.IPMode == nil || *in.IPMode == "VIP") {
				return "balancer"
			}
		}
		if slices.Contains(svc.Spec.ExternalIPs, to) {
			return "external"
		}
	}
	if int32(dst.Port()) == port.NodePort && slices.Contains(r.node.Addrs, dst.Addr()) {
		return "node"
	}
	return ""
}

func (r *reference) answer(svc *corev1.Service, port corev1.ServicePort, who caller, way string, v4 bool) answer {
	if way == "balancer" && !who.process && !r.admitted(svc, who.from) {
		return answer{how: "dropped"}
	}
	local := false
	if way == "cluster" {
		local = svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == "Local"
	} else if !who.process && !who.pod {
		local = svc.Spec.ExternalTrafficPolicy == "Local"
	}
	var stay int64
	if svc.Spec.SessionAffinity == "ClientIP" {
		stay = 10800
		if c := svc.Spec.SessionAffinityConfig; c != nil {
			stay = int64(*c.ClientIP.TimeoutSeconds)
		}
	}
	list := r.endpoints(svc, port, v4)
	anywhere := r.usable(list)
	if len(anywhere) == 0 {
		return answer{how: "refused"}
	}
	if local {
		here := r.usable(slices.DeleteFunc(slices.Clone(list), func(e mention) bool { return !e.here }))
		if len(here) == 0 {
			return answer{how: "dropped"}
		}
		return reaches(here, stay)
	}
	if near := r.near(list); near != nil {
		return reaches(near, stay)
	}
	return reaches(anywhere, stay)
}

func (r *reference) admitted(svc *corev1.Service, from netip.Addr) bool {
	list := svc.Spec.LoadBalancerSourceRanges
	if a := svc.Annotations["service.beta.kubernetes.io/load-balancer-source-ranges"]; len(list) == 0 && a != "" {
		list = strings.Split(a, ",")
	}
	if len(list) == 0 {
		return true
	}
	for _, text := range list {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil && p.Contains(from) {
			return true
		}
	}
	return false
}

// mention is an endpoint in one slice.
type mention struct {
	at                  string
	ready, ending, here bool
	nodes, zones        []string
}

// endpoints lists each mention of an endpoint of the port; local is local wherever else it is mentioned.
func (r *reference) endpoints(svc *corev1.Service, port corev1.ServicePort, v4 bool) []mention {
	var out []mention
	here := map[string]bool{}
	for _, s := range r.slices {
		if s.Namespace != svc.Namespace || s.Labels["kubernetes.io/service-name"] != svc.Name || (s.AddressType == "IPv4") != v4 || s.Labels["service.kubernetes.io/service-proxy-name"] != "" {
			continue
		}
		for _, p := range s.Ports {
			if *p.Name != port.Name || *p.Protocol != port.Protocol || p.Port == nil {
				continue
			}
			for _, e := range s.Endpoints {
				m := mention{at: netip.AddrPortFrom(netip.MustParseAddr(e.Addresses[0]), uint16(*p.Port)).String()}
				c := e.Conditions
				m.ready = c.Ready == nil || *c.Ready
				m.ending = !m.ready && (c.Serving == nil || *c.Serving) && c.Terminating != nil && *c.Terminating
				if e.NodeName != nil && *e.NodeName == r.node.Name {
					here[m.at] = true
				}
				if e.Hints != nil {
					for _, n := range e.Hints.ForNodes {
						m.nodes = append(m.nodes, n.Name)
					}
					for _, z := range e.Hints.ForZones {
						m.zones = append(m.zones, z.Name)
					}
				}
				out = append(out, m)
			}
		}
	}
	for i := range out {
		out[i].here = here[out[i].at]
	}
	return out
}

// usable are those that are ready, or, if none is, those that serve while they terminate.
func (r *reference) usable(list []mention) []string {
	var readies, endings []string
	for _, e := range list {
		if e.ready {
			readies = append(readies, e.at)
		} else if e.ending {
			endings = append(endings, e.at)
		}
	}
	if len(readies) > 0 {
		return readies
	}
	return endings
}

// near are the ready endpoints for this node, or for its zone; nil if hints don't count: one is without, or none is for us.
func (r *reference) near(list []mention) []string {
	byNode, byZone := map[string][]string{}, map[string][]string{}
	for _, e := range list {
		if e.ready {
			byNode[e.at], byZone[e.at] = append(byNode[e.at], e.nodes...), append(byZone[e.at], e.zones...)
		}
	}
	pick := func(hints map[string][]string, us string) []string {
		var out []string
		for at, names := range hints {
			if len(names) == 0 {
				return nil
			}
			if slices.Contains(names, us) {
				out = append(out, at)
			}
		}
		return out
	}
	if near := pick(byNode, r.node.Name); near != nil {
		return near
	}
	return pick(byZone, r.node.Zone)
}

// answerOf is what rows say to a caller, by what package bpf tells of their fields.
func answerOf(rows []bpf.LoadBalancer, who caller, dst netip.AddrPort, proto uint8) answer {
	for _, lb := range rows {
		for _, f := range lb.Frontends {
			if f.Addr != dst || lb.Protocol != proto {
				continue
			}
			admitted := len(f.Sources) == 0 || who.process
			for _, p := range f.Sources {
				admitted = admitted || p.Contains(who.from)
			}
			if !admitted {
				return answer{how: "dropped"}
			}
			scope := f.Outside
			if who.process || who.pod {
				scope = f.Inside
			}
			var all, chosen []string
			for _, b := range lb.Backends {
				if b.All {
					all = append(all, b.Addr.String())
				}
				if scope == bpf.All && b.All || scope == bpf.Local && b.Local {
					chosen = append(chosen, b.Addr.String())
				}
			}
			switch {
			case len(chosen) > 0:
				return reaches(chosen, int64(lb.Affinity.Seconds()))
			case len(all) > 0:
				return answer{how: "dropped"}
			}
			return answer{how: "refused"}
		}
	}
	return answer{}
}

// callers are one of each kind, in the family of an address.
func callers(v4 bool) []caller {
	if v4 {
		return []caller{
			{from: netip.MustParseAddr("192.0.2.1"), process: true, what: "a process of the node"}, {from: netip.MustParseAddr("10.244.0.77"), pod: true, what: "a pod"},
			{from: netip.MustParseAddr("203.0.113.9"), what: "somebody outside"}, {from: netip.MustParseAddr("203.0.113.200"), what: "somebody else outside"},
		}
	}
	return []caller{
		{from: netip.MustParseAddr("2001:db8::1"), process: true, what: "a process of the node"}, {from: netip.MustParseAddr("fd00:244::77"), pod: true, what: "a pod"},
		{from: netip.MustParseAddr("2001:db8:9::9"), what: "somebody outside"}, {from: netip.MustParseAddr("2001:db8:9:1::9"), what: "somebody else outside"},
	}
}

// differences holds rows against the reference at every address and port that either knows.
func (r *reference) differences(rows []bpf.LoadBalancer, at []netip.AddrPort) []string {
	var out []string
	for _, lb := range rows {
		for _, f := range lb.Frontends {
			at = append(at, f.Addr)
		}
	}
	slices.SortFunc(at, netip.AddrPort.Compare)
	for _, dst := range slices.Compact(at) {
		for _, who := range callers(dst.Addr().Is4()) {
			for _, proto := range ipProtocols {
				if got, want := answerOf(rows, who, dst, proto), r.ask(who, dst, proto); got != want {
					out = append(out, fmt.Sprintf("%s to %s, protocol %d: %+v, should be %+v", who.what, dst, proto, got, want))
				}
			}
		}
	}
	return out
}
