package cni

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
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
func DesiredRemotes(self string, addrs []netip.Addr, routing Routing, relay Relay, nodes []corev1.Node) []bpf.Remote {
	d := newDirectory(self, addrs, routing, relay)
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

// CompareRoutes tells how many routes to nodes' pods the kernel has, and how they differ from what a node should have, a line each. It changes
// nothing.
func CompareRoutes(self string, addrs []netip.Addr, uplinks []string, routing Routing, relay Relay, nodes []corev1.Node) (have int, drift []string, err error) {
	links, err := readUnderlay(addrs, uplinks)
	if err != nil {
		return 0, nil, err
	}
	tunnel := 0
	if l, err := netlink.LinkByName(TunnelDevice); err == nil {
		tunnel = l.Attrs().Index
	}
	list, err := ourRoutes()
	if err != nil {
		return 0, nil, err
	}
	d := newDirectory(self, addrs, routing, relay)
	for i := range nodes {
		info, _ := ReadNode(&nodes[i])
		d.set(info.Name, &info)
	}
	missing := map[netip.Prefix]nodeRoute{}
	for i := range nodes {
		for _, r := range links.withoutMissing(d.desired(nodes[i].Name, links.onLinks).routes) {
			missing[r.Dst] = r
		}
	}
	for i := range list {
		r := routeOf(&list[i], tunnel)
		want, wanted := missing[r.Dst]
		switch {
		case !wanted:
			drift = append(drift, fmt.Sprintf("the route to %s is of no node, or there twice", r.Dst))
		case want != r:
			drift = append(drift, fmt.Sprintf("the route to %s leads elsewhere: %s", r.Dst, list[i]))
		}
		delete(missing, r.Dst)
	}
	for dst := range missing {
		drift = append(drift, fmt.Sprintf("the route to %s is missing", dst))
	}
	slices.Sort(drift)
	return len(list), drift, nil
}
