// Package podnet runs the node networks of a few nodes without a control plane, from a fixed desired state, in network
// namespaces of its own, with addresses of both families: for the tests of kernels that are emulated, and for benchmarks.
//
// Its one idea: the node is a process, as an agent is, so that it can be killed and started anew; and as it needs nothing
// but a file that says what is desired, it runs where nothing but a kernel is.
//
//	outside 198.18.0.1 ── bridge
//	                     ├── veth ── 198.18.0.11 node 1 ── pods of 10.244.1.0/24
//	                     └── veth ── 198.18.0.12 node 2 ── pods of 10.244.2.0/24
//
// The program that uses it calls Main first thing: a node's process is that program, started as another.
package podnet
