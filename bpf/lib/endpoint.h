/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Pods of this node: from an address to the interface that leads to it. */
#ifndef STRAKE_ENDPOINT_H
#define STRAKE_ENDPOINT_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "policy.h"

#define ENDPOINTS 8192 /* a pod has one of each family */

enum {
	ENDPOINT_QUEUED = 1,  /* what goes to the pod is limited: it passes the interface's queue */
	ENDPOINT_LIMITED = 2, /* so is what it sends, see bandwidth.h */
	/* A row begins with the second alone. What the programs find out later is in bytes of their own below: several processors write at a time. */
	ENDPOINT_ASKS = 4,  /* as asks */
	ENDPOINT_QUIET = 8, /* unless asked: the pod got no packet of a frontend, so that what it sends answers none */
};

struct endpoint {
	__u32 ifindex; /* host side of the pod's veth */
	__u8 pod_mac[6];
	__u8 host_mac[6];
	__u8 flags;
	__u8 asks;  /* the pod sent packets to frontends: what comes to it passes strake_to_pod, where answers are translated back */
	__u8 asked; /* the pod got a packet of a frontend */
	__u8 pad;
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

static __always_inline int endpoint_asks(const struct endpoint *ep)
{
	return ep->asks || ep->flags & ENDPOINT_ASKS;
}

static __always_inline int endpoint_is_quiet(const struct endpoint *ep)
{
	return ep->flags & ENDPOINT_QUIET && !ep->asked;
}

/* Straight into the pod's namespace: no host stack, and no queue but one that limits the pod. The time to live is left as it is, as on a bridge.
 * What leaves another interface (egress) can go by the pod's interface alone. */
static __always_inline int endpoint_send(struct __sk_buff *skb, const struct endpoint *ep, int egress)
{
	__u8 macs[12];

	__builtin_memcpy(macs, ep->pod_mac, 6);
	__builtin_memcpy(macs + 6, ep->host_mac, 6);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return 2; /* TC_ACT_SHOT */
	if (egress || ep->flags & ENDPOINT_QUEUED || endpoint_asks(ep)) {
		if (policy_on)
			skb->mark = POLICY_MARK;
		return bpf_redirect(ep->ifindex, 0);
	}
	return bpf_redirect_peer(ep->ifindex, 0);
}

static __always_inline int endpoint_redirect(struct __sk_buff *skb, const struct endpoint *ep)
{
	return endpoint_send(skb, ep, 0);
}

#endif
