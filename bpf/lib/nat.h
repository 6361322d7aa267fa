/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows from outside to a frontend of this node: each has two rows, one for each direction. */
#ifndef STRAKE_NAT_H
#define STRAKE_NAT_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <stddef.h>
#include "parse.h"

#define FLOWS 262144

struct flow_key {
	__be32 saddr, daddr;
	__be16 sport, dport;
	__u8 proto;
	__u8 reply; /* 1: as the pod answers */
	__u16 pad;
};

struct flow {
	__be32 addr; /* to rewrite to: the backend, or for a reply the frontend */
	__be16 port;
	__u16 pad;
	__u32 ifindex; /* reply: the interface that the client is behind */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FLOWS);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows SEC(".maps");

static __always_inline void flow_key_of(const struct packet *p, struct flow_key *key, __u8 reply)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = p->ip.saddr;
	key->daddr = p->ip.daddr;
	key->sport = p->sport;
	key->dport = p->dport;
	key->proto = p->ip.protocol;
	key->reply = reply;
}

/* Rewrites source (or destination) address and port, with all checksums. Of ICMP, an echo's identifier is the port either way. */
static __always_inline int nat(struct __sk_buff *skb, const struct packet *p, int source, __be32 addr, __be16 port)
{
	__be32 old_addr = source ? p->ip.saddr : p->ip.daddr;
	__be16 old_port = source ? p->sport : p->dport;
	__u32 ip_off = ETH_HLEN + (source ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr));
	__u32 port_off = p->l4 + (source ? 0 : 2);
	__u32 sum_off = p->l4 + (p->ip.protocol == IPPROTO_TCP ? 16 : 6);
	__u64 mangled = p->ip.protocol == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	if (p->ip.protocol == IPPROTO_ICMP) {
		port_off = p->l4 + 4;
		sum_off = p->l4 + 2;
	} else if (bpf_l4_csum_replace(skb, sum_off, old_addr, addr, BPF_F_PSEUDO_HDR | mangled | 4)) {
		return -1;
	}
	if (bpf_l4_csum_replace(skb, sum_off, old_port, port, mangled | 2) ||
	    bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), old_addr, addr, 4) ||
	    bpf_skb_store_bytes(skb, ip_off, &addr, 4, 0) ||
	    bpf_skb_store_bytes(skb, port_off, &port, 2, 0))
		return -1;
	return 0;
}

#endif
