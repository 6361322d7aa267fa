// Package allocator gives Services their addresses and node ports, each to one
// Service at a time.
//
// Its one idea: an address is claimed by creating a key that is named after it.
// etcd creates a key once, so no two writes, of this server or of another, ever
// hold the same address; what the process remembers only says where it is worth
// trying. A claim names its Service by UID:
//
//	/registry/ipaddresses/10.96.0.10          IPAddress, as the reference keeps them
//	/registry/ranges/servicenodeports/30080   Lease, held by the Service
//
// A write of a Service claims what it adds before it is stored, and gives up what
// it left when the outcome is known. A crash in between leaves a claim too much,
// never one too few; Repair removes those, at start and from time to time.
package allocator
