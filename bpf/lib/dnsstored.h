/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Answers that user space has written down whole: those of the cluster that are more than a few addresses, and a cache of what servers
 * outside have said. The body of a row is what comes behind the question, where it begins at the same offset each time: so it may point
 * to names in itself and in the question (RFC 1035 4.1.4). */
#ifndef STRAKE_DNSSTORED_H
#define STRAKE_DNSSTORED_H

#include "dnsreply.h"

#define RECORDS 131072
#define RECORD_BODY 112  /* with its key and what the kernel adds such a row has 512 bytes */
#define RECORD_MIN 11    /* the least that a record has (RFC 1035 3.2.1) */
#define LISTS 16384
#define OUTSIDE 4096
#define OUTSIDE_BODY 592 /* and such a one 1 KiB */
#define OUTSIDE_LONG 1024

/* An answer of the cluster: most are short, as that a port of a Service has. */
struct record {
	struct stored head;
	__u8 owner[40];
	__u8 body[RECORD_BODY];
	__u32 tag;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, RECORDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct asked);
	__type(value, struct record);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} name_records SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(max_entries, RECORDS);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__type(key, struct asked);
		__type(value, struct record);
	});
} name_records_more SEC(".maps");

/* One that is longer, as of a headless Service with many endpoints. */
struct list {
	struct stored head;
	__u8 owner[40];
	__u8 body[ANSWER_MAX];
	__u32 tag;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LISTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct asked);
	__type(value, struct list);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} name_lists SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(max_entries, LISTS);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__type(key, struct asked);
		__type(value, struct list);
	});
} name_lists_more SEC(".maps");

struct outside {
	struct stored head;
	__u64 used; /* when it was given last, but for some milliseconds: user space takes those away first that are the oldest */
	__u32 ttls;
	__u16 ttl_at[OUTSIDE_TTLS]; /* offsets in the body */
	__u8 body[OUTSIDE_BODY];
	__u32 tag;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, OUTSIDE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct asked);
	__type(value, struct outside);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} name_outside SEC(".maps");

/* One that is longer than most. */
struct outside_long {
	struct stored head;
	__u64 used;
	__u32 ttls;
	__u16 ttl_at[OUTSIDE_LONG_TTLS];
	__u8 body[ANSWER_MAX];
	__u32 tag;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, OUTSIDE_LONG);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct asked);
	__type(value, struct outside_long);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} name_outside_long SEC(".maps");

#define SECOND 1000000000ULL

/* Lets another of the first records be the first, each time by chance. */
static __always_inline int dns_turn_records(struct __sk_buff *skb, struct dns_scratch *s, __u32 off)
{
	__u64 turns = s->stored.turns, stride = s->stored.stride, cut, all, rest;

	if (turns < 2)
		return 0;
	all = turns * stride;
	cut = bpf_get_prandom_u32() % turns * stride;
	if (cut >= all)
		return -1;
	rest = all - cut;
	asm volatile("" : "+r"(all), "+r"(cut), "+r"(rest)); /* as in dns_byte */
	if (cut < RECORD_MIN) /* it is its turn */
		return 0;
	asm volatile("" : "+r"(cut));
	if (cut > ANSWER_MAX || all < RECORD_MIN || rest < RECORD_MIN)
		return -1;
	asm volatile("" : "+r"(all), "+r"(rest));
	if (all > ANSWER_MAX || rest > ANSWER_MAX)
		return -1;
	if (bpf_skb_load_bytes(skb, off, s->raw, all) || bpf_skb_store_bytes(skb, off, s->raw + cut, rest, 0))
		return -1;
	return bpf_skb_store_bytes(skb, off + rest, s->raw, cut, 0);
}

/* Sends what is in place behind the question, with the head that is in the scratch. */
int __attribute__((noinline)) dns_stored(struct __sk_buff *skb, __u32 over_v6, __u32 counter)
{
	__u32 off = ETH_HLEN + (over_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct dns_head) + 4;
	struct dns_scratch *s = dns_scratch_now();

	if (!skb || !s)
		return 2; /* TC_ACT_SHOT */
	off += OPAQUE(s->len);
	if (dns_turn_records(skb, s, off))
		return drop(skb, DROP_REWRITE);
	return dns_reply(skb, over_v6, off + s->stored.len, SECTIONS(s->stored.answers, s->stored.authorities, s->stored.additionals),
			 s->stored.flags1 | (__u32)s->stored.flags2 << 8 | counter << 16);
}

/* Puts the body of a row of a map, whose head is in the scratch, behind the question; or returns -1 or AGAIN. tags are those of the head and of the end of the row. Linux may
 * use a row that user space replaces at once for another question (6.1 and later): so it must still be this one's behind what was read, too. */
static __always_inline int dns_put(struct __sk_buff *skb, struct dns_scratch *s, void *map, const void *row, __u32 off, const __u8 *body, __u32 most, const __u32 *tag, const __u32 *last)
{
	__u64 size = s->stored.len;

	asm volatile("" : "+r"(size)); /* as in dns_byte */
	if (size < RECORD_MIN) /* not 0: of that it is not Linux 5.10 learns nothing */
		return -1;
	asm volatile("" : "+r"(size)); /* two bounds of one number, else it were those of another */
	if (size > most)
		return -1;
	if (!dns_fits(s, OPAQUE(s->len) + 4 + size) || dns_room(skb, s, off + size))
		return -1;
	if (bpf_skb_store_bytes(skb, off, body, size, 0) || bpf_map_lookup_elem(map, &s->asked) != row || *(volatile __u32 *)tag != s->stored.tag || *(volatile __u32 *)last != s->stored.tag)
		return AGAIN;
	return 0;
}

/* Answers the question in the scratch by a long answer that is written down of the cluster, or returns -1 or AGAIN. */
int __attribute__((noinline)) dns_list(struct __sk_buff *skb, __u32 off)
{
	struct dns_scratch *s = dns_scratch_now();
	void *table = &name_lists;
	struct list *l;

	if (!skb || !s)
		return -1;
	l = bpf_map_lookup_elem(table, &s->asked);
	if (!l) {
		table = dns_more(&name_lists_more);
		l = table ? bpf_map_lookup_elem(table, &s->asked) : 0;
		if (!l)
			return -1;
	}
	s->stored = l->head;
	return dns_put(skb, s, table, l, off, l->body, sizeof(l->body), &l->head.tag, &l->tag);
}

/* Answers it by any answer that is written down of the cluster, or returns -1 or AGAIN. */
int __attribute__((noinline)) dns_record(struct __sk_buff *skb, __u32 over_v6)
{
	__u32 off = ETH_HLEN + (over_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct dns_head) + 4;
	struct dns_scratch *s = dns_scratch_now();
	void *table = &name_records;
	struct record *r;
	int verdict;

	if (!skb || !s)
		return -1;
	off += OPAQUE(s->len);
	s->asked.bits = 0;
	r = bpf_map_lookup_elem(table, &s->asked);
	if (!r) {
		table = dns_more(&name_records_more);
		r = table ? bpf_map_lookup_elem(table, &s->asked) : 0;
	}
	if (r) {
		s->stored = r->head;
		verdict = dns_put(skb, s, table, r, off, r->body, sizeof(r->body), &r->head.tag, &r->tag);
	} else {
		verdict = dns_list(skb, off);
	}
	return verdict ? verdict : dns_stored(skb, over_v6, s->stored.answers ? DNS_ANSWERED : DNS_NO_DATA);
}

/* Writes how long the records still live, where the scratch says. On its own, as in dns_records. */
int __attribute__((noinline)) dns_ttls(struct __sk_buff *skb, __u32 off, __u32 ttl)
{
	struct dns_scratch *s = dns_scratch_now();
	__be32 value = bpf_htonl(ttl);

	if (!skb || !s)
		return -1;
	for (__u32 i = 0; i < OUTSIDE_LONG_TTLS; i++) {
		if (i >= OPAQUE(s->ttls))
			break;
		if (bpf_skb_store_bytes(skb, off + s->ttl_at[i], &value, sizeof(value), 0))
			return -1;
	}
	return 0;
}

/* Puts an answer of outside behind the question, as dns_put does. Its TTLs are in the scratch, too. */
static __always_inline int dns_put_outside(struct __sk_buff *skb, struct dns_scratch *s, void *map, const void *row, __u64 *used, __u32 off, const __u8 *body, __u32 most, const __u32 *tag, const __u32 *last)
{
	__u64 now = bpf_ktime_get_boot_ns();
	int verdict;

	if (now >= s->stored.expires) {
		count(DNS_PASSED_OUTSIDE);
		return -1;
	}
	verdict = dns_put(skb, s, map, row, off, body, most, tag, last);
	if (!verdict && now - *used > SECOND / 16)
		*used = now;
	return verdict;
}

int __attribute__((noinline)) dns_outside_long(struct __sk_buff *skb, __u32 off)
{
	struct dns_scratch *s = dns_scratch_now();
	struct outside_long *o;

	if (!skb || !s)
		return -1;
	o = bpf_map_lookup_elem(&name_outside_long, &s->asked);
	if (!o) {
		count(DNS_PASSED_OUTSIDE);
		return -1;
	}
	s->stored = o->head;
	__builtin_memcpy(s->ttl_at, o->ttl_at, sizeof(o->ttl_at));
	OPAQUE(s->ttls) = o->ttls;
	return dns_put_outside(skb, s, &name_outside_long, o, &o->used, off, o->body, sizeof(o->body), &o->head.tag, &o->tag);
}

int __attribute__((noinline)) dns_outside_any(struct __sk_buff *skb, __u32 off)
{
	struct dns_scratch *s = dns_scratch_now();
	struct outside *o;

	if (!skb || !s)
		return -1;
	o = bpf_map_lookup_elem(&name_outside, &s->asked);
	if (!o)
		return dns_outside_long(skb, off);
	s->stored = o->head;
	__builtin_memcpy(s->ttl_at, o->ttl_at, sizeof(o->ttl_at));
	OPAQUE(s->ttls) = o->ttls;
	return dns_put_outside(skb, s, &name_outside, o, &o->used, off, o->body, sizeof(o->body), &o->head.tag, &o->tag);
}

/* Answers the question in the scratch by what servers outside have said, or returns -1 or AGAIN. */
int __attribute__((noinline)) dns_outside(struct __sk_buff *skb, __u32 over_v6)
{
	__u32 off = ETH_HLEN + (over_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct dns_head) + 4;
	struct dns_scratch *s = dns_scratch_now();
	__u32 ttl = 0;
	int verdict;
	__u64 now;

	if (!skb || !s)
		return -1;
	s->asked.bits = OPAQUE(s->bits);
	off += OPAQUE(s->len);
	verdict = dns_outside_any(skb, off);
	if (verdict)
		return verdict;
	now = bpf_ktime_get_boot_ns();
	if (now < s->stored.expires)
		ttl = (s->stored.expires - now + SECOND - 1) / SECOND;
	if (ttl != s->stored.ttl && dns_ttls(skb, off, ttl))
		return drop(skb, DROP_REWRITE);
	return dns_stored(skb, over_v6, DNS_OUTSIDE);
}

#endif
