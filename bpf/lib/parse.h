/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The one way to look at a packet: copies of the headers, offsets instead of pointers. */
#ifndef STRAKE_PARSE_H
#define STRAKE_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IP_MF_OFFSET 0x3fff /* more fragments, or not the first */

enum parsed { PARSED, NOT_IPV4, MALFORMED };

struct packet {
	struct iphdr ip;
	__be16 sport, dport;
	__u32 l4;      /* offset of the transport header */
	__u8 ports;    /* sport and dport are there: TCP or UDP, no fragment */
	__u8 syn;      /* TCP: opens a connection */
};

static __always_inline enum parsed parse(struct __sk_buff *skb, struct packet *p)
{
	__u8 flags;
	__be16 ports[2];

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return NOT_IPV4;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &p->ip, sizeof(p->ip)))
		return MALFORMED;
	if (p->ip.version != 4 || p->ip.ihl < 5)
		return MALFORMED;
	p->l4 = ETH_HLEN + p->ip.ihl * 4;
	p->ports = 0;
	p->syn = 0;
	if (p->ip.frag_off & bpf_htons(IP_MF_OFFSET))
		return PARSED;
	if (p->ip.protocol != IPPROTO_TCP && p->ip.protocol != IPPROTO_UDP)
		return PARSED;
	if (bpf_skb_load_bytes(skb, p->l4, ports, sizeof(ports)))
		return MALFORMED;
	p->sport = ports[0];
	p->dport = ports[1];
	p->ports = 1;
	if (p->ip.protocol == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, p->l4 + 13, &flags, 1))
			return MALFORMED;
		p->syn = (flags & 0x12) == 0x02; /* SYN without ACK */
	}
	return PARSED;
}

#endif
