/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What is known of sockets that asked frontends. Programs at sockets write it. */
#ifndef STRAKE_REVERSE_H
#define STRAKE_REVERSE_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "lb.h"

enum { ROW_REVERSE, ROW_CHOICE };

struct socket_key {
	__u64 cookie;
	struct addr addr;
	__be16 port;
	__u16 row;
	__u32 pad;
};

struct peer {
	struct addr addr;
	__be16 port;
	__u16 proto;
	__u32 service;
	__u64 netns; /* of the socket */
};

/* ROW_REVERSE: the frontend that a socket asked for, by the backend that it got. ROW_CHOICE: the backend that its datagrams to a frontend go to.
 * Go reads the former when a backend went, see sockets.go. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, LB_REVERSE);
	__type(key, struct socket_key);
	__type(value, struct peer);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sock_reverse SEC(".maps");

#endif
