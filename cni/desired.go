package cni

import "github.com/strake-io/strake/bpf"

// Desired returns the rows that the allocations in a Server's state folder ask for: addresses of pods, and their host ports. indexOf is the
// index of an interface of the node by its name. It changes nothing.
func Desired(stateDir string, indexOf func(host string) int) ([]bpf.Endpoint, []bpf.LoadBalancer, error) {
	allocations, err := readAllocations(stateDir)
	if err != nil {
		return nil, nil, err
	}
	var pods []bpf.Endpoint
	var ports []bpf.LoadBalancer
	for _, a := range allocations {
		pods = append(pods, endpoints(a, indexOf(a.Host))...)
		ports = append(ports, portRows(a)...)
	}
	return pods, ports, nil
}
