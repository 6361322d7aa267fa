/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a pod may send in a time. The queue that holds its packets back stands on the pod's side of the veth, where its sockets feel it,
 * and where a pod that administers its own network can take it away. So what leaves the veth is measured here, on the node's side, on
 * every way that it goes on, and what is too much is dropped: a pod gains nothing by it.
 * No queue of fq with departure times: that would have to stand on every device by which packets go on (other pods' veths, the uplink,
 * which is somebody else's), and redirects into a pod pass none. */
#ifndef STRAKE_BANDWIDTH_H
#define STRAKE_BANDWIDTH_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "endpoint.h"

#define SECOND 1000000000ULL

struct limit {
	struct bpf_spin_lock lock;
	__u32 pad;
	__u64 rate;  /* bytes per second, never 0 */
	__u64 ahead; /* ns */
	__u64 next;  /* ns of the monotonic clock: when all that has passed would be sent at that rate; `ahead` of now at most, and a packet */
};

/* By the host's side of the pod's veth: both families share a limit. It is pinned, so that a new program goes on with what was sent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct limit);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} limits SEC(".maps");

/* Whether a packet of a pod is one too many. */
static __always_inline int exceeds_limit(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct limit *l = bpf_map_lookup_elem(&limits, &ifindex);
	__u64 now, takes, next;
	int over;

	if (!l || !l->rate)
		return 0;
	now = bpf_ktime_get_ns();
	takes = skb->len * SECOND / l->rate;
	bpf_spin_lock(&l->lock);
	next = l->next;
	over = next > now + l->ahead;
	if (!over)
		l->next = (next > now ? next : now) + takes;
	bpf_spin_unlock(&l->lock);
	return over;
}

#endif
