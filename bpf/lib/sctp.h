/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Another port in an SCTP packet. Its checksum is a CRC of all of it (RFC 9260 6.8), but not of the addresses. A CRC is linear: it changes by
 * that of the change, which is the ports' change and zeroes up to the packet's end. To go on over n zeroes is to multiply by x^8n. */
#ifndef STRAKE_SCTP_H
#define STRAKE_SCTP_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "parse.h"

#define CRC32C 0x82f63b78 /* Castagnoli's polynomial; here and below, the highest power is the lowest bit */
#define SCTP_CHECKSUM 8

/* a times b, modulo the polynomial. */
static __always_inline __u32 crc32c_times(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (__u32 i = 0; i < 32; i++) {
		product ^= b & -(a >> 31);
		a <<= 1;
		b = b >> 1 ^ (CRC32C & -(b & 1));
	}
	return product;
}

/* x^8, and each squared the next. */
static const __u32 crc32c_powers[17] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a, 0xb82be955, 0xb8fdb1e7, 0x88e56f72,
	0x74c360a4, 0xe4172b16, 0x0d65762a, 0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc, 0xfe7740e6,
};

/* What a change of the first four bytes of a packet of so many does to its checksum. Both stand in memory as in the packet: the processor is a
 * little-endian one. */
__u32 __attribute__((noinline)) sctp_change(__u32 change, __u32 len)
{
	__u32 crc = change;

	for (__u32 i = 0; i < 17; i++) {
		if (len >> i & 1)
			crc = crc32c_times(crc32c_powers[i], crc);
	}
	return crc;
}

/* Writes the source's or destination's port. A checksum of zero is one that the network card is to make. */
static __always_inline int sctp_port(struct __sk_buff *skb, const struct packet *p, int source, __be16 port)
{
	union {
		__be16 ports[2];
		__u32 both;
	} change = {};
	__u32 check;

	if (bpf_skb_load_bytes(skb, p->l4 + SCTP_CHECKSUM, &check, sizeof(check)))
		return -1;
	change.ports[source ? 0 : 1] = port ^ (source ? p->sport : p->dport);
	if (check && change.both) {
		check ^= sctp_change(change.both, p->end - p->l4);
		if (bpf_skb_store_bytes(skb, p->l4 + SCTP_CHECKSUM, &check, sizeof(check), 0))
			return -1;
	}
	return bpf_skb_store_bytes(skb, p->l4 + (source ? 0 : 2), &port, sizeof(port), 0);
}

#endif
