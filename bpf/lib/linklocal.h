/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What lives on a link only: the node's services there, such as a cloud's metadata with the node's credentials, are not the pods'. */
#ifndef STRAKE_LINKLOCAL_H
#define STRAKE_LINKLOCAL_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "prefix.h"

/* Ranges that pods reach all the same. It goes with the programs, as masq_exempt. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, __u32);
} link_local_allowed SEC(".maps");

/* 169.254.0.0/16 and fe80::/10, what is sent to all on the link, and groups that no router forwards (RFC 3927, RFC 4291, RFC 5771 4). */
static __always_inline int is_link_local(const struct addr *a, int v6)
{
	if (v6)
		return (a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80) || (a->b[0] == 0xff && (a->b[1] & 0x0f) <= 2);
	return (a->w[3] & bpf_htonl(0xffff0000)) == bpf_htonl(0xa9fe0000) || (a->w[3] & bpf_htonl(0xffffff00)) == bpf_htonl(0xe0000000) || a->w[3] == bpf_htonl(0xffffffff);
}

static __always_inline int link_local_is_allowed(const struct addr *a)
{
	return prefix_holds(&link_local_allowed, a);
}

#endif
