/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The rewriting of packets. */
#ifndef STRAKE_NAT_H
#define STRAKE_NAT_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <stddef.h>
#include "addr.h"
#include "conntrack.h"
#include "fragment.h"
#include "parse.h"
#include "sctp.h"

/* How a checksum over IPv6 addresses is to be changed with them. What the network card summed up (CHECKSUM_COMPLETE) is of the whole
 * packet, and stays: IPv6 has no checksum of its own that would make up for the address, the transport's does. To a sum that is still to
 * be completed (CHECKSUM_PARTIAL) the addresses belong. bpf_csum_update changes nothing here, it tells the one from the other. */
static __always_inline __u64 pseudo6(struct __sk_buff *skb)
{
	return bpf_csum_update(skb, 0) < 0 ? BPF_F_PSEUDO_HDR : 0;
}

/* The sum's difference between two addresses. */
static __always_inline __s64 addr_diff(const struct addr *old, const struct addr *addr)
{
	return bpf_csum_diff((__be32 *)old, sizeof(*old), (__be32 *)addr, sizeof(*addr), 0);
}

/* Another address alone, in the IP header at an offset. The transport's checksum is the caller's business. */
static __always_inline int nat_address(struct __sk_buff *skb, __u32 ip, int v6, int source, const struct addr *old, const struct addr *addr)
{
	if (v6)
		return bpf_skb_store_bytes(skb, ip + (source ? offsetof(struct ipv6hdr, saddr) : offsetof(struct ipv6hdr, daddr)), addr, sizeof(*addr), 0);
	return bpf_l3_csum_replace(skb, ip + offsetof(struct iphdr, check), old->w[3], addr->w[3], 4) ||
	       bpf_skb_store_bytes(skb, ip + (source ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr)), &addr->w[3], 4, 0);
}

/* Rewrites source (or destination) address and port, with all checksums. Of ICMP, an echo's identifier is the port either way. */
static __always_inline int nat(struct __sk_buff *skb, const struct packet *p, int source, const struct addr *addr, __be16 port)
{
	const struct addr *old = source ? &p->saddr : &p->daddr;
	__be16 old_port = source ? p->sport : p->dport;
	__u32 port_off = p->l4 + (source ? 0 : 2), sum_off = p->l4 + 6; /* UDP */
	__u64 mangled = 0;

	if (p->proto == IPPROTO_SCTP)
		return nat_address(skb, ETH_HLEN, p->v6, source, old, addr) || sctp_port(skb, p, source, port) ? -1 : 0;
	if (p->proto == IPPROTO_UDP) {
		mangled = BPF_F_MARK_MANGLED_0;
	} else if (p->proto == IPPROTO_TCP) {
		sum_off = p->l4 + 16;
	} else {
		port_off = p->l4 + 4;
		sum_off = p->l4 + 2;
	}
	if (p->v6) {
		if (bpf_l4_csum_replace(skb, sum_off, 0, addr_diff(old, addr), pseudo6(skb) | mangled))
			return -1;
	} else if (p->proto != IPPROTO_ICMP && bpf_l4_csum_replace(skb, sum_off, old->w[3], addr->w[3], BPF_F_PSEUDO_HDR | mangled | 4)) {
		return -1;
	}
	if (bpf_l4_csum_replace(skb, sum_off, old_port, port, mangled | 2) ||
	    nat_address(skb, ETH_HLEN, p->v6, source, old, addr) ||
	    bpf_skb_store_bytes(skb, port_off, &port, 2, 0))
		return -1;
	return 0;
}

/* Whether s->flow makes another packet of the one at hand. */
static __always_inline int flow_rewrites(const struct scratch *s)
{
	return !addr_eq(&s->p.saddr, &s->flow.saddr) || !addr_eq(&s->p.daddr, &s->flow.daddr) || s->p.sport != s->flow.sport || s->p.dport != s->flow.dport;
}

/* Makes of the packet at hand what s->flow says. Of one in fragments, the later ones have addresses alone. */
int __attribute__((noinline)) flow_rewrite(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct packet *p;

	if (!skb || !s)
		return -1;
	p = &s->p;
	if (p->later)
		return nat_address(skb, ETH_HLEN, p->v6, 0, &p->daddr, &s->flow.daddr) || nat_address(skb, ETH_HLEN, p->v6, 1, &p->saddr, &s->flow.saddr) ? -1 : 0;
	if (p->more && s->flow.service)
		fragment_note(s);
	if ((!addr_eq(&p->daddr, &s->flow.daddr) || p->dport != s->flow.dport) && nat(skb, p, 0, &s->flow.daddr, s->flow.dport))
		return -1;
	if ((!addr_eq(&p->saddr, &s->flow.saddr) || p->sport != s->flow.sport) && nat(skb, p, 1, &s->flow.saddr, s->flow.sport))
		return -1;
	return 0;
}

#endif
