/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The other nodes: which addresses are there, and how packets get to them. */
#ifndef STRAKE_TUNNEL_H
#define STRAKE_TUNNEL_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define REMOTES 65536

struct remote_key {
	__u32 len; /* of the prefix; an IPv4 one is 96 longer */
	__u8 addr[16];
};

struct remote {
	__u8 node[16]; /* the tunnel's other end; all zero: the fabric knows the way */
	__u8 owner[64]; /* Node UID */
};

/* Pod ranges and addresses of the other nodes. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, REMOTES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct remote_key);
	__type(value, struct remote);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} remotes SEC(".maps");

struct path {
	__u32 tunnel; /* ifindex of the tunnel's device; 0: native routing */
	__u32 mtu;    /* of packets to other nodes; 0: not known */
};

/* Its one row follows the devices. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct path);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} path SEC(".maps");

#endif
