/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The one way to look at a packet: copies of what matters, offsets instead of pointers. */
#ifndef STRAKE_PARSE_H
#define STRAKE_PARSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"

#define IPPROTO_ICMP6 58
#define EXTENSIONS 8 /* headers before the transport's; nobody sends more, and RFC 8200 4.1 names seven */

/* NOT_IP: another protocol, or a VLAN's. MALFORMED: what no receiver would take, or has more extension headers than we look behind. */
enum parsed { PARSED, NOT_IP, MALFORMED };

struct packet {
	struct addr saddr, daddr;
	__be32 id;      /* of a fragment */
	__u32 l4;       /* offset of the transport header */
	__be16 sport, dport;
	__u8 proto;     /* of the transport header; of a later fragment, of what follows */
	__u8 v6;
	__u8 ports;     /* sport and dport are there: TCP or UDP, no fragment */
	__u8 tcp;       /* TCP, no fragment: flags */
	__u8 more;      /* a fragment that others follow */
	__u8 later;     /* a fragment that is not the first: it has no transport header */
	__u8 smac[6];
};

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

static __always_inline int tcp_opens(__u8 flags)
{
	return (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* What ipv6_walk found, in one number, so that the verifier has one value to follow and not one for each way through the loop. */
#define WALK(off, proto, fragment, id) ((__u64)(off) | (__u64)(proto) << 16 | (__u64)(fragment) << 24 | (__u64)(id) << 32)
#define WALK_OFF(w) ((__u32)(w) & 0xffff)
#define WALK_PROTO(w) ((__u8)((w) >> 16))
#define WALK_MORE(w) ((__u8)((w) >> 24 & 1))
#define WALK_LATER(w) ((__u8)((w) >> 25 & 1))
#define WALK_ID(w) ((__be32)((w) >> 32))

static __always_inline int ipv6_is_extension(__u32 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_DSTOPTS || proto == IPPROTO_FRAGMENT || proto == IPPROTO_AH;
}

/* From the first header behind an IPv6 header to the transport's (RFC 8200 4). 0 if there is none, or too many are before it. Verified
 * by itself, as a global function is. */
__u64 __attribute__((noinline)) ipv6_walk(struct __sk_buff *skb, __u32 off, __u32 proto)
{
	struct {
		__u8 next, len;
		__be16 fragment;
		__be32 id;
	} h;
	__u32 fragment = 0, id = 0;

	if (!skb || off > 0x1000)
		return 0;
	for (__u32 i = 0; i <= EXTENSIONS; i++) {
		if (!ipv6_is_extension(proto))
			return WALK(off, proto, fragment, id);
		if (off > 0x8000 || bpf_skb_load_bytes(skb, off, &h, sizeof(h)))
			return 0;
		if (proto == IPPROTO_HOPOPTS && i)
			return 0;
		if (proto == IPPROTO_FRAGMENT) {
			if (id | fragment)
				return 0;
			id = h.id;
			fragment = (h.fragment & bpf_htons(1) ? 1 : 0) | (h.fragment & bpf_htons(0xfff8) ? 2 : 0);
			off += 8;
			if (fragment & 2)
				return WALK(off, h.next, fragment, id);
		} else if (proto == IPPROTO_AH) {
			off += (h.len + 2) * 4;
		} else {
			off += (h.len + 1) * 8;
		}
		proto = h.next;
	}
	return 0;
}

static __always_inline enum parsed parse4(struct __sk_buff *skb, struct packet *p)
{
	struct {
		struct ethhdr eth;
		struct iphdr ip;
	} __attribute__((packed)) h;
	__u16 fragment;

	if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)))
		return MALFORMED;
	if (h.ip.version != 4 || h.ip.ihl < 5)
		return MALFORMED;
	__builtin_memcpy(p->smac, h.eth.h_source, 6);
	addr_v4(&p->saddr, h.ip.saddr);
	addr_v4(&p->daddr, h.ip.daddr);
	p->proto = h.ip.protocol;
	p->l4 = ETH_HLEN + h.ip.ihl * 4;
	p->id = h.ip.id;
	fragment = h.ip.frag_off;
	p->more = (fragment & bpf_htons(0x2000)) != 0;
	p->later = (fragment & bpf_htons(0x1fff)) != 0;
	return PARSED;
}

static __always_inline enum parsed parse6(struct __sk_buff *skb, struct packet *p)
{
	struct {
		struct ethhdr eth;
		struct ipv6hdr ip;
	} __attribute__((packed)) h;
	__u64 walk;

	if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)) || h.ip.version != 6)
		return MALFORMED;
	p->v6 = 1;
	__builtin_memcpy(p->smac, h.eth.h_source, 6);
	__builtin_memcpy(&p->saddr, &h.ip.saddr, 16);
	__builtin_memcpy(&p->daddr, &h.ip.daddr, 16);
	/* No such address is on a wire (RFC 4291 2.5.5.2), and here it would be another family's. */
	if (addr_mapped(&p->saddr) || addr_mapped(&p->daddr))
		return MALFORMED;
	p->proto = h.ip.nexthdr;
	p->l4 = sizeof(h);
	if (!ipv6_is_extension(p->proto))
		return PARSED;
	walk = ipv6_walk(skb, sizeof(h), p->proto);
	p->l4 = WALK_OFF(walk);
	p->proto = WALK_PROTO(walk);
	p->more = WALK_MORE(walk);
	p->later = WALK_LATER(walk);
	p->id = WALK_ID(walk);
	return walk ? PARSED : MALFORMED;
}

/* Of a malformed packet the addresses are known if its IP header is whole. p is zeroed. */
static __always_inline enum parsed parse(struct __sk_buff *skb, struct packet *p)
{
	struct {
		__be16 sport, dport;
		__be32 seq, ack;
		__u8 off, flags;
	} h;
	enum parsed r;

	if (skb->vlan_present)
		return NOT_IP;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		r = parse4(skb, p);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		r = parse6(skb, p);
	else
		return NOT_IP;
	if (r != PARSED || p->more || p->later)
		return r;
	if (p->proto == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, p->l4, &h, 14))
			return MALFORMED;
		p->tcp = h.flags;
	} else if (p->proto == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, p->l4, &h, 4))
			return MALFORMED;
	} else {
		return PARSED;
	}
	p->sport = h.sport;
	p->dport = h.dport;
	p->ports = 1;
	return PARSED;
}

/* Neither options nor extension headers before the transport's. */
static __always_inline int is_plain(const struct packet *p)
{
	return p->l4 == ETH_HLEN + (p->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
}

#endif
