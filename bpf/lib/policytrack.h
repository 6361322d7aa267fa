/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The rows of flows that policies let through. A flow that is allowed gets a row, if somebody judges a pod of this node that has part in it, and by that row
 * all its packets pass. After each change of policies it is judged anew, in the direction in which it began. One that is denied then keeps its row, so
 * that nobody makes a new flow of the other direction's packets. */
#ifndef STRAKE_POLICYTRACK_H
#define STRAKE_POLICYTRACK_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "conntrack.h"
#include "count.h"
#include "policy.h"

#define POLICY_FLOWS 131072
#define POLICY_NEWEST 4096

#define barrier() asm volatile("" ::: "memory")

enum {
	FLOW_HIGH = 1,           /* the higher end began it */
	FLOW_NODE = 2,           /* the node's own stack did: its ingress is not judged */
	FLOW_DENIED = 4,         /* it was allowed once, and is no more */
	FLOW_DENIED_INGRESS = 8, /* in this direction, else by egress */
};

/* Connections that both sides agreed on; all else. As flows_open and flows_passing are, but with one row for a flow. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_key);
	__type(value, struct policy_flow);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_flows_open SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, POLICY_FLOWS);
	__type(key, struct policy_key);
	__type(value, struct policy_flow);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_flows_passing SEC(".maps");

/* Connections as they begin: each has one place by its key, and stays there, in whatever state, until another one that begins wants the place. Then it goes
 * where its state asks for, if it is not over by a reset: behind that nothing comes. So what a short connection needs is one write, where a row of
 * a hash table that comes and goes costs more than all else. What is here is allowed, and counts before the tables above; what is to be judged anew leaves first. */
struct policy_new {
	struct bpf_spin_lock lock; /* who writes has it */
	__u32 tag;                 /* of the key and the revision, 0 while they are written: who reads without the lock sees by it that they belong together */
	struct policy_key key;     /* of protocol 0: the place is free */
	struct policy_flow flow;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, POLICY_NEWEST);
	__uint(map_flags, BPF_F_MMAPABLE); /* nobody maps it, but so it begins at a page, and each place is one line of the cache */
	__type(key, __u32);
	__type(value, struct policy_new);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_places SEC(".maps");

/* Set at load: the last place; they are a power of two. */
const volatile __u32 policy_newest_last;

/* When a connection on which not both sides agreed was last put into the tables above, or found there by a SYN that is sent again: monotonic clock, seconds; 0:
 * never. Several share a time. Only such a row says more of a SYN than its verdict: that it begins nothing. It goes with the programs: who has no time yet is
 * counted once more if he sends his SYN again. */
#define POLICY_BEGUN 16384 /* a power of two */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, POLICY_BEGUN);
	__type(key, __u32);
	__type(value, __u32);
} policy_begun SEC(".maps");

/* When policy_flows_open had no room last, as flows_full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_flows_full SEC(".maps");

/* What a row says of who decided. */
static __always_inline void policy_decided(struct policy_flow *f, const struct policy_work *w, __u32 direction)
{
	f->policy = w->asked >> direction & 1 ? w->verdicts[direction].policy : 0;
	f->rule = f->policy ? w->verdicts[direction].rule : POLICY_NO_RULE;
}

#define DENIED_LIFE 240 /* seconds: who is denied ends nothing, and his row is but to spare a judgement */

static __always_inline int policy_alive(const struct policy_flow *f, __u8 proto, __u32 now)
{
	__u32 life = flow_life(f->state, proto);

	if (f->flags & FLOW_DENIED && life > DENIED_LIFE)
		life = DENIED_LIFE;
	return (__s32)(now - f->seen) <= (__s32)life;
}

/* Ports and protocol as a key has them. */
static __always_inline __u64 policy_ports_of(__be16 low_port, __be16 high_port, __u8 proto)
{
	return low_port | (__u64)high_port << 16 | (__u64)proto << 32;
}

/* The same for both directions. */
static __always_inline __u64 policy_hash(const struct addr *a, __be16 a_port, const struct addr *b, __be16 b_port)
{
	__u64 h = a->d[1] + b->d[1] + (a->d[0] + b->d[0]) * 3;

	h ^= (__u32)(a_port + b_port) << 16 | (a_port ^ b_port);
	return (h ^ h >> 32) * 0x9e3779b97f4a7c15;
}

static __always_inline __u64 policy_key_hash(const struct policy_key *key)
{
	return policy_hash(&key->low, key->low_port, &key->high, key->high_port);
}

static __always_inline __u32 *policy_begun_at(__u64 hash)
{
	__u32 i = hash >> 36 & (POLICY_BEGUN - 1);

	return bpf_map_lookup_elem(&policy_begun, &i);
}

/* The connection of a key, on which not both sides agreed, has a row in the tables. */
static __always_inline void policy_begins(const struct policy_key *key, __u32 now)
{
	__u32 *begun = policy_begun_at(policy_key_hash(key));

	if (begun && *begun != now)
		*begun = now;
}

#define BEGUN_LATELY 256 /* seconds: longer than such a row lives */

/* Whether a connection may have such a row. */
static __always_inline int policy_begun_lately(__u64 hash, __u32 now)
{
	__u32 *begun = policy_begun_at(hash);

	return !begun || (*begun && now - *begun <= BEGUN_LATELY);
}

/* Puts a row into the table that its state asks for. Where policy_flows_open is full it stays in the other one, where it may be pushed out and be
 * judged anew, and the agent is told. */
static __always_inline void policy_store(const struct policy_key *key, const struct policy_flow *flow)
{
	__u32 zero = 0, *full;

	if (flow_has_connection(key->proto) && !(flow->state & FLOW_AGREED))
		policy_begins(key, seconds_now());
	if (!flow_is_open(flow->state, key->proto)) {
		bpf_map_update_elem(&policy_flows_passing, key, flow, BPF_ANY);
		if (flow_has_connection(key->proto) && bpf_map_lookup_elem(&policy_flows_open, key)) /* the look takes no lock */
			bpf_map_delete_elem(&policy_flows_open, key);
		return;
	}
	if (!bpf_map_update_elem(&policy_flows_open, key, flow, BPF_ANY)) {
		bpf_map_delete_elem(&policy_flows_passing, key);
		return;
	}
	bpf_map_update_elem(&policy_flows_passing, key, flow, BPF_ANY);
	count(POLICY_FLOWS_FULL);
	full = bpf_map_lookup_elem(&policy_flows_full, &zero);
	if (full && *full != flow->seen) {
		*full = flow->seen;
		bpf_ringbuf_output(&flows_events, full, sizeof(*full), 0);
	}
}

int __attribute__((noinline)) policy_put(struct __sk_buff *skb)
{
	struct policy_work *w = policy_work();

	if (skb && w)
		policy_store(&w->key, &w->flow);
	return 0;
}

/* Puts the connection that was found in a place of policy_places, w->old. */
int __attribute__((noinline)) policy_put_old(struct __sk_buff *skb)
{
	struct policy_work *w = policy_work();

	if (skb && w && w->old_key.proto)
		policy_store(&w->old_key, &w->old);
	return 0;
}

static __always_inline struct policy_new *policy_new_at(__u64 hash)
{
	__u32 i = hash >> 40 & policy_newest_last;

	return bpf_map_lookup_elem(&policy_places, &i);
}

static __always_inline __u32 policy_tag(__u64 hash, __u32 revision)
{
	return ((__u32)(hash >> 8) ^ revision * 0x85ebca6b) | 1;
}

/* 0 if a key is that of these ends. */
static __always_inline __u64 policy_key_differs(const struct policy_key *key, const struct addr *low, const struct addr *high, __u64 ports)
{
	__u64 has;

	__builtin_memcpy(&has, &key->low_port, sizeof(has));
	return (key->low.d[0] ^ low->d[0]) | (key->low.d[1] ^ low->d[1]) | (key->high.d[0] ^ high->d[0]) | (key->high.d[1] ^ high->d[1]) | (has ^ ports);
}

static __always_inline int policy_key_eq(const struct policy_key *a, const struct policy_key *b)
{
	return !policy_key_differs(a, &b->low, &b->high, policy_ports_of(b->low_port, b->high_port, b->proto));
}

static __always_inline int policy_flow_eq(const struct policy_flow *a, const struct policy_flow *b)
{
	return a->seen == b->seen && a->revision == b->revision && a->state == b->state && a->flags == b->flags;
}

/* Gives the connection at hand, w->flow, its place. Who is there and may still be needed is copied to w->old instead, unless he is that already. */
static __always_inline int policy_take_place(struct policy_new *n, struct policy_work *w, __u32 tag)
{
	int free;

	bpf_spin_lock(&n->lock);
	free = !n->key.proto || n->flow.state & FLOW_RESET || policy_key_eq(&n->key, &w->key) || !policy_alive(&n->flow, n->key.proto, w->flow.seen);
	if (!free)
		free = policy_key_eq(&n->key, &w->old_key) && policy_flow_eq(&n->flow, &w->old);
	if (free) {
		*(volatile __u32 *)&n->tag = 0;
		barrier();
		n->key = w->key;
		n->flow = w->flow;
		barrier();
		*(volatile __u32 *)&n->tag = tag;
	} else {
		w->old_key = n->key;
		w->old = n->flow;
	}
	bpf_spin_unlock(&n->lock);
	return free;
}

/* Puts w->flow, which begins, in its place: whether it is there. If not, w->old is to be put elsewhere first. */
int __attribute__((noinline)) policy_placed(struct __sk_buff *skb)
{
	struct policy_work *w = policy_work();
	struct policy_new *n;
	__u64 hash;

	if (!skb || !w)
		return 0;
	hash = policy_key_hash(&w->key);
	n = policy_new_at(hash);
	if (!n || !policy_take_place(n, w, policy_tag(hash, w->flow.revision)))
		return 0;
	if (w->before) {
		bpf_map_delete_elem(&policy_flows_open, &w->key);
		bpf_map_delete_elem(&policy_flows_passing, &w->key);
	}
	return 1;
}

/* The connection of w->old_key has kept its place after all, where it goes on: what was put elsewhere would only grow old, and leaves. Returns 1 if it has left
 * its place by now, and is to be put elsewhere again. */
int __attribute__((noinline)) policy_take_back(struct __sk_buff *skb)
{
	struct policy_work *w = policy_work();
	struct policy_new *n;

	if (!skb || !w)
		return 0;
	bpf_map_delete_elem(&policy_flows_open, &w->old_key);
	bpf_map_delete_elem(&policy_flows_passing, &w->old_key);
	n = policy_new_at(policy_key_hash(&w->old_key));
	return n && !policy_key_eq(&n->key, &w->old_key);
}

/* Puts w->flow, which begins, where it belongs. */
static __always_inline int policy_put_new(struct __sk_buff *skb, struct policy_work *w)
{
	if (!flow_has_connection(w->key.proto) || flow_is_over(w->flow.state))
		return policy_put(skb);
	w->old_key.proto = 0;
	if (policy_placed(skb))
		return 0;
	policy_put_old(skb); /* before it leaves, so that each packet finds it */
	if (policy_placed(skb))
		return 0;
	if (policy_take_back(skb)) /* a packet of it came meanwhile */
		policy_put_old(skb);
	return policy_put(skb);
}

/* The connection of w->key leaves policy_places, if it is there, and its row goes where those of others are. */
int __attribute__((noinline)) policy_settle(struct __sk_buff *skb)
{
	struct policy_work *w = policy_work();
	struct policy_new *n;
	int there;

	if (!skb || !w || !flow_has_connection(w->key.proto))
		return 0;
	n = policy_new_at(policy_key_hash(&w->key));
	if (!n || !policy_key_eq(&n->key, &w->key)) /* most, and it comes here by its first packet alone */
		return 0;
	bpf_spin_lock(&n->lock);
	there = policy_key_eq(&n->key, &w->key);
	if (there)
		w->old = n->flow;
	bpf_spin_unlock(&n->lock);
	if (!there)
		return 0;
	w->old_key = w->key;
	if (policy_alive(&w->old, w->key.proto, seconds_now()))
		policy_put_old(skb);
	bpf_spin_lock(&n->lock);
	if (policy_key_eq(&n->key, &w->old_key) && policy_flow_eq(&n->flow, &w->old))
		n->key.proto = 0;
	bpf_spin_unlock(&n->lock);
	return 0;
}

/* Whether a packet that begins nothing is one of a connection that has its place and passes at this revision. */
static __always_inline int policy_newest_knows(const struct addr *from, __be16 sport, const struct addr *to, __be16 dport, __u8 proto, __u8 tcp, __u32 now)
{
	__u64 ports = policy_ports_of(sport, dport, proto), back = policy_ports_of(dport, sport, proto);
	__u64 hash = policy_hash(from, sport, to, dport), straight;
	struct policy_new *n = policy_new_at(hash);
	__u32 revision = policy_revision_now();
	int known = 0;
	__u8 state;

	if (!n)
		return 0;
	straight = policy_key_differs(&n->key, from, to, ports);
	if (straight && policy_key_differs(&n->key, to, from, back)) /* its place is written before and behind all packets that come here */
		return 0;
	barrier();
	state = n->flow.state;
	/* Where both sides agreed their packets change nothing, but those that end it, and the first one behind a stranger's RST. */
	if ((state & (FLOW_REPLIED | FLOW_AGREED | FLOW_RESET)) == (FLOW_REPLIED | FLOW_AGREED) && !(tcp & (TCP_FIN | TCP_RST)) && n->flow.seen == now) {
		barrier();
		if (*(volatile __u32 *)&n->tag == policy_tag(hash, revision))
			return 1;
	}
	bpf_spin_lock(&n->lock);
	if (!(straight ? policy_key_differs(&n->key, to, from, back) : policy_key_differs(&n->key, from, to, ports)) && n->flow.revision == revision && policy_alive(&n->flow, proto, now)) {
		state = flow_next(n->flow.state, tcp, !(n->flow.flags & FLOW_HIGH) != !straight);
		if (n->flow.state != state)
			n->flow.state = state;
		if (n->flow.seen != now)
			n->flow.seen = now;
		known = 1;
	}
	bpf_spin_unlock(&n->lock);
	return known;
}

/* A packet of a flow that passes was seen, in a state that it makes: the row is in the table for open ones, or not. */
static __always_inline void policy_goes_on(struct __sk_buff *skb, struct policy_work *w, struct policy_flow *f, __u8 state, __u32 now, int open)
{
	if (state == f->state && now == f->seen)
		return;
	if (flow_is_open(state, w->key.proto) != open) {
		w->flow = *f;
		w->flow.state = state;
		w->flow.seen = now;
		policy_put(skb);
		return;
	}
	if (f->state != state)
		f->state = state;
	if (f->seen != now)
		f->seen = now;
}

#endif
