/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Addresses of both families are one type and share all maps: an IPv4 address is its IPv4-mapped IPv6 one (RFC 4291 2.5.5.2). */
#ifndef STRAKE_ADDR_H
#define STRAKE_ADDR_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>

struct addr {
	union {
		__u8 b[16];
		__be32 w[4];
		__u64 d[2];
	};
};

static __always_inline int addr_eq(const struct addr *a, const struct addr *b)
{
	return a->d[0] == b->d[0] && a->d[1] == b->d[1];
}

static __always_inline void addr_v4(struct addr *a, __be32 v4)
{
	a->d[0] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = v4;
}

/* 127.0.0.0/8 or ::1. */
static __always_inline int addr_loopback(const struct addr *a)
{
	if (a->d[0])
		return 0;
	return a->d[1] == bpf_cpu_to_be64(1) || (a->d[1] & bpf_cpu_to_be64(0xffffffffff000000ULL)) == bpf_cpu_to_be64(0xffff7f000000ULL);
}

/* Whether it is an IPv4 address. */
static __always_inline int addr_mapped(const struct addr *a)
{
	return a->d[0] == 0 && a->w[2] == bpf_htonl(0xffff);
}

/* Constants that are set at load are read once, whole. */
static __always_inline struct addr addr_of(const volatile struct addr *constant)
{
	struct addr a;

	a.d[0] = constant->d[0];
	a.d[1] = constant->d[1];
	return a;
}

#endif
