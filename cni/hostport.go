package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni/plugin"
)

// HostPort is a port of the node that leads to a pod (containers[].ports[].hostPort). Such a port is a row of the load balancer
// with one backend, so it is served where NodePorts are: at the sockets of the node and its pods, and at the uplink; on a loopback address at the node's
// sockets alone, for a pod's loopback is its own.
type HostPort struct {
	Addr      netip.Addr `json:"addr"`          // of the node
	Any       bool       `json:"any,omitempty"` // nobody asked for that address: it is whatever the node has of its family
	Port      uint16     `json:"port"`
	Container uint16     `json:"container"` // the pod's port
	Protocol  uint8      `json:"protocol"`  // IPPROTO_TCP or IPPROTO_UDP
}

// hostPorts reads the runtime's port mappings (the capability portMappings of CNI's conventions), for a pod with addresses of the
// families of ranges. What can't be served is refused: a pod that runs without a port it asked for is worse than one that says why it
// does not.
func hostPorts(mappings []plugin.PortMapping, nodeAddrs []netip.Addr, ranges []netip.Prefix) ([]HostPort, error) {
	podHas := func(is4 bool) bool {
		return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Addr().Is4() == is4 })
	}
	var out []HostPort
	for _, m := range mappings {
		if m.HostPort == 0 {
			continue // a containerPort alone
		}
		var p HostPort
		bad := func(format string, args ...any) error {
			return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("hostPort %d: ", m.HostPort)+fmt.Sprintf(format, args...), "")
		}
		if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
			return nil, bad("to containerPort %d: a port is 1 to 65535", m.ContainerPort)
		}
		p.Port, p.Container = uint16(m.HostPort), uint16(m.ContainerPort)
		switch strings.ToLower(m.Protocol) {
		case "tcp", "":
			p.Protocol = unix.IPPROTO_TCP
		case "udp":
			p.Protocol = unix.IPPROTO_UDP
		default:
			return nil, bad("protocol %s is not served: TCP and UDP are", m.Protocol)
		}
		var only netip.Addr // all of the node's if unset
		if m.HostIP != "" {
			var err error
			if only, err = netip.ParseAddr(m.HostIP); err != nil || only.Zone() != "" {
				return nil, bad("hostIP %q is not an IP address", m.HostIP)
			}
			only = only.Unmap()
			if only == netip.IPv6Unspecified() {
				only = netip.Addr{} // as for a socket: of both families
			} else if !podHas(only.Is4()) {
				return nil, bad("hostIP %s is of another family than the pod's addresses", only)
			}
		}
		if only.IsValid() && !only.IsUnspecified() {
			p.Addr = only
			out = append(out, p)
			continue
		}
		p.Any = true
		for _, p.Addr = range nodeAddrs {
			if podHas(p.Addr.Is4()) && (!only.IsValid() || only.Is4() == p.Addr.Is4()) {
				out = append(out, p)
			}
		}
	}
	return out, nil
}

// portOwner names an interface in the load balancer's table.
func portOwner(container, ifname string) string {
	o := bpf.HostPortOwner + container + "/" + ifname
	if len(o) <= maxOwner {
		return o
	}
	sum := sha256.Sum256([]byte(container))
	return bpf.HostPortOwner + container[:24] + "~" + hex.EncodeToString(sum[:6]) + "/" + ifname
}

// portRows are the rows of a pod's host ports.
func portRows(a Allocation, nodeAddrs []netip.Addr) []bpf.LoadBalancer {
	var rows []bpf.LoadBalancer
	for _, p := range a.Ports {
		if p.Any {
			now, ok := ofFamily(nodeAddrs, p.Addr.Is4())
			if !ok {
				continue
			}
			p.Addr = now
		}
		to, ok := a.addr(p.Addr.Is4())
		if !ok {
			continue
		}
		front := netip.AddrPortFrom(p.Addr, p.Port)
		rows = append(rows, bpf.LoadBalancer{
			Owner: portOwner(a.ContainerID, a.Ifname), Name: front.String(), Protocol: p.Protocol,
			Frontends: []bpf.Frontend{{Addr: front, Kind: bpf.HostPort}}, Backends: []bpf.Backend{{Addr: netip.AddrPortFrom(to, p.Container), All: true, Local: true}},
		})
	}
	return rows
}

// openPorts makes the host ports of a pod live.
func (s *Server) openPorts(a Allocation) error {
	if _, err := s.cfg.Datapath.LoadBalancers().Replace(portOwner(a.ContainerID, a.Ifname), portRows(a, s.cfg.NodeAddrs)); err != nil {
		return fmt.Errorf("host ports: %w", err)
	}
	return nil
}

// closePorts takes them away.
func (s *Server) closePorts(container, ifname string) error {
	if _, err := s.cfg.Datapath.LoadBalancers().Replace(portOwner(container, ifname), nil); err != nil {
		return fmt.Errorf("host ports: %w", err)
	}
	return nil
}

// prunePorts removes rows of pods that are gone.
func (s *Server) prunePorts() error {
	live := map[string]bool{}
	for _, a := range s.ipam.list() {
		live[portOwner(a.ContainerID, a.Ifname)] = true
	}
	_, err := s.cfg.Datapath.LoadBalancers().Prune(func(owner string) bool { return live[owner] || !strings.HasPrefix(owner, bpf.HostPortOwner) })
	return err
}
