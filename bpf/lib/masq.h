/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pods' way out of the cluster: what leaves by the uplink does so with the node's address, and answers find back.
 *
 * Ports. The node's own sockets and the pods share one address in each family, so no two flows to one destination may have one port:
 * - the kernel chooses ports for the node's clients from ip_local_port_range, at any time and unseen by us: pods get none of these.
 *   A pod's own port is kept if it lies outside of that range, else one is looked for above it;
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
#include "lb.h"
#include "nat.h"
#include "parse.h"
#include "prefix.h"

#define MASQ_FLOWS 262144 /* two rows for a flow; 112 bytes of kernel memory each */
#define MASQ_FRAGMENTS 8192
#define MASQ_PROBES 32

/* Set at load. Ports in host order, both ends included. */
const volatile struct addr node_addr4, node_addr6; /* 0: nothing of the family is masqueraded */
const volatile __u32 masq_first, masq_last;
const volatile __u32 local_first, local_last; /* ip_local_port_range */

enum {
	REPLIED = 1,
	FIN_OUT = 2,
	FIN_IN = 4,
	RESET = 8,
	FORWARDED = 16, /* addr and port are those of a client outside, whom nodeport.h sent to another node */
};

/* reply 0, keyed as the pod sends: port is the one it leaves with; addr is the node's, or the pod's own for a flow that the outside
 * began by the pod's address, which is left as it is.
 * reply 1, keyed as the answer comes: addr and port are the pod's, or addr is the node's if the flow is its own. This row decides: a row of
 * the other kind without its counterpart here is no flow. */
struct masq {
	struct addr addr;
	__be16 port;
	__u8 state;
	__u8 pad;
	__u32 seen; /* monotonic clock, seconds */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MASQ_FLOWS);
	__type(key, struct flow_key);
	__type(value, struct masq);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} masq_flows SEC(".maps");

struct fragment_key {
	struct addr saddr, daddr;
	__be32 id;
	__u32 proto; /* IPv4 */
};

/* What became of a first fragment: those that follow have no ports. As it came from outside: the pod that it went to. As a pod sent it to
 * who called it by its own address: the pod itself. Only fragments in order find their first one. */
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

static __always_inline int masq_is_on(int v6)
{
	return (v6 ? node_addr6.d[0] | node_addr6.d[1] : node_addr4.d[1]) != 0;
}

static __always_inline __u32 masq_now(void)
{
	return bpf_ktime_get_ns() / 1000000000;
}

/* RFC 5382 wants 2 h 4 min of an open connection and 4 min of one that begins or ends. A connection that ended both ways is kept for
 * what comes late only: who ends it first keeps the tuple himself, and ports are few. */
static __always_inline int masq_alive(const struct masq *m, __u8 proto, __u32 now)
{
	__u32 life = 60;

	if (proto == IPPROTO_TCP) {
		if (m->state & RESET || (m->state & (FIN_OUT | FIN_IN)) == (FIN_OUT | FIN_IN))
			life = 10;
		else if (m->state & (FIN_OUT | FIN_IN) || !(m->state & REPLIED))
			life = 240;
		else
			life = 7440;
	} else if (proto == IPPROTO_UDP && m->state & REPLIED) {
		life = 180;
	}
	return now - m->seen <= life;
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

static __always_inline void masq_touch(struct masq *m, __u8 tcp, int in, __u32 now)
{
	__u8 state = m->state & ~RESET; /* what goes on was not ended by a stranger's RST */

	if (tcp_opens(tcp))
		state &= FORWARDED;
	if (in)
		state |= REPLIED;
	if (tcp & TCP_FIN)
		state |= in ? FIN_IN : FIN_OUT;
	if (tcp & TCP_RST)
		state |= RESET;
	/* Written only if changed: both directions are often on different processors. */
	if (m->state != state)
		m->state = state;
	if (m->seen != now)
		m->seen = now;
}

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
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP && !is_icmp(proto, v6))
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

static __always_inline enum l4 l4_of(struct __sk_buff *skb, struct packet *p)
{
	return l4_at(skb, p->l4, p->proto, p->v6, &p->sport, &p->dport);
}

/* Flags of a TCP header, also in a first fragment; 0 for other protocols. */
static __always_inline __u8 tcp_flags(struct __sk_buff *skb, const struct packet *p)
{
	__u8 flags = p->tcp;

	if (p->proto == IPPROTO_TCP && p->more)
		bpf_skb_load_bytes(skb, p->l4 + 13, &flags, 1);
	return flags;
}

static __always_inline void masq_key(struct flow_key *key, const struct addr *saddr, __be16 sport, const struct addr *daddr, __be16 dport, __u8 proto, __u8 reply)
{
	key->saddr = *saddr;
	key->daddr = *daddr;
	key->sport = sport;
	key->dport = dport;
	key->proto = proto;
	key->reply = reply;
	key->pad = 0;
}

static __always_inline void fragment_key_of(const struct packet *p, struct fragment_key *key)
{
	key->saddr = p->saddr;
	key->daddr = p->daddr;
	key->id = p->id;
	key->proto = p->v6 ? 0 : p->proto; /* RFC 8200 4.5: identified without it */
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

/* Takes the port in back->dport if it is free. Two processors that find the same old row may both take it: then the last one has it, and
 * the other flow sees at its next packet that the row is not its own. */
static __always_inline int masq_take(struct __sk_buff *skb, const struct flow_key *back, const struct masq *row)
{
	struct masq *m = bpf_map_lookup_elem(&masq_flows, back);

	if (m) {
		if (masq_alive(m, back->proto, row->seen))
			return 0;
		bpf_map_delete_elem(&masq_flows, back);
	}
	if ((back->proto == IPPROTO_TCP || back->proto == IPPROTO_UDP) && (lb_frontend(&back->daddr, back->dport, back->proto) || masq_node_socket(skb, back)))
		return 0;
	return bpf_map_update_elem(&masq_flows, back, row, BPF_NOEXIST) == 0;
}

/* Finds a port for a flow and leaves it in back->dport; hint is what it had before, if not 0. */
static __always_inline int masq_pick(struct __sk_buff *skb, struct flow_key *back, const struct masq *row, __be16 hint)
{
	__u32 own = bpf_ntohs(row->port), n = masq_last - masq_first + 1, start = bpf_get_prandom_u32() % n;

	if (hint) {
		back->dport = hint;
		if (masq_take(skb, back, row))
			return 0;
	}
	if (back->proto == IPPROTO_ICMP || back->proto == IPPROTO_ICMP6 || own < local_first || own > local_last) {
		back->dport = row->port;
		if (masq_take(skb, back, row))
			return 0;
	}
	for (__u32 i = 0; i < MASQ_PROBES; i++) {
		if (i >= n)
			break;
		back->dport = bpf_htons(masq_first + (start + i) % n);
		if (masq_take(skb, back, row))
			return 0;
	}
	return -1;
}

#define FLOW_NO_PORT -2

/* Begins the flow s->key, s->flow with the node's address and one of its ports as the source: 0, FLOW_NO_PORT, or -1 if there is no room. */
int __attribute__((noinline)) masq_begin(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct masq row = { .state = FORWARDED, .seen = seconds_now() };

	if (!skb || !s)
		return -1;
	row.addr = s->p.saddr;
	row.port = s->p.sport;
	s->flow.saddr = node_of(s->p.v6);
	masq_key(&s->back, &s->flow.daddr, s->flow.dport, &s->flow.saddr, 0, s->p.proto, 1);
	if (masq_pick(skb, &s->back, &row, 0))
		return FLOW_NO_PORT;
	s->flow.sport = s->back.dport;
	s->flow.flags |= FLOW_MASQUERADED;
	return flow_begin(skb);
}

/* Follows the port of the flow s->key, s->flow by the packet at hand. */
int __attribute__((noinline)) masq_follow(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct masq *m;

	if (!skb || !s)
		return 0;
	if (s->key.reply)
		s->back = s->key;
	else
		flow_key_back(&s->key, &s->flow, &s->back);
	m = bpf_map_lookup_elem(&masq_flows, &s->back);
	if (m)
		masq_touch(m, s->p.tcp, s->key.reply, s->flow.seen);
	return 0;
}

/* A packet that an error quotes. */
struct quoted {
	struct addr saddr, daddr;
	__u32 l4;
	__u8 proto;
};

/* Returns -1 if it is none of which the transport's header is there. */
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

/* An error about a packet of a masqueraded flow, or of one to a frontend: the headers that it quotes change with its own. The quoted transport checksum stays: as
 * often as not it is cut off, and nobody checks it. Returns -1 if the error is about no flow of ours. */
static __always_inline int masq_error(struct __sk_buff *skb, const struct packet *p, int out, struct flow_key *key, struct addr *pod)
{
	struct addr node = node_of(p->v6);
	const struct addr *ours = out ? &p->saddr : &p->daddr; /* of the outer header */
	__u32 at = p->l4 + ICMP_HEADER, port_off, sum_off = p->l4 + ICMP_CHECKSUM;
	struct quoted q;
	__be16 sport, dport, old, port;
	struct masq *m;
	struct flow *f;
	enum l4 kind;

	if (quoted_at(skb, at, p->v6, &q))
		return -1;
	kind = l4_at(skb, q.l4, q.proto, p->v6, &sport, &dport);
	if (out) { /* the pod got a packet from outside */
		if (!addr_eq(&q.daddr, &p->saddr) || (kind != L4_PORTS && kind != L4_ANSWER))
			return -1;
		masq_key(key, &q.daddr, dport, &q.saddr, sport, q.proto, 0);
		old = dport;
	} else { /* the pod sent a packet outside */
		if (!addr_eq(&q.saddr, &node) || (kind != L4_PORTS && kind != L4_QUERY))
			return -1;
		masq_key(key, &q.daddr, dport, &q.saddr, sport, q.proto, 1);
		old = sport;
	}
	m = bpf_map_lookup_elem(&masq_flows, key);
	if (m) {
		*pod = m->addr;
		port = m->port;
	} else {
		key->reply = out;
		f = flow_row(key);
		if (!f)
			return -1;
		*pod = out ? f->saddr : f->daddr;
		port = out ? f->sport : f->dport;
	}
	if (out && addr_eq(pod, &p->saddr)) /* a flow that the outside began */
		return TC_ACT_OK;
	if (out ? !addr_eq(pod, &node) : addr_eq(pod, &node))
		return -1;
	port_off = q.l4 + (is_icmp(q.proto, p->v6) ? 4 : out ? 2 : 0);
	/* An IPv4 address and the checksum of its header change by the same amount: the error's own checksum feels the port only. In IPv6 it
	 * feels both addresses. */
	if (p->v6 && (bpf_l4_csum_replace(skb, sum_off, 0, addr_diff(out ? &q.daddr : &q.saddr, pod), 0) ||
		      bpf_l4_csum_replace(skb, sum_off, 0, addr_diff(ours, pod), pseudo6(skb))))
		return drop(skb, DROP_REWRITE);
	if (bpf_l4_csum_replace(skb, sum_off, old, port, 2) ||
	    nat_address(skb, at, p->v6, !out, out ? &q.daddr : &q.saddr, pod) ||
	    bpf_skb_store_bytes(skb, port_off, &port, 2, 0) ||
	    nat_address(skb, ETH_HLEN, p->v6, out, ours, pod))
		return drop(skb, DROP_REWRITE);
	note(skb, MASQUERADED_ERROR);
	return TC_ACT_OK;
}

/* What a pod sends out of the cluster. A pod's address never leaves: what can't be translated is dropped. */
static __always_inline int masq_out(struct __sk_buff *skb, struct packet *p)
{
	struct addr node = node_of(p->v6), pod;
	struct masq row = { .addr = p->saddr, .seen = masq_now() };
	struct fragment_key fragment;
	struct flow_key key, back;
	struct masq *f, *m = 0;
	struct flow *answer;
	enum l4 kind;
	__be16 had;
	__u8 tcp;
	int verdict;

	fragment_key_of(p, &fragment);
	if (p->later) { /* the address is all it has */
		if (bpf_map_lookup_elem(&masq_fragments, &fragment))
			return TC_ACT_OK;
		if (nat_address(skb, ETH_HLEN, p->v6, 1, &p->saddr, &node))
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
		verdict = masq_error(skb, p, 1, &key, &pod);
		return verdict < 0 ? drop(skb, DROP_NOT_MASQUERADED) : verdict;
	default:
		break;
	}
	if (p->more && kind == L4_PORTS) { /* the answer of a frontend, which the pod's program leaves to us; the fragments that follow need the address alone */
		masq_key(&key, &p->saddr, p->sport, &p->daddr, p->dport, p->proto, 1);
		answer = flow_row(&key);
		if (answer && addr_eq(&answer->saddr, &node)) {
			if (nat(skb, p, 1, &node, answer->sport))
				return drop(skb, DROP_REWRITE);
			note(skb, POD_TO_UPLINK);
			return TC_ACT_OK;
		}
	}
	tcp = tcp_flags(skb, p);
	masq_key(&key, &p->saddr, p->sport, &p->daddr, p->dport, p->proto, 0);
	f = bpf_map_lookup_elem(&masq_flows, &key);
	if (f && addr_eq(&f->addr, &p->saddr) && masq_alive(f, key.proto, row.seen)) {
		masq_touch(f, tcp, 0, row.seen);
		if (p->more)
			masq_note_fragment(p, &row.addr);
		return TC_ACT_OK;
	}
	if (kind == L4_ANSWER) /* to nobody who asked the pod by its own address */
		return drop(skb, DROP_NOT_MASQUERADED);
	row.port = p->sport;
	had = f && addr_eq(&f->addr, &node) ? f->port : 0;
	masq_key(&back, &p->daddr, p->dport, &node, had, p->proto, 1);
	if (had)
		m = bpf_map_lookup_elem(&masq_flows, &back);
	if (m && addr_eq(&m->addr, &row.addr) && m->port == row.port) {
		masq_touch(m, tcp, 0, row.seen);
	} else {
		if (masq_pick(skb, &back, &row, had))
			return drop(skb, DROP_NO_PORT);
		row.addr = node;
		row.port = back.dport;
		if (bpf_map_update_elem(&masq_flows, &key, &row, BPF_ANY))
			return drop(skb, DROP_CONNTRACK_FULL);
	}
	if (nat(skb, p, 1, &node, back.dport))
		return drop(skb, DROP_REWRITE);
	note(skb, MASQUERADED_OUT);
	return TC_ACT_OK;
}

#define MASQ_FORWARDED -2

/* What comes to the node from outside: -1 if it answers no pod, MASQ_FORWARDED if it is a backend's answer for nodeport.h. The key is room
 * for its work: the stack is small. */
static __always_inline int masq_in(struct __sk_buff *skb, struct packet *p, struct flow_key *key)
{
	struct addr node = node_of(p->v6), pod;
	__u32 now = masq_now();
	struct fragment_key fragment;
	struct masq *m, to;
	struct endpoint *ep;
	struct addr *known;
	__be16 port;
	__u8 tcp;
	int verdict;

	if (!masq_is_on(p->v6) || !addr_eq(&p->daddr, &node))
		return -1;
	fragment_key_of(p, &fragment);
	if (p->later) {
		known = bpf_map_lookup_elem(&masq_fragments, &fragment);
		if (!known)
			return -1;
		pod = *known;
		ep = bpf_map_lookup_elem(&endpoints, &pod);
		if (!ep && !masq_is_source(&pod))
			return -1;
		if (nat_address(skb, ETH_HLEN, p->v6, 0, &p->daddr, &pod))
			return drop(skb, DROP_REWRITE);
		note(skb, MASQUERADED_IN);
		return ep ? endpoint_redirect(skb, ep) : TC_ACT_OK;
	}
	switch (l4_of(skb, p)) {
	case L4_ERROR:
		verdict = masq_error(skb, p, 0, key, &pod);
		if (verdict)
			return verdict;
		ep = bpf_map_lookup_elem(&endpoints, &pod);
		if (ep)
			return endpoint_redirect(skb, ep);
		return masq_is_source(&pod) ? TC_ACT_OK : drop(skb, DROP_NO_BACKEND);
	case L4_PORTS:
	case L4_ANSWER:
		break;
	default:
		return -1;
	}
	masq_key(key, &p->saddr, p->sport, &p->daddr, p->dport, p->proto, 1);
	m = bpf_map_lookup_elem(&masq_flows, key);
	if (!m || !masq_alive(m, key->proto, now))
		return -1;
	tcp = tcp_flags(skb, p);
	if (tcp_opens(tcp)) /* a connection to the node, no answer */
		return -1;
	to = *m;
	pod = to.addr;
	port = to.port;
	ep = bpf_map_lookup_elem(&endpoints, &pod);
	if (to.state & FORWARDED)
		return MASQ_FORWARDED;
	if (!ep && (addr_eq(&pod, &node) || !masq_is_source(&pod))) /* the node's own flow, or a pod that is gone */
		return -1;
	masq_touch(m, tcp, 1, now);
	masq_key(key, &pod, port, &p->saddr, p->sport, p->proto, 0);
	if (!bpf_map_lookup_elem(&masq_flows, key)) { /* too few rows for all: keep both or the flow ends */
		to.addr = node;
		to.port = p->dport;
		bpf_map_update_elem(&masq_flows, key, &to, BPF_ANY);
	}
	if (p->more)
		masq_note_fragment(p, &pod);
	if (nat(skb, p, 0, &pod, port))
		return drop(skb, DROP_REWRITE);
	note(skb, MASQUERADED_IN);
	return ep ? endpoint_redirect(skb, ep) : TC_ACT_OK;
}

/* The outside calls a pod by its own address, where it has a route to it: the answers are to keep that. */
static __always_inline void masq_note_direct(struct __sk_buff *skb, struct packet *p, struct flow_key *key)
{
	struct masq row = { .addr = p->daddr, .state = REPLIED, .seen = masq_now() };
	struct masq *m;
	__u8 tcp;

	if (!masq_is_on(p->v6) || p->later || !bpf_map_lookup_elem(&endpoints, &p->daddr) || masq_is_exempt(&p->saddr))
		return;
	switch (l4_of(skb, p)) {
	case L4_PORTS:
	case L4_QUERY:
		break;
	default:
		return;
	}
	tcp = tcp_flags(skb, p);
	masq_key(key, &p->daddr, p->dport, &p->saddr, p->sport, p->proto, 0);
	m = bpf_map_lookup_elem(&masq_flows, key);
	if (m && masq_alive(m, key->proto, row.seen)) { /* a flow that the pod began is not turned into another by a stranger's packet */
		if (addr_eq(&m->addr, &row.addr))
			masq_touch(m, tcp, 1, row.seen);
		return;
	}
	row.port = p->dport;
	bpf_map_update_elem(&masq_flows, key, &row, BPF_ANY);
}

/* What the node itself sends goes out as it is, and a port that it uses is its own. The kernel's choices are not looked up: no pod has any of
 * them. Echo identifiers belong to no socket that could be found, so the node's are noted. */
static __always_inline void masq_own(struct __sk_buff *skb, struct packet *p)
{
	struct masq row = { .addr = p->saddr, .seen = masq_now() };
	struct flow_key back;
	struct masq *m;
	__u32 port;

	if (is_icmp(p->proto, p->v6) && !p->later) {
		if (l4_of(skb, p) != L4_QUERY)
			return;
		masq_key(&back, &p->daddr, 0, &p->saddr, p->sport, p->proto, 1);
		row.port = p->sport;
		bpf_map_update_elem(&masq_flows, &back, &row, BPF_ANY);
		return;
	}
	port = bpf_ntohs(p->sport);
	if (!p->ports || (port >= local_first && port <= local_last) || (p->proto == IPPROTO_TCP && !tcp_opens(p->tcp)))
		return;
	masq_key(&back, &p->daddr, p->dport, &p->saddr, p->sport, p->proto, 1);
	m = bpf_map_lookup_elem(&masq_flows, &back);
	if (m && !addr_eq(&m->addr, &p->saddr))
		bpf_map_delete_elem(&masq_flows, &back);
}

#endif
