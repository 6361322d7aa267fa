package cni

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/strake-io/strake/bpf"
)

// Desired returns the rows that the allocations in a Server's state folder ask for, on a node with those addresses: addresses of pods, and their host ports. indexOf is the
// index of an interface of the node by its name. It changes nothing.
func Desired(stateDir string, nodeAddrs []netip.Addr, indexOf func(host string) int) ([]bpf.Endpoint, []bpf.LoadBalancer, error) {
	allocations, err := readAllocations(stateDir)
	if err != nil {
		return nil, nil, err
	}
	var pods []bpf.Endpoint
	var ports []bpf.LoadBalancer
	for _, a := range allocations {
		pods = append(pods, endpoints(a, indexOf(a.Host))...)
		ports = append(ports, portRows(a, nodeAddrs)...)
	}
	return pods, ports, nil
}

// DesiredRemotes returns the rows that a node should have of all others: pure.
func DesiredRemotes(self string, addrs []netip.Addr, routing Routing, nodes []corev1.Node) []bpf.Remote {
	d := newDirectory(self, addrs, routing)
	for i := range nodes {
		info, _ := ReadNode(&nodes[i]) // what of it can't be read is told by the agent
		d.set(info.Name, &info)
	}
	var out []bpf.Remote
	for i := range nodes {
		if name := nodes[i].Name; name != self {
			out = append(out, d.desired(name, nil).remotes...)
		}
	}
	return out
}
