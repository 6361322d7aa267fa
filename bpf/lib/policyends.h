/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The ends of the packet at hand as policies see them, and the key of its flow's row. */
#ifndef STRAKE_POLICYENDS_H
#define STRAKE_POLICYENDS_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "conntrack.h"
#include "parse.h"
#include "policy.h"

/* The ends of the packet at hand, as they are judged. */
static __always_inline void policy_ends(struct policy_work *w, const struct scratch *s, __u32 how)
{
	w->from = how & POLICY_TRANSLATED ? s->flow.saddr : s->p.saddr;
	w->to = how & (POLICY_TRANSLATED | POLICY_ERROR) ? s->flow.daddr : s->p.daddr;
	if (how & POLICY_TRANSLATED && how & POLICY_SOURCE && addr_eq(&s->flow.daddr, &s->p.saddr)) /* it got itself, as the node's */
		w->from = s->p.saddr;
}

static __always_inline void policy_translated(struct policy_work *w, const struct scratch *s)
{
	if (!addr_eq(&w->from, &w->to))
		w->sport = s->flow.sport;
	w->dport = s->flow.dport;
}

/* The other end as who begins the flow at hand. */
static __always_inline __u32 policy_turn(struct policy_work *w, __u32 how)
{
	struct addr from = w->from;
	__be16 sport = w->sport;

	w->from = w->to;
	w->to = from;
	w->sport = w->dport;
	w->dport = sport;
	return (how & ~(POLICY_SOURCE | POLICY_DEST)) | (how & POLICY_SOURCE ? POLICY_DEST : 0) | (how & POLICY_DEST ? POLICY_SOURCE : 0);
}

static __always_inline void policy_key_of(struct policy_key *key, const struct addr *a, __be16 a_port, const struct addr *b, __be16 b_port, __u8 proto, int a_is_low)
{
	key->low = a_is_low ? *a : *b;
	key->high = a_is_low ? *b : *a;
	key->low_port = a_is_low ? a_port : b_port;
	key->high_port = a_is_low ? b_port : a_port;
	key->proto = proto;
	key->pad[0] = key->pad[1] = key->pad[2] = 0;
}

static __always_inline int policy_is_low(const struct addr *a, __be16 a_port, const struct addr *b, __be16 b_port)
{
	if (a->d[0] != b->d[0])
		return a->d[0] < b->d[0];
	if (a->d[1] != b->d[1])
		return a->d[1] < b->d[1];
	return a_port <= b_port;
}

/* What IPv6 does not work without (RFC 4890 4.4.1) is not for policies, as PassesAlways of netpol says; its errors are those of flows.
 * Not asked of what a pod sends: pods are on no link with each other. */
static __always_inline int policy_spares(struct __sk_buff *skb, const struct packet *p)
{
	__u8 type;

	if (p->proto != IPPROTO_ICMP6 || !p->v6 || bpf_skb_load_bytes(skb, p->l4, &type, 1))
		return 0;
	return (type >= 130 && type <= 137) || (type >= 141 && type <= 143) || type == 148 || type == 149 || (type >= 151 && type <= 153);
}

#endif
