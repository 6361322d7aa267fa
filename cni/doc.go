// Package cni is the agent's half of the CNI plugin: pod interfaces, addresses
// and routes of this node.
//
// Its one idea: the plugin binary only carries messages; every decision and
// every netlink call is made here, where the node's state is. An allocation is a
// file, written before the interface is made and removed after it is gone, so
// that a crash at any instant leaves something that the next start can finish
// or undo. A pod has a veth pair and no bridge: its default route leads over a
// link-local gateway to the host's side, where the BPF program of package bpf
// takes its packets.
//
//	strake-cni -> socket -> Server -> ipam (file) -> veth, routes -> Datapath (program, endpoint row)
//
// All of it works in the network namespace that the process is in, which is the node's.
package cni

import "net/netip"

// Gateway is every pod's next hop. Nobody owns it: a fixed neighbour entry leads to the host's side of the veth.
var Gateway = netip.AddrFrom4([4]byte{169, 254, 1, 1})
