/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Names of pods are their addresses with dashes for dots and colons (DNS-based service discovery 1.1.0, 2.3), so that nothing need be looked up but
 * their namespace. */
#ifndef STRAKE_DNSPODS_H
#define STRAKE_DNSPODS_H

#include "dns.h"

#define DASHED_MAX 39 /* an IPv6 address in full */

/* A group is complete. */
static __always_inline int dashed_group(struct dashed *d)
{
	__u32 n = OPAQUE(d->groups), decimal = OPAQUE(d->decimal);

	if (n > 7)
		return -1;
	if (OPAQUE(d->digits) > 3 || decimal > 255)
		OPAQUE(d->plain) = 0;
	d->hex[n & 7] = bpf_htons(OPAQUE(d->number));
	d->bytes[n & 7] = decimal;
	OPAQUE(d->groups) = n + 1;
	OPAQUE(d->digits) = OPAQUE(d->number) = OPAQUE(d->decimal) = 0;
	return 0;
}

static __always_inline int dashed_digit(struct dashed *d, __u8 c)
{
	__u32 digits = OPAQUE(d->digits), x;

	if (c >= '0' && c <= '9')
		x = c - '0';
	else if (c >= 'a' && c <= 'f')
		x = c - 'a' + 10;
	else
		return -1;
	if (digits > 3)
		return -1;
	if (x > 9 || (digits == 1 && OPAQUE(d->number) == 0)) /* IPv4 has no zero in front */
		OPAQUE(d->plain) = 0;
	OPAQUE(d->number) = OPAQUE(d->number) << 4 | x;
	OPAQUE(d->decimal) = OPAQUE(d->decimal) * 10 + x;
	OPAQUE(d->digits) = digits + 1;
	return 0;
}

static __always_inline int dashed_dash(struct dashed *d, __u32 first)
{
	if (OPAQUE(d->digits)) {
		OPAQUE(d->dash) = 1;
		return dashed_group(d);
	}
	if (first) {
		OPAQUE(d->dash) = 1;
		return 0;
	}
	if (!OPAQUE(d->dash) || OPAQUE(d->gap) != NO_GAP)
		return -1;
	OPAQUE(d->gap) = OPAQUE(d->groups);
	OPAQUE(d->dash) = 0;
	return 0;
}

/* Reads the address that the first label of the name is, into the scratch: 4 or 6, or 0 if it is none. */
int __attribute__((noinline)) dns_dashed(struct __sk_buff *skb)
{
	struct dns_scratch *s = dns_scratch_now();
	struct dashed *d;
	__u32 n, groups, gap;

	if (!skb || !s)
		return 0;
	d = &s->dashed;
	__builtin_memset(d, 0, sizeof(*d));
	OPAQUE(d->gap) = NO_GAP;
	OPAQUE(d->plain) = 1;
	n = s->asked.key.name[0];
	if (n > DASHED_MAX)
		return 0;
	for (__u32 i = 1; i <= DASHED_MAX; i++) {
		__u8 c = s->asked.key.name[i];

		if (i > s->asked.key.name[0])
			break;
		if (c == '-' ? dashed_dash(d, i == 1) : dashed_digit(d, c))
			return 0;
		if (c != '-') {
			if (i == 2 && OPAQUE(d->dash) && !OPAQUE(d->groups)) /* one dash alone in front */
				return 0;
			OPAQUE(d->dash) = 0;
		}
	}
	if (OPAQUE(d->dash) || (OPAQUE(d->digits) && dashed_group(d)))
		return 0;
	groups = OPAQUE(d->groups);
	gap = OPAQUE(d->gap);
	if (groups == 4 && gap == NO_GAP && OPAQUE(d->plain)) {
		__builtin_memcpy(d->addr, d->bytes, 4);
		return 4;
	}
	if (gap == NO_GAP ? groups != 8 : groups > 7)
		return 0;
	for (__u32 i = 0; i < 8; i++) {
		__u32 at = i;

		if (i >= OPAQUE(d->groups))
			break;
		if (i >= OPAQUE(d->gap))
			at += 8 - OPAQUE(d->groups);
		__builtin_memcpy(&d->addr[(at & 7) * 2], &d->hex[i], 2);
	}
	return 6;
}

#endif
