/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Direct server return. What a client outside asks of a frontend here, and a pod of another node is to answer, goes there as it came, within a
 * packet of this node to that pod (RFC 2003, RFC 2473); that node translates it, and answers the client itself, from the frontend. The pod
 * and its policies see the client's own address, and answers take no way round.
 *
 * The outer packet goes as any from this node to a pod there: by the tunnel, or natively. It names the backend: its address is where it goes,
 * its port is the outer identification, which means nothing in a packet that must not be cut (RFC 6864 4.1), or the lower 16 bits of the flow
 * label. So each packet tells all, also to a node that knows nothing of the flow yet (but for segments cut on the way, see dsr_accept).
 *
 * Whom a node believes. In the tunnel, such a packet must come from the node that has the address it is from; natively it is as good
 * as the fabric's promise that nobody outside sends from nodes' addresses, on which pods' addresses rest as well. Pods can't send from their
 * node's address. Even then a node answers from no address but one that its own table, too, has for a Service with this backend (or its own
 * NodePort, as the sender's), and to no client that is in the cluster.
 *
 * Each packet grows by a header: TCP clients are told to send less (dsr_clamp); natively, what is too large all the same is answered. */
#ifndef STRAKE_DSR_H
#define STRAKE_DSR_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "conntrack.h"
#include "endpoint.h"
#include "fragment.h"
#include "lb.h"
#include "masq.h"
#include "parse.h"
#include "refuse.h"
#include "tunnel.h"
#include "verdict.h"

/* Set at load: this node sends so. Every node takes it. */
const volatile __u8 dsr_on;

/* Verdicts that are none yet. */
#define SERVICE_NONE -1 /* no frontend, no flow */
#define SERVICE_NEW -2
#define SERVICE_SEND -3   /* s->flow says to where, in the question's direction */
#define SERVICE_ANSWER -4 /* the same in the other one */
#define SERVICE_REFUSED -5
#define SERVICE_GONE -6
#define SERVICE_AWAY -8 /* an error for another node, of which the flow is */

#define DSR_NONE -9
#define DSR_OPENED -10
#define TCP_HEADER 20
#define TCP_OPTIONS 10 /* before the segment size; nobody sends more */

static __always_inline int dsr_proto(const struct packet *p)
{
	return p->proto == (p->v6 ? IPPROTO_IPV6 : IPPROTO_IPIP);
}

static __always_inline __u32 dsr_header(int v6)
{
	return v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
}

/* One hop less for what goes on to another machine, so that frontends that are each other's backends end somewhere. -1: there is none left. */
static __always_inline int service_hop(struct __sk_buff *skb, int v6)
{
	__u32 off = ETH_HLEN + (v6 ? offsetof(struct ipv6hdr, hop_limit) : offsetof(struct iphdr, ttl));
	__u8 hops;

	if (bpf_skb_load_bytes(skb, off, &hops, 1) || hops <= 1)
		return -1;
	if (!v6 && bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check), bpf_htons(hops << 8), bpf_htons((hops - 1) << 8), 2))
		return -1;
	hops--;
	return bpf_skb_store_bytes(skb, off, &hops, 1, v6 ? BPF_F_RECOMPUTE_CSUM : 0);
}

/* Whether an address is of a node or pod of the cluster. */
static __always_inline int dsr_is_inside(const struct addr *addr, int v6)
{
	struct addr node = node_of(v6);

	return addr_eq(addr, &node) || bpf_map_lookup_elem(&endpoints, addr) || remote_of(addr);
}

/* Begins the flow of the packet at hand to s->flow's backend, if its node can answer by itself: else DSR_NONE. Of its rows there is this one alone;
 * a port that another flow has is the other node's business. What comes in fragments is cut to the size of the client's link, and would not fit natively. */
int __attribute__((noinline)) dsr_begin(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct frontend *fe;
	struct addr node;
	struct packet *p;
	struct remote *r;

	if (!skb || !s)
		return DSR_NONE;
	p = &s->p;
	r = remote_of(&s->flow.daddr);
	if (!r || r->is_node || (remote_is_native(r) && p->more) || !masq_is_on(p->v6) || dsr_is_inside(&p->saddr, p->v6))
		return DSR_NONE;
	fe = lb_frontend(&p->daddr, p->dport, p->proto);
	node = node_of(p->v6);
	if (!fe || fe->kind == KIND_HOST_PORT || (fe->kind == KIND_NODE_PORT && !addr_eq(&p->daddr, &node))) /* of this address the other node knows that it is ours */
		return DSR_NONE;
	flow_first(skb, s); /* that there is no room for open connections is nothing to this one */
	s->flow.flags = FLOW_AWAY;
	if (flow_found(s) == FLOW_BEGUN)
		return SERVICE_SEND;
	flow_end(skb);
	if (bpf_map_update_elem(&flows_passing, &s->key, &s->flow, BPF_ANY))
		return drop(skb, DROP_CONNTRACK_FULL);
	return SERVICE_SEND;
}

/* Ends a flow with FLOW_AWAY whose packet at hand, a first fragment, would not fit natively: it begins anew, and dsr_begin leaves it to this node. Who
 * cuts his datagrams would not hear that they are too large. A connection can't move to another address: its fragments are lost (PATH_TOO_BIG). */
int __attribute__((noinline)) dsr_leaves(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct path *way = path_now();
	struct packet *p;
	struct remote *r;

	if (!skb || !s || !way)
		return 0;
	p = &s->p;
	if (!p->more || p->later || flow_has_connection(p->proto) || !way->mtu)
		return 0;
	r = remote_of(&s->flow.daddr);
	if (!r || !remote_is_native(r) || !exceeds(skb, p, way->mtu - dsr_header(p->v6)))
		return 0;
	flow_end(skb);
	return 1;
}

/* The header around a packet of so many bytes, of a flow. */
static __always_inline void dsr_header4(struct iphdr *ip, const struct addr *node, const struct flow *f, __u32 len)
{
	struct iphdr h = { .version = 4, .ihl = 5, .tot_len = bpf_htons(sizeof(h) + len), .id = f->dport, .frag_off = bpf_htons(0x4000), .ttl = TUNNEL_TTL, .protocol = IPPROTO_IPIP };

	h.saddr = node->w[3];
	h.daddr = f->daddr.w[3];
	h.check = folded(bpf_csum_diff(0, 0, (__be32 *)&h, sizeof(h), 0));
	*ip = h;
}

static __always_inline void dsr_header6(struct ipv6hdr *ip, const struct addr *node, const struct flow *f, __u32 len)
{
	struct ipv6hdr h = { .version = 6, .payload_len = bpf_htons(len), .nexthdr = IPPROTO_IPV6, .hop_limit = TUNNEL_TTL };

	__builtin_memcpy(&h.flow_lbl[1], &f->dport, 2);
	__builtin_memcpy(&h.saddr, node, 16);
	__builtin_memcpy(&h.daddr, &f->daddr, 16);
	*ip = h;
}

/* The packet at hand into one of this node's to the backend. A fragment that is not the first does not know its port. */
int __attribute__((noinline)) dsr_wrap(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	__u32 len = skb->len - ETH_HLEN;
	struct addr node;

	if (!skb || !s)
		return -1;
	node = node_of(s->p.v6);
	if (s->p.later)
		s->flow.dport = 0;
	if (s->p.v6) {
		struct ipv6hdr ip;

		dsr_header6(&ip, &node, &s->flow, len);
		return bpf_skb_adjust_room(skb, sizeof(ip), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_FIXED_GSO) || bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	} else {
		struct iphdr ip;

		dsr_header4(&ip, &node, &s->flow, len);
		return bpf_skb_adjust_room(skb, sizeof(ip), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_FIXED_GSO) || bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	}
}

/* The packet at hand, of a flow with FLOW_AWAY or an error about one's answers, to the backend's node. */
int __attribute__((noinline)) dsr_send(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct path *way = path_now();
	struct packet *p;
	struct remote *r;

	if (!skb || !s || !way)
		return drop(skb, DROP_NO_REMOTE);
	p = &s->p;
	r = remote_of(&s->flow.daddr);
	if (!r)
		return drop(skb, DROP_NO_REMOTE);
	if (remote_is_native(r) && way->mtu && exceeds(skb, p, way->mtu - dsr_header(p->v6)))
		return too_big(skb, way->mtu - dsr_header(p->v6));
	if (service_hop(skb, p->v6))
		return drop(skb, DROP_HOPS);
	if (p->more)
		fragment_note(s);
	if (dsr_wrap(skb))
		return drop(skb, DROP_REWRITE);
	note(skb, DSR_TO_REMOTE);
	if (!remote_is_native(r))
		return tunnel_send(skb, r, way);
	p->saddr = node_of(p->v6);
	p->daddr = s->flow.daddr;
	return native_send(skb, p, skb->ifindex);
}

/* Takes the packet at hand out of one that another node sent by dsr_send, from its own address to a pod of this node: DSR_OPENED, and s->dsr says
 * what that one said. It came natively or by the tunnel. DSR_NONE: it is none. */
int __attribute__((noinline)) dsr_open(struct __sk_buff *skb, __u32 native)
{
	struct scratch *s = scratch();
	struct packet *p;
	struct remote *r;

	if (!skb || !s)
		return DSR_NONE;
	p = &s->p;
	r = remote_of(&p->saddr);
	if (!is_plain(p) || p->more || p->later || !r || !r->is_node || remote_is_native(r) != !!native || !bpf_map_lookup_elem(&endpoints, &p->daddr))
		return DSR_NONE;
	s->dsr.node = p->saddr;
	s->dsr.backend = p->daddr;
	s->dsr.port = p->id;
	if (p->v6 && bpf_skb_load_bytes(skb, ETH_HLEN + 2, &s->dsr.port, 2))
		return drop(skb, DROP_DSR);
	if (bpf_skb_adjust_room(skb, -(__s32)dsr_header(p->v6), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) || parse_fresh(skb, p) != PARSED)
		return drop(skb, DROP_MALFORMED);
	if (!is_icmp(p->proto, p->v6) && dsr_is_inside(&p->saddr, p->v6))
		return drop(skb, DROP_DSR);
	return DSR_OPENED;
}

/* Begins a flow of which the node with an address sent the packet at hand, to one of our pods that it chose: SERVICE_SEND, or the verdict of a drop. It
 * is asked again whatever dsr_begin asks of the frontend and service_choose of the client. Of segments that the sender's kernel cut from one, those behind the
 * first may name a later port, for it counts their identification: where the flow is not known, they are dropped, and sent again. */
int __attribute__((noinline)) dsr_accept(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct frontend *fe;
	struct packet *p;
	struct addr own;
	int begun;

	if (!skb || !s)
		return TC_ACT_SHOT;
	p = &s->p;
	fe = lb_frontend(&p->daddr, p->dport, p->proto);
	if (!fe && addr_eq(&p->daddr, &s->dsr.node)) {
		own = node_of(p->v6);
		fe = lb_frontend(&own, p->dport, p->proto);
		if (fe && fe->kind != KIND_NODE_PORT)
			fe = 0;
	} else if (fe && fe->kind == KIND_NODE_PORT) { /* dsr_begin sends its own node's alone */
		fe = 0;
	}
	if (!fe || fe->kind == KIND_HOST_PORT || fe->flags & FE_OUTSIDE_LOCAL || !lb_member(fe->service, &s->dsr.backend, s->dsr.port))
		return drop(skb, DROP_DSR);
	if (fe->flags & FE_SOURCES && !lb_may_ask(fe, &p->saddr))
		return drop(skb, DROP_SOURCE_RANGE);
	flow_key_of(p, &s->key, 0);
	s->flow.saddr = p->saddr;
	s->flow.sport = p->sport;
	s->flow.daddr = s->dsr.backend;
	s->flow.dport = s->dsr.port;
	s->flow.service = fe->service;
	s->flow.generation = lb_generation();
	s->flow.flags = FLOW_HERE | FLOW_DIRECT;
	begun = flow_begin(skb);
	return begun ? drop(skb, begun == FLOW_NO_PORT ? DROP_NO_PORT : DROP_CONNTRACK_FULL) : SERVICE_SEND;
}

/* To the client, past the host's stack: an address that is not this node's, as a source, would be none of its business. Where no route leads,
 * out of the interface by which the question came, if that is one to the outside. */
static __always_inline int dsr_back(struct __sk_buff *skb, struct scratch *s, const struct path *way)
{
	int verdict;

	s->p.saddr = s->flow.saddr;
	s->p.daddr = s->flow.daddr;
	verdict = native_send(skb, &s->p, way && way->tunnel == s->flow.ifindex ? 0 : s->flow.ifindex);
	return verdict == TC_ACT_OK ? drop(skb, DROP_NO_REMOTE) : verdict;
}

/* The client's segments are to leave room for the header that they get: the answer at hand to its SYN tells it so (RFC 9293 3.7.1), if it
 * says a size at all; else the client takes the least. */
int __attribute__((noinline)) dsr_clamp(struct __sk_buff *skb)
{
	struct path *way = path_now();
	struct scratch *s = scratch();
	__u32 at, end, most;
	__be16 was, is;
	__u8 o[2];

	if (!skb || !s || !way || !way->mtu)
		return 0;
	most = way->mtu - 2 * dsr_header(s->p.v6) - TCP_HEADER;
	if (bpf_skb_load_bytes(skb, s->p.l4 + 12, o, 1))
		return 0;
	at = s->p.l4 + TCP_HEADER;
	end = s->p.l4 + (o[0] >> 4) * 4;
	for (__u32 i = 0; i < TCP_OPTIONS; i++) {
		if (at + 4 > end || bpf_skb_load_bytes(skb, at, o, 2) || o[0] == 0)
			return 0;
		if (o[0] == 2)
			break;
		at += o[0] == 1 ? 1 : o[1];
	}
	if (o[0] != 2 || o[1] != 4 || bpf_skb_load_bytes(skb, at + 2, &was, 2) || bpf_ntohs(was) <= most)
		return 0;
	is = bpf_htons(most);
	if ((at - s->p.l4) & 1) { /* it lies across two words of the checksum */
		was = was << 8 | was >> 8;
		is = is << 8 | is >> 8;
	}
	if (bpf_l4_csum_replace(skb, s->p.l4 + 16, was, is, 2))
		return -1;
	is = bpf_htons(most);
	return bpf_skb_store_bytes(skb, at + 2, &is, 2, 0);
}

#endif
