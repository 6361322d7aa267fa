/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How often a rule decided: of allowed flows each time that they were judged, of denied ones every packet. */
#ifndef STRAKE_POLICYHITS_H
#define STRAKE_POLICYHITS_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "count.h"
#include "policy.h"

#define POLICY_HITS 65536

enum {
	HIT_ALLOWED = 1,
	HIT_SHADOW = 2, /* what a rule set in shadow would have done; only where that differs from what was done */
};

struct policy_hit_key {
	__u32 policy;
	__u16 rule;
	__u8 direction;
	__u8 flags;
};

struct policy_hit {
	__u64 packets, bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, POLICY_HITS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_hit_key);
	__type(value, struct policy_hit);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_hits SEC(".maps");

/* Counts that one of the verdicts decided. */
int __attribute__((noinline)) policy_hit(struct __sk_buff *skb, __u32 slot, __u32 flags)
{
	struct policy_work *w = policy_work();
	struct policy_hit_key key = {};
	struct policy_hit *hit, first;

	if (!skb || !w || slot > 3)
		return 0;
	if (!(w->asked >> slot & 1) || !w->verdicts[slot].policy)
		return 0;
	key.policy = w->verdicts[slot].policy;
	key.rule = w->verdicts[slot].rule;
	key.direction = slot & 1;
	key.flags = flags;
	hit = bpf_map_lookup_elem(&policy_hits, &key);
	if (hit) {
		hit->packets++;
		hit->bytes += skb->len;
		return 0;
	}
	first.packets = 1;
	first.bytes = skb->len;
	if (bpf_map_update_elem(&policy_hits, &key, &first, BPF_NOEXIST))
		count(POLICY_HITS_FULL);
	return 0;
}

/* Counts what came of a flow that was judged, and what rule sets in shadow would have done. */
static __always_inline void policy_count(struct __sk_buff *skb, const struct policy_work *w, int denied)
{
	for (__u32 direction = EGRESS; direction <= INGRESS; direction++) {
		__u32 shadow = POLICY_SHADOW + direction;
		int denies = denied && denied == (direction == EGRESS ? POLICY_DENIES_EGRESS : POLICY_DENIES_INGRESS);

		if (denies || !denied)
			policy_hit(skb, direction, denies ? 0 : HIT_ALLOWED);
		if ((w->asked >> shadow & 1) && (denies || !denied) && (w->verdicts[shadow].allow != 0) == denies)
			policy_hit(skb, shadow, HIT_SHADOW | (denies ? HIT_ALLOWED : 0));
	}
}

#endif
