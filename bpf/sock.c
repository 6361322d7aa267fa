//go:build ignore
// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Service translation at the socket: the flow carries the backend's address from its first packet, so no packet is rewritten. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "lib/addr.h"
#include "lib/count.h"
#include "lib/lb.h"
#include "lib/monitor.h"
#include "lib/reverse.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* The node: set at load. */
const volatile __u64 node_netns;   /* SO_NETNS_COOKIE of the node's namespace */
const volatile __u64 node_cgroup;  /* id of the node's cgroup2 folder */
const volatile __u32 node_level;   /* its depth below the root */
const volatile __u8 has_set_retval; /* the kernel lets these hooks choose an error (Linux 6.1) */
/* Where the kernel's struct sock has the bit of IPV6_V6ONLY, as its BTF says: which byte, and which bit of that. No bit: it can't be read. */
const volatile __u32 v6only_byte;
const volatile __u8 v6only_bit;

/* Network namespaces of pods whose sockets are left alone: the packets tell what they ask for. */
struct sockets_off {
	__u8 owner[64]; /* sandbox */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct sockets_off);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} sockets_off SEC(".maps");

static __always_inline int of_node(struct bpf_sock_addr *ctx)
{
	return bpf_get_netns_cookie(ctx) == node_netns;
}

static __always_inline int ours(struct bpf_sock_addr *ctx)
{
	__u64 netns = bpf_get_netns_cookie(ctx);

	if (netns == node_netns)
		return 1;
	return bpf_get_current_ancestor_cgroup_id(node_level) == node_cgroup && !bpf_map_lookup_elem(&sockets_off, &netns);
}

/* An address that refuses at once, in whatever namespace the socket is: nobody can listen on port 0. */
#define NOBODY_V4 bpf_htonl(0x7f000001)
#define ECONNREFUSED 111

enum fate { PASS, REFUSE, TRANSLATE };

/* Where a socket's datagrams to a frontend went, while that is a backend of the service or ends its work as one. All of them go one way,
 * connected or not, as through a connection's entry: QUIC and others keep a state with their peer. */
static __always_inline struct peer *chosen(const struct frontend *fe, const struct socket_key *key)
{
	struct peer *was = bpf_map_lookup_elem(&sock_reverse, key);

	return was && was->service == fe->service && lb_member(fe->service, &was->addr, was->port) ? was : 0;
}

/* How many other slots are tried. */
#define ASIDE 4

/* An unconnected socket that asks two frontends needs a backend for each: an answer tells by nothing else which of them it is of. If the one
 * that was chosen answers for another frontend already, the next ones are tried; where there is none left, answers come from the frontend that
 * was asked last. */
static __always_inline void step_aside(const struct frontend *fe, struct socket_key *key, const struct peer *asked, struct backend *be)
{
	__u32 set = fe->flags & FE_INSIDE_LOCAL ? LB_LOCAL : 0, n = set ? fe->local : fe->all, start = bpf_get_prandom_u32();
	struct backend *next = be;

	if (n < 2)
		return;
	key->row = ROW_REVERSE;
#pragma unroll
	for (int i = 0; i <= ASIDE; i++) {
		struct peer *row;

		key->addr = next->addr;
		key->port = next->port;
		row = bpf_map_lookup_elem(&sock_reverse, key);
		if (!row || (addr_eq(&row->addr, &asked->addr) && row->port == asked->port)) {
			if (next != be)
				*be = *next;
			return;
		}
		next = lb_slot(fe, set | (start + i) % n);
		if (!next)
			return;
	}
}

/* The socket's datagrams go to who is no frontend. If that is a backend which it got by one, then what it hears from there is of the backend itself from now
 * on, until it asks the frontend again. */
static __always_inline void asks_itself(struct bpf_sock_addr *ctx, struct socket_key *key)
{
	key->cookie = bpf_get_socket_cookie(ctx);
	key->row = ROW_REVERSE;
	if (bpf_map_lookup_elem(&sock_reverse, key)) /* the look takes no lock */
		bpf_map_delete_elem(&sock_reverse, key);
}

/* A connection or datagram that is not made, counted and told to who watches. */
static __always_inline void refused(struct bpf_sock_addr *ctx, const struct addr *addr, __u32 reason)
{
	struct socket_event *s;
	struct event *e;

	count(reason);
	if (!watched(1))
		return;
	e = event_begin(reason);
	if (!e)
		return;
	e->pid = bpf_get_current_pid_tgid() >> 32;
	e->captured = sizeof(*s);
	s = (struct socket_event *)e->data;
	__builtin_memcpy(s->addr, addr->b, sizeof(s->addr));
	s->port = ctx->user_port;
	s->proto = ctx->protocol;
	s->pad = 0;
	bpf_get_current_comm(s->comm, sizeof(s->comm));
	bpf_ringbuf_submit(e, 0);
}

/* A service without backends: connections are refused at once. */
static __always_inline enum fate refuse(struct bpf_sock_addr *ctx, const struct addr *addr, struct peer *to)
{
	refused(ctx, addr, DROP_NO_BACKEND);
	if (has_set_retval) {
		bpf_set_retval(-ECONNREFUSED);
		return REFUSE;
	}
	if (ctx->protocol == IPPROTO_UDP) /* sends nothing to port 0 */
		return REFUSE;
	if (addr_mapped(addr)) {
		addr_v4(&to->addr, NOBODY_V4);
	} else {
		to->addr.d[0] = to->addr.d[1] = 0;
		to->addr.b[15] = 1;
	}
	to->port = 0;
	return TRANSLATE;
}

/* What is to become of a socket's way to addr; with TRANSLATE, to says where it goes. named: the program gave the address, with this datagram or to connect. */
static __always_inline enum fate forward(struct bpf_sock_addr *ctx, const struct addr *addr, struct peer *to, int named)
{
	__be16 port = ctx->user_port;
	struct socket_key key = { .addr = *addr, .port = port, .row = ROW_CHOICE };
	struct peer asked = { .addr = *addr, .port = port, .proto = ctx->protocol };
	struct backend be = {};
	struct frontend *fe;
	struct addr client;
	struct peer *was;

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP)
		return PASS;
	if (!ours(ctx))
		return PASS;
	fe = lb_frontend(addr, port, ctx->protocol);
	if (!fe) {
		if (ctx->protocol == IPPROTO_UDP && named)
			asks_itself(ctx, &key);
		return PASS;
	}
	/* Who asks where there are source ranges is judged by the packet's source; a loopback address is each namespace's own. */
	if ((fe->flags & FE_SOURCES || addr_loopback(addr)) && !of_node(ctx))
		return PASS;
	asked.service = fe->service;
	asked.netns = bpf_get_netns_cookie(ctx);
	key.cookie = bpf_get_socket_cookie(ctx);
	was = ctx->protocol == IPPROTO_UDP ? chosen(fe, &key) : 0;
	if (was) {
		*to = *was;
		goto found;
	}
	client = affinity_netns(asked.netns);
	switch (lb_choose(fe, 0, &client, 0, &be)) {
	case LB_NO_BACKEND:
		return refuse(ctx, addr, to);
	case LB_NOT_HERE: /* as a dropped packet of the node's own: EPERM */
		refused(ctx, addr, DROP_NO_LOCAL_BACKEND);
		return REFUSE;
	case LB_CHOSEN:
		break;
	}
	if (ctx->protocol == IPPROTO_UDP && !fe->affinity)
		step_aside(fe, &key, &asked, &be);
	to->addr = be.addr;
	to->port = be.port;
	to->service = fe->service;
	to->proto = ctx->protocol;
	to->netns = asked.netns;
	if (ctx->protocol == IPPROTO_UDP) { /* without a row the next datagram may go elsewhere, but it goes */
		key.addr = *addr;
		key.port = port;
		key.row = ROW_CHOICE;
		bpf_map_update_elem(&sock_reverse, &key, to, BPF_ANY);
	}
found:
	key.addr = to->addr;
	key.port = to->port;
	key.row = ROW_REVERSE;
	if (ctx->protocol == IPPROTO_UDP) { /* each of its datagrams comes here; a connection once */
		was = bpf_map_lookup_elem(&sock_reverse, &key);
		if (was && addr_eq(&was->addr, addr) && was->port == port && was->service == asked.service)
			return TRANSLATE;
	}
	/* Without the reverse row a reply would come from a stranger: refuse rather than mislead. */
	if (bpf_map_update_elem(&sock_reverse, &key, &asked, BPF_ANY)) {
		refused(ctx, addr, DROP_CONNTRACK_FULL);
		return REFUSE;
	}
	return TRANSLATE;
}

/* What the program asked, when the socket tells of the backend at addr. */
static __always_inline struct peer *reverse(struct bpf_sock_addr *ctx, const struct addr *addr)
{
	struct socket_key key = { .addr = *addr, .row = ROW_REVERSE };

	key.cookie = bpf_get_socket_cookie(ctx);
	key.port = ctx->user_port;
	return bpf_map_lookup_elem(&sock_reverse, &key);
}

/* 0 makes the call fail: with EPERM, unless a return value is set. */
static __always_inline int forward4(struct bpf_sock_addr *ctx, int named)
{
	struct peer to = {};
	struct addr addr;

	addr_v4(&addr, ctx->user_ip4);
	switch (forward(ctx, &addr, &to, named)) {
	case REFUSE:
		return 0;
	case TRANSLATE:
		ctx->user_ip4 = to.addr.w[3];
		ctx->user_port = to.port;
		return 1;
	case PASS:
		break;
	}
	return 1;
}

static __always_inline int reverse4(struct bpf_sock_addr *ctx)
{
	struct peer *asked;
	struct addr addr;

	addr_v4(&addr, ctx->user_ip4);
	asked = reverse(ctx, &addr);
	if (asked) {
		ctx->user_ip4 = asked->addr.w[3];
		ctx->user_port = asked->port;
	}
	return 1;
}

SEC("cgroup/connect4")
int strake_connect4(struct bpf_sock_addr *ctx)
{
	return forward4(ctx, 1);
}

/* An IPv6 socket that is connected to a mapped address comes here with each datagram: the kernel names its peer then, which is the backend. */
SEC("cgroup/sendmsg4")
int strake_sendmsg4(struct bpf_sock_addr *ctx)
{
	return forward4(ctx, ctx->sk->state != BPF_TCP_ESTABLISHED);
}

SEC("cgroup/recvmsg4")
int strake_recvmsg4(struct bpf_sock_addr *ctx)
{
	return reverse4(ctx);
}

SEC("cgroup/getpeername4")
int strake_getpeername4(struct bpf_sock_addr *ctx)
{
	return reverse4(ctx);
}

/* Programs with IPv6 sockets reach IPv4 by mapped addresses (RFC 4291 2.5.5.2): Java and Node.js do so for all. The tables hold IPv4 in
 * just this form, so that a mapped address needs nothing of its own. Of datagrams to one the kernel itself makes IPv4 ones before it asks:
 * sendmsg4 sees them, not sendmsg6. */
static __always_inline void addr_get(struct bpf_sock_addr *ctx, struct addr *addr)
{
	addr->w[0] = ctx->user_ip6[0];
	addr->w[1] = ctx->user_ip6[1];
	addr->w[2] = ctx->user_ip6[2];
	addr->w[3] = ctx->user_ip6[3];
}

static __always_inline void addr_set(struct bpf_sock_addr *ctx, const struct addr *addr)
{
	ctx->user_ip6[0] = addr->w[0];
	ctx->user_ip6[1] = addr->w[1];
	ctx->user_ip6[2] = addr->w[2];
	ctx->user_ip6[3] = addr->w[3];
}

static __always_inline int forward6(struct bpf_sock_addr *ctx)
{
	struct peer to = {};
	struct addr addr;

	addr_get(ctx, &addr);
	switch (forward(ctx, &addr, &to, 1)) {
	case REFUSE:
		return 0;
	case TRANSLATE:
		addr_set(ctx, &to.addr);
		ctx->user_port = to.port;
		return 1;
	case PASS:
		break;
	}
	return 1;
}

static __always_inline int reverse6(struct bpf_sock_addr *ctx)
{
	struct peer *asked;
	struct addr addr;

	addr_get(ctx, &addr);
	asked = reverse(ctx, &addr);
	if (asked) {
		addr_set(ctx, &asked->addr);
		ctx->user_port = asked->port;
	}
	return 1;
}

SEC("cgroup/connect6")
int strake_connect6(struct bpf_sock_addr *ctx)
{
	return forward6(ctx);
}

SEC("cgroup/sendmsg6")
int strake_sendmsg6(struct bpf_sock_addr *ctx)
{
	return forward6(ctx);
}

SEC("cgroup/recvmsg6")
int strake_recvmsg6(struct bpf_sock_addr *ctx)
{
	return reverse6(ctx);
}

SEC("cgroup/getpeername6")
int strake_getpeername6(struct bpf_sock_addr *ctx)
{
	return reverse6(ctx);
}

/* A socket that is closed needs its rows no more: those of sockets that are gone would push out those of connections that live, which could not be
 * ended then when their backend goes. Rows of an unconnected socket stay until there is no room. */
SEC("cgroup/sock_release")
int strake_sock_release(struct bpf_sock *sk)
{
	/* Linux before 5.18 reads it as a number of 32 bits alone, of which the first two bytes are the port. */
	struct socket_key key = { .port = *(volatile __u32 *)&sk->dst_port, .row = ROW_REVERSE };
	struct socket_key choice = { .row = ROW_CHOICE };
	struct peer *asked;

	if (!key.port)
		return 1;
	if (sk->family == 2) { /* AF_INET */
		addr_v4(&key.addr, sk->dst_ip4);
	} else {
		key.addr.w[0] = sk->dst_ip6[0];
		key.addr.w[1] = sk->dst_ip6[1];
		key.addr.w[2] = sk->dst_ip6[2];
		key.addr.w[3] = sk->dst_ip6[3];
	}
	key.cookie = bpf_get_socket_cookie(sk);
	asked = bpf_map_lookup_elem(&sock_reverse, &key);
	if (!asked)
		return 1;
	if (asked->proto == IPPROTO_UDP) {
		choice.cookie = key.cookie;
		choice.addr = asked->addr;
		choice.port = asked->port;
		bpf_map_delete_elem(&sock_reverse, &choice);
	}
	bpf_map_delete_elem(&sock_reverse, &key);
	return 1;
}

#define EADDRINUSE 98

#define SOCK_HEAD 64 /* bytes of a struct sock that are looked into */

/* Whether a socket of IPv6 leaves IPv4 alone (IPV6_V6ONLY): no field of the context says so, and no option that bpf_getsockopt knows. */
static __always_inline int is_v6only(struct bpf_sock_addr *ctx)
{
	__u8 head[SOCK_HEAD];

	if (!v6only_bit || bpf_probe_read_kernel(head, sizeof(head), ctx->sk))
		return 0;
	return (head[v6only_byte & (SOCK_HEAD - 1)] & v6only_bit) != 0;
}

/* Whether the port that a socket asks for, at an address or at all of them (any), leads to a Service or pod. With a stack of its own: what it was
 * found by is forgotten behind it. */
static __attribute__((noinline)) int port_is_kept(struct bpf_sock_addr *ctx, const struct addr *addr, int any)
{
	struct port_key key = { .port = ctx->user_port, .proto = ctx->protocol };
	struct frontend *fe;

	if (!any) {
		fe = lb_frontend(addr, key.port, key.proto);
		return fe && (fe->kind == KIND_NODE_PORT || fe->kind == KIND_HOST_PORT);
	}
	key.v6 = !addr_mapped(addr);
	if (bpf_map_lookup_elem(&lb_ports, &key))
		return 1;
	if (!key.v6 || is_v6only(ctx))
		return 0;
	key.v6 = 0;
	return bpf_map_lookup_elem(&lb_ports, &key) != 0;
}

/* Ports of the node that lead to Services and pods are no other's: who listens there would hear nothing from outside, by no fault that it could
 * see. Loopback addresses stay free, but for one that a pod's hostPort or the agent's flags name. A socket of IPv6 for all addresses takes IPv4
 * as well, unless it was told not to; where that can't be seen, it counts as if it did, and whoever wants [::] for IPv6 alone names an address
 * instead. Returns 0 to make the call fail: with EPERM, unless a return value is set. */
static __always_inline int bind_at(struct bpf_sock_addr *ctx, const struct addr *addr, int any)
{
	if (!ctx->user_port || !of_node(ctx) || !port_is_kept(ctx, addr, any))
		return 1;
	refused(ctx, addr, DROP_PORT_KEPT);
	if (has_set_retval)
		bpf_set_retval(-EADDRINUSE);
	return 0;
}

SEC("cgroup/bind4")
int strake_bind4(struct bpf_sock_addr *ctx)
{
	struct addr addr;

	addr_v4(&addr, ctx->user_ip4);
	return bind_at(ctx, &addr, !addr.w[3]);
}

SEC("cgroup/bind6")
int strake_bind6(struct bpf_sock_addr *ctx)
{
	struct addr addr;

	addr_get(ctx, &addr);
	return bind_at(ctx, &addr, addr_mapped(&addr) ? !addr.w[3] : !(addr.d[0] | addr.d[1]));
}
