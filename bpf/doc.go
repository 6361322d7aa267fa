// Package bpf is the kernel half of the node network: nobody else opens a map or attaches a program.
//
// Its one idea: the caller says what rows an owner should have, the package writes only the differences to pinned maps, and the
// programs read nothing but those maps. Everything stays pinned when the agent ends, so a node keeps forwarding without it.
//
//	proxy, cni, dns -> Table.Replace(owner, rows) -> maps -> cgroup and tc programs
//
// This package holds the seam (row types, Table, Config, Datapath), the checks and mounts around it, and the C source of the socket
// programs (sock.c). Only the tests load those, so Open says ErrNoPrograms rather than return a datapath that would forward nothing.
package bpf
