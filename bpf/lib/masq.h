/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pods' way out of the cluster: what leaves by the uplink does so with the node's address, and answers find back.
 *
 * Ports. The node's own sockets and the pods share one address, so no two flows to one destination may have one port:
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
#include <stddef.h>
#include "count.h"
#include "endpoint.h"
#include "lb.h"
#include "nat.h"
#include "parse.h"

#define MASQ_FLOWS 262144 /* two rows for a flow; 80 bytes of kernel memory each */
#define MASQ_FRAGMENTS 8192
#define MASQ_PROBES 32

/* Set at load. Ports in host order, both ends included. */
const volatile __be32 node_addr; /* 0: nothing is masqueraded */
const volatile __u32 masq_first, masq_last;
const volatile __u32 local_first, local_last; /* ip_local_port_range */

enum {
	REPLIED = 1,
	FIN_OUT = 2,
	FIN_IN = 4,
	RESET = 8,
};

/* reply 0, keyed as the pod sends: port is the one it leaves with; addr is the node's, or the pod's own for a flow that the outside
 * began by the pod's address, which is left as it is.
 * reply 1, keyed as the answer comes: addr and port are the pod's, or addr is the node's if the flow is its own. This row decides: a row of
 * the other kind without its counterpart here is no flow. */
struct masq {
	__be32 addr;
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
	__be32 saddr, daddr;
	__be16 id;
	__u8 proto;
	__u8 pad;
};

/* What became of a first fragment: those that follow have no ports. As it came from outside: the pod that it went to. As a pod sent it to
 * who called it by its own address: the pod itself. Only fragments in order find their first one. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MASQ_FRAGMENTS);
	__type(key, struct fragment_key);
	__type(value, __be32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} masq_fragments SEC(".maps");

struct prefix {
	__u32 len;
	__be32 addr;
};

/* Where pods are known by their own addresses. Not pinned: it goes with the programs, so a change of both is one. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} masq_exempt SEC(".maps");

static __always_inline int masq_is_exempt(__be32 addr)
{
	struct prefix key = { .len = 32, .addr = addr };

	return bpf_map_lookup_elem(&masq_exempt, &key) != 0;
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

/* RFC 792. linux/icmp.h wants more headers than there are for programs of this target. */
#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12
#define ICMP_HEADER 8
#define ICMP_CHECKSUM 2

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

static __always_inline void masq_touch(struct masq *m, __u8 tcp, int in, __u32 now)
{
	__u8 state = m->state & ~RESET; /* what goes on was not ended by a stranger's RST */

	if ((tcp & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		state = 0;
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

/* What a transport header is for us. The identifier of an echo stands for the port of who asks. */
static __always_inline enum l4 l4_at(struct __sk_buff *skb, __u32 off, __u8 proto, __be16 *sport, __be16 *dport)
{
	__be16 h[4];

	*sport = *dport = 0;
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP && proto != IPPROTO_ICMP)
		return L4_OTHER;
	if (bpf_skb_load_bytes(skb, off, h, sizeof(h)))
		return L4_SHORT;
	if (proto != IPPROTO_ICMP) {
		*sport = h[0];
		*dport = h[1];
		return L4_PORTS;
	}
	switch (bpf_ntohs(h[0]) >> 8) {
	case ICMP_ECHO:
		*sport = h[2];
		return L4_QUERY;
	case ICMP_ECHOREPLY:
		*dport = h[2];
		return L4_ANSWER;
	case ICMP_DEST_UNREACH:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETERPROB:
		return L4_ERROR;
	}
	return L4_OTHER;
}

/* Flags of a TCP header, 0 for other protocols. */
static __always_inline __u8 tcp_flags(struct __sk_buff *skb, const struct packet *p)
{
	__u8 flags = 0;

	if (p->ip.protocol == IPPROTO_TCP)
		bpf_skb_load_bytes(skb, p->l4 + 13, &flags, 1);
	return flags;
}

static __always_inline int later_fragment(const struct iphdr *ip)
{
	return (ip->frag_off & bpf_htons(0x1fff)) != 0;
}

static __always_inline int more_fragments(const struct iphdr *ip)
{
	return (ip->frag_off & bpf_htons(0x2000)) != 0;
}

static __always_inline void masq_key(struct flow_key *key, __be32 saddr, __be16 sport, __be32 daddr, __be16 dport, __u8 proto, __u8 reply)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->saddr = saddr;
	key->daddr = daddr;
	key->sport = sport;
	key->dport = dport;
	key->proto = proto;
	key->reply = reply;
}

/* Whether a socket of the node would take the answers of this flow. */
static __always_inline int masq_node_socket(struct __sk_buff *skb, const struct flow_key *back)
{
	struct bpf_sock_tuple t = {
		.ipv4 = { .saddr = back->saddr, .daddr = back->daddr, .sport = back->sport, .dport = back->dport },
	};
	struct bpf_sock *sk;

	if (back->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
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
	if (back->proto != IPPROTO_ICMP && (lb_frontend(back->daddr, back->dport, back->proto) || masq_node_socket(skb, back)))
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
	if (back->proto == IPPROTO_ICMP || own < local_first || own > local_last) {
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

/* Another address alone: what has no ports, or the outer header of an error. */
static __always_inline int masq_address(struct __sk_buff *skb, __u32 ip, int source, __be32 old, __be32 addr)
{
	__u32 off = ip + (source ? offsetof(struct iphdr, saddr) : offsetof(struct iphdr, daddr));

	return bpf_l3_csum_replace(skb, ip + offsetof(struct iphdr, check), old, addr, 4) || bpf_skb_store_bytes(skb, off, &addr, 4, 0);
}

/* An error about a packet of a masqueraded flow: the headers that it quotes change with its own. The quoted transport checksum stays: as
 * often as not it is cut off, and nobody checks it. Returns -1 if the error is about no flow of ours. */
static __always_inline int masq_error(struct __sk_buff *skb, const struct packet *p, int out, __be32 *pod)
{
	__u32 at = p->l4 + ICMP_HEADER, l4;
	struct flow_key key;
	struct iphdr ip;
	__be16 sport, dport, old, port;
	__be32 addr;
	struct masq *m;
	enum l4 kind;

	if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5 || later_fragment(&ip))
		return -1;
	l4 = at + ip.ihl * 4;
	kind = l4_at(skb, l4, ip.protocol, &sport, &dport);
	if (out) { /* the pod got a packet from outside */
		if (ip.daddr != p->ip.saddr || (kind != L4_PORTS && kind != L4_ANSWER))
			return -1;
		masq_key(&key, ip.daddr, dport, ip.saddr, sport, ip.protocol, 0);
		old = dport;
	} else { /* the pod sent a packet outside */
		if (ip.saddr != node_addr || (kind != L4_PORTS && kind != L4_QUERY))
			return -1;
		masq_key(&key, ip.daddr, dport, ip.saddr, sport, ip.protocol, 1);
		old = sport;
	}
	m = bpf_map_lookup_elem(&masq_flows, &key);
	if (!m)
		return -1;
	addr = *pod = m->addr;
	port = m->port;
	if (out && addr == p->ip.saddr) /* a flow that the outside began */
		return TC_ACT_OK;
	if (out ? addr != node_addr : addr == node_addr)
		return -1;
	l4 += ip.protocol == IPPROTO_ICMP ? 4 : out ? 2 : 0;
	/* The quoted address and the quoted header's checksum change by the same amount: the error's own checksum feels the port only. */
	if (masq_address(skb, at, !out, out ? ip.daddr : ip.saddr, addr) ||
	    bpf_l4_csum_replace(skb, p->l4 + ICMP_CHECKSUM, old, port, 2) ||
	    bpf_skb_store_bytes(skb, l4, &port, 2, 0) ||
	    masq_address(skb, ETH_HLEN, out, out ? p->ip.saddr : p->ip.daddr, addr))
		return drop(DROP_REWRITE);
	count(MASQUERADED_ERROR);
	return TC_ACT_OK;
}

/* What a pod sends out of the cluster. A pod's address never leaves: what can't be translated is dropped. */
static __always_inline int masq_out(struct __sk_buff *skb, struct packet *p)
{
	struct fragment_key fragment = { .saddr = p->ip.saddr, .daddr = p->ip.daddr, .id = p->ip.id, .proto = p->ip.protocol };
	struct masq row = { .addr = p->ip.saddr, .seen = masq_now() };
	struct masq forward = { .addr = node_addr, .seen = row.seen };
	struct flow_key key, back;
	struct masq *f, *m = 0;
	enum l4 kind;
	__be32 pod;
	__be16 had;
	__u8 tcp;
	int verdict;

	if (later_fragment(&p->ip)) { /* the address is all it has */
		if (bpf_map_lookup_elem(&masq_fragments, &fragment))
			return TC_ACT_OK;
		if (masq_address(skb, ETH_HLEN, 1, p->ip.saddr, node_addr))
			return drop(DROP_REWRITE);
		count(MASQUERADED_OUT);
		return TC_ACT_OK;
	}
	kind = l4_at(skb, p->l4, p->ip.protocol, &p->sport, &p->dport);
	switch (kind) {
	case L4_SHORT:
		return drop(DROP_MALFORMED);
	case L4_OTHER:
		return drop(DROP_NOT_MASQUERADED);
	case L4_ERROR:
		verdict = masq_error(skb, p, 1, &pod);
		return verdict < 0 ? drop(DROP_NOT_MASQUERADED) : verdict;
	default:
		break;
	}
	tcp = tcp_flags(skb, p);
	masq_key(&key, p->ip.saddr, p->sport, p->ip.daddr, p->dport, p->ip.protocol, 0);
	f = bpf_map_lookup_elem(&masq_flows, &key);
	if (f && f->addr == p->ip.saddr && masq_alive(f, key.proto, row.seen)) {
		masq_touch(f, tcp, 0, row.seen);
		if (more_fragments(&p->ip))
			bpf_map_update_elem(&masq_fragments, &fragment, &row.addr, BPF_ANY);
		return TC_ACT_OK;
	}
	if (kind == L4_ANSWER) /* to nobody who asked the pod by its own address */
		return drop(DROP_NOT_MASQUERADED);
	row.port = p->sport;
	had = f && f->addr == node_addr ? f->port : 0;
	masq_key(&back, p->ip.daddr, p->dport, node_addr, had, p->ip.protocol, 1);
	if (had)
		m = bpf_map_lookup_elem(&masq_flows, &back);
	if (m && m->addr == row.addr && m->port == row.port) {
		masq_touch(m, tcp, 0, row.seen);
	} else {
		if (masq_pick(skb, &back, &row, had))
			return drop(DROP_NO_PORT);
		forward.port = back.dport;
		if (bpf_map_update_elem(&masq_flows, &key, &forward, BPF_ANY))
			return drop(DROP_CONNTRACK_FULL);
	}
	if (nat(skb, p, 1, node_addr, back.dport))
		return drop(DROP_REWRITE);
	count(MASQUERADED_OUT);
	return TC_ACT_OK;
}

/* What comes to the node from outside: -1 if it answers no pod. */
static __always_inline int masq_in(struct __sk_buff *skb, struct packet *p)
{
	struct fragment_key fragment = { .saddr = p->ip.saddr, .daddr = p->ip.daddr, .id = p->ip.id, .proto = p->ip.protocol };
	__u32 now = masq_now();
	struct flow_key key, forward;
	struct masq *m, to;
	struct endpoint *ep;
	__be32 *known, pod;
	__u8 tcp;
	int verdict;

	if (!node_addr || p->ip.daddr != node_addr)
		return -1;
	if (later_fragment(&p->ip)) {
		known = bpf_map_lookup_elem(&masq_fragments, &fragment);
		if (!known)
			return -1;
		pod = *known;
		ep = bpf_map_lookup_elem(&endpoints, &pod);
		if (!ep)
			return -1;
		if (masq_address(skb, ETH_HLEN, 0, p->ip.daddr, pod))
			return drop(DROP_REWRITE);
		count(MASQUERADED_IN);
		return endpoint_redirect(skb, ep);
	}
	switch (l4_at(skb, p->l4, p->ip.protocol, &p->sport, &p->dport)) {
	case L4_ERROR:
		verdict = masq_error(skb, p, 0, &pod);
		if (verdict)
			return verdict;
		ep = bpf_map_lookup_elem(&endpoints, &pod);
		return ep ? endpoint_redirect(skb, ep) : drop(DROP_NO_BACKEND);
	case L4_PORTS:
	case L4_ANSWER:
		break;
	default:
		return -1;
	}
	masq_key(&key, p->ip.saddr, p->sport, p->ip.daddr, p->dport, p->ip.protocol, 1);
	m = bpf_map_lookup_elem(&masq_flows, &key);
	if (!m || !masq_alive(m, key.proto, now))
		return -1;
	tcp = tcp_flags(skb, p);
	if ((tcp & (TCP_SYN | TCP_ACK)) == TCP_SYN) /* a connection to the node, no answer */
		return -1;
	to = *m;
	ep = bpf_map_lookup_elem(&endpoints, &to.addr);
	if (!ep) /* the node's own flow, or a pod that is gone */
		return -1;
	masq_touch(m, tcp, 1, now);
	masq_key(&forward, to.addr, to.port, p->ip.saddr, p->sport, p->ip.protocol, 0);
	if (!bpf_map_lookup_elem(&masq_flows, &forward)) { /* too few rows for all: keep both or the flow ends */
		to.addr = node_addr;
		to.port = p->dport;
		bpf_map_update_elem(&masq_flows, &forward, &to, BPF_ANY);
	}
	if (more_fragments(&p->ip)) {
		pod = forward.saddr;
		bpf_map_update_elem(&masq_fragments, &fragment, &pod, BPF_ANY);
	}
	if (nat(skb, p, 0, forward.saddr, forward.sport))
		return drop(DROP_REWRITE);
	count(MASQUERADED_IN);
	return endpoint_redirect(skb, ep);
}

/* The outside calls a pod by its own address, where it has a route to it: the answers are to keep that. */
static __always_inline void masq_note_direct(struct __sk_buff *skb, struct packet *p)
{
	struct masq row = { .addr = p->ip.daddr, .state = REPLIED, .seen = masq_now() };
	struct flow_key key;
	struct masq *m;
	__u8 tcp;

	if (!node_addr || later_fragment(&p->ip) || !bpf_map_lookup_elem(&endpoints, &p->ip.daddr) || masq_is_exempt(p->ip.saddr))
		return;
	switch (l4_at(skb, p->l4, p->ip.protocol, &p->sport, &p->dport)) {
	case L4_PORTS:
	case L4_QUERY:
		break;
	default:
		return;
	}
	tcp = tcp_flags(skb, p);
	masq_key(&key, p->ip.daddr, p->dport, p->ip.saddr, p->sport, p->ip.protocol, 0);
	m = bpf_map_lookup_elem(&masq_flows, &key);
	if (m && masq_alive(m, key.proto, row.seen)) { /* a flow that the pod began is not turned into another by a stranger's packet */
		if (m->addr == row.addr)
			masq_touch(m, tcp, 1, row.seen);
		return;
	}
	row.port = p->dport;
	bpf_map_update_elem(&masq_flows, &key, &row, BPF_ANY);
}

/* What the node itself sends goes out as it is, and a port that it uses is its own. The kernel's choices are not looked up: no pod has any of
 * them. Echo identifiers belong to no socket that could be found, so the node's are noted. */
static __always_inline void masq_own(struct __sk_buff *skb, struct packet *p)
{
	struct masq row = { .addr = node_addr, .seen = masq_now() };
	struct flow_key back;
	struct masq *m;
	__u32 port;

	if (p->ip.protocol == IPPROTO_ICMP && !later_fragment(&p->ip)) {
		if (l4_at(skb, p->l4, IPPROTO_ICMP, &p->sport, &p->dport) != L4_QUERY)
			return;
		masq_key(&back, p->ip.daddr, 0, node_addr, p->sport, IPPROTO_ICMP, 1);
		row.port = p->sport;
		bpf_map_update_elem(&masq_flows, &back, &row, BPF_ANY);
		return;
	}
	port = bpf_ntohs(p->sport);
	if (!p->ports || (port >= local_first && port <= local_last) || (p->ip.protocol == IPPROTO_TCP && !p->syn))
		return;
	masq_key(&back, p->ip.daddr, p->dport, node_addr, p->sport, p->ip.protocol, 1);
	m = bpf_map_lookup_elem(&masq_flows, &back);
	if (m && m->addr != node_addr)
		bpf_map_delete_elem(&masq_flows, &back);
}

#endif
