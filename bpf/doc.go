// Package bpf is the kernel half of the node network: nobody else opens a map or attaches a program.
//
// Its one idea: the caller says what rows an owner should have, the package writes only the differences to pinned maps, and the
// programs read nothing but those maps. Everything stays pinned when the agent ends, so a node keeps forwarding without it.
//
//	proxy, cni, dns -> Table.Replace(owner, rows) -> maps -> cgroup and tc programs
//
// The programs are sock.c (Services at the socket) and net.c (pods and the uplink), over headers by subject in lib/. Generated code
// and objects are committed; `go generate` makes them anew.
package bpf
