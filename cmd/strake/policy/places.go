package policy

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// places tells at which addresses the ends of flows are: rows know nothing else of them.
type places struct {
	named map[types.NamespacedName]*place
	pods  map[netip.Addr]*place // those with a network of their own
	nodes map[string][]netip.Addr
}

type place struct {
	pod         types.NamespacedName
	addrs       []netip.Addr
	node        string
	hostNetwork bool
	ended       corev1.PodPhase
	created     int64
}

// newPlaces takes the addresses of pods from given, which has also those that pods without one were given.
func newPlaces(s netpol.State, given map[types.NamespacedName][]netip.Addr) *places {
	out := &places{named: map[types.NamespacedName]*place{}, pods: map[netip.Addr]*place{}, nodes: map[string][]netip.Addr{}}
	for _, n := range s.Nodes {
		for _, a := range n.Status.Addresses {
			if addr, err := netip.ParseAddr(a.Address); err == nil {
				out.nodes[n.Name] = append(out.nodes[n.Name], addr.Unmap())
			}
		}
	}
	for _, o := range s.Pods {
		name := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
		p := &place{pod: name, addrs: given[name], node: o.Spec.NodeName, hostNetwork: o.Spec.HostNetwork, created: o.CreationTimestamp.Unix()}
		if len(p.addrs) == 0 && p.hostNetwork {
			p.addrs = out.nodes[p.node]
		}
		if o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
			p.ended = o.Status.Phase
		}
		out.named[name] = p
		if p.hostNetwork || p.ended != "" {
			continue
		}
		for _, a := range p.addrs {
			// Where two pods claim an address, it is the newer one's.
			if have := out.pods[a]; have == nil || p.created > have.created || p.created == have.created && name.String() < have.pod.String() {
				out.pods[a] = p
			}
		}
	}
	return out
}

// query is what is asked of rows about a flow.
func (p *places) query(f netpol.Flow) (bpf.PolicyQuery, error) {
	q := bpf.PolicyQuery{Protocol: f.Protocol, Port: f.Port}
	from, host, err := p.addrs(f.From)
	if err != nil {
		return q, fmt.Errorf("from: %w", err)
	}
	to, _, err := p.addrs(f.To)
	if err != nil {
		return q, fmt.Errorf("to: %w", err)
	}
	i := slices.IndexFunc(from, func(a netip.Addr) bool {
		return slices.ContainsFunc(to, func(b netip.Addr) bool { return a.Is6() == b.Is6() })
	})
	if i < 0 {
		return q, fmt.Errorf("%s and %s have no addresses of one family", from[0], to[0])
	}
	q.From = from[i]
	q.To = to[slices.IndexFunc(to, func(b netip.Addr) bool { return b.Is6() == q.From.Is6() })]
	if home := p.pods[q.To]; home != nil && home.node != "" && !f.Forwarded {
		q.Node = host != nil && host.node == home.node || p.pods[q.From] == nil && slices.Contains(p.nodes[home.node], q.From)
	}
	return q, nil
}

// addrs are those that an end may have, and the hostNetwork pod that it names.
func (p *places) addrs(e netpol.End) ([]netip.Addr, *place, error) {
	if e.Pod == (types.NamespacedName{}) {
		return []netip.Addr{e.Addr.Unmap().WithZone("")}, nil, nil
	}
	found := p.named[e.Pod]
	switch {
	case found == nil:
		return nil, nil, fmt.Errorf("no pod %s", e.Pod)
	case found.ended != "":
		return nil, nil, fmt.Errorf("pod %s has ended (%s): it sends and gets nothing", e.Pod, found.ended)
	case len(found.addrs) == 0:
		return nil, nil, fmt.Errorf("pod %s has no address: rows know pods by nothing else", e.Pod)
	}
	var host *place
	if found.hostNetwork {
		host = found
	}
	return found.addrs, host, nil
}
