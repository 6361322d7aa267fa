//go:build ignore
// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The judge of net.c by itself, for who asks without a packet (PolicyMachine in Go): a frame has many questions, which become answers in place. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_helpers.h>
#include "lib/policy.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define QUESTIONS 64

struct question {
	union {
		struct {
			struct addr from, to;
		};
		struct policy_verdict verdicts[4];
	};
	__be16 port;
	__u8 proto;
	__u8 node;   /* the node's own stack sends */
	__u8 result; /* 0: allowed */
	__u8 asked;  /* which verdicts there are, by bits */
	__u16 pad;
};

/* Who has a subject's row is a pod of this node. */
int __attribute__((noinline)) answer_one(struct __sk_buff *skb, __u32 i)
{
	struct policy_work *w = policy_work();
	__u32 off = ETH_HLEN + i * sizeof(struct question), how = 0;
	struct question q;

	if (!skb || !w || i >= QUESTIONS || bpf_skb_load_bytes(skb, off, &q, sizeof(q)))
		return -1;
	w->from = q.from;
	w->to = q.to;
	w->dport = q.port;
	w->proto = q.proto;
	if (bpf_map_lookup_elem(&policy_subjects, &q.from))
		how |= POLICY_SOURCE;
	if (bpf_map_lookup_elem(&policy_subjects, &q.to))
		how |= POLICY_DEST;
	if (q.node)
		how |= POLICY_NODE;
	q.result = policy_judge(skb, how);
	q.asked = w->asked;
	__builtin_memcpy(q.verdicts, w->verdicts, sizeof(q.verdicts));
	return bpf_skb_store_bytes(skb, off, &q, sizeof(q), 0);
}

SEC("tc")
int strake_judge(struct __sk_buff *skb)
{
	for (__u32 i = 0; i < QUESTIONS; i++) {
		if (ETH_HLEN + (i + 1) * sizeof(struct question) > skb->len)
			break;
		if (answer_one(skb, i))
			return 1;
	}
	return 0;
}
