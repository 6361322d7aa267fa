package doctor

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
)

// Services is what the API says of Services.
type Services struct {
	Services []corev1.Service
	Slices   []discoveryv1.EndpointSlice
	Nodes    []corev1.Node
	Pods     []corev1.Pod // nil if this node may not list them
	// Want are the rows that the node should have for them, beside those that it has: of two that ask for one address the first has it.
	Want func(have []bpf.LoadBalancer) []bpf.LoadBalancer
}

// Services asks the API.
func (n Node) Services(ctx context.Context) (Services, error) {
	e := &examination{Node: n}
	o, err := e.list(ctx, e.connect())
	if err != nil {
		return Services{}, fmt.Errorf("the API server tells nothing: %w", err)
	}
	want, err := e.wantedServices(o)
	if err != nil {
		return Services{}, err
	}
	if !n.ProxyOnly {
		if _, ports, err := cni.Desired(n.Layout.CNIState(), n.Addrs, indexOfInterface); err == nil { // else a Service may seem to lack what a host port has
			want = append(want, ports...)
		}
	}
	return Services{Services: o.services, Slices: o.slices, Nodes: o.nodes, Pods: o.pods, Want: func(have []bpf.LoadBalancer) []bpf.LoadBalancer {
		return withoutTaken(want, have)
	}}, nil
}

// ServiceDrift tells row by row where the kernel is not as it should be.
func ServiceDrift(want, have []bpf.LoadBalancer) []string {
	return differences(flattenServices(want), flattenServices(have))
}

// ProtocolName is the name of an IP protocol.
func ProtocolName(p uint8) string { return protocolName(p) }
