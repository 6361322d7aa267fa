/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Refusals: the packet at hand is turned into the answer that its sender would get from a host where nobody listens on the port: an RST (RFC
 * 9293 3.10.7.1), or ICMP's port unreachable (RFC 792, RFC 4443 3.1). One for one, and errors no more often than the kernel itself sends.
 *
 * Checksums. The sender may be a local stack that left the transport's checksum to the network card (CHECKSUM_PARTIAL): then whatever the
 * packet becomes, the sum over all behind the IP header may still be written where the sender's protocol has its checksum, or never be,
 * and a program can't tell. So what is sent is right in all cases: where the sender's checksum was stands the sum of the pseudo header, as the
 * kernel would have it there, and a field that means nothing in an answer makes up for the rest. */
#ifndef STRAKE_REFUSE_H
#define STRAKE_REFUSE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "conntrack.h"
#include "parse.h"
#include "tunnel.h"
#include "verdict.h"

#define REFUSALS 1000 /* ICMP errors a second of each processor: net.ipv4.icmp_msgs_per_sec is as much for all */
#define QUOTE 8       /* bytes of the transport's header: ports and a length, or a sequence number */

struct tcp {
	__be16 sport, dport;
	__be32 seq, ack;
	__u8 off, flags;
	__be16 window, check, urgent;
};

struct unreachable {
	__u8 type, code;
	__u16 check, zero, unused;
};

struct error4 {
	struct unreachable icmp;
	struct iphdr ip;
	__u8 l4[QUOTE];
} __attribute__((packed));

struct error6 {
	struct unreachable icmp;
	struct ipv6hdr ip;
	__u8 l4[QUOTE];
} __attribute__((packed));

/* The sum of the pseudo header that a packet has from p's receiver to p's sender. */
static __always_inline __u16 pseudo_back(const struct packet *p, __u8 proto, __u32 len)
{
	struct {
		struct addr saddr, daddr;
		__be32 len, proto;
	} h = { .saddr = p->daddr, .daddr = p->saddr, .len = bpf_htonl(len), .proto = bpf_htonl(proto) };
	__u32 sum = bpf_csum_diff(0, 0, (__be32 *)&h, sizeof(h), 0);

	/* An IPv4-mapped address is 0xffff besides the IPv4 address: nothing, in this arithmetic. */
	return ~folded(sum);
}

/* Ethernet and IP headers of an answer with len bytes behind. */
static __always_inline int refusal_head(struct __sk_buff *skb, const struct packet *p, __u8 proto, __u32 len)
{
	struct ethhdr eth;
	__u8 mac[6];

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return -1;
	__builtin_memcpy(mac, eth.h_dest, 6);
	__builtin_memcpy(eth.h_dest, eth.h_source, 6);
	__builtin_memcpy(eth.h_source, mac, 6);
	if (p->v6) {
		struct ipv6hdr ip = { .version = 6, .payload_len = bpf_htons(len), .nexthdr = proto, .hop_limit = 64 };

		__builtin_memcpy(&ip.saddr, &p->daddr, 16);
		__builtin_memcpy(&ip.daddr, &p->saddr, 16);
		if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0))
			return -1;
	} else {
		struct iphdr ip = { .version = 4, .ihl = 5, .tot_len = bpf_htons(sizeof(ip) + len), .frag_off = bpf_htons(0x4000), .ttl = 64, .protocol = proto };

		ip.saddr = p->daddr.w[3];
		ip.daddr = p->saddr.w[3];
		ip.check = folded(bpf_csum_diff(0, 0, (__be32 *)&ip, sizeof(ip), 0));
		if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), 0))
			return -1;
	}
	return bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), BPF_F_INVALIDATE_HASH);
}

/* Makes a TCP segment the RST that answers it. */
int __attribute__((noinline)) refuse_tcp(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct packet *p;
	struct tcp t, r = {};
	__u16 pseudo;
	__u32 len;

	if (!skb || !s)
		return -1;
	p = &s->p;
	if (bpf_skb_load_bytes(skb, p->l4, &t, sizeof(t)) || t.flags & TCP_RST)
		return -1;
	r.sport = t.dport;
	r.dport = t.sport;
	r.off = sizeof(r) / 4 << 4;
	r.flags = TCP_RST;
	if (t.flags & TCP_ACK) {
		r.seq = t.ack;
	} else {
		len = p->end - p->l4 - (t.off >> 4) * 4 + !!(t.flags & TCP_SYN) + !!(t.flags & TCP_FIN);
		r.ack = bpf_htonl(bpf_ntohl(t.seq) + len);
		r.flags |= TCP_ACK;
	}
	/* pseudo + rest + check = 0, and rest + check = -check: so check is pseudo, and rest is -2 pseudo, which takes the window. */
	pseudo = pseudo_back(p, IPPROTO_TCP, sizeof(r));
	r.window = folded(bpf_csum_diff(0, 0, (__be32 *)&r, sizeof(r), 2 * (__u32)pseudo));
	r.check = pseudo;
	if (bpf_skb_change_tail(skb, p->l4 + sizeof(r), 0) || bpf_skb_store_bytes(skb, p->l4, &r, sizeof(r), 0))
		return -1;
	return refusal_head(skb, p, IPPROTO_TCP, sizeof(r));
}

/* How many errors this processor has made, and in which second. */
struct refusals {
	__u32 second, n;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct refusals);
} refusals SEC(".maps");

/* Whether there may be one more. */
static __always_inline int refusal_is_due(void)
{
	__u32 zero = 0, now = bpf_ktime_get_ns() / 1000000000;
	struct refusals *r = bpf_map_lookup_elem(&refusals, &zero);

	if (!r)
		return 0;
	if (r->second != now) {
		r->second = now;
		r->n = 0;
	}
	return r->n++ < REFUSALS;
}

/* Makes a datagram ICMP's port unreachable. */
int __attribute__((noinline)) refuse_datagram(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct packet *p;

	if (!skb || !s || !refusal_is_due())
		return -1;
	p = &s->p;
	if (p->v6) {
		struct error6 e = { .icmp = { .type = 1, .code = 4 } };

		/* The sender's checksum, of UDP, was where the last two bytes are that ICMP leaves unused. */
		e.icmp.unused = pseudo_back(p, IPPROTO_ICMP6, sizeof(e));
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &e.ip, sizeof(e.ip) + sizeof(e.l4)))
			return -1;
		e.icmp.check = folded(bpf_csum_diff(0, 0, (__be32 *)&e, sizeof(e), e.icmp.unused));
		if (bpf_skb_change_tail(skb, p->l4 + sizeof(e), 0) || bpf_skb_store_bytes(skb, p->l4, &e, sizeof(e), 0))
			return -1;
		return refusal_head(skb, p, IPPROTO_ICMP6, sizeof(e));
	} else {
		struct error4 e = { .icmp = { .type = 3, .code = 3 } };

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &e.ip, sizeof(e.ip) + sizeof(e.l4)))
			return -1;
		e.icmp.check = folded(bpf_csum_diff(0, 0, (__be32 *)&e, sizeof(e), 0));
		if (bpf_skb_change_tail(skb, p->l4 + sizeof(e), 0) || bpf_skb_store_bytes(skb, p->l4, &e, sizeof(e), 0))
			return -1;
		return refusal_head(skb, p, IPPROTO_ICMP, sizeof(e));
	}
}

/* Refuses the packet at hand, as it came in, for a reason: the answer goes back where it came from, and nothing else happens. What has more
 * headers than it must, or is no whole packet, gets none. */
int __attribute__((noinline)) refuse(struct __sk_buff *skb, __u32 reason)
{
	struct scratch *s = scratch();
	struct path *way = path_now();
	struct remote *r;
	int dropped;

	if (!skb)
		return 2; /* TC_ACT_SHOT */
	dropped = drop(skb, reason); /* seen before it changes */
	if (!s || !way || !is_plain(&s->p) || s->p.later)
		return dropped;
	if (s->p.proto == IPPROTO_TCP ? s->p.more || refuse_tcp(skb) : refuse_datagram(skb))
		return dropped;
	if (way->tunnel != skb->ifindex)
		return bpf_redirect(skb->ifindex, 0);
	r = remote_of(&s->p.saddr);
	return r && !remote_is_native(r) ? tunnel_send(skb, r, way) : dropped;
}

/* Whether the sender of the datagram at hand left its checksum to the network card: then the kernel lets nobody cut it off. */
static __always_inline int unsummed(struct __sk_buff *skb, const struct packet *p)
{
	return bpf_skb_change_tail(skb, p->l4 + QUOTE - 1, 0) != 0;
}

/* Makes the packet at hand the answer that it does not fit an MTU (RFC 1191 4, RFC 4443 3.2), whether or not it might be cut: its sender is to
 * send less. There is no field to spare for a checksum that is still to come (see above), and such a sender, on this machine, gets no answer. */
int __attribute__((noinline)) too_big(struct __sk_buff *skb, __u32 mtu)
{
	struct scratch *s = scratch();
	struct packet *p;

	if (!skb)
		return 2; /* TC_ACT_SHOT */
	note(skb, PATH_TOO_BIG);
	if (!s)
		return 2;
	p = &s->p;
	if (!is_plain(p) || p->later || is_icmp(p->proto, p->v6) || p->l4 + QUOTE > p->end || !refusal_is_due())
		return 2;
	if (p->v6) {
		struct error6 e = { .icmp = { .type = 2, .zero = bpf_htons(mtu >> 16), .unused = bpf_htons(mtu) } };
		__u16 pseudo = pseudo_back(p, IPPROTO_ICMP6, sizeof(e));

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &e.ip, sizeof(e.ip) + sizeof(e.l4)) || unsummed(skb, p))
			return 2;
		e.icmp.check = folded(bpf_csum_diff(0, 0, (__be32 *)&e, sizeof(e), pseudo));
		if (bpf_skb_change_tail(skb, p->l4 + sizeof(e), 0) || bpf_skb_store_bytes(skb, p->l4, &e, sizeof(e), 0) || refusal_head(skb, p, IPPROTO_ICMP6, sizeof(e)))
			return 2;
	} else {
		struct error4 e = { .icmp = { .type = 3, .code = 4, .unused = bpf_htons(mtu) } };

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &e.ip, sizeof(e.ip) + sizeof(e.l4)) || unsummed(skb, p))
			return 2;
		e.icmp.check = folded(bpf_csum_diff(0, 0, (__be32 *)&e, sizeof(e), 0));
		if (bpf_skb_change_tail(skb, p->l4 + sizeof(e), 0) || bpf_skb_store_bytes(skb, p->l4, &e, sizeof(e), 0) || refusal_head(skb, p, IPPROTO_ICMP, sizeof(e)))
			return 2;
	}
	return bpf_redirect(skb->ifindex, 0);
}

#endif
