/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Network policy: what a flow between two addresses is allowed. Tables that Go writes (policies.go, in an order in which no program meets half a
 * change), and the three looks that judge by them: the subject's row names a rule set, the rule set's row for the identity of the other end a list,
 * and the list's row for the port is the verdict. What flows there are, and which packets are judged, is policyflow.h. */
#ifndef STRAKE_POLICY_H
#define STRAKE_POLICY_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "prefix.h"

#define POLICY_SUBJECTS 8192 /* as ENDPOINTS */
#define POLICY_PEERS 131072
#define POLICY_BLOCKS 65536
#define POLICY_ANSWERS 262144
#define POLICY_PORTS 131072
#define POLICY_NAMES 65536

/* Directions, as in Go: what a pod sends, and what it gets. */
#define EGRESS 0
#define INGRESS 1

enum {
	SUBJECT_FOLLOWED = 1, /* something judges it, in a direction or in shadow, or it keeps flows: its flows have rows */
	SUBJECT_KEEPS = 2,    /* what was allowed once goes on */
};

/* A pod of this node, by one of its addresses. */
struct policy_subject {
	__u32 identity;
	__u32 rules[2];  /* by direction; 0: none */
	__u32 shadow[2]; /* asked beside them, and not followed */
	__u32 flags;
	__u32 born;   /* flows that were judged at revisions before are those of another pod */
	__u32 adopts; /* until then (monotonic clock, seconds) connections are adopted that are older than the pod's isolation */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_SUBJECTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, struct policy_subject);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_subjects SEC(".maps");

/* Identities of others: single addresses, and ranges. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_PEERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, POLICY_BLOCKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_blocks SEC(".maps");

struct policy_answer_key {
	__u32 rules, identity; /* identity 0: all that have no row of their own */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_ANSWERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_answer_key);
	__type(value, __u32); /* list of ports */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_answers SEC(".maps");

#define POLICY_PORT_BITS 56

struct policy_port_key {
	__u32 len; /* of what follows, in bits: 32: every protocol; 40: every port */
	__u32 ports;
	__u8 proto;
	__u8 port[2]; /* network order */
	__u8 pad;
};

enum { TIER_NONE, TIER_ADMIN, TIER_NETWORK_POLICY, TIER_BASELINE };

struct policy_verdict {
	__u32 policy;
	__u16 rule;
	__u8 allow;
	__u8 tier;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, POLICY_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct policy_port_key);
	__type(value, struct policy_verdict);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_ports SEC(".maps");

/* Who a policy is: no program reads it, who explains verdicts does. */
struct policy_name {
	__u8 uid[64];
	__u8 kind[32];
	__u8 namespace[64];
	__u8 name[256];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, POLICY_NAMES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct policy_name);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_names SEC(".maps");

/* Grows by one with each change, after all new rows are there and before old ones go. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} policy_revision SEC(".maps");

static __always_inline __u32 policy_revision_now(void)
{
	__u32 zero = 0, *n = bpf_map_lookup_elem(&policy_revision, &zero);

	return n ? *(volatile __u32 *)n : 0;
}

#endif
