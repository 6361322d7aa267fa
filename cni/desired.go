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

// NodeView is what the rows and routes of a node depend on besides the Nodes.
type NodeView struct {
	Name    string
	Addrs   []netip.Addr
	Uplinks []string
	Routing Routing
	Relay   Relay
}

func (v NodeView) directory(nodes []corev1.Node) *directory {
	d := newDirectory(v.Name, v.Addrs, v.Routing, v.Relay)
	for i := range nodes {
		info, _ := ReadNode(&nodes[i]) // what of it can't be read is told by the agent
		d.set(info.Name, &info)
	}
	return d
}

// DesiredRemotes returns the rows that a node should have of all others: pure.
func DesiredRemotes(v NodeView, nodes []corev1.Node) []bpf.Remote {
	d := v.directory(nodes)
	var out []bpf.Remote
	for i := range nodes {
		if name := nodes[i].Name; name != v.Name {
			out = append(out, d.desired(name, nil).remotes...)
		}
	}
	return out
}

// DesiredPath returns what the programs are to know of the way to other nodes: the index of the tunnel's device, 0 with native routing or if it
// is gone, and the MTU, by that of the uplinks as it is now.
func DesiredPath(v NodeView, nodes []corev1.Node) (tunnel, mtu int, err error) {
	links, err := readUnderlay(v.Addrs, v.Uplinks)
	if err != nil {
		return 0, 0, err
	}
	d, over6 := v.directory(nodes), false
	for i := range nodes {
		over6 = over6 || d.desired(nodes[i].Name, nil).over6
	}
	if v.Routing == VXLAN {
		tunnel = tunnelIndex()
	}
	return tunnel, pathMTU(links.mtu, v.Routing, v.Addrs, over6), nil
}

// DesiredLinks returns the links that lead out of the cluster and have none of the node's addresses, by index, with the addresses that pods' packets
// leave with there.
func DesiredLinks(v NodeView) (map[int][]netip.Addr, error) {
	links, err := readUnderlay(v.Addrs, v.Uplinks)
	return links.Others, err
}

func tunnelIndex() int {
	l, err := netlink.LinkByName(TunnelDevice)
	if err != nil {
		return 0
	}
	return l.Attrs().Index
}

// CompareRoutes tells how many routes to nodes' pods the kernel has, and how they differ from what a node should have, a line each. It changes
// nothing.
func CompareRoutes(v NodeView, nodes []corev1.Node) (have int, drift []string, err error) {
	links, err := readUnderlay(v.Addrs, v.Uplinks)
	if err != nil {
		return 0, nil, err
	}
	tunnel := tunnelIndex()
	list, err := ourRoutes()
	if err != nil {
		return 0, nil, err
	}
	d := v.directory(nodes)
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
