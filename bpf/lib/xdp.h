/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A short way for packets that only pass this node: the questions of clients outside to backends of other nodes, and what comes back of them, go
 * on at the uplink's driver, before the kernel makes anything of them. It takes but the plain case, by the rows of flows that
 * strake_uplink has made: a packet that changes nothing but itself, on its way natively, out of the interface by which it came. All else passes on to
 * that program: what begins or ends a flow, the first packet of each second (which writes the time), options, fragments, errors, tunnels, a
 * backend that must be looked for, a neighbour that is not known. So it can be taken away at any time. It sees packets with their
 * checksums, as they come from a wire. */
#ifndef STRAKE_XDP_H
#define STRAKE_XDP_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "conntrack.h"
#include "count.h"
#include "dsr.h"
#include "endpoint.h"
#include "lb.h"
#include "masq.h"
#include "monitor.h"
#include "parse.h"
#include "tunnel.h"

#define XDP_TRANSPORT_UDP 8
#define XDP_TRANSPORT_TCP 20

/* The transport's header of a packet that this hook takes, whose addresses, ports and flags are put into p; 0: it is not for this hook. */
static __always_inline void *xdp_parse(void *data, void *end, struct packet *p)
{
	struct ethhdr *eth = data;
	void *l4;

	if (data + sizeof(*eth) > end)
		return 0;
	p->tcp = 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + sizeof(*eth);

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(0x3fff) || ip->ttl <= 1)
			return 0;
		p->v6 = 0;
		p->proto = ip->protocol;
		addr_v4(&p->saddr, ip->saddr);
		addr_v4(&p->daddr, ip->daddr);
		p->end = bpf_ntohs(ip->tot_len);
		l4 = ip + 1;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + sizeof(*eth);

		if ((void *)(ip + 1) > end || ip->version != 6 || ip->hop_limit <= 1)
			return 0;
		p->v6 = 1;
		p->proto = ip->nexthdr;
		__builtin_memcpy(&p->saddr, &ip->saddr, 16);
		__builtin_memcpy(&p->daddr, &ip->daddr, 16);
		if (addr_mapped(&p->saddr) || addr_mapped(&p->daddr))
			return 0;
		p->end = sizeof(*ip) + bpf_ntohs(ip->payload_len);
		l4 = ip + 1;
	} else {
		return 0;
	}
	if (p->end > (__u64)(end - data) - sizeof(*eth))
		return 0;
	if (p->proto == IPPROTO_TCP) {
		if (l4 + XDP_TRANSPORT_TCP > end || p->end < dsr_header(p->v6) + XDP_TRANSPORT_TCP)
			return 0;
		p->tcp = ((__u8 *)l4)[13];
	} else if (p->proto != IPPROTO_UDP || l4 + XDP_TRANSPORT_UDP > end || p->end < dsr_header(p->v6) + XDP_TRANSPORT_UDP) {
		return 0;
	}
	p->sport = ((__be16 *)l4)[0];
	p->dport = ((__be16 *)l4)[1];
	return l4;
}

/* The row of s->key, if the packet at hand leaves it as it is. */
static __always_inline struct flow *xdp_flow(struct scratch *s, __u8 reply)
{
	__u8 state, was;
	struct flow *f;

	flow_key_of(&s->p, &s->key, reply);
	f = flow_row(&s->key);
	if (!f || !f->service || f->seen != seconds_now() || flow_is_over(f->state) || tcp_opens(s->p.tcp))
		return 0;
	was = f->state;
	state = f->flags & FLOW_AWAY ? flow_next_away(was, s->p.proto, s->p.tcp) : flow_next(was, s->p.tcp, reply);
	return state == was ? f : 0;
}

/* The way from one address to another: its Ethernet addresses in order, if it leads out of the interface by which the packet came, and the
 * packet was for that. */
static __always_inline int xdp_way(struct xdp_md *ctx, const struct addr *from, const struct addr *to, const struct packet *p, __u32 len, __u8 *macs)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct bpf_fib_lookup fib = { .family = p->v6 ? 10 : 2, .l4_protocol = p->proto, .ifindex = ctx->ingress_ifindex, .tot_len = len };

	if (p->v6) {
		__builtin_memcpy(fib.ipv6_src, from, 16);
		__builtin_memcpy(fib.ipv6_dst, to, 16);
	} else {
		fib.ipv4_src = from->w[3];
		fib.ipv4_dst = to->w[3];
	}
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS || fib.ifindex != ctx->ingress_ifindex || data + ETH_HLEN > end)
		return -1;
	for (int i = 0; i < 6; i++) {
		if (((__u8 *)data)[i] != fib.smac[i])
			return -1;
	}
	__builtin_memcpy(macs, fib.dmac, 6);
	__builtin_memcpy(macs + 6, fib.smac, 6);
	return 0;
}

/* A checksum for which one part becomes another; both are of four-byte words. */
static __always_inline __u16 resummed(__u16 check, const void *was, const void *is, __u32 size)
{
	return folded(bpf_csum_diff((__be32 *)was, size, (__be32 *)is, size, (__u16)~check));
}

/* One hop less for an IPv4 header. */
static __always_inline void xdp_hop4(struct iphdr *ip)
{
	__u8 was[4] = { ip->ttl, ip->protocol }, is[4] = { ip->ttl - 1, ip->protocol };

	ip->check = resummed(ip->check, was, is, sizeof(was));
	ip->ttl--;
}

/* Makes of a packet what s->flow says. */
static __always_inline int xdp_rewrite(struct xdp_md *ctx, struct scratch *s, int hop, const __u8 *macs)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end, *ip = data + ETH_HLEN, *l4;
	struct addr was[2] = { s->p.saddr, s->p.daddr }, is[2] = { s->flow.saddr, s->flow.daddr };
	__be16 ports[2] = { s->p.sport, s->p.dport }, new_ports[2] = { s->flow.sport, s->flow.dport };
	__be16 *check;
	__u16 sum;

	l4 = ip + dsr_header(s->p.v6);
	if (l4 + XDP_TRANSPORT_UDP > end)
		return -1;
	check = l4 + 6;
	if (s->p.proto == IPPROTO_TCP) {
		if (l4 + XDP_TRANSPORT_TCP > end)
			return -1;
		check = l4 + 16;
	}
	if (*check || s->p.proto == IPPROTO_TCP) {
		sum = resummed(*check, was, is, sizeof(was));
		sum = resummed(sum, ports, new_ports, sizeof(ports));
		*check = !sum && s->p.proto == IPPROTO_UDP ? 0xffff : sum;
	}
	((__be16 *)l4)[0] = new_ports[0];
	((__be16 *)l4)[1] = new_ports[1];
	if (s->p.v6) {
		struct ipv6hdr *h = ip;

		if ((void *)(h + 1) > end)
			return -1;
		__builtin_memcpy(&h->saddr, &is[0], 16);
		__builtin_memcpy(&h->daddr, &is[1], 16);
		h->hop_limit -= hop;
	} else {
		struct iphdr *h = ip;

		if ((void *)(h + 1) > end)
			return -1;
		h->check = resummed(h->check, was, is, sizeof(was));
		h->saddr = is[0].w[3];
		h->daddr = is[1].w[3];
		if (hop)
			xdp_hop4(h);
	}
	__builtin_memcpy(data, macs, 12);
	return 0;
}

/* dsr_wrap at this hook. Verified by itself. */
int __attribute__((noinline)) xdp_wrap(struct xdp_md *ctx)
{
	struct scratch *s = scratch();
	void *data, *end;
	struct addr node;
	__u8 macs[12];
	__u32 size;
	__be16 proto;

	if (!ctx || !s)
		return XDP_PASS;
	node = node_of(s->p.v6);
	size = dsr_header(s->p.v6);
	if (xdp_way(ctx, &node, &s->flow.daddr, &s->p, s->p.end + size, macs))
		return XDP_PASS;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + ETH_HLEN + sizeof(struct iphdr) > end)
		return XDP_PASS;
	proto = ((struct ethhdr *)data)->h_proto;
	if (s->p.v6)
		((struct ipv6hdr *)(data + ETH_HLEN))->hop_limit--;
	else
		xdp_hop4(data + ETH_HLEN);
	if (bpf_xdp_adjust_head(ctx, s->p.v6 ? -(int)sizeof(struct ipv6hdr) : -(int)sizeof(struct iphdr)))
		return XDP_DROP; /* no driver gives less room; and its hop is gone */
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + ETH_HLEN + sizeof(struct ipv6hdr) > end)
		return XDP_DROP;
	__builtin_memcpy(data, macs, 12);
	((struct ethhdr *)data)->h_proto = proto;
	if (s->p.v6)
		dsr_header6(data + ETH_HLEN, &node, &s->flow, s->p.end);
	else
		dsr_header4(data + ETH_HLEN, &node, &s->flow, s->p.end);
	return XDP_TX;
}

/* The question of a client outside, of a flow to a backend of another node: what strake_uplink would do. */
static __always_inline int xdp_question(struct xdp_md *ctx, struct scratch *s, const struct flow *f, const struct path *way)
{
	struct remote *r = remote_of(&f->daddr);
	__u8 macs[12];
	int verdict;

	if (f->generation != lb_generation() || f->flags & (FLOW_HERE | FLOW_OWN) || (r && !remote_is_native(r)))
		return XDP_PASS;
	s->flow = *f;
	if (f->flags & FLOW_AWAY) {
		if (!r || (way->mtu && s->p.end + dsr_header(s->p.v6) > way->mtu))
			return XDP_PASS;
		verdict = xdp_wrap(ctx);
		if (verdict == XDP_TX)
			count(DSR_TO_REMOTE);
		return verdict;
	}
	if (!(f->flags & FLOW_MASQUERADED) || xdp_way(ctx, &s->flow.saddr, &s->flow.daddr, &s->p, s->p.end, macs) || xdp_rewrite(ctx, s, 1, macs))
		return XDP_PASS;
	count(UPLINK_TO_REMOTE);
	return XDP_TX;
}

/* What a backend elsewhere answers to this node's address, for a client outside. */
static __always_inline int xdp_answer(struct xdp_md *ctx, struct scratch *s, const struct flow *f)
{
	struct remote *r = remote_of(&f->daddr);
	__u8 macs[12];

	if (!(f->flags & FLOW_MASQUERADED) || f->flags & (FLOW_HERE | FLOW_OWN) || f->ifindex != ctx->ingress_ifindex || (r && !remote_is_native(r)) ||
	    bpf_map_lookup_elem(&endpoints, &f->daddr))
		return XDP_PASS;
	s->flow = *f;
	if (xdp_way(ctx, &s->flow.saddr, &s->flow.daddr, &s->p, s->p.end, macs) || xdp_rewrite(ctx, s, 0, macs))
		return XDP_PASS;
	count(REMOTE_TO_UPLINK);
	return XDP_TX;
}

#endif
