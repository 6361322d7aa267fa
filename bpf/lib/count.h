/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every decision that is not the plain case is counted, by reason. The names are in counters.go. */
#ifndef STRAKE_COUNT_H
#define STRAKE_COUNT_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

enum reason {
	DROP_MALFORMED,
	DROP_SPOOFED,
	DROP_NO_BACKEND,
	DROP_REWRITE,
	DROP_CONNTRACK_FULL,
	DNS_ANSWERED,
	DNS_NO_DATA,
	DNS_NO_NAME,
	DNS_PASSED,
	POD_TO_POD,
	UPLINK_TO_POD,
	UPLINK_REMOTE,
	POD_TO_UPLINK,
	DROP_NO_PORT,
	DROP_NOT_MASQUERADED,
	MASQUERADED_OUT,
	MASQUERADED_IN,
	MASQUERADED_ERROR,
	POD_TO_REMOTE,
	HOST_TO_REMOTE,
	TUNNEL_TO_POD,
	TUNNEL_TO_NODE,
	PATH_TOO_BIG,
	DROP_NO_REMOTE,
	DROP_TUNNEL_STRANGER,
	DROP_TUNNEL_SPOOFED,
	DROP_NO_POD,
	DROP_NOT_IP,
	DROP_NEIGHBOUR,
	DROP_LINK_LOCAL,
	DROP_LINK_LOCAL_SOURCE,
	DROP_SOURCE_ROUTE,
	NEIGHBOUR_ANSWERED,
	LINK_IGNORED,
	UPLINK_TO_REMOTE,
	REMOTE_TO_UPLINK,
	DROP_BANDWIDTH,
	DROP_NO_LOCAL_BACKEND,
	DROP_SOURCE_RANGE,
	DROP_BACKEND_GONE,
	POD_TO_SERVICE,
	SERVICE_TO_POD,
	UPLINK_TO_NODE,
	NODE_TO_UPLINK,
	DROP_PORT_KEPT,
	DROP_HOPS,
	DROP_POLICY_EGRESS,
	DROP_POLICY_INGRESS,
	DROP_NO_VERDICT,
	DROP_POLICY_FRAGMENT,
	POLICY_HITS_FULL,
	POLICY_FLOWS_FULL,
	REASONS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} counters SEC(".maps");

static __always_inline void count(__u32 reason)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &reason);

	if (n)
		(*n)++;
}

#endif
