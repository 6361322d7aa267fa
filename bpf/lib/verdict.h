/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Verdicts on packets: counted, and told to who watches. */
#ifndef STRAKE_VERDICT_H
#define STRAKE_VERDICT_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "count.h"
#include "monitor.h"

/* Global, so that the verifier walks through it once and not at every place that counts. */
__noinline int packet_event(struct __sk_buff *skb, __u32 reason, __u32 policy, __u32 rule)
{
	struct event *e = event_begin(reason);
	__u64 len = skb->len;

	if (!e)
		return 0;
	e->length = len;
	e->ifindex = skb->ifindex;
	e->from = skb->ingress_ifindex;
	e->policy = policy;
	e->rule = rule;
	if (len > CAPTURE)
		len = CAPTURE;
	asm volatile("" : "+r"(len));
	len = ((len - 1) & (CAPTURE - 1)) + 1; /* as it was, but so that the verifier sees its bounds */
	if (!bpf_skb_load_bytes(skb, 0, e->data, len))
		e->captured = len;
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* A verdict on a packet that is no drop. */
static __always_inline void note(struct __sk_buff *skb, __u32 reason)
{
	count(reason);
	if (watched(0))
		packet_event(skb, reason, 0, 0);
}

/* Every drop, but those of policies, goes through here. */
static __always_inline int drop(struct __sk_buff *skb, __u32 reason)
{
	count(reason);
	if (watched(1))
		packet_event(skb, reason, 0, 0);
	return 2; /* TC_ACT_SHOT */
}

#endif
