// Package cni is the agent's half of the CNI plugin: pod interfaces, addresses
// and routes of this node.
//
// Its one idea: the plugin binary only carries messages; every decision and
// every netlink call is made here, where the node's state is. An allocation is a
// file, written before the interface is made and removed after it is gone, so
// that a crash at any instant leaves something that the next start can finish
// or undo. A pod has a veth pair and no bridge: its default routes lead over
// link-local gateways to the host's side, where the BPF program of package bpf
// takes its packets.
//
//	strake-cni -> socket -> Server -> ipam (file) -> veth, routes -> Datapath (program, endpoint rows)
//
// All of it works in the network namespace that the process is in, which is the node's.
package cni

import "net/netip"

// Gateway4 and Gateway6 are every pod's next hops. Nobody owns them: a fixed neighbour entry leads to the host's side of the veth.
var (
	Gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	Gateway6 = netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1})
)

func gateway(is4 bool) netip.Addr {
	if is4 {
		return Gateway4
	}
	return Gateway6
}
