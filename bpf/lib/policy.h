/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Network policy: what a flow between two addresses is allowed. Tables that Go writes (policies.go, in an order in which no program meets half a
 * change), and the three looks that judge by them: the subject's row names a rule set, the rule set's row for the identity of the other end a list,
 * and the list's row for the port is the verdict. What flows there are, and which packets are judged, is policyflow.h. */
#ifndef STRAKE_POLICY_H
#define STRAKE_POLICY_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "prefix.h"

#define POLICY_SUBJECTS 8192 /* as ENDPOINTS */
#define POLICY_PEERS 131072
#define POLICY_BLOCKS 65536
#define POLICY_ANSWERS 262144
#define POLICY_PORTS 131072
#define POLICY_NAMES 65536

/* Directions, as in Go: what a pod sends, and what it gets. */
#define EGRESS 0
#define INGRESS 1

enum {
	SUBJECT_FOLLOWED = 1, /* something judges it, in a direction or in shadow, or it keeps flows: its flows have rows */
	SUBJECT_KEEPS = 2,    /* what was allowed once goes on */
};

/* A pod of this node, by one of its addresses. */
struct policy_subject {
	__u32 identity;
	__u32 rules[2];  /* by direction; 0: none */
	__u32 shadow[2]; /* asked beside them, and not followed */
	__u32 flags;
	__u32 born;   /* flows that were judged at revisions before are those of another pod */
	__u32 adopts; /* until then (monotonic clock, seconds) connections are adopted that are older than the pod's isolation */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_SUBJECTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, struct policy_subject);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_subjects SEC(".maps");

/* Identities of others: single addresses, and ranges. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_PEERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_peers SEC(".maps");

struct policy_block {
	__u32 identity;
	__u32 v6; /* a block of IPv6; to the table IPv4 is a part of that, and ::/0 covers it */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, POLICY_BLOCKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, struct policy_block);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_blocks SEC(".maps");

struct policy_answer_key {
	__u32 rules, identity; /* identity 0: all that have no row of their own */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_ANSWERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_answer_key);
	__type(value, __u32); /* list of ports */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_answers SEC(".maps");

#define POLICY_PORT_BITS 56

struct policy_port_key {
	__u32 len; /* of what follows, in bits: 32: every protocol; 40: every port */
	__u32 ports;
	__u8 proto;
	__u8 port[2]; /* network order */
	__u8 pad;
};

enum { TIER_NONE, TIER_ADMIN, TIER_NETWORK_POLICY, TIER_BASELINE };

struct policy_verdict {
	__u32 policy;
	__u16 rule;
	__u8 allow;
	__u8 tier;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, POLICY_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_port_key);
	__type(value, struct policy_verdict);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_ports SEC(".maps");

/* Who a policy is: no program reads it, who explains verdicts does. */
struct policy_name {
	__u8 uid[64];
	__u8 kind[32];
	__u8 namespace[64];
	__u8 name[256];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_NAMES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct policy_name);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_names SEC(".maps");

/* Grows by one with each change, after all new rows are there and before old ones go. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_revision SEC(".maps");

static __always_inline __u32 policy_revision_now(void)
{
	__u32 zero = 0, *n = bpf_map_lookup_elem(&policy_revision, &zero);

	return n ? *(volatile __u32 *)n : 0;
}

/* Set at load: packets of pods are judged, and a pod without a row sends and gets nothing. */
const volatile __u8 policy_on;

/* Set at load: flows are recorded, see policyrecord.h; so many of a kind in a second by processor, besides that all are counted. 0: they are not. */
const volatile __u32 policy_records;

/* Mark of what was judged, on its way into the queue of a pod's interface: strake_to_pod lets it pass. No other packet can have it there: marks don't cross
 * namespaces. */
#define POLICY_MARK 0x53701ce5

/* How a packet, or a flow, is to be judged. */
#define POLICY_SOURCE 1     /* who sends is a pod of this node: its egress counts */
#define POLICY_DEST 2       /* who gets it is: its ingress does */
#define POLICY_TRANSLATED 4 /* s->flow has the ends */
#define POLICY_ERROR 8      /* so, and the packet is an ICMP error about a packet of that flow, translated already */
#define POLICY_NODE 16      /* the node's own stack sends it: ingress is not judged */
#define POLICY_ONCE 32      /* the packet alone: the flow gets no row */
#define POLICY_JUDGED 64    /* it was judged already: the flow gets its row */
#define POLICY_AGAIN 128    /* it was allowed once: who keeps flows is not judged */
#define POLICY_RECALLED 256 /* it is allowed as others before: policyrecall.h */

/* Interfaces behind which nothing is judged, or followed, in a family: what most packets need to know. By the interface and family, at a revision; the
 * latter is the upper half. No interface of a namespace gets the number of another before it. It goes with the programs. */
#define POLICY_FREE 4096

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, POLICY_FREE);
	__type(key, __u32);
	__type(value, __u64);
} policy_free SEC(".maps");

static __always_inline __u64 *policy_free_row(__u32 ifindex, int v6)
{
	__u32 i = (ifindex << 1 | (v6 != 0)) & (POLICY_FREE - 1);

	return bpf_map_lookup_elem(&policy_free, &i);
}

static __always_inline int policy_is_free(__u32 ifindex, int v6, __u32 revision)
{
	__u64 *free = policy_free_row(ifindex, v6);

	return free && *(volatile __u64 *)free == ((__u64)revision << 32 | ifindex);
}

/* policyflow.h: whether the packet at hand is one of a flow that passes at this revision: most are, also those that end it. Then nobody need be looked up: the
 * row changes with a revision if anybody does. */
int policy_knows(struct __sk_buff *skb, __u32 how);

/* policyflow.h: whether the packet at hand, of which somebody may be judged, goes nowhere. to: as below. */
int policy_denies(struct __sk_buff *skb, __u32 how, __u32 to);

/* policyflow.h: records the packet at hand, of which nobody is judged, if it begins a flow. 0. */
int policy_notes(struct __sk_buff *skb, __u32 how);

/* Whether the packet at hand goes nowhere: then the verdict of its drop, else 0. to: the interface of the pod of this node that is to get it, or 0. With
 * POLICY_SOURCE who sends is the pod at this one. */
static __always_inline int policy_check(struct __sk_buff *skb, int v6, __u32 how, __u32 to)
{
	__u32 revision = policy_revision_now();

	if (to)
		how |= POLICY_DEST;
	if ((!(how & POLICY_SOURCE) || policy_is_free(skb->ifindex, v6, revision)) && (!to || policy_is_free(to, v6, revision))) {
		if (policy_records)
			policy_notes(skb, how);
		return 0;
	}
	return policy_knows(skb, how) ? 0 : policy_denies(skb, how, to);
}

/* What came of it. */
#define POLICY_DENIES_EGRESS 1
#define POLICY_DENIES_INGRESS 2
#define POLICY_NO_VERDICT 3

#define POLICY_NO_RULE 0xffff
#define POLICY_SHADOW 2 /* in verdicts: behind those of both directions those of the rule sets in shadow */

struct policy_key {
	struct addr low, high; /* the ends of a flow, as the pods' interfaces see them */
	__be16 low_port, high_port;
	__u8 proto;
	__u8 pad[3];
};

struct policy_flow {
	__u32 seen;     /* the last packet of either direction: monotonic clock, seconds */
	__u32 revision; /* at which it was judged */
	__u32 policy;   /* who decided */
	__u16 rule;
	__u8 state; /* as in conntrack.h */
	__u8 flags;
};

/* Of the flow at hand, as struct scratch is of the packet. */
struct policy_work {
	struct addr from, to; /* of the packet; while it is judged, of the flow */
	__be16 sport, dport;
	__u8 proto, tcp, high, asked; /* high: the sender is the higher end; asked: which verdicts there are, by bits */
	__u32 identity[2];            /* of the other end, by direction */
	__u32 revision;
	__u32 born, adopts;           /* as in the subjects' rows: the later ones */
	__u32 happened, how;          /* for policyrecord.h; 0: nothing that is recorded */
	__u32 before;                 /* there is a row of the flow that begins anew */
	struct policy_verdict verdicts[4];
	struct policy_key key, old_key;
	struct policy_flow flow, old; /* the other one for policytrack.h */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct policy_work);
} policy_works SEC(".maps");

static __always_inline struct policy_work *policy_work(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&policy_works, &zero);
}

/* The identity of an end of the flow at hand that is no subject. */
__u32 __attribute__((noinline)) policy_identity(struct __sk_buff *skb, __u32 of_to)
{
	struct policy_work *w = policy_work();
	struct prefix key = { .len = 128 };
	struct policy_block *block;
	struct addr *addr;
	__u32 *identity;

	if (!skb || !w)
		return 0;
	addr = of_to ? &w->to : &w->from;
	identity = bpf_map_lookup_elem(&policy_peers, addr);
	if (identity)
		return *identity;
	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	block = bpf_map_lookup_elem(&policy_blocks, &key);
	return block && !(block->v6 && addr_mapped(addr)) ? block->identity : 0;
}

/* What a rule set says of the flow at hand, to one of the verdicts: whether it is allowed. Where rows are missing it is not. */
int __attribute__((noinline)) policy_ask(struct __sk_buff *skb, __u32 rules, __u32 identity, __u32 slot)
{
	struct policy_answer_key answer = { .rules = rules, .identity = identity };
	struct policy_port_key port = { .len = POLICY_PORT_BITS };
	struct policy_work *w = policy_work();
	struct policy_verdict *v = 0, *to;
	__u32 *ports;

	if (!skb || !w || slot > 3)
		return 0;
	to = &w->verdicts[slot];
	to->policy = 0;
	to->rule = POLICY_NO_RULE;
	to->allow = 0;
	to->tier = TIER_NONE;
	w->asked |= 1 << slot;
	ports = bpf_map_lookup_elem(&policy_answers, &answer);
	if (!ports && identity) {
		answer.identity = 0;
		ports = bpf_map_lookup_elem(&policy_answers, &answer);
	}
	if (!ports)
		return 0;
	port.ports = *ports;
	port.proto = w->proto;
	if (w->proto == IPPROTO_TCP || w->proto == IPPROTO_UDP || w->proto == IPPROTO_SCTP)
		__builtin_memcpy(port.port, &w->dport, 2);
	v = bpf_map_lookup_elem(&policy_ports, &port);
	if (!v)
		return 0;
	*to = *v;
	if (v->tier == TIER_NETWORK_POLICY && addr_eq(&w->from, &w->to)) /* a pod that gets itself, by a Service: NetworkPolicies let it */
		to->allow = 1;
	return to->allow;
}

/* One direction of the flow at hand, of the pod whose row is own, with the other end: 0 if it is allowed. */
static __always_inline int policy_side(struct __sk_buff *skb, struct policy_work *w, __u32 direction, __u32 how, const struct policy_subject *own, const struct policy_subject *other)
{
	__u32 rules, shadow;
	int denied = 0;

	if (!own)
		return POLICY_NO_VERDICT;
	rules = own->rules[direction];
	shadow = own->shadow[direction];
	if (how & POLICY_AGAIN && own->flags & SUBJECT_KEEPS)
		rules = 0;
	if (rules || shadow)
		w->identity[direction] = other ? other->identity : policy_identity(skb, direction == EGRESS);
	if (rules && !policy_ask(skb, rules, w->identity[direction], direction))
		denied = w->verdicts[direction].policy ? (direction == EGRESS ? POLICY_DENIES_EGRESS : POLICY_DENIES_INGRESS) : POLICY_NO_VERDICT;
	if (shadow)
		policy_ask(skb, shadow, w->identity[direction], POLICY_SHADOW + direction);
	return denied;
}

/* Judges the flow from w->from to w->to, and w->dport of it: 0 if it is allowed. What changes meanwhile is judged once more, so that no verdict is made
 * of rows that are gone. */
int __attribute__((noinline)) policy_judge(struct __sk_buff *skb, __u32 how)
{
	struct policy_subject *from, *to;
	struct policy_work *w = policy_work();
	int egress = 0, ingress = 0;

	if (!skb || !w)
		return POLICY_NO_VERDICT;
	for (int i = 0; i < 2; i++) {
		w->revision = policy_revision_now();
		w->asked = 0;
		egress = ingress = 0;
		from = bpf_map_lookup_elem(&policy_subjects, &w->from);
		to = bpf_map_lookup_elem(&policy_subjects, &w->to);
		if (how & POLICY_SOURCE)
			egress = policy_side(skb, w, EGRESS, how, from, to);
		if (how & POLICY_DEST && !(how & POLICY_NODE))
			ingress = policy_side(skb, w, INGRESS, how, to, from);
		if (policy_revision_now() == w->revision)
			break;
	}
	return egress ? egress : ingress;
}

#endif
