//go:build ignore
// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Service translation at the socket: the flow carries the backend's address from its first packet, so no packet is rewritten. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_helpers.h>
#include "lib/count.h"
#include "lib/lb.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* The node: set at load. */
const volatile __u64 node_netns;   /* SO_NETNS_COOKIE of the node's namespace */
const volatile __u64 node_cgroup;  /* id of the node's cgroup2 folder */
const volatile __u32 node_level;   /* its depth below the root */

struct reverse_key {
	__u64 cookie;
	__be32 addr;
	__be16 port;
	__u16 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, LB_REVERSE);
	__type(key, struct reverse_key);
	__type(value, struct backend); /* the frontend that the program asked for */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sock_reverse SEC(".maps");

static __always_inline int ours(struct bpf_sock_addr *ctx)
{
	return bpf_get_netns_cookie(ctx) == node_netns || bpf_get_current_ancestor_cgroup_id(node_level) == node_cgroup;
}

/* 0 makes the call fail with EPERM: a frontend without backends is refused at once. */
static __always_inline int forward(struct bpf_sock_addr *ctx)
{
	__be32 addr = ctx->user_ip4;
	__be16 port = ctx->user_port;
	struct reverse_key key = {};
	struct backend asked = { .addr = addr, .port = port };
	struct frontend *fe;
	struct backend *be;

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return 1;
	if (!ours(ctx))
		return 1;
	fe = lb_frontend(addr, port, ctx->protocol);
	if (!fe)
		return 1;
	be = lb_pick(fe);
	if (!be) {
		count(DROP_NO_BACKEND);
		return 0;
	}
	key.cookie = bpf_get_socket_cookie(ctx);
	key.addr = be->addr;
	key.port = be->port;
	/* Without the reverse row a reply would come from a stranger: refuse rather than mislead. */
	if (bpf_map_update_elem(&sock_reverse, &key, &asked, BPF_ANY)) {
		count(DROP_CONNTRACK_FULL);
		return 0;
	}
	ctx->user_ip4 = key.addr;
	ctx->user_port = key.port;
	return 1;
}

static __always_inline int reverse(struct bpf_sock_addr *ctx)
{
	struct reverse_key key = {};
	struct backend *asked;

	key.cookie = bpf_get_socket_cookie(ctx);
	key.addr = ctx->user_ip4;
	key.port = ctx->user_port;
	asked = bpf_map_lookup_elem(&sock_reverse, &key);
	if (asked) {
		ctx->user_ip4 = asked->addr;
		ctx->user_port = asked->port;
	}
	return 1;
}

SEC("cgroup/connect4")
int strake_connect4(struct bpf_sock_addr *ctx)
{
	return forward(ctx);
}

SEC("cgroup/sendmsg4")
int strake_sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward(ctx);
}

SEC("cgroup/recvmsg4")
int strake_recvmsg4(struct bpf_sock_addr *ctx)
{
	return reverse(ctx);
}

SEC("cgroup/getpeername4")
int strake_getpeername4(struct bpf_sock_addr *ctx)
{
	return reverse(ctx);
}
