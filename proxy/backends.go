package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strake-io/strake/bpf"
)

// AnnotationWeight on an EndpointSlice is the share of new connections from outside that its endpoints get, beside those of other
// slices: 1 to 65535, 1 by default. With 0 they get no new connections from anywhere, and keep those that they have.
const AnnotationWeight = "strake.io/weight"

// endpoint is an address and port of a Service port, as all slices together tell of it.
type endpoint struct {
	at     netip.AddrPort
	state  state
	local  bool
	hints  hints
	weight uint16
}

// state says whether new connections may reach an endpoint. Of what several slices say the best counts.
type state uint8

const (
	draining state = iota // not ready, or ended: what runs goes on
	ending                // terminates and serves still: used where nothing is ready (KEP-1669)
	ready
)

// hints say for whom an endpoint is (KEP-2433, KEP-4444).
type hints uint8

const (
	forNodes hints = 1 << iota // for some nodes
	forNode                    // ours among them
	forZones
	forZone
)

// backends are all endpoints of a port. Those in neither set only keep the connections that they have.
func (f family) backends(list []*discoveryv1.EndpointSlice, port *corev1.ServicePort, local bool, node Node) []bpf.Backend {
	all := f.endpoints(list, port, node)
	if len(all) == 0 {
		return nil
	}
	near := topology(all)
	best, bestLocal := draining, draining
	for _, e := range all {
		best = max(best, e.state)
		if e.local {
			bestLocal = max(bestLocal, e.state)
		}
	}
	out := make([]bpf.Backend, len(all))
	for i, e := range all {
		out[i] = bpf.Backend{
			Addr: e.at, Weight: e.weight,
			All:   e.state != draining && e.state == best && (e.state != ready || e.hints&near == near),
			Local: local && e.local && e.state != draining && e.state == bestLocal,
		}
	}
	return out
}

// topology says which hint an endpoint must bear to be used: every ready endpoint has to be for some node (or zone), and one of them
// for ours, else nobody's hints count.
func topology(all []endpoint) hints {
	every, some, any := forNodes|forZones, hints(0), false
	for _, e := range all {
		if e.state == ready {
			every, some, any = every&e.hints, some|e.hints, true
		}
	}
	switch {
	case any && every&forNodes != 0 && some&forNode != 0:
		return forNode
	case any && every&forZones != 0 && some&forZone != 0:
		return forZone
	}
	return 0
}

// endpoints collects the endpoints of a port from all slices, each once, in the order of their addresses.
func (f family) endpoints(list []*discoveryv1.EndpointSlice, port *corev1.ServicePort, node Node) []endpoint {
	n := 0
	for _, s := range list {
		n += len(s.Endpoints)
	}
	all := make([]endpoint, 0, n)
	for _, s := range list {
		if s.AddressType != f.kind || elsewhere(s.Labels) {
			continue
		}
		number, ok := target(s.Ports, port)
		if !ok {
			continue
		}
		weight, err := weightOf(s)
		if err != nil {
			weight = 1 // the run loop tells of it
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if len(e.Addresses) == 0 {
				continue
			}
			// The first address is the endpoint's; the API gives no meaning to more.
			a, ok := address(e.Addresses[0])
			if !ok || !f.holds(a) {
				continue
			}
			state := stateOf(&e.Conditions)
			if weight == 0 {
				state = draining
			}
			all = append(all, endpoint{
				at: netip.AddrPortFrom(a, number), state: state, hints: hintsOf(e.Hints, node), weight: max(weight, 1),
				local: e.NodeName != nil && *e.NodeName == node.Name,
			})
		}
	}
	slices.SortFunc(all, func(a, b endpoint) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(b.state, a.state))
	})
	return merged(all)
}

// merged makes one of the entries that are of one address. They are sorted, the best first: hints count of the best only.
func merged(all []endpoint) []endpoint {
	out := all[:0]
	for _, e := range all {
		if n := len(out); n > 0 && out[n-1].at == e.at {
			last := &out[n-1]
			last.local = last.local || e.local
			if e.state == last.state {
				last.hints |= e.hints
				last.weight = max(last.weight, e.weight)
			}
			continue
		}
		out = append(out, e)
	}
	return out
}

func stateOf(c *discoveryv1.EndpointConditions) state {
	switch {
	case isTrue(c.Ready, true):
		return ready
	case isTrue(c.Serving, true) && isTrue(c.Terminating, false):
		return ending
	}
	return draining
}

func hintsOf(h *discoveryv1.EndpointHints, node Node) hints {
	var out hints
	if h == nil {
		return out
	}
	for _, n := range h.ForNodes {
		if out |= forNodes; n.Name == node.Name {
			out |= forNode
		}
	}
	for _, z := range h.ForZones {
		if out |= forZones; z.Name == node.Zone {
			out |= forZone
		}
	}
	return out
}

func isTrue(b *bool, unknown bool) bool {
	if b == nil {
		return unknown
	}
	return *b
}

// target finds the number of a Service port in a slice: the slice's ports bear the names of the Service's, so that a
// named target port may differ from pod to pod. A port without a number is none of a Service's.
func target(ports []discoveryv1.EndpointPort, port *corev1.ServicePort) (uint16, bool) {
	want, _ := protocol(port.Protocol)
	for i := range ports {
		p := &ports[i]
		name, proto := "", corev1.ProtocolTCP
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		number, ok := protocol(proto)
		if ok && name == port.Name && number == want && p.Port != nil && *p.Port > 0 && *p.Port < 1<<16 {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}

// weightOf reads AnnotationWeight.
func weightOf(s *discoveryv1.EndpointSlice) (uint16, error) {
	text, ok := s.Annotations[AnnotationWeight]
	if !ok {
		return 1, nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("EndpointSlice %s/%s: annotation %s is %q: give a number from 0 to 65535; 1 is used", s.Namespace, s.Name, AnnotationWeight, text)
	}
	return uint16(n), nil
}

// localEndpoints counts the endpoints of a Service that are ready on this node and get new connections: what load balancers ask for. Of
// two families the one with more counts, since an endpoint of both is one.
func localEndpoints(list []*discoveryv1.EndpointSlice, node Node) int {
	most := 0
	for _, f := range families {
		seen := map[netip.Addr]bool{}
		for _, s := range list {
			if s.AddressType != f.kind || elsewhere(s.Labels) {
				continue
			}
			if weight, err := weightOf(s); err == nil && weight == 0 {
				continue
			}
			for _, e := range s.Endpoints {
				if e.NodeName == nil || *e.NodeName != node.Name || len(e.Addresses) == 0 || stateOf(&e.Conditions) != ready {
					continue
				}
				if a, ok := address(e.Addresses[0]); ok && f.holds(a) {
					seen[a] = true
				}
			}
		}
		most = max(most, len(seen))
	}
	return most
}

// noLocalOf counts the ports of a Service that have endpoints, but none on this node, although a policy asks for one here.
func noLocalOf(rows []bpf.LoadBalancer) noLocal {
	var n noLocal
	for _, lb := range rows {
		all, local := false, false
		for _, b := range lb.Backends {
			all, local = all || b.All, local || b.Local
		}
		if local || !all {
			continue
		}
		var internal, external int
		for _, f := range lb.Frontends {
			if f.Outside == bpf.Local {
				if f.Kind == bpf.ClusterIP {
					internal = 1
				} else {
					external = 1
				}
			}
		}
		n.internal, n.external = n.internal+internal, n.external+external
	}
	return n
}
