/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Name servers of others in whose stead the kernel answers. */
#ifndef STRAKE_DNSBESIDE_H
#define STRAKE_DNSBESIDE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "parse.h"

#define NAME_SERVERS 1024

struct name_server {
	struct addr addr;
	__be16 port;
	__u16 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NAME_SERVERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_server);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} name_servers SEC(".maps");

/* A quick look, for all that pods send passes it. Behind extension headers nothing is answered anyway. */
static __always_inline int is_udp(struct __sk_buff *skb)
{
	__u32 at = ETH_HLEN;
	__u8 proto;

	if (skb->protocol == bpf_htons(ETH_P_IP))
		at += offsetof(struct iphdr, protocol);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		at += offsetof(struct ipv6hdr, nexthdr);
	else
		return 0;
	return !bpf_skb_load_bytes(skb, at, &proto, 1) && proto == IPPROTO_UDP;
}

static __always_inline int asks_name_server(const struct packet *p)
{
	struct name_server s = { .addr = p->daddr, .port = p->dport };

	return p->ports && p->proto == IPPROTO_UDP && bpf_map_lookup_elem(&name_servers, &s);
}

#endif
