/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Names of the cluster, whose answers are put together of their addresses; and those that do not exist. */
#ifndef STRAKE_DNSNAMES_H
#define STRAKE_DNSNAMES_H

#include "dnspods.h"
#include "dnsreply.h"
#include "dnsstored.h"

#define NAMES 65536
#define NAME_ADDRS 8 /* of each family */

struct addr4 {
	__u8 b[4];
};

/* A row of more than NAME_ADDRS addresses says that user space answers for the name; one without any, that the name exists. */
struct name {
	__u32 n4, n6;
	struct addr4 addrs4[NAME_ADDRS];
	struct addr addrs6[NAME_ADDRS];
	__u8 owner[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NAMES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_key);
	__type(value, struct name);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(values, struct {
		__uint(type, BPF_MAP_TYPE_HASH);
		__uint(max_entries, NAMES);
		__uint(map_flags, BPF_F_NO_PREALLOC);
		__type(key, struct name_key);
		__type(value, struct name);
	});
} names_more SEC(".maps");

static __always_inline struct name *dns_row(const struct name_key *key)
{
	struct name *name = bpf_map_lookup_elem(&names, key);
	void *more;

	if (!name) {
		more = dns_more(&names_more);
		if (more)
			name = bpf_map_lookup_elem(more, key);
	}
	return name;
}

/* Names that no object can have, by the naming rules alone (DNS-based service discovery 1.1.0): the label before the zone is none of
 * svc, pod, dns, dns-version; or there are more than four labels before svc. These are what a resolver's search list makes. */
static __always_inline int dns_impossible(const struct dns_scratch *s, __u32 labels)
{
	__u32 before = labels - dns_zone_labels;
	__u32 at;
	const __u8 *l = s->asked.key.name;

	if (before == 0)
		return 0;
	at = s->start[(before - 1) & (LABELS - 1)];
	if (at > NAME_MAX - 8)
		return 0;
	if (l[at] == 3) {
		if (l[at + 1] == 's' && l[at + 2] == 'v' && l[at + 3] == 'c')
			return before - 1 > 4;
		if (l[at + 1] == 'p' && l[at + 2] == 'o' && l[at + 3] == 'd')
			return 0;
		if (l[at + 1] == 'd' && l[at + 2] == 'n' && l[at + 3] == 's')
			return 0;
	}
	if (l[at] == 11) /* dns-version, and what else is as long */
		return 0;
	return 1;
}

/* Whether a name that has no row can't exist: all Services and namespaces have one, and it is below none of them. */
int __attribute__((noinline)) dns_missing(struct __sk_buff *skb)
{
	struct dns_scratch *s = dns_scratch_now();
	__u32 before, at, len;

	if (!skb || !s || !(dns_state() & NAMES_WHOLE))
		return 0;
	before = OPAQUE(s->labels) - dns_zone_labels;
	if (before < 2 || before > 5)
		return 0;
	at = s->start[(before - 1) & (LABELS - 1)];
	if (at > NAME_MAX - 8 || s->asked.key.name[at] != 3 || s->asked.key.name[at + 1] != 's' || s->asked.key.name[at + 2] != 'v' || s->asked.key.name[at + 3] != 'c')
		return 0;
	if (before < 4) /* a namespace, or a Service */
		return 1;
	at = s->start[(before - 3) & (LABELS - 1)];
	len = OPAQUE(s->len);
	__builtin_memset(&s->service, 0, sizeof(s->service));
	for (__u32 i = 0; i < NAME_MAX - 1; i++) {
		if (at + i >= len)
			break;
		s->service.name[i] = s->asked.key.name[(at + i) & (NAME_MAX - 1)];
	}
	return !dns_row(&s->service);
}

/* What the name of a pod is: DENIED, the family of its address, which is in the scratch then; or -1, if user space is to say. */
#define DENIED 0

int __attribute__((noinline)) dns_pod(struct __sk_buff *skb)
{
	struct dns_scratch *s = dns_scratch_now();
	__u32 at, len, before, state = dns_state();
	int family;

	if (!skb || !s || !(state & NAMES_PODS))
		return -1;
	before = OPAQUE(s->labels) - dns_zone_labels;
	if (before != 3)
		return -1;
	at = s->start[2];
	if (at > NAME_MAX - 8 || s->asked.key.name[at] != 3 || s->asked.key.name[at + 1] != 'p' || s->asked.key.name[at + 2] != 'o' || s->asked.key.name[at + 3] != 'd')
		return -1;
	at = s->start[1];
	len = OPAQUE(s->len);
	__builtin_memset(&s->service, 0, sizeof(s->service));
	for (__u32 i = 0; i < NAME_MAX - 1; i++) {
		if (at + i >= len)
			break;
		s->service.name[i] = s->asked.key.name[(at + i) & (NAME_MAX - 1)];
	}
	at = (s->start[2] - at) & (NAME_MAX - 1); /* the row of a namespace is that below svc */
	s->service.name[at + 1] = 's';
	s->service.name[at + 2] = 'v';
	s->service.name[at + 3] = 'c';
	if (!dns_row(&s->service))
		return state & NAMES_WHOLE ? DENIED : -1;
	family = dns_dashed(skb);
	return family ? family : -1;
}

/* All of an address record but the address, for the name in the question. */
static __always_inline struct answer *dns_owner(struct dns_scratch *s, __u32 v6)
{
	struct answer *a = &s->record.answer;

	a->name = bpf_htons(0xc000 | sizeof(struct dns_header));
	a->type = bpf_htons(v6 ? TYPE_AAAA : TYPE_A);
	a->class = bpf_htons(1);
	a->ttl = dns_ttl_now();
	a->len = bpf_htons(v6 ? 16 : 4);
	return a;
}

/* Writes the address of dns_dashed. */
static __always_inline int dns_address(struct __sk_buff *skb, struct dns_scratch *s, __u32 off, int v6)
{
	struct answer *a = dns_owner(s, v6);

	__builtin_memcpy(a->addr, s->dashed.addr, 16);
	return v6 ? bpf_skb_store_bytes(skb, off, a, ANSWER_SIZE(1), 0) : bpf_skb_store_bytes(skb, off, a, ANSWER_SIZE(0), 0);
}

/* Writes the n addresses of the scratch's name from an offset on, beginning with any; or returns AGAIN. On its own, where registers are enough for the
 * counter: Linux 5.10 forgets one that goes through the stack, and would see no end. */
int __attribute__((noinline)) dns_records(struct __sk_buff *skb, __u32 off, __u32 v6, __u32 n)
{
	struct dns_scratch *s = dns_scratch_now();
	__u32 first = bpf_get_prandom_u32();
	struct answer *a;
	struct name *name;

	if (!skb || !s)
		return AGAIN;
	name = dns_row(&s->asked.key);
	if (!name)
		return AGAIN;
	if (!n || n != (v6 ? name->n6 : name->n4)) /* changed meanwhile */
		return AGAIN;
	a = dns_owner(s, v6);
	for (__u32 i = 0; i < NAME_ADDRS; i++) {
		__u32 at = (first + i) % n & (NAME_ADDRS - 1);

		if (i >= n)
			break;
		if (v6)
			__builtin_memcpy(a->addr, &name->addrs6[at], 16);
		else
			__builtin_memcpy(a->addr, &name->addrs4[at], 4);
		if (v6 ? bpf_skb_store_bytes(skb, off, a, ANSWER_SIZE(1), 0) : bpf_skb_store_bytes(skb, off, a, ANSWER_SIZE(0), 0))
			return AGAIN;
		off += ANSWER_SIZE(v6);
	}
	return dns_row(&s->asked.key) == name ? 0 : AGAIN; /* as in dns_put */
}

/* Answers a question for a name in the zone, which begins at an offset of the name; or returns -1 or AGAIN. */
int __attribute__((noinline)) dns_cluster(struct __sk_buff *skb, __u32 over_v6, __u32 zone_at)
{
	__u32 question = ETH_HLEN + (over_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct dns_head);
	struct dns_scratch *s = dns_scratch_now();
	__u32 len, type, n = 0, size, rcode = 0;
	struct name *name;
	struct soa *soa;
	int v6 = 0, verdict, pod = -1;

	if (!skb || !s)
		return -1;
	len = OPAQUE(s->len);
	type = OPAQUE(s->type);
	name = dns_row(&s->asked.key);
	if (name) {
		if (name->n4 > NAME_ADDRS || type == TYPE_SRV || type == TYPE_ANY) {
			verdict = dns_record(skb, over_v6);
			if (verdict == -1 && name->n4 > NAME_ADDRS) /* an alias that leads outside, it may be */
				verdict = dns_outside(skb, over_v6);
			return verdict;
		}
		v6 = type == TYPE_AAAA;
		n = v6 ? name->n6 : name->n4;
		if (type != TYPE_A && type != TYPE_AAAA)
			n = 0;
		if (n > NAME_ADDRS || (!n && dns_row(&s->asked.key) != name)) /* as in dns_put */
			return -1;
	} else if (dns_impossible(s, OPAQUE(s->labels)) || dns_missing(skb)) {
		rcode = RCODE_NXDOMAIN;
	} else {
		pod = type == TYPE_ANY ? -1 : dns_pod(skb);
		if (pod < 0)
			return dns_record(skb, over_v6);
		if (pod == DENIED)
			rcode = RCODE_NXDOMAIN;
		v6 = pod == 6;
		n = pod && type == (v6 ? TYPE_AAAA : TYPE_A);
	}

	size = n ? n * ANSWER_SIZE(v6) : sizeof(struct soa);
	question += len + 4;
	if (!dns_fits(s, len + 4 + size) || dns_room(skb, s, question + size))
		return -1;
	if (n) {
		if (pod > 0 ? dns_address(skb, s, question, v6) : dns_records(skb, question, v6, n))
			return AGAIN;
		return dns_reply(skb, over_v6, question + size, SECTIONS(n, 0, 0), DNS_AA | DNS_ANSWERED << 16);
	}
	soa = &s->record.soa;
	soa->name = soa->mname_zone = soa->rname_zone = bpf_htons(0xc000 | (sizeof(struct dns_header) + zone_at));
	soa->type = bpf_htons(TYPE_SOA);
	soa->class = bpf_htons(1);
	soa->ttl = soa->minimum = dns_ttl_now();
	soa->len = bpf_htons(42);
	__builtin_memcpy(soa->mname, "\2ns\3dns", 7);
	__builtin_memcpy(soa->rname, "\12hostmaster", 11);
	soa->serial = bpf_htonl(1);
	soa->refresh = bpf_htonl(7200);
	soa->retry = bpf_htonl(1800);
	soa->expire = bpf_htonl(86400);
	if (bpf_skb_store_bytes(skb, question, soa, sizeof(*soa), 0))
		return drop(skb, DROP_REWRITE);
	return dns_reply(skb, over_v6, question + size, SECTIONS(0, 1, 0), DNS_AA | rcode << 8 | (rcode ? DNS_NO_NAME : DNS_NO_DATA) << 16);
}

/* Answers the question in the scratch, or returns -1 or AGAIN. */
static __always_inline int dns_try(struct __sk_buff *skb, __u32 over_v6, __u32 zone_at, __u32 type)
{
	int verdict;

	if (zone_at != 0xffff)
		return dns_cluster(skb, over_v6, zone_at);
	if (type == TYPE_PTR) {
		verdict = dns_record(skb, over_v6);
		if (verdict != -1)
			return verdict;
	}
	return dns_outside(skb, over_v6);
}

/* Answers a query, behind an IP header that is plain, or returns -1 and leaves it as it is. A change comes between what is read and what is written once in
 * many thousand times, and the answer is made anew. */
int __attribute__((noinline)) dns_answer(struct __sk_buff *skb, __u32 over_v6)
{
	struct dns_scratch *s = dns_scratch_now();
	__u32 zone_at, type;
	int verdict;

	if (!skb || !s || dns_state() & NAMES_OFF)
		return -1;
	if (dns_read(skb, over_v6)) {
		count(DNS_PASSED_ODD);
		return -1;
	}
	type = OPAQUE(s->type);
	if (type >= TYPE_META && type < TYPE_ANY)
		return -1;
	zone_at = dns_zone_at(skb);
	verdict = dns_try(skb, over_v6, zone_at, type);
	if (verdict != AGAIN)
		return verdict;
	verdict = dns_try(skb, over_v6, zone_at, type);
	return verdict < 0 ? dns_as_asked(skb, over_v6) : verdict;
}

#endif
