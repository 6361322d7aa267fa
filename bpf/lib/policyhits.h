/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How often a rule decided: of allowed flows each time that they were judged, of denied ones every packet. */
#ifndef STRAKE_POLICYHITS_H
#define STRAKE_POLICYHITS_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

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

#endif
