/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pods of this node: from an address to the interface that leads to it. */
#ifndef STRAKE_ENDPOINT_H
#define STRAKE_ENDPOINT_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"

#define ENDPOINTS 8192 /* a pod has one of each family */

enum {
	ENDPOINT_QUEUED = 1,  /* what goes to the pod is limited: it passes the interface's queue */
	ENDPOINT_LIMITED = 2, /* so is what it sends, see bandwidth.h */
	/* The programs' own, see service.h. A row begins with the second alone. */
	ENDPOINT_ASKS = 4,  /* the pod sent packets to frontends: what comes to it passes strake_to_pod, where answers are translated back */
	ENDPOINT_QUIET = 8, /* the pod got no packet of a frontend: what it sends answers none */
};

struct endpoint {
	__u32 ifindex; /* host side of the pod's veth */
	__u8 pod_mac[6];
	__u8 host_mac[6];
	__u32 flags;
	__u8 owner[64]; /* sandbox */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct addr);
	__type(value, struct endpoint);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} endpoints SEC(".maps");

/* Straight into the pod's namespace: no host stack, and no queue but one that limits the pod. The time to live is left as it is, as on a bridge.
 * What leaves another interface (egress) can go by the pod's interface alone. */
static __always_inline int endpoint_send(struct __sk_buff *skb, const struct endpoint *ep, int egress)
{
	__u8 macs[12];

	__builtin_memcpy(macs, ep->pod_mac, 6);
	__builtin_memcpy(macs + 6, ep->host_mac, 6);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return 2; /* TC_ACT_SHOT */
	if (egress || ep->flags & (ENDPOINT_QUEUED | ENDPOINT_ASKS))
		return bpf_redirect(ep->ifindex, 0);
	return bpf_redirect_peer(ep->ifindex, 0);
}

static __always_inline int endpoint_redirect(struct __sk_buff *skb, const struct endpoint *ep)
{
	return endpoint_send(skb, ep, 0);
}

#endif
