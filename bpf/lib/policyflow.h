/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which packets are judged, and what flows they make (policytrack.h). Packets are judged where they leave a pod of this node or are on their way to one, once, behind
 * the translation of Services, by the ends that the pods' interfaces see. These are all ways of a packet to a pod:
 * - from a pod: straight (strake_pod), to a Service (service_send), as a backend's answer (service_answer), as an error about either (service_error).
 *   Both pods are judged at once;
 * - from the uplink, or the tunnel: by the pod's own address (direct, strake_tunnel_in), by a Service (as above), as the answer to what the pod
 *   sent outside, or an error about that (masq_in);
 * - from the host's stack, its own packets and those that it forwards: strake_to_pod. Of the ways above, those into the interface's queue pass there,
 *   too, with POLICY_MARK;
 * - back to the pod that sent: DNS answers, refusals, neighbours. It is the pod's own packet, and not judged again. */
#ifndef STRAKE_POLICYFLOW_H
#define STRAKE_POLICYFLOW_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "conntrack.h"
#include "endpoint.h"
#include "parse.h"
#include "policy.h"
#include "policyaside.h"
#include "policyends.h"
#include "policyhits.h"
#include "policyrecall.h"
#include "policyrecord.h"
#include "policytrack.h"
#include "verdict.h"

/* Drops a packet that policies deny, and tells which. */
static __always_inline int policy_drop(struct __sk_buff *skb, int denied, __u32 policy, __u32 rule)
{
	__u32 reason = denied == POLICY_DENIES_EGRESS ? DROP_POLICY_EGRESS : denied == POLICY_DENIES_INGRESS ? DROP_POLICY_INGRESS : DROP_NO_VERDICT;

	count(reason);
	if (watched(1))
		packet_event(skb, reason, policy, rule);
	return TC_ACT_SHOT;
}

/* By what the verdicts of the flow at hand say. */
static __always_inline int policy_denied(struct __sk_buff *skb, struct policy_work *w, __u32 how, int denied)
{
	const struct policy_verdict *v = &w->verdicts[denied == POLICY_DENIES_INGRESS ? INGRESS : EGRESS];

	policy_count(skb, w, denied);
	policy_happened(w, how, RECORD_DENIES(denied));
	return denied == POLICY_NO_VERDICT ? policy_drop(skb, denied, 0, POLICY_NO_RULE) : policy_drop(skb, denied, v->policy, v->rule);
}

/* The packet at hand begins a flow, or nobody knows of which it is. */
int __attribute__((noinline)) policy_begin(struct __sk_buff *skb, __u32 how)
{
	struct policy_work *w = policy_work();
	int denied = 0, reply = 0, middle, adopts, ported;
	__u32 now = seconds_now();

	if (!skb || !w)
		return TC_ACT_SHOT;
	middle = flow_has_connection(w->proto) && !(w->tcp & TCP_SYN);
	adopts = w->adopts && (__s32)(w->adopts - now) > 0;
	ported = w->proto == IPPROTO_UDP || flow_has_connection(w->proto);
	if (!(how & POLICY_RECALLED))
		w->asked = 0;
	w->flow.flags = w->high ? FLOW_HIGH : 0;
	if (how & POLICY_NODE) {
		w->flow.flags |= FLOW_NODE;
		w->revision = policy_revision_now();
		if (middle && !adopts) /* it may as well answer: no flow is made of it */
			return 0;
	} else if (how & POLICY_JUDGED) {
		w->revision = policy_revision_now();
	} else {
		if (!(how & POLICY_RECALLED)) {
			denied = policy_judge(skb, how);
			if (!denied && ported)
				policy_keeps(w, how);
		}
		if (denied && middle && adopts) { /* it may answer what began before somebody judged it */
			__u32 turned = policy_turn(w, how);

			if (!policy_judge(skb, turned)) {
				denied = 0;
				reply = 1;
				how = turned;
				w->flow.flags ^= FLOW_HIGH;
			} else {
				policy_turn(w, turned);
				denied = policy_judge(skb, how);
			}
		}
		if (denied)
			return policy_denied(skb, w, how, denied);
		policy_count(skb, w, 0);
	}
	if (!(how & (POLICY_JUDGED | POLICY_ERROR)))
		policy_happened(w, how, reply ? RECORD_AGAIN : RECORD_NEW);
	if (how & POLICY_ONCE)
		return 0;
	w->flow.seen = now;
	w->flow.revision = w->revision;
	w->flow.state = flow_next(0, w->tcp, reply);
	policy_decided(&w->flow, w, w->asked & 1 << INGRESS ? INGRESS : EGRESS);
	return policy_put_new(skb, w);
}

/* The flow of the packet at hand, w->flow, was judged before the last change. */
int __attribute__((noinline)) policy_again(struct __sk_buff *skb, __u32 how, __u32 reply)
{
	struct policy_work *w = policy_work();
	int denied = 0;

	if (!skb || !w)
		return TC_ACT_SHOT;
	if (reply)
		how = policy_turn(w, how);
	how &= ~POLICY_NODE;
	if (w->flow.flags & FLOW_NODE)
		how |= POLICY_NODE;
	if (!(w->flow.flags & FLOW_DENIED))
		how |= POLICY_AGAIN;
	denied = policy_judge(skb, how);
	w->flow.seen = seconds_now();
	w->flow.revision = w->revision;
	w->flow.flags &= FLOW_HIGH | FLOW_NODE;
	if (denied) {
		w->flow.flags |= FLOW_DENIED | (denied == POLICY_DENIES_INGRESS ? FLOW_DENIED_INGRESS : 0);
		policy_decided(&w->flow, w, denied == POLICY_DENIES_INGRESS ? INGRESS : EGRESS);
		policy_put(skb);
		return policy_denied(skb, w, how, denied);
	}
	policy_count(skb, w, 0);
	policy_happened(w, how, RECORD_AGAIN);
	policy_decided(&w->flow, w, w->asked & 1 << INGRESS ? INGRESS : EGRESS);
	w->flow.state = flow_next(w->flow.state, w->tcp, reply);
	return policy_put(skb);
}

/* A packet of a flow that is denied, w->flow. */
int __attribute__((noinline)) policy_still_denied(struct __sk_buff *skb, __u32 how, __u32 reply)
{
	struct policy_work *w = policy_work();
	__u32 slot;

	if (!skb || !w)
		return TC_ACT_SHOT;
	if (reply)
		how = policy_turn(w, how);
	slot = w->flow.flags & FLOW_DENIED_INGRESS ? INGRESS : EGRESS;
	w->verdicts[slot & 1].policy = w->flow.policy;
	w->verdicts[slot & 1].rule = w->flow.rule;
	w->verdicts[slot & 1].allow = 0;
	w->verdicts[slot & 1].tier = TIER_NONE;
	w->asked = 1 << slot;
	return policy_denied(skb, w, how, !w->flow.policy ? POLICY_NO_VERDICT : slot == INGRESS ? POLICY_DENIES_INGRESS : POLICY_DENIES_EGRESS);
}

/* The packet at hand, of which w has all: 0 if it passes. Most are of a flow that is known, and change nothing, but once a second the time. */
static __always_inline int policy_follow(struct __sk_buff *skb, struct policy_work *w, __u32 how)
{
	struct policy_flow *f = 0;
	__u32 now, reply;
	int open;

	if (how & POLICY_ONCE)
		return policy_begin(skb, how);
	policy_settle(skb);
	if (flow_has_connection(w->proto))
		f = bpf_map_lookup_elem(&policy_flows_open, &w->key);
	open = f != 0;
	if (!f)
		f = bpf_map_lookup_elem(&policy_flows_passing, &w->key);
	w->before = f != 0;
	if (!f)
		return policy_begin(skb, how);
	now = seconds_now();
	reply = !(f->flags & FLOW_HIGH) != !w->high;
	if (!policy_alive(f, w->proto, now) || (__s32)(f->revision - w->born) < 0 || (tcp_opens(w->tcp) && (reply || f->state & FLOW_AGREED || flow_is_over(f->state))))
		return policy_begin(skb, how);
	if (f->revision != policy_revision_now()) {
		w->flow = *f;
		return policy_again(skb, how, reply);
	}
	if (f->flags & FLOW_DENIED) {
		if (f->seen != now)
			f->seen = now;
		w->flow = *f;
		return policy_still_denied(skb, how, reply);
	}
	if (tcp_opens(w->tcp)) /* sent again */
		policy_begins(&w->key, now);
	policy_goes_on(skb, w, f, flow_next(f->state, w->tcp, reply), now, open);
	return 0;
}

/* A packet of which a pod's flows are followed: 0 if it passes. */
int __attribute__((noinline)) policy_packet(struct __sk_buff *skb, __u32 how)
{
	struct policy_work *w = policy_work();
	struct scratch *s = scratch();
	enum l4 kind = L4_OTHER;
	struct packet *p;
	int denied;

	if (!skb || !s || !w)
		return TC_ACT_SHOT;
	p = &s->p;
	if (p->later)
		return policy_knows_fragment(skb) ? 0 : drop(skb, DROP_POLICY_FRAGMENT);
	if (!p->ports)
		kind = l4_of(skb, p);
	w->proto = p->proto;
	w->tcp = p->proto == IPPROTO_TCP || p->proto == IPPROTO_SCTP ? p->tcp : 0;
	w->sport = p->sport;
	w->dport = p->dport;
	if (kind == L4_ERROR) {
		if (policy_knows_error(skb, how))
			return 0;
		how |= POLICY_ONCE;
	} else if (how & POLICY_TRANSLATED) {
		policy_translated(w, s);
	} else if (!(how & POLICY_SOURCE) && policy_spares(skb, p)) {
		return 0;
	}
	w->high = !policy_is_low(&w->from, w->sport, &w->to, w->dport);
	policy_key_of(&w->key, &w->from, w->sport, &w->to, w->dport, w->proto, !w->high);
	denied = policy_follow(skb, w, how);
	if (!denied && p->more)
		policy_note_fragment(skb);
	return denied;
}

/* The row of a pod of this node, if there is one. What is not followed is noted by its interface. */
static __always_inline struct policy_subject *policy_subject(const struct addr *addr, __u32 ifindex, __u32 revision)
{
	struct policy_subject *own = bpf_map_lookup_elem(&policy_subjects, addr);
	__u64 *free;

	if (own && !(own->flags & SUBJECT_FOLLOWED)) {
		free = policy_free_row(ifindex, !addr_mapped(addr));
		if (free)
			*free = (__u64)revision << 32 | ifindex;
	}
	return own;
}

int __attribute__((noinline)) policy_knows(struct __sk_buff *skb, __u32 how)
{
	struct scratch *s = scratch();
	struct policy_flow *f = 0;
	struct addr *from, *to;
	struct policy_work *w;
	__be16 sport, dport;
	struct packet *p;
	__u32 now, reply;
	int high, open;
	__u8 tcp;

	if (!skb || !s)
		return 0;
	p = &s->p;
	tcp = p->proto == IPPROTO_UDP ? 0 : p->tcp;
	if (!p->ports || how & (POLICY_ERROR | POLICY_ONCE) || tcp_opens(tcp))
		return 0;
	from = &p->saddr;
	to = &p->daddr;
	sport = p->sport;
	dport = p->dport;
	if (how & POLICY_TRANSLATED) {
		w = policy_work();
		if (!w)
			return 0;
		policy_ends(w, s, how);
		from = &w->from;
		to = &w->to;
		dport = s->flow.dport;
		if (!addr_eq(from, to))
			sport = s->flow.sport;
	}
	now = seconds_now();
	if (flow_has_connection(p->proto) && policy_newest_knows(from, sport, to, dport, p->proto, tcp, now))
		return 1;
	w = policy_work();
	if (!w)
		return 0;
	high = !policy_is_low(from, sport, to, dport);
	policy_key_of(&w->key, from, sport, to, dport, p->proto, !high);
	if (flow_has_connection(p->proto))
		f = bpf_map_lookup_elem(&policy_flows_open, &w->key);
	open = f != 0;
	if (!f)
		f = bpf_map_lookup_elem(&policy_flows_passing, &w->key);
	if (!f || f->revision != policy_revision_now() || f->flags & FLOW_DENIED)
		return 0;
	if (!policy_alive(f, p->proto, now))
		return 0;
	reply = !(f->flags & FLOW_HIGH) != !high;
	policy_goes_on(skb, w, f, flow_next(f->state, tcp, reply), now, open);
	return 1;
}

/* Whether somebody follows the flows of the packet at hand: 0, 1, or the verdict of its drop. */
#define POLICY_FOLLOWS 1

int __attribute__((noinline)) policy_follows(struct __sk_buff *skb, __u32 how, __u32 to)
{
	__u32 flags = 0, revision = policy_revision_now();
	struct policy_work *w = policy_work();
	struct policy_subject *own;

	if (!skb || !w)
		return TC_ACT_SHOT;
	w->born = w->adopts = 0;
	if (how & POLICY_SOURCE) {
		own = policy_subject(&w->from, skb->ifindex, revision);
		if (!own)
			return drop(skb, DROP_NO_VERDICT);
		flags = own->flags;
		w->born = own->born;
		w->adopts = own->adopts;
	}
	if (to) {
		own = policy_subject(&w->to, to, revision);
		if (!own)
			return drop(skb, DROP_NO_VERDICT);
		flags |= own->flags;
		if (!(how & POLICY_SOURCE) || (__s32)(own->born - w->born) > 0)
			w->born = own->born;
		if (own->adopts > w->adopts)
			w->adopts = own->adopts;
	}
	return flags & SUBJECT_FOLLOWED ? POLICY_FOLLOWS : 0;
}

/* Behind policy_knows. */
int __attribute__((noinline)) policy_denies(struct __sk_buff *skb, __u32 how, __u32 to)
{
	struct policy_work *w = policy_work();
	struct scratch *s = scratch();
	int said, follows;

	if (!skb || !s || !w)
		return TC_ACT_SHOT;
	w->happened = 0;
	said = policy_recalls(skb, how);
	if (said)
		follows = POLICY_FOLLOWS;
	else
		follows = policy_follows(skb, how, to);
	if (said == POLICY_PLACED)
		follows = 0;
	else if (follows == POLICY_FOLLOWS)
		follows = policy_packet(skb, said ? how | POLICY_RECALLED : how);
	else if (policy_records && !follows)
		policy_notes(skb, how);
	else if (policy_records)
		policy_without_verdict(w, s, how);
	if (policy_records && w->happened)
		policy_record(skb);
	return follows;
}

#endif
