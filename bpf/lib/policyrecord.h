/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A record of flows: each new one, and each packet that policies drop, is counted by its class, and told to the agent.
 *
 * The counts are exact, but for what a full table has no room for, which is counted too. What is told are samples: of each class the first, and as many
 * of a kind in a second by processor as the agent wants. What it is not told is counted as well. */
#ifndef STRAKE_POLICYRECORD_H
#define STRAKE_POLICYRECORD_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "conntrack.h"
#include "endpoint.h"
#include "fragment.h"
#include "masq.h"
#include "parse.h"
#include "policy.h"
#include "policyends.h"
#include "reverse.h"
#include "tunnel.h"

#define POLICY_CLASSES 65536
#define POLICY_SEEN 32768
#define POLICY_EVENTS (1 << 20) /* bytes; a multiple of the page size */

/* What happened to the flow at hand. */
enum {
	RECORD_NEW = 1, /* it began */
	RECORD_DROP,    /* a packet of it was denied */
	RECORD_AGAIN,   /* it was judged anew, and is still allowed */
	RECORD_FIRST,   /* any of these, and there was none of its class before */
};

#define RECORD_MIDDLE 8 /* the packet is one of a connection that nobody knows: which of its ports is the server's is unknown, too */
#define RECORD_KIND(what) ((what) & 7)
#define RECORD_DENIED(what) ((what) >> 8) /* POLICY_DENIES_EGRESS ... */
#define RECORD_DENIES(denied) (RECORD_DROP | (denied) << 8)

/* What flows have in common that are counted together. Addresses are those of pods and nodes, and those outside that pods ask; who asks pods from outside
 * is known by his network: the upper 24 bits, of IPv6 64. */
struct policy_class {
	struct addr from, to;
	struct policy_verdict verdicts[4]; /* those that were asked; of the rest nothing is set */
	__be16 port;                       /* of to; 0: the protocol has none, or RECORD_MIDDLE */
	__u8 proto;
	__u8 how;    /* which ends are pods of this node, and whether this node sends: POLICY_SOURCE, POLICY_DEST, POLICY_NODE */
	__u8 asked;
	__u8 denied; /* 0: allowed */
	__u8 net;    /* from is a network */
	__u8 pad;
};

struct policy_count {
	__u64 flows;   /* that began */
	__u64 again;   /* that were judged anew, and are still allowed */
	__u64 packets; /* that were denied */
	__u64 bytes;   /* of all of these packets */
	__u64 first, last; /* monotonic clock, ns */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_CLASSES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_class);
	__type(value, struct policy_count);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_classes SEC(".maps");

/* As bpf/policyrecord.go reads it. */
struct policy_event {
	__u64 time; /* monotonic clock, ns */
	struct addr from, to;
	struct addr front; /* what was asked for before it became that; all zero: this */
	__be16 sport, dport, front_port;
	__u8 proto;
	__u8 what;
	__u32 length; /* of the packet with its Ethernet header */
	__u32 ifindex;
	struct policy_verdict verdicts[4];
	__u8 how, asked, denied;
	__u8 pad[5];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, POLICY_EVENTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_events SEC(".maps");

/* Room for the class at hand, and how many samples of each kind are left in this second. */
struct policy_recorder {
	struct policy_class class;
	struct policy_count none;
	__u64 second;
	__u32 left[RECORD_FIRST + 1];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct policy_recorder);
} policy_recorders SEC(".maps");

/* Flows of whom nobody judges: rows of policy_flows_* they have none. A SYN that is sent again has the number of the first. */
struct policy_seen {
	__u32 seen; /* monotonic clock, seconds */
	__u32 number;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, POLICY_SEEN);
	__type(key, struct policy_key);
	__type(value, struct policy_seen);
} policy_seen SEC(".maps");

/* Whether an address is of the cluster's, or this node's. */
static __always_inline int policy_is_ours(const struct addr *addr)
{
	struct addr node = node_of(!addr_mapped(addr));

	return addr_eq(addr, &node) || bpf_map_lookup_elem(&endpoints, addr) || remote_of(addr);
}

static __always_inline void policy_class_of(struct policy_class *c, const struct policy_work *w)
{
	int ported = w->proto == IPPROTO_TCP || w->proto == IPPROTO_UDP || w->proto == IPPROTO_SCTP;

	__builtin_memset(c, 0, sizeof(*c));
	c->from = w->from;
	c->to = w->to;
	if (!(w->how & (POLICY_SOURCE | POLICY_NODE)) && !policy_is_ours(&c->from)) {
		c->net = 1;
		if (addr_mapped(&c->from))
			c->from.b[15] = 0;
		else
			c->from.d[1] = 0;
	}
	if (ported && !(w->happened & RECORD_MIDDLE))
		c->port = w->dport;
	c->proto = w->proto;
	c->how = w->how & (POLICY_SOURCE | POLICY_DEST | POLICY_NODE);
	c->asked = w->asked;
	c->denied = RECORD_DENIED(w->happened);
	for (int i = 0; i < 4; i++)
		if (w->asked >> i & 1)
			c->verdicts[i] = w->verdicts[i];
}

/* Whether one more of a kind is to be told. */
static __always_inline int policy_samples(struct policy_recorder *r, __u32 kind, __u64 now)
{
	__u64 second = now / 1000000000;

	if (r->second != second) {
		r->second = second;
		for (int i = 0; i <= RECORD_FIRST; i++)
			r->left[i] = policy_records;
	}
	if (kind > RECORD_FIRST || !r->left[kind])
		return 0;
	r->left[kind]--;
	return 1;
}

/* What the flow at hand asked for before the translation of Services: the packet has it, or the socket's row. */
static __always_inline void policy_front(struct __sk_buff *skb, const struct policy_work *w, struct policy_event *e)
{
	struct socket_key key = { .addr = w->to, .port = w->dport, .row = ROW_REVERSE };
	struct scratch *s = scratch();
	struct peer *asked;

	e->front.d[0] = e->front.d[1] = 0;
	e->front_port = 0;
	if (s && w->how & POLICY_TRANSLATED && s->flow.service && !s->key.reply) {
		e->front = s->p.daddr;
		e->front_port = s->p.dport;
	} else if (w->how & POLICY_SOURCE) {
		key.cookie = bpf_get_socket_cookie(skb);
		asked = bpf_map_lookup_elem(&sock_reverse, &key);
		if (asked) {
			e->front = asked->addr;
			e->front_port = asked->port;
		}
	}
}

int __attribute__((noinline)) policy_tell(struct __sk_buff *skb)
{
	struct policy_work *w = policy_work();
	struct policy_event *e;

	if (!skb || !w)
		return 0;
	e = bpf_ringbuf_reserve(&policy_events, sizeof(*e), 0);
	if (!e) {
		count(POLICY_RECORDS_LOST);
		return 0;
	}
	e->time = bpf_ktime_get_ns();
	e->from = w->from;
	e->to = w->to;
	e->sport = w->sport;
	e->dport = w->dport;
	e->proto = w->proto;
	e->what = w->happened;
	e->length = skb->len;
	e->ifindex = skb->ifindex;
	e->how = w->how & (POLICY_SOURCE | POLICY_DEST | POLICY_NODE);
	e->asked = w->asked;
	e->denied = RECORD_DENIED(w->happened);
	__builtin_memset(e->pad, 0, sizeof(e->pad));
	__builtin_memcpy(e->verdicts, w->verdicts, sizeof(e->verdicts));
	policy_front(skb, w, e);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Records what happened to the flow at hand, which policy_work has in the direction in which it began. */
int __attribute__((noinline)) policy_record(struct __sk_buff *skb)
{
	struct policy_work *w = policy_work();
	__u64 now = bpf_ktime_get_ns();
	struct policy_recorder *r;
	struct policy_count *n;
	__u32 zero = 0, kind;

	r = bpf_map_lookup_elem(&policy_recorders, &zero);
	if (!skb || !w || !r)
		return 0;
	kind = RECORD_KIND(w->happened);
	policy_class_of(&r->class, w);
	n = bpf_map_lookup_elem(&policy_classes, &r->class);
	if (!n) {
		r->none.first = now;
		if (!bpf_map_update_elem(&policy_classes, &r->class, &r->none, BPF_NOEXIST))
			kind = RECORD_FIRST;
		n = bpf_map_lookup_elem(&policy_classes, &r->class);
	}
	if (n) {
		__sync_fetch_and_add(RECORD_KIND(w->happened) == RECORD_DROP ? &n->packets : RECORD_KIND(w->happened) == RECORD_AGAIN ? &n->again : &n->flows, 1);
		__sync_fetch_and_add(&n->bytes, skb->len);
		n->last = now;
	} else {
		count(POLICY_CLASSES_FULL);
	}
	if (policy_samples(r, kind, now))
		return policy_tell(skb);
	count(POLICY_RECORDS_SKIPPED);
	return 0;
}

static __always_inline void policy_happened(struct policy_work *w, __u32 how, __u32 what)
{
	if (RECORD_KIND(what) == RECORD_DROP && flow_has_connection(w->proto) && !(w->tcp & TCP_SYN))
		what |= RECORD_MIDDLE;
	w->happened = what;
	w->how = how;
}

/* Whether a flow that nobody judges was recorded already, or else that it is now. number: of its first packet. */
static __always_inline int policy_saw(const struct policy_key *key, __u32 number)
{
	struct policy_seen *was = bpf_map_lookup_elem(&policy_seen, key), now = { .seen = seconds_now(), .number = number };

	if (was && was->number == number && (__s32)(now.seen - was->seen) <= 180) {
		if (was->seen != now.seen)
			was->seen = now.seen;
		return 1;
	}
	bpf_map_update_elem(&policy_seen, key, &now, BPF_ANY);
	return 0;
}

/* By its sequence number, or an INIT's tag, which are there twice in no two connections. */
static __always_inline __u32 policy_number(struct __sk_buff *skb, const struct packet *p)
{
	__u32 number = 0;

	if (flow_has_connection(p->proto) && bpf_skb_load_bytes(skb, p->l4 + (p->proto == IPPROTO_TCP ? 4 : 16), &number, 4))
		return 0;
	return number;
}

int __attribute__((noinline)) policy_notes(struct __sk_buff *skb, __u32 how)
{
	struct scratch *s = scratch();
	struct policy_work *w;
	struct packet *p;
	enum l4 kind;

	if (!skb || !s)
		return 0;
	p = &s->p;
	if (p->ports && p->proto != IPPROTO_UDP && !tcp_opens(p->tcp)) /* most are */
		return 0;
	w = policy_work();
	if (!w || p->later || how & POLICY_ERROR)
		return 0;
	if (!p->ports) {
		kind = l4_of(skb, p);
		if (kind == L4_ERROR || kind == L4_SHORT || (!(how & (POLICY_SOURCE | POLICY_TRANSLATED)) && policy_spares(skb, p)))
			return 0;
		if (flow_has_connection(p->proto) && !tcp_opens(p->tcp))
			return 0;
	}
	policy_ends(w, s, how);
	w->proto = p->proto;
	w->tcp = flow_has_connection(p->proto) ? p->tcp : 0;
	w->sport = p->sport;
	w->dport = p->dport;
	if (how & POLICY_TRANSLATED)
		policy_translated(w, s);
	policy_key_of(&w->key, &w->from, w->sport, &w->to, w->dport, w->proto, policy_is_low(&w->from, w->sport, &w->to, w->dport));
	if (!(how & POLICY_ONCE) && policy_saw(&w->key, policy_number(skb, p)))
		return 0;
	if (how & POLICY_JUDGED)
		return 0;
	w->asked = 0;
	policy_happened(w, how, RECORD_NEW);
	policy_record(skb);
	w->happened = 0;
	return 0;
}

/* Records that a pod has no row. */
static __always_inline void policy_without_verdict(struct policy_work *w, const struct scratch *s, __u32 how)
{
	w->proto = s->p.proto;
	w->tcp = s->p.ports && flow_has_connection(s->p.proto) ? s->p.tcp : 0;
	w->sport = s->p.ports ? s->p.sport : 0;
	w->dport = s->p.ports ? s->p.dport : 0;
	if (how & POLICY_TRANSLATED)
		policy_translated(w, s);
	w->asked = 0;
	policy_happened(w, how, RECORD_DENIES(POLICY_NO_VERDICT));
}

#endif
