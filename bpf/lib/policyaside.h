/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What concerns flows and is no packet of theirs that has ports: ICMP errors about them, and fragments but the first. */
#ifndef STRAKE_POLICYASIDE_H
#define STRAKE_POLICYASIDE_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "conntrack.h"
#include "fragment.h"
#include "masq.h"
#include "parse.h"
#include "policy.h"
#include "policyends.h"
#include "policytrack.h"

#define POLICY_FRAGMENTS 8192

/* When a first fragment was let through, by the addresses that it had: monotonic clock, seconds. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, POLICY_FRAGMENTS);
	__type(key, struct fragment_key);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_fragments SEC(".maps");

/* Whether the error at hand is about a packet of a flow that passes. */
int __attribute__((noinline)) policy_knows_error(struct __sk_buff *skb, __u32 how)
{
	struct policy_work *w = policy_work();
	struct scratch *s = scratch();
	struct policy_flow *f;
	__be16 sport, dport;
	struct quoted *q;
	struct packet *p;
	enum l4 kind;

	if (!skb || !s || !w)
		return 0;
	p = &s->p;
	q = &s->quoted;
	if (how & POLICY_ERROR) {
		/* Of a flow to a frontend the row has who asked and the backend: an error about a question tells them as it came, one about an answer
		 * behind the translation. */
		if (s->flow.service && s->key.reply)
			policy_key_of(&w->key, &s->key.saddr, s->key.sport, &s->key.daddr, s->key.dport, s->key.proto, policy_is_low(&s->key.saddr, s->key.sport, &s->key.daddr, s->key.dport));
		else
			policy_key_of(&w->key, &s->flow.saddr, s->flow.sport, &s->flow.daddr, s->flow.dport, s->key.proto, policy_is_low(&s->flow.saddr, s->flow.sport, &s->flow.daddr, s->flow.dport));
	} else {
		if (quoted_at(skb, p->l4 + ICMP_HEADER, p->v6, q))
			return 0;
		/* It is for who sent what it is about; routers tell of others' packets, pods of those that they got. */
		if (!addr_eq(&q->saddr, &p->daddr) || (how & POLICY_SOURCE && !addr_eq(&q->daddr, &p->saddr)))
			return 0;
		kind = l4_at(skb, q->l4, q->proto, p->v6, &sport, &dport);
		if (kind == L4_SHORT)
			return 0;
		policy_key_of(&w->key, &q->saddr, sport, &q->daddr, dport, q->proto, policy_is_low(&q->saddr, sport, &q->daddr, dport));
	}
	policy_settle(skb);
	f = flow_has_connection(w->key.proto) ? bpf_map_lookup_elem(&policy_flows_open, &w->key) : 0;
	if (!f)
		f = bpf_map_lookup_elem(&policy_flows_passing, &w->key);
	return f && policy_alive(f, w->key.proto, seconds_now()) && !(f->flags & FLOW_DENIED);
}

/* Whether the first of the fragments of which this is one was let through. */
int __attribute__((noinline)) policy_knows_fragment(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct fragment_key key;
	__u32 *known;

	if (!skb || !s)
		return 0;
	fragment_key_of(&s->p, &key);
	known = bpf_map_lookup_elem(&policy_fragments, &key);
	return known && (__s32)(seconds_now() - *known) <= FRAGMENT_LIFE;
}

int __attribute__((noinline)) policy_note_fragment(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct fragment_key key;
	__u32 now = seconds_now();

	if (!skb || !s)
		return 0;
	fragment_key_of(&s->p, &key);
	return bpf_map_update_elem(&policy_fragments, &key, &now, BPF_ANY);
}

#endif
