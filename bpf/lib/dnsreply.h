/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The way back: a query whose records are in place becomes a reply. */
#ifndef STRAKE_DNSREPLY_H
#define STRAKE_DNSREPLY_H

#include "dns.h"

/* The headers before a datagram of so many bytes, turned around. */
static __always_inline int dns_turn4(struct __sk_buff *skb, struct dns_scratch *s, __u32 len)
{
	struct head4 *h = &s->record.head4;
	__be32 addr;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &h->ip, sizeof(h->ip)) || bpf_skb_load_bytes(skb, 0, h->eth.h_source, 6) || bpf_skb_load_bytes(skb, 6, h->eth.h_dest, 6))
		return -1;
	h->eth.h_proto = bpf_htons(ETH_P_IP);
	addr = h->ip.saddr;
	h->ip.saddr = h->ip.daddr;
	h->ip.daddr = addr;
	h->ip.ttl = 64;
	h->ip.tot_len = bpf_htons(sizeof(h->ip) + len);
	h->ip.check = 0;
	h->ip.check = folded(bpf_csum_diff(0, 0, (__be32 *)&h->ip, sizeof(h->ip), 0));
	return bpf_skb_store_bytes(skb, 0, &h->eth, sizeof(h->eth) + sizeof(h->ip), BPF_F_INVALIDATE_HASH);
}

static __always_inline int dns_turn6(struct __sk_buff *skb, struct dns_scratch *s, __u32 len)
{
	const __u32 saddr = ETH_HLEN + offsetof(struct ipv6hdr, saddr), daddr = ETH_HLEN + offsetof(struct ipv6hdr, daddr);
	struct head6 *h = &s->record.head6;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &h->ip, 8) || bpf_skb_load_bytes(skb, saddr, &h->ip.daddr, 16) || bpf_skb_load_bytes(skb, daddr, &h->ip.saddr, 16) ||
	    bpf_skb_load_bytes(skb, 0, h->eth.h_source, 6) || bpf_skb_load_bytes(skb, 6, h->eth.h_dest, 6))
		return -1;
	h->eth.h_proto = bpf_htons(ETH_P_IPV6);
	h->ip.hop_limit = 64;
	h->ip.payload_len = bpf_htons(len);
	return bpf_skb_store_bytes(skb, 0, &h->eth, sizeof(h->eth) + sizeof(h->ip), BPF_F_INVALIDATE_HASH);
}

#define CHUNK 512 /* what bpf_csum_diff adds up at once */

/* Over IPv6 a datagram without a checksum is none (RFC 8200 8.1). What is raw is used up. */
int __attribute__((noinline)) dns_checksum6(struct __sk_buff *skb, __u32 len)
{
	const __u32 l4 = ETH_HLEN + sizeof(struct ipv6hdr);
	struct dns_scratch *s = dns_scratch_now();
	__u32 sum, at;
	__be32 *pseudo;
	__be16 check;

	if (!skb || !s)
		return -1;
	pseudo = s->record.pseudo;
	if (bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, saddr), pseudo, 32))
		return -1;
	pseudo[8] = bpf_htonl(len);
	pseudo[9] = bpf_htonl(IPPROTO_UDP);
	sum = bpf_csum_diff(0, 0, pseudo, sizeof(s->record.pseudo), 0);
	for (at = 0; at < sizeof(struct udphdr) + sizeof(struct dns_header) + ANSWER_MAX; at += CHUNK) {
		__s64 size = (__u64)len - at;

		if (at >= len)
			break;
		if (size > CHUNK)
			size = CHUNK;
		else
			__builtin_memset(s->raw, 0, CHUNK);
		asm volatile("" : "+r"(size)); /* as in dns_byte */
		if (size <= 0)
			return -1;
		asm volatile("" : "+r"(size)); /* as in dns_put */
		if (size > CHUNK || bpf_skb_load_bytes(skb, l4 + at, s->raw, size))
			return -1;
		sum = bpf_csum_diff(0, 0, (__be32 *)s->raw, CHUNK, sum);
	}
	check = folded(sum);
	if (!check)
		check = 0xffff;
	return bpf_skb_store_bytes(skb, l4 + offsetof(struct udphdr, check), &check, sizeof(check), 0);
}

/* Whether the client takes a message with so many bytes of question and records, or counts that it does not. */
static __always_inline int dns_fits(const struct dns_scratch *s, __u32 body)
{
	if (OPAQUE(s->edns))
		body += sizeof(struct opt);
	if (sizeof(struct dns_header) + body <= OPAQUE(s->limit))
		return 1;
	count(DNS_PASSED_LARGE);
	return 0;
}

/* What an answer was made of has changed while it was made. The packet is no question any more: it is to be answered once more, or dns_as_asked. */
#define AGAIN -2

/* Makes room for so many bytes of records behind the question, and the OPT record. */
static __always_inline int dns_room(struct __sk_buff *skb, const struct dns_scratch *s, __u32 end)
{
	return bpf_skb_change_tail(skb, end + (OPAQUE(s->edns) ? sizeof(struct opt) : 0), 0);
}

/* Makes a packet the question again that it was, for who is behind, and returns -1. */
int __attribute__((noinline)) dns_as_asked(struct __sk_buff *skb, __u32 over_v6)
{
	__u32 question = ETH_HLEN + (over_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct dns_head), had;
	struct dns_scratch *s = dns_scratch_now();
	__u64 at, size;

	if (!skb)
		return 2; /* TC_ACT_SHOT */
	had = s ? OPAQUE(s->had) : 0;
	if (!had || bpf_skb_change_tail(skb, question + had, 0))
		return drop(skb, DROP_REWRITE);
	at = OPAQUE(s->len) + 4;
	size = had - at;
	asm volatile("%0 &= %1" : "+r"(at) : "i"(2 * NAME_MAX - 1)); /* as in dns_byte */
	asm volatile("" : "+r"(size));
	if (size < sizeof(struct opt)) /* there was nothing behind it */
		return -1;
	asm volatile("" : "+r"(size)); /* as in dns_put */
	if (size > NAME_MAX + 16 || bpf_skb_store_bytes(skb, question + at, s->raw + at, size, 0))
		return drop(skb, DROP_REWRITE);
	return -1;
}

/* How many records the sections of a reply have, in one number. */
#define SECTIONS(answers, authorities, additionals) ((__u64)(answers) | (__u64)(authorities) << 16 | (__u64)(additionals) << 32)

/* Sends the reply whose records end at an offset. flags are flags1, flags2 << 8 with the code, and the counter << 16. */
int __attribute__((noinline)) dns_reply(struct __sk_buff *skb, __u32 over_v6, __u32 end, __u64 sections, __u32 flags)
{
	__u32 l4 = ETH_HLEN + (over_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)), total;
	struct dns_scratch *s = dns_scratch_now();
	struct dns_head h;
	__be16 port;

	if (!skb)
		return 2; /* TC_ACT_SHOT */
	if (!s || bpf_skb_load_bytes(skb, l4, &h, sizeof(h)))
		return drop(skb, DROP_REWRITE);
	h.dns.additionals = bpf_htons((sections >> 32) + !!OPAQUE(s->edns));
	if (OPAQUE(s->edns)) {
		struct opt *o = &s->record.opt;

		o->root = 0;
		o->type = bpf_htons(TYPE_OPT);
		o->size = bpf_htons(ANSWER_MAX);
		o->flags = OPAQUE(s->bits) & ASKED_DO ? bpf_htonl(0x8000) : 0; /* RFC 3225 3 */
		o->len = 0;
		if (bpf_skb_store_bytes(skb, end, o, sizeof(*o), 0))
			return drop(skb, DROP_REWRITE);
		end += sizeof(*o);
	}
	total = end - l4;
	port = h.udp.dest;
	h.udp.dest = h.udp.source;
	h.udp.source = port;
	h.udp.len = bpf_htons(total);
	h.udp.check = 0; /* RFC 768: none. The answer crosses memory only. */
	h.dns.flags1 |= DNS_QR | (flags & 0xff); /* RD as asked */
	h.dns.flags2 = DNS_RA | (h.dns.flags2 & DNS_CD) | (flags >> 8 & 0xff);
	h.dns.answers = bpf_htons(sections);
	h.dns.authorities = bpf_htons(sections >> 16);
	if (bpf_skb_store_bytes(skb, l4, &h, sizeof(h), 0))
		return drop(skb, DROP_REWRITE);
	if (over_v6 ? dns_turn6(skb, s, total) || dns_checksum6(skb, total) : dns_turn4(skb, s, total))
		return drop(skb, DROP_REWRITE);
	note(skb, flags >> 16);
	return bpf_redirect(skb->ifindex, 0);
}

#endif
