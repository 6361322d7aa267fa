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
	__u8 ports;     /* sport and dport are there: TCP, UDP or SCTP, no fragment */
	__u8 tcp;       /* TCP, no fragment: flags; SCTP: those that TCP would have */
	__u8 more;      /* a fragment that others follow */
	__u8 later;     /* a fragment that is not the first: it has no transport header */
	__u8 routed;    /* the sender names hops that it is to take: the destination is not where it ends */
	__u8 second;    /* a fragment that begins 8 bytes behind the first */
	__u32 end;      /* offset behind the packet: what the frame has behind is padding */
	__u8 smac[6] __attribute__((aligned(4)));
};

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

static __always_inline int tcp_opens(__u8 flags)
{
	return (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* What a chunk of SCTP is to a connection, as flags of TCP (RFC 9260 3.2): INIT, INIT ACK, ABORT, and what each side says when it ends. */
static __always_inline __u8 sctp_flags(__u8 chunk)
{
	switch (chunk) {
	case 1:
		return TCP_SYN;
	case 2:
		return TCP_SYN | TCP_ACK;
	case 6:
		return TCP_RST;
	case 7: /* SHUTDOWN, and SHUTDOWN COMPLETE of the same side */
	case 14:
	case 8: /* SHUTDOWN ACK */
		return TCP_FIN | TCP_ACK;
	}
	return TCP_ACK;
}

/* The Internet checksum (RFC 1071) of what bpf_csum_diff added up. */
static __always_inline __u16 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* What ipv6_walk found, in one number, so that the verifier has one value to follow and not one for each way through the loop. */
#define WALK(off, proto, fragment, id) ((__u64)(off) | (__u64)(proto) << 16 | (__u64)(fragment) << 24 | (__u64)(id) << 32)
#define WALK_OFF(w) ((__u32)(w) & 0xffff)
#define WALK_PROTO(w) ((__u8)((w) >> 16))
#define WALK_MORE(w) ((__u8)((w) >> 24 & 1))
#define WALK_LATER(w) ((__u8)((w) >> 25 & 1))
#define WALK_SECOND(w) ((__u8)((w) >> 26 & 1))
#define WALK_ROUTED(w) ((__u8)((w) >> 27 & 1))
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
		__be16 fragment; /* of a routing header: type and segments left */
		__be32 id;
	} h;
	__u32 fragment = 0, seen = 0, id = 0;

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
			if (seen)
				return 0;
			seen = 1;
			id = h.id;
			fragment |= (h.fragment & bpf_htons(1) ? 1 : 0) | (h.fragment & bpf_htons(0xfff8) ? 2 : 0) | ((h.fragment & bpf_htons(0xfff8)) == bpf_htons(8) ? 4 : 0);
			off += 8;
			if (fragment & 2)
				return WALK(off, h.next, fragment, id);
		} else if (proto == IPPROTO_AH) {
			off += (h.len + 2) * 4;
		} else {
			if (proto == IPPROTO_ROUTING && h.fragment & bpf_htons(0xff))
				fragment |= 8;
			off += (h.len + 1) * 8;
		}
		proto = h.next;
	}
	return 0;
}

/* Whether options of an IPv4 header, that ends at an offset, name a route (RFC 791 3.1). 2 if they are malformed. */
__u32 __attribute__((noinline)) ipv4_routed(struct __sk_buff *skb, __u32 end)
{
	__u32 off = ETH_HLEN + sizeof(struct iphdr);
	__u8 o[2];

	if (!skb)
		return 2;
	for (__u32 i = 0; i < 40; i++) { /* the shortest is one byte */
		if (off >= end)
			return 0;
		if (bpf_skb_load_bytes(skb, off, o, 1))
			return 2;
		if (o[0] == 0)
			return 0;
		if (o[0] == 1) {
			off++;
			continue;
		}
		if (o[0] == 131 || o[0] == 137) /* loose and strict source route */
			return 1;
		if (off + 2 > end || bpf_skb_load_bytes(skb, off, o, 2) || o[1] < 2 || off + o[1] > end)
			return 2;
		off += o[1];
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

	if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)) || h.ip.version != 4 || h.ip.ihl < 5)
		return MALFORMED;
	__builtin_memcpy(p->smac, h.eth.h_source, 6);
	addr_v4(&p->saddr, h.ip.saddr);
	addr_v4(&p->daddr, h.ip.daddr);
	p->proto = h.ip.protocol;
	p->l4 = ETH_HLEN + h.ip.ihl * 4;
	p->end = ETH_HLEN + bpf_ntohs(h.ip.tot_len);
	p->id = h.ip.id;
	fragment = h.ip.frag_off;
	p->more = (fragment & bpf_htons(0x2000)) != 0;
	p->later = (fragment & bpf_htons(0x1fff)) != 0;
	p->second = (fragment & bpf_htons(0x1fff)) == bpf_htons(1);
	if (h.ip.ihl > 5) {
		__u32 r = ipv4_routed(skb, p->l4);

		if (r > 1)
			return MALFORMED;
		p->routed = r;
	}
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
	p->end = sizeof(h) + bpf_ntohs(h.ip.payload_len);
	if (!ipv6_is_extension(p->proto))
		return PARSED;
	walk = ipv6_walk(skb, sizeof(h), p->proto);
	p->l4 = WALK_OFF(walk);
	p->proto = WALK_PROTO(walk);
	p->more = WALK_MORE(walk);
	p->later = WALK_LATER(walk);
	p->second = WALK_SECOND(walk);
	p->routed = WALK_ROUTED(walk);
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
	__u32 need;

	if (skb->vlan_present)
		return NOT_IP;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		r = parse4(skb, p);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		r = parse6(skb, p);
	else
		return NOT_IP;
	if (r != PARSED)
		return r;
	if (p->end > skb->len)
		return MALFORMED;
	need = p->proto == IPPROTO_TCP ? 20 : p->proto == IPPROTO_SCTP ? 12 : p->proto == IPPROTO_UDP || p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMP6 ? 8 : 0;
	if (p->later) {
		/* Neither may a fragment write over what is checked in the first one (RFC 1858, RFC 3128). */
		return p->l4 > p->end || (p->second && p->proto == IPPROTO_TCP) ? MALFORMED : PARSED;
	}
	if (p->l4 + need > p->end && !(skb->gso_size && p->end <= p->l4)) /* a packet longer than 64 KiB, made so by the kernel, does not tell its length */
		return MALFORMED;
	if (p->more)
		return PARSED;
	if (p->proto == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, p->l4, &h, 14))
			return MALFORMED;
		p->tcp = h.flags;
	} else if (p->proto == IPPROTO_UDP || p->proto == IPPROTO_SCTP) {
		if (bpf_skb_load_bytes(skb, p->l4, &h, 4))
			return MALFORMED;
		if (p->proto == IPPROTO_SCTP)
			p->tcp = bpf_skb_load_bytes(skb, p->l4 + 12, &h.off, 1) ? TCP_ACK : sctp_flags(h.off);
	} else {
		return PARSED;
	}
	p->sport = h.sport;
	p->dport = h.dport;
	p->ports = 1;
	return PARSED;
}

static __always_inline enum parsed parse_fresh(struct __sk_buff *skb, struct packet *p)
{
	__builtin_memset(p, 0, sizeof(*p));
	return parse(skb, p);
}

/* Neither options nor extension headers before the transport's. */
static __always_inline int is_plain(const struct packet *p)
{
	return p->l4 == ETH_HLEN + (p->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
}

#endif
