/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The other nodes: which addresses are there, and how packets get to them and from them. */
#ifndef STRAKE_TUNNEL_H
#define STRAKE_TUNNEL_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <stddef.h>
#include "addr.h"
#include "verdict.h"
#include "masq.h"
#include "parse.h"

#define REMOTES 65536
#define TUNNEL_VNI 1
#define TUNNEL_TTL 64

/* Set at load: the kernel takes the outer source address (Linux 6.0). Before, it is what the routing chooses. */
const volatile __u8 tunnel_has_local;

struct remote {
	struct addr node; /* the tunnel's other end; all zero: the fabric knows the way */
	__u32 is_node;    /* the row is an address of the node itself, no pods' range */
	__u32 behind;     /* of a node that those beyond reach by us: what one side sends the other through the tunnel is passed on */
	__u8 owner[64];   /* Node UID */
};

/* Pod ranges and addresses of the other nodes. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, REMOTES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
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

static __always_inline struct remote *remote_of(const struct addr *addr)
{
	struct prefix key = { .len = 128 };

	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	return bpf_map_lookup_elem(&remotes, &key);
}

static __always_inline int remote_is_native(const struct remote *r)
{
	return !(r->node.d[0] | r->node.d[1]);
}

/* Whether a packet, or the segments that it will be cut into, are too large for an MTU. */
static __always_inline int exceeds(struct __sk_buff *skb, const struct packet *p, __u32 mtu)
{
	__u32 size = skb->gso_size, headers = p->l4 - ETH_HLEN;
	__u8 off;

	if (!mtu || skb->len - ETH_HLEN <= mtu)
		return 0;
	if (!size || p->more || p->later)
		return 1;
	if (p->proto == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, p->l4 + 12, &off, 1))
			return 1;
		headers += (off >> 4) * 4;
	} else if (p->proto == IPPROTO_UDP) {
		headers += 8;
	} else {
		return 1;
	}
	return headers + size > mtu;
}

/* Tells the tunnel's device where a packet goes. The inner packet has its own checksums; IPv6 wants one outside all the same (RFC 6936). */
static __always_inline long tunnel_to(struct __sk_buff *skb, const struct addr *node)
{
	struct bpf_tunnel_key key = { .tunnel_id = TUNNEL_VNI, .tunnel_ttl = TUNNEL_TTL };
	__u32 size = tunnel_has_local ? sizeof(key) : offsetof(struct bpf_tunnel_key, local_ipv4);
	__u64 flags = BPF_F_TUNINFO_IPV6;
	struct addr local;

	if (addr_mapped(node)) {
		local = addr_of(&node_addr4);
		key.remote_ipv4 = bpf_ntohl(node->w[3]);
		key.local_ipv4 = bpf_ntohl(local.w[3]);
		flags = BPF_F_ZERO_CSUM_TX;
	} else {
		local = addr_of(&node_addr6);
		__builtin_memcpy(key.remote_ipv6, node, 16);
		__builtin_memcpy(key.local_ipv6, &local, 16);
	}
	return bpf_skb_set_tunnel_key(skb, &key, size, flags);
}

/* Where a packet came from through the tunnel (or, on the way out, that tunnel_to was here). */
static __always_inline long tunnel_from(struct __sk_buff *skb, struct addr *node)
{
	struct bpf_tunnel_key key = {};

	if (!bpf_skb_get_tunnel_key(skb, &key, offsetof(struct bpf_tunnel_key, local_ipv4), 0))
		addr_v4(node, bpf_htonl(key.remote_ipv4));
	else if (!bpf_skb_get_tunnel_key(skb, &key, offsetof(struct bpf_tunnel_key, local_ipv4), BPF_F_TUNINFO_IPV6))
		__builtin_memcpy(node, key.remote_ipv6, 16);
	else
		return -1;
	return key.tunnel_id == TUNNEL_VNI ? 0 : -1;
}

static __always_inline struct path *path_now(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&path, &zero);
}

/* Into the tunnel. */
static __always_inline int tunnel_send(struct __sk_buff *skb, const struct remote *r, const struct path *to)
{
	if (!to->tunnel)
		return drop(skb, DROP_NO_REMOTE);
	if (tunnel_to(skb, &r->node))
		return drop(skb, DROP_REWRITE);
	return bpf_redirect(to->tunnel, 0);
}

/* By the kernel's routes, but past its stack. Where they lead nowhere, out of the given interface; with none, up to the stack. */
static __always_inline int native_send(struct __sk_buff *skb, const struct packet *p, __u32 otherwise)
{
	struct bpf_fib_lookup fib = { .family = p->v6 ? 10 : 2, .l4_protocol = p->proto, .ifindex = skb->ifindex };
	long found;

	if (p->v6) {
		__builtin_memcpy(fib.ipv6_src, &p->saddr, 16);
		__builtin_memcpy(fib.ipv6_dst, &p->daddr, 16);
	} else {
		fib.ipv4_src = p->saddr.w[3];
		fib.ipv4_dst = p->daddr.w[3];
	}
	found = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH)
		otherwise = fib.ifindex;
	return otherwise ? bpf_redirect_neigh(otherwise, 0, 0, 0) : TC_ACT_OK;
}

/* What a pod sends to another node, or a pod there. What is too large goes up to the host's stack, which answers, or cuts it. It knows no
 * way of our own to the other nodes' addresses: those packets go all the same, and their outer ones in fragments. */
static __always_inline int remote_send(struct __sk_buff *skb, const struct packet *p, const struct remote *r)
{
	struct path *to = path_now();

	if (!to)
		return TC_ACT_OK;
	if (!(r->is_node && to->tunnel) && exceeds(skb, p, to->mtu)) {
		note(skb, PATH_TOO_BIG);
		return TC_ACT_OK;
	}
	note(skb, POD_TO_REMOTE);
	return remote_is_native(r) ? native_send(skb, p, 0) : tunnel_send(skb, r, to);
}

#endif
