/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Ranges of addresses, as keys of longest-prefix tables. */
#ifndef STRAKE_PREFIX_H
#define STRAKE_PREFIX_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"

struct prefix {
	__u32 len; /* IPv4: 96 more */
	__u8 addr[16];
};

static __always_inline int prefix_holds(void *table, const struct addr *addr)
{
	struct prefix key = { .len = 128 };

	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	return bpf_map_lookup_elem(table, &key) != 0;
}

#endif
