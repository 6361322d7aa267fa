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

/* Whether the packet at hand is one that can begin a flow from w->from to w->to that was judged. Then w has what was said. */
int __attribute__((noinline)) policy_recalls(struct __sk_buff *skb, __u32 how)
{
	struct policy_work *w = policy_work();
	struct scratch *s = scratch();
	struct policy_judged *j;
	__be16 dport;

	if (!skb || !s || !w)
		return 0;
	if (!s->p.ports || s->p.later || how & (POLICY_NODE | POLICY_ERROR | POLICY_JUDGED) || (s->p.proto != IPPROTO_UDP && !tcp_opens(s->p.tcp)))
		return 0;
	dport = how & POLICY_TRANSLATED ? s->flow.dport : s->p.dport;
	j = policy_judged_at(w, dport);
	if (!j || j->how != (how & (POLICY_SOURCE | POLICY_DEST)) || j->dport != dport || j->proto != s->p.proto || !addr_eq(&j->from, &w->from) || !addr_eq(&j->to, &w->to) || j->revision != policy_revision_now())
		return 0;
	w->revision = j->revision;
	w->born = j->born;
	w->adopts = 0; /* of what goes on, not of what begins */
	w->asked = j->asked;
	__builtin_memcpy(w->verdicts, j->verdicts, sizeof(w->verdicts));
	return 1;
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
