// Package serviceview tells of each Service what the node's kernel holds, beside what the API says.
package serviceview

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/doctor"
	"github.com/strake-io/strake/proxy"
)

// Service is one Service on this node.
type Service struct {
	Namespace  string   `json:"namespace"`
	Name       string   `json:"name"`
	UID        string   `json:"uid"`
	Type       string   `json:"type,omitempty"` // empty: the API has no such Service
	ClusterIPs []string `json:"clusterIPs,omitempty"`
	Note       string   `json:"note,omitempty"` // why there is nothing to be served
	Ports      []Port   `json:"ports"`
	Hits       uint64   `json:"hits"`            // choices of a backend
	DSR        bool     `json:"dsr,omitempty"`   // clients outside are answered by other nodes' pods directly
	Held       []string `json:"held,omitempty"`  // its node ports that processes have as well
	Drift      []string `json:"drift,omitempty"` // where the kernel is not as the API says
}

// Port is one port of one family.
type Port struct {
	Name            string     `json:"name"`
	Protocol        string     `json:"protocol"`
	AffinitySeconds int        `json:"affinitySeconds,omitempty"`
	Frontends       []Frontend `json:"frontends"`
	Backends        []Backend  `json:"backends"`
}

// Frontend is an address under which a port is asked.
type Frontend struct {
	Address string   `json:"address"`
	Kind    string   `json:"kind"`
	Inside  string   `json:"inside"`  // which backends clients of the cluster get
	Outside string   `json:"outside"` // and those outside of it
	Sources []string `json:"sources,omitempty"`
}

// Backend is an address that answers.
type Backend struct {
	Address  string `json:"address"`
	Pod      string `json:"pod,omitempty"`  // or what else the slice names
	Node     string `json:"node,omitempty"` // as the slice says
	State    string `json:"state"`          // ready, terminating, draining, unknown to the API …
	All      bool   `json:"all"`            // of the set of all nodes
	Local    bool   `json:"local"`          // of this node's set
	Draining bool   `json:"draining"`
	Weight   uint16 `json:"weight"`
	Hits     uint64 `json:"hits"`
}

// Ready counts the backends that new connections can get.
func (p Port) Ready() int {
	n := 0
	for _, b := range p.Backends {
		if !b.Draining {
			n++
		}
	}
	return n
}

// origin is what the API says of a backend's address.
type origin struct {
	pod, node, state string
}

// Collect is a pure function from the kernel's rows and the API's objects to what is shown, sorted by namespace and name. Rows of host ports
// are none of it.
func Collect(rows []bpf.ServiceRows, services []corev1.Service, endpoints []discoveryv1.EndpointSlice, want []bpf.LoadBalancer) []Service {
	byUID := map[string]*Service{}
	origins := map[string]map[netip.Addr]origin{} // by namespace/name of the Service
	for i := range endpoints {
		s := &endpoints[i]
		key := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		if origins[key] == nil {
			origins[key] = map[netip.Addr]origin{}
		}
		for _, e := range s.Endpoints {
			for _, text := range e.Addresses {
				if a, err := netip.ParseAddr(text); err == nil {
					origins[key][a] = originOf(e)
				}
			}
		}
	}
	for i := range services {
		s := &services[i]
		byUID[string(s.UID)] = &Service{
			Namespace: s.Namespace, Name: s.Name, UID: string(s.UID), Type: string(s.Spec.Type), ClusterIPs: clusterIPs(s), Note: note(s), Ports: []Port{},
		}
	}
	have := []bpf.LoadBalancer{}
	for _, r := range rows {
		if strings.HasPrefix(r.Owner, bpf.HostPortOwner) {
			continue
		}
		have = append(have, r.LoadBalancer)
		s := byUID[r.Owner]
		if s == nil {
			namespace, name := named(r.Name)
			s = &Service{Namespace: namespace, Name: name, UID: r.Owner, Note: "the API has no such Service", Ports: []Port{}}
			byUID[r.Owner] = s
		}
		p := portOf(r, origins[s.Namespace+"/"+s.Name])
		for _, b := range p.Backends {
			s.Hits += b.Hits
		}
		s.Ports = append(s.Ports, p)
	}
	drift(byUID, want, have)
	out := make([]Service, 0, len(byUID))
	for _, s := range byUID {
		slices.SortFunc(s.Ports, func(a, b Port) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol)) })
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Service) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return out
}

// Alone is what the kernel has, where the API server does not answer: nothing is compared.
func Alone(rows []bpf.ServiceRows) []Service {
	have := make([]bpf.LoadBalancer, len(rows))
	for i, r := range rows {
		have[i] = r.LoadBalancer
	}
	found := Collect(rows, nil, nil, have)
	for i := range found {
		found[i].Note = "not compared"
		for _, p := range found[i].Ports {
			for j := range p.Backends {
				p.Backends[j].State = found[i].Note
			}
		}
	}
	return found
}

// AddHeld tells the Services which of their node ports processes have.
func AddHeld(found []Service, held []bpf.HeldPort) {
	for i := range found {
		for _, h := range held {
			if h.Owner == found[i].UID {
				found[i].Held = append(found[i].Held, h.String())
			}
		}
	}
}

// drift tells each Service where the kernel is not as it should be.
func drift(byUID map[string]*Service, want, have []bpf.LoadBalancer) {
	of := func(l []bpf.LoadBalancer) map[string][]bpf.LoadBalancer {
		m := map[string][]bpf.LoadBalancer{}
		for _, lb := range l {
			if !strings.HasPrefix(lb.Owner, bpf.HostPortOwner) {
				m[lb.Owner] = append(m[lb.Owner], lb)
			}
		}
		return m
	}
	wanted, held := of(want), of(have)
	for _, owner := range slices.Sorted(maps.Keys(byUID)) {
		byUID[owner].Drift = doctor.ServiceDrift(wanted[owner], held[owner])
	}
}

func originOf(e discoveryv1.Endpoint) origin {
	o := origin{state: "ready"}
	if e.TargetRef != nil {
		o.pod = e.TargetRef.Name
		if e.TargetRef.Kind != "Pod" {
			o.pod = strings.ToLower(e.TargetRef.Kind) + "/" + e.TargetRef.Name
		}
	}
	if e.NodeName != nil {
		o.node = *e.NodeName
	}
	c := e.Conditions
	is := func(b *bool) bool { return b != nil && *b }
	switch {
	case is(c.Terminating) && is(c.Serving):
		o.state = "terminating, serving"
	case is(c.Terminating):
		o.state = "terminating"
	case c.Ready != nil && !*c.Ready:
		o.state = "not ready"
	}
	return o
}

func portOf(r bpf.ServiceRows, origins map[netip.Addr]origin) Port {
	_, name, _ := strings.Cut(r.Name, "/")
	if _, port, ok := strings.Cut(name, ":"); ok {
		name = port
	}
	if port, six := strings.CutSuffix(name, proxy.SuffixIPv6); six {
		name = port + " (IPv6)"
	}
	p := Port{Name: name, Protocol: doctor.ProtocolName(r.Protocol), AffinitySeconds: int(r.Affinity.Seconds()), Frontends: []Frontend{}, Backends: []Backend{}}
	for _, f := range r.Frontends {
		row := Frontend{Address: f.Addr.String(), Kind: f.Kind.String(), Inside: f.Inside.String(), Outside: f.Outside.String()}
		for _, s := range f.Sources {
			row.Sources = append(row.Sources, s.String())
		}
		p.Frontends = append(p.Frontends, row)
	}
	for _, b := range r.Backends {
		row := Backend{Address: b.Addr.String(), All: b.All, Local: b.Local, Draining: !b.All && !b.Local, Weight: max(b.Weight, 1), Hits: r.Hits[b.Addr], State: "unknown to the API"}
		if o, ok := origins[b.Addr.Addr()]; ok {
			row.Pod, row.Node, row.State = o.pod, o.node, o.state
		}
		if row.Draining {
			row.State = "draining, " + row.State
		}
		p.Backends = append(p.Backends, row)
	}
	return p
}

// named reads a row's name, namespace/name:port.
func named(row string) (namespace, name string) {
	namespace, rest, _ := strings.Cut(row, "/")
	name, _, _ = strings.Cut(rest, ":")
	return namespace, name
}

func clusterIPs(s *corev1.Service) []string {
	if len(s.Spec.ClusterIPs) > 0 {
		return s.Spec.ClusterIPs
	}
	if s.Spec.ClusterIP != "" {
		return []string{s.Spec.ClusterIP}
	}
	return nil
}

// Labels of Services that are none of ours (KEP-2447).
const labelProxyName = "service.kubernetes.io/service-proxy-name"

// note says why a Service has no rows by its own will.
func note(s *corev1.Service) string {
	by, foreign := s.Labels[labelProxyName]
	_, headless := s.Labels[corev1.IsHeadlessService]
	switch {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		return "a name for " + s.Spec.ExternalName
	case s.Spec.ClusterIP == corev1.ClusterIPNone, headless:
		return "headless: its names lead to the pods"
	case foreign:
		return "served by proxy " + by
	}
	return ""
}

// Drifted tells whether one of them is not as it should be.
func Drifted(list []Service) bool {
	return slices.ContainsFunc(list, func(s Service) bool { return len(s.Drift) > 0 })
}
