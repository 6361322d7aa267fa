/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a pod says to its link: ARP (RFC 826) and neighbour discovery (RFC 4861). All that is beyond the link is behind the host's side of
 * the veth, so this side answers for every address itself, nothing of it leaves the veth, and a pod can answer for nobody else. */
#ifndef STRAKE_NEIGHBOUR_H
#define STRAKE_NEIGHBOUR_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "verdict.h"
#include "endpoint.h"
#include "parse.h"

#define MLD_QUERY 130
#define MLD_DONE 132
#define ND_ROUTER_SOLICIT 133
#define ND_ROUTER_ADVERT 134
#define ND_SOLICIT 135
#define ND_ADVERT 136
#define ND_REDIRECT 137
#define MLD2_REPORT 143

/* Of no consequence beyond the link, and nothing wrong with it. */
static __always_inline int link_ignore(struct __sk_buff *skb)
{
	note(skb, LINK_IGNORED);
	return TC_ACT_SHOT;
}

/* The row of an address, if it is of a pod's interface and its sender has the pod's MAC address. */
static __always_inline struct endpoint *endpoint_of(struct __sk_buff *skb, const struct addr *addr, const __u8 *mac)
{
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, addr);

	if (!ep || ep->ifindex != skb->ifindex)
		return 0;
	if (*(__u32 *)mac != *(__u32 *)ep->pod_mac || *(__u16 *)(mac + 4) != *(__u16 *)(ep->pod_mac + 4))
		return 0;
	return ep;
}

/* linux/if_arp.h wants more headers than there are for programs of this target. */
#define ARPHRD_ETHER 1
#define ARPOP_REQUEST 1
#define ARPOP_REPLY 2

struct arp {
	struct ethhdr eth;
	__be16 hardware, protocol;
	__u8 hardware_len, protocol_len;
	__be16 op;
	__u8 sha[6];
	__be32 spa;
	__u8 tha[6];
	__be32 tpa;
} __attribute__((packed));

static __attribute__((noinline)) int arp_from_pod(struct __sk_buff *skb)
{
	struct endpoint *ep;
	struct addr addr;
	struct arp a;
	__be32 asked;
	__u8 mac[6] __attribute__((aligned(4)));

	if (bpf_skb_load_bytes(skb, 0, &a, sizeof(a)) || a.hardware != bpf_htons(ARPHRD_ETHER) || a.protocol != bpf_htons(ETH_P_IP) || a.hardware_len != 6 ||
	    a.protocol_len != 4)
		return drop(skb, DROP_MALFORMED);
	if (!a.spa) /* is the address in use? (RFC 5227) By whom would it be. */
		return link_ignore(skb);
	addr_v4(&addr, a.spa);
	__builtin_memcpy(mac, a.eth.h_source, 6);
	ep = endpoint_of(skb, &addr, mac);
	if (!ep || __builtin_memcmp(a.sha, mac, 6))
		return drop(skb, DROP_NEIGHBOUR);
	if (a.op == bpf_htons(ARPOP_REPLY)) /* of its own address, as the host may ask if its entry of the pod was lost */
		return TC_ACT_OK;
	if (a.op != bpf_htons(ARPOP_REQUEST))
		return drop(skb, DROP_NEIGHBOUR);
	if (a.tpa == a.spa)
		return link_ignore(skb);
	__builtin_memcpy(a.eth.h_dest, mac, 6);
	__builtin_memcpy(a.eth.h_source, ep->host_mac, 6);
	a.op = bpf_htons(ARPOP_REPLY);
	__builtin_memcpy(a.tha, mac, 6);
	__builtin_memcpy(a.sha, ep->host_mac, 6);
	asked = a.tpa;
	a.tpa = a.spa;
	a.spa = asked;
	if (bpf_skb_store_bytes(skb, 0, &a, sizeof(a), 0))
		return drop(skb, DROP_REWRITE);
	note(skb, NEIGHBOUR_ANSWERED);
	return bpf_redirect(skb->ifindex, 0);
}

/* A solicitation has 24 bytes and options, of which none matters here; an advertisement is made of it. */
struct neighbour {
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct {
		__u8 type, code;
		__be16 check;
		__be32 flags;
		struct in6_addr target;
		__u8 option, option_len; /* the target's link-layer address, in units of 8 bytes */
		__u8 mac[6];
	} __attribute__((packed)) icmp;
} __attribute__((packed));

#define SOLICIT_SIZE (sizeof(struct neighbour) - 8)
#define ADVERT_FLAGS bpf_htonl(0xe0000000) /* from a router, as asked, in place of what was known */

static __attribute__((noinline)) int solicit_from_pod(struct __sk_buff *skb, const struct packet *p)
{
	struct {
		struct in6_addr saddr, daddr;
		__be32 len, proto;
	} pseudo;
	struct neighbour n;
	struct endpoint *ep, *own;
	struct addr target;

	if (!is_plain(p) || bpf_skb_load_bytes(skb, 0, &n, SOLICIT_SIZE) || n.ip.hop_limit != 255 || n.icmp.code || n.icmp.target.in6_u.u6_addr8[0] == 0xff)
		return drop(skb, DROP_MALFORMED);
	if (p->saddr.d[0] == 0 && p->saddr.d[1] == 0) /* is the address in use? (RFC 4862 5.4) By whom would it be. */
		return link_ignore(skb);
	ep = endpoint_of(skb, &p->saddr, p->smac);
	if (!ep)
		return drop(skb, DROP_NEIGHBOUR);
	__builtin_memcpy(&target, &n.icmp.target, 16);
	own = bpf_map_lookup_elem(&endpoints, &target);
	if (own && own->ifindex == skb->ifindex)
		return link_ignore(skb);
	if (bpf_skb_change_tail(skb, sizeof(n), 0))
		return drop(skb, DROP_REWRITE);
	__builtin_memcpy(n.eth.h_dest, p->smac, 6);
	__builtin_memcpy(n.eth.h_source, ep->host_mac, 6);
	n.ip.daddr = n.ip.saddr;
	n.ip.saddr = n.icmp.target;
	n.ip.payload_len = bpf_htons(sizeof(n.icmp));
	n.icmp.type = ND_ADVERT;
	n.icmp.check = 0;
	n.icmp.flags = ADVERT_FLAGS;
	n.icmp.option = 2;
	n.icmp.option_len = 1;
	__builtin_memcpy(n.icmp.mac, ep->host_mac, 6);
	pseudo.saddr = n.ip.saddr;
	pseudo.daddr = n.ip.daddr;
	pseudo.len = bpf_htonl(sizeof(n.icmp));
	pseudo.proto = bpf_htonl(IPPROTO_ICMP6);
	n.icmp.check = folded(bpf_csum_diff(0, 0, (__be32 *)&n.icmp, sizeof(n.icmp), bpf_csum_diff(0, 0, (__be32 *)&pseudo, sizeof(pseudo), 0)));
	if (bpf_skb_store_bytes(skb, 0, &n, sizeof(n), BPF_F_INVALIDATE_HASH))
		return drop(skb, DROP_REWRITE);
	note(skb, NEIGHBOUR_ANSWERED);
	return bpf_redirect(skb->ifindex, 0);
}

/* ICMPv6 that is for the link, or -1. */
static __always_inline int link_from_pod(struct __sk_buff *skb, const struct packet *p)
{
	__u8 type;

	if (p->proto != IPPROTO_ICMP6 || p->later)
		return -1;
	if (bpf_skb_load_bytes(skb, p->l4, &type, 1))
		return drop(skb, DROP_MALFORMED);
	switch (type) {
	case ND_SOLICIT:
		return solicit_from_pod(skb, p);
	case ND_ROUTER_ADVERT:
	case ND_ADVERT:
	case ND_REDIRECT:
		return drop(skb, DROP_NEIGHBOUR);
	case ND_ROUTER_SOLICIT:
	case MLD2_REPORT:
		return link_ignore(skb);
	}
	return type >= MLD_QUERY && type <= MLD_DONE ? link_ignore(skb) : -1;
}

#endif
