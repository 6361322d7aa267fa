/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pods' way out of the cluster: what leaves by the uplink does so with the node's address or that of the link, and answers find back.
 *
 * Ports. The node's own sockets and the pods share one address in each family, so no two flows to one destination may have one port:
 * - the kernel chooses ports for the node's clients from ip_local_port_range, at any time and unseen by us: pods get none of these.
 *   A pod's own port is kept if it lies outside of that range, else one is looked for above it. Clients of Services, who all have the few
 *   backends for destinations, get those below it as well;
 * - a port on which the node has a socket that would take the answers (bpf_skc_lookup_tcp, bpf_sk_lookup_udp), or that is a NodePort,
 *   is not given to pods;
 * - what the node sends from a port that it bound by itself meanwhile takes the port over: the node wins, the pod's flow gets another. */
#ifndef STRAKE_MASQ_H
#define STRAKE_MASQ_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "verdict.h"
#include "conntrack.h"
#include "endpoint.h"
#include "fragment.h"
#include "lb.h"
#include "nat.h"
#include "parse.h"
#include "policy.h"
#include "prefix.h"

#define MASQ_FRAGMENTS 8192
#define MASQ_PROBES 32

/* Set at load. Ports in host order, both ends included. */
const volatile struct addr node_addr4, node_addr6; /* 0: nothing of the family is masqueraded */
const volatile __u32 masq_first, masq_last;
const volatile __u32 spare_first, spare_last; /* more of them, towards backends of Services; 0: none */
const volatile __u32 local_first, local_last; /* ip_local_port_range */

/* What became of a first fragment: those that follow have no ports. As it came from outside: the pod that it went to. As a pod sent it to
 * who called it by its own address: the pod itself; by a link with addresses of its own: what it left with. Only fragments in order find
 * their first one. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MASQ_FRAGMENTS);
	__type(key, struct fragment_key);
	__type(value, struct addr);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} masq_fragments SEC(".maps");

/* Where pods are known by their own addresses. Not pinned: it goes with the programs, so a change of both is one. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} masq_exempt SEC(".maps");

static __always_inline int masq_is_exempt(const struct addr *addr)
{
	return prefix_holds(&masq_exempt, addr);
}

/* Ranges behind this node that are not its pods, and leave by the uplink as pods do; answers go back through the host's stack. It goes with
 * the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} masq_sources SEC(".maps");

static __always_inline int masq_is_source(const struct addr *addr)
{
	return prefix_holds(&masq_sources, addr);
}

/* The node's address of a family, zero if it has none. */
static __always_inline struct addr node_of(int v6)
{
	return v6 ? addr_of(&node_addr6) : addr_of(&node_addr4);
}

static __always_inline int is_node(const struct addr *addr, int v6)
{
	struct addr node = node_of(v6);

	return addr_eq(addr, &node);
}

static __always_inline int masq_is_on(int v6)
{
	return (v6 ? node_addr6.d[0] | node_addr6.d[1] : node_addr4.d[1]) != 0;
}

/* Links that lead out of the cluster and have none of the node's addresses, but others, which pods' packets leave with there: who is behind such a
 * link need not know a way to the node's. 0: none of the family. */
struct link_addrs {
	struct addr v4, v6;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* ifindex */
	__type(value, struct link_addrs);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} uplink_addrs SEC(".maps");

/* Sets s->as to what the packet at hand is masqueraded with where it leaves by the link that it is at. */
int __attribute__((noinline)) masq_as(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct link_addrs *own;
	__u32 ifindex;

	if (!skb || !s)
		return -1;
	ifindex = skb->ifindex;
	s->as = node_of(s->p.v6);
	own = bpf_map_lookup_elem(&uplink_addrs, &ifindex);
	if (own && !s->p.v6 && own->v4.d[1])
		s->as = own->v4;
	else if (own && s->p.v6 && (own->v6.d[0] | own->v6.d[1]))
		s->as = own->v6;
	return 0;
}

/* RFC 792, RFC 4443. linux/icmp.h wants more headers than there are for programs of this target. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP6_PARAMETERPROB 4 /* the last of 1 to 4, which are errors */
#define ICMP6_ECHO 128
#define ICMP6_ECHOREPLY 129
#define ICMP_HEADER 8
#define ICMP_CHECKSUM 2

enum l4 { L4_SHORT, L4_OTHER, L4_PORTS, L4_QUERY, L4_ANSWER, L4_ERROR };

static __always_inline int is_icmp(__u8 proto, int v6)
{
	return proto == (v6 ? IPPROTO_ICMP6 : IPPROTO_ICMP);
}

/* What a transport header is for us. The identifier of an echo stands for the port of who asks. */
static __always_inline enum l4 l4_at(struct __sk_buff *skb, __u32 off, __u8 proto, int v6, __be16 *sport, __be16 *dport)
{
	__be16 h[4];
	__u8 type;

	*sport = *dport = 0;
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP && proto != IPPROTO_SCTP && !is_icmp(proto, v6))
		return L4_OTHER;
	if (bpf_skb_load_bytes(skb, off, h, sizeof(h)))
		return L4_SHORT;
	if (!is_icmp(proto, v6)) {
		*sport = h[0];
		*dport = h[1];
		return L4_PORTS;
	}
	type = bpf_ntohs(h[0]) >> 8;
	if (type == (v6 ? ICMP6_ECHO : ICMP_ECHO)) {
		*sport = h[2];
		return L4_QUERY;
	}
	if (type == (v6 ? ICMP6_ECHOREPLY : ICMP_ECHOREPLY)) {
		*dport = h[2];
		return L4_ANSWER;
	}
	if (v6 ? type >= 1 && type <= ICMP6_PARAMETERPROB : type == ICMP_DEST_UNREACH || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB)
		return L4_ERROR;
	return L4_OTHER;
}

/* Of a first fragment, too: parse leaves its transport header alone. */
static __always_inline enum l4 l4_of(struct __sk_buff *skb, struct packet *p)
{
	if (p->proto == IPPROTO_TCP && p->more)
		bpf_skb_load_bytes(skb, p->l4 + 13, &p->tcp, 1);
	return l4_at(skb, p->l4, p->proto, p->v6, &p->sport, &p->dport);
}

/* The fragments that follow this one go to an address, too. */
static __always_inline void masq_note_fragment(const struct packet *p, const struct addr *addr)
{
	struct fragment_key fragment;

	fragment_key_of(p, &fragment);
	bpf_map_update_elem(&masq_fragments, &fragment, addr, BPF_ANY);
}

/* Whether a socket of the node would take the answers of this flow. */
static __always_inline int masq_node_socket(struct __sk_buff *skb, const struct flow_key *back)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	__u32 size = sizeof(t.ipv4);

	if (addr_mapped(&back->daddr)) {
		t.ipv4.saddr = back->saddr.w[3];
		t.ipv4.daddr = back->daddr.w[3];
		t.ipv4.sport = back->sport;
		t.ipv4.dport = back->dport;
	} else {
		__builtin_memcpy(t.ipv6.saddr, &back->saddr, 16);
		__builtin_memcpy(t.ipv6.daddr, &back->daddr, 16);
		t.ipv6.sport = back->sport;
		t.ipv6.dport = back->dport;
		size = sizeof(t.ipv6);
	}
	if (back->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	bpf_sk_release(sk);
	return 1;
}

/* Takes the port in s->back for the flow at hand, if it is free. */
int __attribute__((noinline)) masq_take(struct __sk_buff *skb)
{
	struct scratch *s = scratch();

	if (!skb || !s)
		return -1;
	if (lb_frontend(&s->back.daddr, s->back.dport, s->back.proto) ||
	    ((s->back.proto == IPPROTO_TCP || s->back.proto == IPPROTO_UDP) && masq_node_socket(skb, &s->back)))
		return -1;
	return flow_take(skb);
}

/* Finds a port for the flow of s->key, s->other and leaves it in s->back; hint is what it had before, if not 0. */
static __always_inline int masq_pick(struct __sk_buff *skb, struct scratch *s, __be16 hint)
{
	__u32 own = bpf_ntohs(s->key.sport), upper = masq_last - masq_first + 1, n = upper, start, at;

	if (s->flow.service && spare_first)
		n += spare_last - spare_first + 1;
	start = bpf_get_prandom_u32() % n;
	if (hint) {
		s->back.dport = hint;
		if (!masq_take(skb))
			return 0;
	}
	if (s->key.proto == IPPROTO_ICMP || s->key.proto == IPPROTO_ICMP6 || own < local_first || own > local_last) {
		s->back.dport = s->key.sport;
		if (!masq_take(skb))
			return 0;
	}
	for (__u32 i = 0; i < MASQ_PROBES; i++) {
		if (i >= n)
			break;
		at = (start + i) % n;
		s->back.dport = bpf_htons(at < upper ? masq_first + at : spare_first + at - upper);
		if (!masq_take(skb))
			return 0;
	}
	return -1;
}

/* flow_begin with s->as and one of its ports as the source. */
int __attribute__((noinline)) masq_begin(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow *old;
	__be16 had = 0;
	__u32 found;

	if (!skb || !s || flow_first(skb, s))
		return FLOW_NO_ROOM;
	found = flow_found(s);
	if (found == FLOW_BEGUN)
		return 0;
	s->flow.saddr = s->as;
	s->flow.sport = 0;
	s->flow.flags |= FLOW_MASQUERADED;
	if (found == FLOW_STALE) {
		old = flow_row(&s->key);
		if (old && old->flags & FLOW_MASQUERADED && addr_eq(&old->daddr, &s->flow.daddr))
			had = old->sport;
		flow_end(skb);
	}
	flow_turn(s);
	if (masq_pick(skb, s, had))
		return FLOW_NO_PORT;
	s->flow.sport = s->back.dport;
	return flow_settle(s);
}

/* What packet an error quotes. Returns -1 if it is none of which the transport's header is there. */
static __always_inline int quoted_at(struct __sk_buff *skb, __u32 at, int v6, struct quoted *q)
{
	if (v6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 6)
			return -1;
		__builtin_memcpy(&q->saddr, &ip.saddr, 16);
		__builtin_memcpy(&q->daddr, &ip.daddr, 16);
		q->l4 = at + sizeof(ip);
		q->proto = ip.nexthdr;
		if (ipv6_is_extension(q->proto)) {
			__u64 walk = ipv6_walk(skb, q->l4, q->proto);

			q->l4 = WALK_OFF(walk);
			q->proto = WALK_PROTO(walk);
			if (!walk || WALK_LATER(walk))
				return -1;
		}
	} else {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5 || ip.frag_off & bpf_htons(0x1fff))
			return -1;
		addr_v4(&q->saddr, ip.saddr);
		addr_v4(&q->daddr, ip.daddr);
		q->l4 = at + ip.ihl * 4;
		q->proto = ip.protocol;
	}
	return 0;
}

/* An ICMP error about a packet that a flow made: it becomes one about the packet that there was before, for who sent that. s->flow is then the
 * row of what answers it. The quoted transport checksum stays: as often as not it is cut off, and nobody checks it. Returns -1 if the error is
 * about no flow (with ERROR_OF_SERVICE: none to a frontend), or not from its other end (ERROR_OURS) or for the end that sent (without); -2 if it
 * can't be rewritten; ERROR_AWAY, and the error as it was, if another node translates the flow. */
#define ERROR_AWAY -3
#define ERROR_OURS 1
#define ERROR_OF_SERVICE 2

int __attribute__((noinline)) flow_error(struct __sk_buff *skb, __u32 which)
{
	__u32 ours = which & ERROR_OURS, of_service = which & ERROR_OF_SERVICE;
	struct scratch *s = scratch();
	struct quoted q;
	__be16 was[2], is[2]; /* ports */
	__u32 sum_off;
	struct packet *p;
	enum l4 kind;
	int icmp;

	if (!skb || !s)
		return -1;
	p = &s->p;
	sum_off = p->l4 + ICMP_CHECKSUM;
	if (quoted_at(skb, p->l4 + ICMP_HEADER, p->v6, &q))
		return -1;
	kind = l4_at(skb, q.l4, q.proto, p->v6, &was[0], &was[1]);
	if ((kind != L4_PORTS && kind != L4_QUERY && kind != L4_ANSWER) || !addr_eq(ours ? &q.daddr : &q.saddr, ours ? &p->saddr : &p->daddr))
		return -1;
	s->key.saddr = q.daddr;
	s->key.daddr = q.saddr;
	s->key.sport = was[1];
	s->key.dport = was[0];
	s->key.proto = q.proto;
	s->key.pad = 0;
	s->key.reply = !ours;
	if (!flow_get(skb) || (of_service && !s->flow.service)) {
		s->key.reply = ours;
		if (!flow_get(skb) || (of_service && !s->flow.service))
			return -1;
	}
	if (s->flow.flags & FLOW_AWAY)
		return ERROR_AWAY;
	is[0] = s->flow.dport;
	is[1] = s->flow.sport;
	icmp = is_icmp(q.proto, p->v6);
	/* An IPv4 address and the checksum of its header change by the same amount: the error's own checksum feels the ports only. In IPv6 it
	 * feels all addresses. */
	if (p->v6 && (bpf_l4_csum_replace(skb, sum_off, 0, addr_diff(&q.saddr, &s->flow.daddr), 0) ||
		      bpf_l4_csum_replace(skb, sum_off, 0, addr_diff(&q.daddr, &s->flow.saddr), 0) ||
		      bpf_l4_csum_replace(skb, sum_off, 0, addr_diff(&p->daddr, addr_eq(&p->daddr, &q.saddr) ? &s->flow.daddr : &p->daddr), pseudo6(skb)) ||
		      bpf_l4_csum_replace(skb, sum_off, 0, addr_diff(&p->saddr, addr_eq(&p->saddr, &q.daddr) ? &s->flow.saddr : &p->saddr), pseudo6(skb))))
		return -2;
	if (bpf_l4_csum_replace(skb, sum_off, was[0], is[0], 2) || bpf_l4_csum_replace(skb, sum_off, was[1], is[1], 2) ||
	    nat_address(skb, p->l4 + ICMP_HEADER, p->v6, 1, &q.saddr, &s->flow.daddr) ||
	    nat_address(skb, p->l4 + ICMP_HEADER, p->v6, 0, &q.daddr, &s->flow.saddr))
		return -2;
	if (icmp) {
		is[0] |= is[1]; /* one of them is 0 */
		if (bpf_skb_store_bytes(skb, q.l4 + 4, is, 2, 0))
			return -2;
	} else if (bpf_skb_store_bytes(skb, q.l4, is, 4, 0)) {
		return -2;
	}
	if ((addr_eq(&p->daddr, &q.saddr) && nat_address(skb, ETH_HLEN, p->v6, 0, &p->daddr, &s->flow.daddr)) ||
	    (addr_eq(&p->saddr, &q.daddr) && nat_address(skb, ETH_HLEN, p->v6, 1, &p->saddr, &s->flow.saddr)))
		return -2;
	note(skb, MASQUERADED_ERROR);
	return 0;
}

/* What a pod sends out of the cluster, with s->as. A pod's address never leaves: what can't be translated is dropped. */
static __always_inline int masq_out(struct __sk_buff *skb, struct scratch *s)
{
	struct fragment_key fragment;
	struct packet *p = &s->p;
	struct addr *first;
	enum l4 kind;
	int begun;

	fragment_key_of(p, &fragment);
	if (p->later) { /* the address is all it has */
		first = bpf_map_lookup_elem(&masq_fragments, &fragment);
		if (first && addr_eq(first, &p->saddr))
			return TC_ACT_OK;
		if (first)
			s->as = *first;
		if (nat_address(skb, ETH_HLEN, p->v6, 1, &p->saddr, &s->as))
			return drop(skb, DROP_REWRITE);
		note(skb, MASQUERADED_OUT);
		return TC_ACT_OK;
	}
	kind = l4_of(skb, p);
	switch (kind) {
	case L4_SHORT:
		return drop(skb, DROP_MALFORMED);
	case L4_OTHER:
		return drop(skb, DROP_NOT_MASQUERADED);
	case L4_ERROR:
		begun = flow_error(skb, 1);
		if (begun)
			return drop(skb, begun == -1 ? DROP_NOT_MASQUERADED : DROP_REWRITE);
		return TC_ACT_OK;
	default:
		break;
	}
	flow_key_of(p, &s->key, 0);
	if (!flow_get(skb)) {
		flow_key_of(p, &s->key, 1); /* the answer to who called the pod by its own address, or an answer in fragments, which the pod's program leaves to us */
		if (!flow_get(skb)) {
			if (kind == L4_ANSWER)
				return drop(skb, DROP_NOT_MASQUERADED);
			flow_key_of(p, &s->key, 0);
			s->flow.daddr = p->daddr;
			s->flow.dport = p->dport;
			s->flow.service = s->flow.generation = s->flow.flags = 0;
			begun = masq_begin(skb);
			if (begun)
				return drop(skb, begun == FLOW_NO_PORT ? DROP_NO_PORT : DROP_CONNTRACK_FULL);
			goto out;
		}
	}
	if (flow_step(skb))
		return drop(skb, DROP_CONNTRACK_FULL);
	if (addr_eq(&s->flow.saddr, &p->saddr)) {
		if (p->more)
			masq_note_fragment(p, &p->saddr);
		return TC_ACT_OK;
	}
	if (!addr_eq(&s->flow.saddr, &s->as) && !is_node(&s->flow.saddr, p->v6)) {
		if (!s->key.reply) /* another link was its way, or had another address: the next packet begins it anew */
			flow_end(skb);
		return drop(skb, DROP_NOT_MASQUERADED);
	}
out:
	if (p->more && !is_node(&s->as, p->v6)) /* its flow may be of before, and have the node's address */
		masq_note_fragment(p, &s->flow.saddr);
	if (flow_rewrite(skb))
		return drop(skb, DROP_REWRITE);
	note(skb, s->key.reply ? POD_TO_UPLINK : MASQUERADED_OUT);
	return TC_ACT_OK;
}

#define MASQ_FORWARDED -2

/* What comes to the node from outside: -1 if it answers no pod, MASQ_FORWARDED if it is a backend's answer for who asked from outside: then
 * the flow is s->key, s->flow. */
int __attribute__((noinline)) masq_in(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct fragment_key fragment;
	struct addr node, *known;
	struct endpoint *ep;
	struct packet *p;
	int failed;

	if (!skb || !s)
		return -1;
	p = &s->p;
	node = node_of(p->v6);
	if (!masq_is_on(p->v6))
		return -1;
	if (!addr_eq(&p->daddr, &node) && (masq_as(skb) || !addr_eq(&p->daddr, &s->as)))
		return -1;
	if (p->later) {
		fragment_key_of(p, &fragment);
		known = bpf_map_lookup_elem(&masq_fragments, &fragment);
		if (!known)
			return -1;
		s->flow.saddr = p->saddr;
		s->flow.daddr = *known;
		ep = bpf_map_lookup_elem(&endpoints, &s->flow.daddr);
		if (!ep && !masq_is_source(&s->flow.daddr))
			return -1;
		if (policy_on && ep && policy_check(skb, p->v6, POLICY_TRANSLATED, ep->ifindex))
			return TC_ACT_SHOT;
		if (nat_address(skb, ETH_HLEN, p->v6, 0, &p->daddr, &s->flow.daddr))
			return drop(skb, DROP_REWRITE);
		note(skb, MASQUERADED_IN);
		return ep ? endpoint_redirect(skb, ep) : TC_ACT_OK;
	}
	switch (l4_of(skb, p)) {
	case L4_ERROR:
		failed = flow_error(skb, 0);
		if (failed)
			return failed == -1 ? -1 : drop(skb, DROP_REWRITE);
		ep = bpf_map_lookup_elem(&endpoints, &s->flow.daddr);
		if (policy_on && ep && policy_check(skb, p->v6, POLICY_ERROR, ep->ifindex))
			return TC_ACT_SHOT;
		if (ep)
			return endpoint_redirect(skb, ep);
		return masq_is_source(&s->flow.daddr) || addr_eq(&s->flow.daddr, &node) ? TC_ACT_OK : drop(skb, DROP_NO_BACKEND);
	case L4_PORTS:
	case L4_ANSWER:
		break;
	default:
		return -1;
	}
	flow_key_of(p, &s->key, 1);
	if (!flow_get(skb) || !(s->flow.flags & FLOW_MASQUERADED))
		return -1;
	if (tcp_opens(p->tcp)) /* a connection to the node, no answer */
		return -1;
	ep = bpf_map_lookup_elem(&endpoints, &s->flow.daddr);
	if (!ep && s->flow.service)
		return MASQ_FORWARDED;
	if (!ep && !masq_is_source(&s->flow.daddr)) /* a pod that is gone */
		return -1;
	if (policy_on && ep && policy_check(skb, p->v6, POLICY_TRANSLATED, ep->ifindex))
		return TC_ACT_SHOT;
	if (flow_step(skb))
		return drop(skb, DROP_CONNTRACK_FULL);
	if (p->more)
		masq_note_fragment(p, &s->flow.daddr);
	if (flow_rewrite(skb))
		return drop(skb, DROP_REWRITE);
	note(skb, MASQUERADED_IN);
	return ep ? endpoint_redirect(skb, ep) : TC_ACT_OK;
}

/* The outside calls a pod by its own address, where it has a route to it: the answers are to keep that. */
int __attribute__((noinline)) masq_note_direct(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct packet *p;

	if (!skb || !s)
		return 0;
	p = &s->p;
	if (!masq_is_on(p->v6) || p->later || masq_is_exempt(&p->saddr))
		return 0;
	switch (l4_of(skb, p)) {
	case L4_PORTS:
	case L4_QUERY:
		break;
	default:
		return 0;
	}
	flow_key_of(p, &s->key, 0);
	if (flow_get(skb))
		return flow_step(skb);
	s->flow.saddr = p->saddr;
	s->flow.daddr = p->daddr;
	s->flow.sport = p->sport;
	s->flow.dport = p->dport;
	s->flow.service = s->flow.generation = s->flow.flags = 0;
	flow_key_back(&s->key, &s->flow, &s->key); /* a flow that the pod began is not turned into another by a stranger's packet */
	s->key.reply = 0;
	if (flow_get(skb))
		return 0;
	flow_key_of(p, &s->key, 0);
	s->flow.saddr = p->saddr;
	return flow_begin(skb);
}

/* What the node itself sends goes out as it is, and a port that it uses is its own. The kernel's choices are not looked up: no pod has any of
 * them. Echo identifiers belong to no socket that could be found, so the node's are noted. */
int __attribute__((noinline)) masq_own(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct packet *p;
	__u32 port;
	int echo;

	if (!skb || !s)
		return 0;
	p = &s->p;
	echo = is_icmp(p->proto, p->v6) && !p->later;
	if (echo) {
		if (l4_of(skb, p) != L4_QUERY)
			return 0;
	} else {
		port = bpf_ntohs(p->sport);
		if (!p->ports || (port >= local_first && port <= local_last) || (p->proto == IPPROTO_TCP && !tcp_opens(p->tcp)))
			return 0;
	}
	flow_key_of(p, &s->key, 0);
	s->flow.saddr = p->saddr;
	s->flow.daddr = p->daddr;
	s->flow.sport = p->sport;
	s->flow.dport = p->dport;
	flow_key_back(&s->key, &s->flow, &s->key);
	/* Of the node's SCTP sockets it may be what service.h has just sent: no socket hook serves them. */
	if (flow_get(skb) && (!(s->flow.flags & FLOW_MASQUERADED) || (p->proto == IPPROTO_SCTP && s->flow.flags & FLOW_OWN)))
		return echo ? flow_step(skb) : 0;
	flow_end(skb);
	if (!echo)
		return 0;
	flow_key_of(p, &s->key, 0);
	s->flow.saddr = p->saddr;
	s->flow.daddr = p->daddr;
	s->flow.sport = p->sport;
	s->flow.dport = p->dport;
	s->flow.service = s->flow.generation = s->flow.flags = 0;
	return flow_begin(skb);
}

#endif
