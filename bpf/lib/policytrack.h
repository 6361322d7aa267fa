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

enum {
	FLOW_HIGH = 1,           /* the higher end began it */
	FLOW_NODE = 2,           /* the node's own stack did: its ingress is not judged */
	FLOW_DENIED = 4,         /* it was allowed once, and is no more */
	FLOW_DENIED_INGRESS = 8, /* in this direction, else by egress */
	FLOW_NEWEST = 16,        /* it is in policy_newest */
};

/* Connections that both sides agreed on; all else. As flows_open and flows_passing are, but with one row for a flow, and policy_flows_open has the newest
 * connections too: whoever begins a million of those pushes out others of their kind, and they go where all else is. */
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

/* The connections that began last on a processor, in a ring. Their rows are in policy_flows_open from the first packet on until others come in their place, in
 * whatever state they are: so a short connection has its row written once, where moving it costs more than all else. Of any size; it goes with the
 * programs, and rows that it forgets so are swept by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct policy_key);
} policy_newest SEC(".maps");

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

static __always_inline struct policy_flow *policy_flow_row(const struct policy_key *key)
{
	struct policy_flow *f = flow_has_connection(key->proto) ? bpf_map_lookup_elem(&policy_flows_open, key) : 0;

	return f ? f : bpf_map_lookup_elem(&policy_flows_passing, key);
}

#define DENIED_LIFE 240 /* seconds: who is denied ends nothing, and his row is but to spare a judgement */

static __always_inline int policy_alive(const struct policy_flow *f, __u8 proto, __u32 now)
{
	__u32 life = flow_life(f->state, proto);

	if (f->flags & FLOW_DENIED && life > DENIED_LIFE)
		life = DENIED_LIFE;
	return (__s32)(now - f->seen) <= (__s32)life;
}

/* Puts w->flow into the table that its state asks for. Where policy_flows_open is full it stays in the other one, where it may be pushed out and be
 * judged anew, and the agent is told. */
int __attribute__((noinline)) policy_put(struct __sk_buff *skb)
{
	struct policy_work *w = policy_work();
	__u32 zero = 0, *full;

	if (!skb || !w)
		return 0;
	if (!flow_is_open(w->flow.state, w->key.proto)) {
		bpf_map_update_elem(&policy_flows_passing, &w->key, &w->flow, BPF_ANY);
		if (flow_has_connection(w->key.proto) && bpf_map_lookup_elem(&policy_flows_open, &w->key)) /* the look takes no lock */
			bpf_map_delete_elem(&policy_flows_open, &w->key);
		return 0;
	}
	if (!bpf_map_update_elem(&policy_flows_open, &w->key, &w->flow, BPF_ANY)) {
		bpf_map_delete_elem(&policy_flows_passing, &w->key);
		return 0;
	}
	bpf_map_update_elem(&policy_flows_passing, &w->key, &w->flow, BPF_ANY);
	count(POLICY_FLOWS_FULL);
	full = bpf_map_lookup_elem(&policy_flows_full, &zero);
	if (full && *full != w->flow.seen) {
		*full = w->flow.seen;
		bpf_ringbuf_output(&flows_events, full, sizeof(*full), 0);
	}
	return 0;
}

/* Puts the connection at hand into the ring in the place of the one there. That one's row stays if it is open. Else it goes to policy_flows_passing, if answers
 * or what comes late may need it: behind a reset so much later nothing does. */
int __attribute__((noinline)) policy_replace_newest(struct __sk_buff *skb)
{
	struct policy_work *w = policy_work();
	struct policy_key *key;
	struct policy_flow *f;
	__u32 i;

	if (!skb || !w)
		return -1;
	i = w->newest;
	key = bpf_map_lookup_elem(&policy_newest, &i);
	if (!key) { /* the ring's end */
		i = 0;
		key = bpf_map_lookup_elem(&policy_newest, &i);
		if (!key)
			return -1;
	}
	w->newest = i + 1;
	f = key->proto ? bpf_map_lookup_elem(&policy_flows_open, key) : 0;
	if (f && f->flags & FLOW_NEWEST) {
		f->flags &= ~FLOW_NEWEST;
		if (!flow_is_open(f->state, key->proto)) {
			if (!(f->state & FLOW_RESET) && policy_alive(f, key->proto, w->flow.seen))
				bpf_map_update_elem(&policy_flows_passing, key, f, BPF_ANY);
			bpf_map_delete_elem(&policy_flows_open, key);
		}
	}
	*key = w->key;
	return 0;
}

/* Puts w->flow, which begins, into a table. */
int __attribute__((noinline)) policy_put_new(struct __sk_buff *skb)
{
	struct policy_work *w = policy_work();

	if (!skb || !w)
		return 0;
	if (flow_has_connection(w->key.proto) && !flow_is_over(w->flow.state) && !policy_replace_newest(skb)) {
		w->flow.flags |= FLOW_NEWEST;
		if (!bpf_map_update_elem(&policy_flows_open, &w->key, &w->flow, BPF_ANY)) {
			if (bpf_map_lookup_elem(&policy_flows_passing, &w->key)) /* the look takes no lock */
				bpf_map_delete_elem(&policy_flows_passing, &w->key);
			return 0;
		}
		w->flow.flags &= ~FLOW_NEWEST;
	}
	return policy_put(skb);
}

/* A packet of a flow that passes was seen, in a state that it makes: the row is in the table for open ones, or not. */
static __always_inline void policy_goes_on(struct __sk_buff *skb, struct policy_work *w, struct policy_flow *f, __u8 state, __u32 now, int open)
{
	if (state == f->state && now == f->seen)
		return;
	if (flow_is_open(state, w->key.proto) != open && !(f->flags & FLOW_NEWEST)) {
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
