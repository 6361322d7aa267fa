/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a processor judged last: flows that begin between the same ends, at the same port, are many. A verdict counts for the revision at which it was made, as
 * a flow's row does. */
#ifndef STRAKE_POLICYRECALL_H
#define STRAKE_POLICYRECALL_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "conntrack.h"
#include "policy.h"
#include "policyends.h"
#include "policyhits.h"
#include "policyrecord.h"
#include "policytrack.h"

#define POLICY_JUDGED_LAST 256 /* a power of two */

/* One that was allowed. */
struct policy_judged {
	struct addr from, to;
	__u32 revision;
	__u32 born; /* as in policy_work */
	__be16 dport;
	__u8 proto;
	__u8 how; /* POLICY_SOURCE, POLICY_DEST; 0: nothing is here */
	__u32 asked;
	struct policy_verdict verdicts[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, POLICY_JUDGED_LAST);
	__type(key, __u32);
	__type(value, struct policy_judged);
} policy_judged_last SEC(".maps");

static __always_inline struct policy_judged *policy_judged_at(const struct policy_work *w, __be16 dport)
{
	__u32 i = (w->from.w[3] ^ w->from.w[1]) * 31 + (w->to.w[3] ^ w->to.w[1]) * 17 + dport;

	i ^= i >> 16;
	i = (i ^ i >> 8) & (POLICY_JUDGED_LAST - 1);
	return bpf_map_lookup_elem(&policy_judged_last, &i);
}

/* The connection that begins, of which w has what was said, gets its place at once: whether it has it. Where it may have a row elsewhere, by which it began
 * before, it is looked for. Another row with these ends and ports may be left, of a connection that both sides agreed on: it counts for nothing while the place is there,
 * this one's row is written over it if it leaves the place, and if it does not leave it for it was reset, the older one's is as it was: alive as long as nobody ends it. */
static __always_inline int policy_opens(struct policy_work *w)
{
	__u64 hash = policy_hash(&w->from, w->sport, &w->to, w->dport);
	struct policy_new *n = policy_new_at(hash);
	__u32 now = seconds_now();

	if (!n || policy_begun_lately(hash, now))
		return 0;
	w->high = !policy_is_low(&w->from, w->sport, &w->to, w->dport);
	policy_key_of(&w->key, &w->from, w->sport, &w->to, w->dport, w->proto, !w->high);
	if (policy_key_eq(&n->key, &w->key)) /* it is sent again */
		return 0;
	w->flow.seen = now;
	w->flow.revision = w->revision;
	w->flow.state = flow_next(0, w->tcp, 0);
	w->flow.flags = w->high ? FLOW_HIGH : 0;
	policy_decided(&w->flow, w, w->asked & 1 << INGRESS ? INGRESS : EGRESS);
	w->old_key.proto = 0;
	return policy_take_place(n, w, policy_tag(hash, w->revision));
}

/* What policy_recalls says, besides 0: w has what was said of the flow that the packet at hand begins; it is a connection and has its place, too. */
#define POLICY_SAID 1
#define POLICY_PLACED 2

/* Tells w the ends of the packet at hand, and whether it is one that can begin a flow between them that was judged. */
int __attribute__((noinline)) policy_recalls(struct __sk_buff *skb, __u32 how)
{
	struct policy_work *w = policy_work();
	struct scratch *s = scratch();
	struct policy_judged *j;

	if (!skb || !s || !w)
		return 0;
	policy_ends(w, s, how);
	if (!s->p.ports || how & (POLICY_NODE | POLICY_ERROR | POLICY_JUDGED) || (s->p.proto != IPPROTO_UDP && !tcp_opens(s->p.tcp)))
		return 0;
	w->proto = s->p.proto;
	w->tcp = w->proto == IPPROTO_UDP ? 0 : s->p.tcp;
	w->sport = s->p.sport;
	w->dport = s->p.dport;
	if (how & POLICY_TRANSLATED)
		policy_translated(w, s);
	j = policy_judged_at(w, w->dport);
	if (!j || j->how != (how & (POLICY_SOURCE | POLICY_DEST)) || j->dport != w->dport || j->proto != w->proto || !addr_eq(&j->from, &w->from) || !addr_eq(&j->to, &w->to) || j->revision != policy_revision_now())
		return 0;
	w->revision = j->revision;
	w->born = j->born;
	w->adopts = 0; /* of what goes on, not of what begins */
	w->asked = j->asked;
	__builtin_memcpy(w->verdicts, j->verdicts, sizeof(w->verdicts));
	if (how & POLICY_ONCE || !flow_has_connection(w->proto) || !policy_opens(w))
		return POLICY_SAID;
	policy_count(skb, w, 0);
	policy_happened(w, how, RECORD_NEW);
	return POLICY_PLACED;
}

/* Keeps what was judged now, of a packet with ports, and is allowed. */
static __always_inline void policy_keeps(const struct policy_work *w, __u32 how)
{
	struct policy_judged *j = policy_judged_at(w, w->dport);

	if (!j)
		return;
	j->from = w->from;
	j->to = w->to;
	j->revision = w->revision;
	j->born = w->born;
	j->dport = w->dport;
	j->proto = w->proto;
	j->how = how & (POLICY_SOURCE | POLICY_DEST);
	j->asked = w->asked;
	__builtin_memcpy(j->verdicts, w->verdicts, sizeof(j->verdicts));
}

#endif
