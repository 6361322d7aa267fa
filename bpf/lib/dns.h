/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Cluster names answered in place: the query is turned into its answer and sent back where it came from.
 * Only plain questions that can be answered in full are; all others go up to user space as they are. */
#ifndef STRAKE_DNS_H
#define STRAKE_DNS_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "verdict.h"
#include "parse.h"

#define NAMES 65536
#define NAME_ADDRS 8     /* of each family */
#define NAME_MAX 256     /* RFC 1035: a name has at most 255 octets */
#define ZONE_MAX 64
#define RAW_MAX 512      /* a power of two, so that an index can be masked */
#define LABELS 16        /* deeper names are left to user space */

#define TYPE_A 1
#define TYPE_SOA 6
#define TYPE_AAAA 28
#define TYPE_SRV 33
#define TYPE_OPT 41
#define TYPE_META 249 /* from here to 255: zone transfers, ANY and their like */
#define TYPE_ANY 255
#define RCODE_NXDOMAIN 3

/* Set at load. The zone in wire format, lower case, with the root's zero at its end. */
const volatile struct addr dns_addr4, dns_addr6;
const volatile __u32 dns_ttl;
const volatile __u8 dns_zone[ZONE_MAX];
const volatile __u32 dns_zone_len;    /* with the root */
const volatile __u32 dns_zone_labels;

struct name_key {
	__u8 name[NAME_MAX]; /* wire format, lower case, zeroes behind it */
};

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

/* What the agent has said of all names. */
#define NAMES_WHOLE 1 /* every Service and namespace has its row: others do not exist */
#define NAMES_OFF 2   /* user space answers for all */
#define NAMES_TTL 16  /* from this bit on: seconds that records live; 0: as was set at load */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} names_state SEC(".maps");

struct dns_header {
	__be16 id;
	__u8 flags1; /* QR, opcode, AA, TC, RD */
	__u8 flags2; /* RA, Z, AD, CD, RCODE */
	__be16 questions, answers, authorities, additionals;
};

struct answer {
	__be16 name, type, class;
	__be32 ttl;
	__be16 len;
	__u8 addr[16]; /* of an A, the first 4 */
} __attribute__((packed));

#define ANSWER_SIZE(v6) (sizeof(struct answer) - ((v6) ? 0 : 12))

struct soa {
	__be16 name, type, class;
	__be32 ttl;
	__be16 len;
	__u8 mname[7]; /* 2 n s 3 d n s */
	__be16 mname_zone;
	__u8 rname[11]; /* 10 h o s t m a s t e r */
	__be16 rname_zone;
	__be32 serial, refresh, retry, expire, minimum;
} __attribute__((packed));

struct opt {
	__u8 root;
	__be16 type, size;
	__be32 flags;
	__be16 len;
} __attribute__((packed));

struct head4 {
	__u8 align[2];
	struct ethhdr eth;
	struct iphdr ip;
};

struct head6 {
	__u8 align[2];
	struct ethhdr eth;
	struct ipv6hdr ip;
};

/* The stack is small. */
struct dns_scratch {
	__u8 raw[RAW_MAX];       /* question and what follows, as received */
	struct name_key key;
	struct name_key service; /* the end of the name, of dns_missing */
	__u8 start[LABELS];      /* where each label begins in the name */
	__u32 left, labels, len; /* of dns_name */
	__u32 type, edns;        /* of dns_read */
	union {
		struct soa soa;
		struct answer answer;
		struct head4 head4;
		struct head6 head6;
		__be32 pseudo[10];
	} record;                /* of the answer, one after the other */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dns_scratch);
} dns_scratch SEC(".maps");

/* What a loop leaves behind goes through memory: read back, it is one unknown value to the verifier, where a register would be
 * one known value for each way out of the loop, and all that follows would be checked once for each. */
#define OPAQUE(field) (*(volatile __u32 *)&(field))

/* Linux 5.10 forgets what it knows of a number that goes through the stack, so an index is bounded where it is used. The compiler, which
 * forgets nothing, would leave a plain mask out. */
static __always_inline __u8 dns_byte(const struct dns_scratch *s, __u64 at)
{
	asm volatile("%0 &= %1" : "+r"(at) : "i"(RAW_MAX - 1));
	return s->raw[at];
}

static __always_inline struct dns_scratch *dns_scratch_now(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&dns_scratch, &zero);
}

/* Lower-cases the name into the key and notes where its labels begin. Its length is 0 if it is not plain. */
static __always_inline void dns_name(struct dns_scratch *s, __u32 avail)
{
	OPAQUE(s->left) = 0;
	OPAQUE(s->labels) = 0;
	OPAQUE(s->len) = 0;
	for (__u32 i = 0; i < NAME_MAX - 1; i++) {
		__u32 left = OPAQUE(s->left), n;
		__u8 c;

		if (i >= avail)
			return;
		c = s->raw[i];
		if (left == 0) {
			if (c == 0) {
				OPAQUE(s->len) = i + 1;
				return;
			}
			n = OPAQUE(s->labels);
			if (c > 63 || n >= LABELS) /* compression has no place in a question */
				return;
			s->start[n & (LABELS - 1)] = i;
			OPAQUE(s->labels) = n + 1;
			OPAQUE(s->left) = c;
		} else {
			OPAQUE(s->left) = left - 1;
			if (c >= 'A' && c <= 'Z')
				c |= 0x20;
		}
		s->key.name[i] = c;
	}
}

/* Names that no object can have, by the naming rules alone (DNS-based service discovery 1.1.0): the label before the zone is none of
 * svc, pod, dns, dns-version; or there are more than four labels before svc. These are what a resolver's search list makes. */
static __always_inline int dns_impossible(const struct dns_scratch *s, __u32 labels)
{
	__u32 before = labels - dns_zone_labels;
	__u32 at;
	const __u8 *l = s->key.name;

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

static __always_inline __u32 dns_state(void)
{
	__u32 zero = 0, *state = bpf_map_lookup_elem(&names_state, &zero);

	return state ? *state : 0;
}

static __always_inline __be32 dns_ttl_now(void)
{
	__u32 ttl = dns_state() >> NAMES_TTL;

	return bpf_htonl(ttl ? ttl : dns_ttl);
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
	if (at > NAME_MAX - 8 || s->key.name[at] != 3 || s->key.name[at + 1] != 's' || s->key.name[at + 2] != 'v' || s->key.name[at + 3] != 'c')
		return 0;
	if (before < 4) /* a namespace, or a Service */
		return 1;
	at = s->start[(before - 3) & (LABELS - 1)];
	len = OPAQUE(s->len);
	__builtin_memset(&s->service, 0, sizeof(s->service));
	for (__u32 i = 0; i < NAME_MAX - 1; i++) {
		if (at + i >= len)
			break;
		s->service.name[i] = s->key.name[(at + i) & (NAME_MAX - 1)];
	}
	return !bpf_map_lookup_elem(&names, &s->service);
}

/* The headers before a datagram of so many bytes, turned around. */
static __always_inline int dns_turn4(struct __sk_buff *skb, struct dns_scratch *s, __u32 len)
{
	struct head4 *h = &s->record.head4;
	__be32 addr;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &h->ip, sizeof(h->ip)) || bpf_skb_load_bytes(skb, 0, h->eth.h_source, 6) || bpf_skb_load_bytes(skb, 6, h->eth.h_dest, 6))
		return -1;
	h->eth.h_proto = bpf_htons(ETH_P_IP);
	addr = h->ip.saddr;
	h->ip.saddr = h->ip.daddr;
	h->ip.daddr = addr;
	h->ip.ttl = 64;
	h->ip.tot_len = bpf_htons(sizeof(h->ip) + len);
	h->ip.check = 0;
	h->ip.check = folded(bpf_csum_diff(0, 0, (__be32 *)&h->ip, sizeof(h->ip), 0));
	return bpf_skb_store_bytes(skb, 0, &h->eth, sizeof(h->eth) + sizeof(h->ip), BPF_F_INVALIDATE_HASH);
}

static __always_inline int dns_turn6(struct __sk_buff *skb, struct dns_scratch *s, __u32 len)
{
	const __u32 saddr = ETH_HLEN + offsetof(struct ipv6hdr, saddr), daddr = ETH_HLEN + offsetof(struct ipv6hdr, daddr);
	struct head6 *h = &s->record.head6;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &h->ip, 8) || bpf_skb_load_bytes(skb, saddr, &h->ip.daddr, 16) || bpf_skb_load_bytes(skb, daddr, &h->ip.saddr, 16) ||
	    bpf_skb_load_bytes(skb, 0, h->eth.h_source, 6) || bpf_skb_load_bytes(skb, 6, h->eth.h_dest, 6))
		return -1;
	h->eth.h_proto = bpf_htons(ETH_P_IPV6);
	h->ip.hop_limit = 64;
	h->ip.payload_len = bpf_htons(len);
	return bpf_skb_store_bytes(skb, 0, &h->eth, sizeof(h->eth) + sizeof(h->ip), BPF_F_INVALIDATE_HASH);
}

/* Over IPv6 a datagram without a checksum is none (RFC 8200 8.1). The scratch is used up. */
static __always_inline int dns_checksum6(struct __sk_buff *skb, struct dns_scratch *s, __u32 len)
{
	const __u32 l4 = ETH_HLEN + sizeof(struct ipv6hdr);
	__be32 *pseudo = s->record.pseudo;
	__u64 size = len;
	__be16 check;

	__builtin_memset(s->raw, 0, sizeof(s->raw));
	asm volatile("" : "+r"(size)); /* as in dns_byte */
	if (size < sizeof(struct udphdr) || size > sizeof(s->raw) || bpf_skb_load_bytes(skb, l4, s->raw, size) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct ipv6hdr, saddr), pseudo, 32))
		return -1;
	pseudo[8] = bpf_htonl(len);
	pseudo[9] = bpf_htonl(IPPROTO_UDP);
	check = folded(bpf_csum_diff(0, 0, (__be32 *)s->raw, sizeof(s->raw), bpf_csum_diff(0, 0, pseudo, sizeof(s->record.pseudo), 0)));
	if (!check)
		check = 0xffff;
	return bpf_skb_store_bytes(skb, l4 + offsetof(struct udphdr, check), &check, sizeof(check), 0);
}

static __always_inline int is_dns(const struct packet *p)
{
	struct addr dns;

	if (!p->ports || p->dport != bpf_htons(53) || p->proto != IPPROTO_UDP)
		return 0;
	dns = p->v6 ? addr_of(&dns_addr6) : addr_of(&dns_addr4);
	return addr_eq(&p->daddr, &dns);
}

struct dns_head {
	struct udphdr udp;
	struct dns_header dns;
} __attribute__((packed));

/* Reads a standard query with one question and at most an OPT record into the scratch, or returns -1. This and what follows are verified by
 * themselves, as global functions are: what one may find does not multiply with what the next may. */
int __attribute__((noinline)) dns_read(struct __sk_buff *skb, __u32 over_v6)
{
	__u32 l4 = ETH_HLEN + (over_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)), question = l4 + sizeof(struct dns_head);
	struct dns_scratch *s = dns_scratch_now();
	__u32 avail, total, len, end;
	struct dns_head h;
	__u64 size;
	int edns;

	if (!skb || !s || bpf_skb_load_bytes(skb, l4, &h, sizeof(h)))
		return -1;
	if (h.dns.flags1 & 0xfe || h.dns.questions != bpf_htons(1) || h.dns.answers || h.dns.authorities)
		return -1;
	edns = h.dns.additionals == bpf_htons(1);
	if (!edns && h.dns.additionals)
		return -1;
	total = bpf_ntohs(h.udp.len);
	if (total <= sizeof(h))
		return -1;
	total -= sizeof(h);
	if (skb->len < question + total)
		return -1;
	avail = total;
	if (avail > NAME_MAX + 16)
		avail = NAME_MAX + 16;
	size = avail;
	asm volatile("" : "+r"(size)); /* as in dns_byte */
	if (size < 5 || size > NAME_MAX + 16 || bpf_skb_load_bytes(skb, question, s->raw, size))
		return -1;
	__builtin_memset(&s->key, 0, sizeof(s->key));
	dns_name(s, avail);
	len = OPAQUE(s->len);
	if (!len || len > NAME_MAX - 1 || OPAQUE(s->labels) > LABELS || len + 4 > avail)
		return -1;
	if (dns_byte(s, len + 2) != 0 || dns_byte(s, len + 3) != 1) /* class IN */
		return -1;
	OPAQUE(s->type) = dns_byte(s, len) << 8 | dns_byte(s, len + 1);
	OPAQUE(s->edns) = edns;
	end = len + 4;
	if (edns) {
		if (len + 15 > avail || len + 15 > sizeof(s->raw))
			return -1;
		if (dns_byte(s, len + 4) != 0 || dns_byte(s, len + 5) != 0 || dns_byte(s, len + 6) != TYPE_OPT)
			return -1;
		if (dns_byte(s, len + 10) != 0) /* RFC 6891 6.1.3: another version is answered BADVERS */
			return -1;
		end += 11 + (dns_byte(s, len + 13) << 8 | dns_byte(s, len + 14));
	}
	return end == total ? 0 : -1; /* what follows the records is nothing that we know */
}

/* Where the zone begins in the name of the scratch, or 0xffff if the name is not in it. */
__u32 __attribute__((noinline)) dns_zone_at(struct __sk_buff *skb)
{
	struct dns_scratch *s = dns_scratch_now();
	__u32 at, len, labels;

	if (!skb || !s)
		return 0xffff;
	len = OPAQUE(s->len);
	labels = OPAQUE(s->labels);
	if (labels < dns_zone_labels || len < dns_zone_len)
		return 0xffff;
	at = len - dns_zone_len;
	if (labels > dns_zone_labels || dns_zone_labels == 0) {
		if (s->start[(labels - dns_zone_labels) & (LABELS - 1)] != at)
			return 0xffff;
	} else if (at) {
		return 0xffff;
	}
	for (__u32 i = 0; i < ZONE_MAX; i++) {
		if (i >= dns_zone_len)
			break;
		if (s->key.name[(at + i) & (NAME_MAX - 1)] != dns_zone[i])
			return 0xffff;
	}
	return at;
}

/* Writes the n addresses of the scratch's name from an offset on, beginning with any. On its own, where registers are enough for the
 * counter: Linux 5.10 forgets one that goes through the stack, and would see no end. */
int __attribute__((noinline)) dns_records(struct __sk_buff *skb, __u32 off, __u32 v6, __u32 n)
{
	struct dns_scratch *s = dns_scratch_now();
	__u32 first = bpf_get_prandom_u32();
	struct answer *a;
	struct name *name;

	if (!skb || !s)
		return -1;
	name = bpf_map_lookup_elem(&names, &s->key);
	if (!name)
		return -1;
	if (!n || n != (v6 ? name->n6 : name->n4)) /* changed meanwhile */
		return -1;
	a = &s->record.answer;
	a->name = bpf_htons(0xc000 | sizeof(struct dns_header));
	a->type = bpf_htons(v6 ? TYPE_AAAA : TYPE_A);
	a->class = bpf_htons(1);
	a->ttl = dns_ttl_now();
	a->len = bpf_htons(v6 ? 16 : 4);
	for (__u32 i = 0; i < NAME_ADDRS; i++) {
		__u32 at = (first + i) % n & (NAME_ADDRS - 1);

		if (i >= n)
			break;
		if (v6)
			__builtin_memcpy(a->addr, &name->addrs6[at], 16);
		else
			__builtin_memcpy(a->addr, &name->addrs4[at], 4);
		if (v6 ? bpf_skb_store_bytes(skb, off, a, ANSWER_SIZE(1), 0) : bpf_skb_store_bytes(skb, off, a, ANSWER_SIZE(0), 0))
			return -1;
		off += ANSWER_SIZE(v6);
	}
	return 0;
}

/* Answers a query, behind an IP header that is plain, or returns -1 and leaves it as it is. */
int __attribute__((noinline)) dns_answer(struct __sk_buff *skb, __u32 over_v6)
{
	__u32 l4 = ETH_HLEN + (over_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)), question = l4 + sizeof(struct dns_head);
	struct dns_scratch *s = dns_scratch_now();
	__u32 total, len, type, edns, zone_at, body, off, n = 0;
	int denial = 0, rcode = 0, v6 = 0;
	struct dns_head h;
	struct name *name;
	__be16 port;

	if (!skb || !s || dns_state() & NAMES_OFF || dns_read(skb, over_v6))
		return -1;
	zone_at = dns_zone_at(skb);
	if (zone_at == 0xffff)
		return -1;
	len = OPAQUE(s->len);
	type = OPAQUE(s->type);
	edns = OPAQUE(s->edns);
	if (!len || len > NAME_MAX - 1 || bpf_skb_load_bytes(skb, l4, &h, sizeof(h)))
		return -1;
	name = bpf_map_lookup_elem(&names, &s->key);
	if (type >= TYPE_META && type < TYPE_ANY)
		return -1;
	if (name) {
		if (name->n4 > NAME_ADDRS || type == TYPE_SRV || type == TYPE_ANY)
			return -1;
		v6 = type == TYPE_AAAA;
		n = v6 ? name->n6 : name->n4;
		if (type != TYPE_A && type != TYPE_AAAA)
			n = 0;
		if (n > NAME_ADDRS)
			return -1;
		denial = n == 0;
	} else if (dns_impossible(s, OPAQUE(s->labels)) || dns_missing(skb)) {
		denial = 1;
		rcode = RCODE_NXDOMAIN;
	} else {
		return -1;
	}

	body = len + 4 + (denial ? sizeof(struct soa) : n * ANSWER_SIZE(v6)) + (edns ? sizeof(struct opt) : 0);
	if (sizeof(h) + body > RAW_MAX) /* every client takes 512 (RFC 1035 4.2.1) without the UDP header */
		return -1;
	if (bpf_skb_change_tail(skb, question + body, 0))
		return -1;
	/* From here on there is no way back: the packet is an answer or it is dropped. */
	off = question + len + 4;
	if (denial) {
		struct soa *soa = &s->record.soa;

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
		if (bpf_skb_store_bytes(skb, off, soa, sizeof(*soa), 0))
			return drop(skb, DROP_REWRITE);
		off += sizeof(*soa);
	} else {
		if (dns_records(skb, off, v6, n))
			return drop(skb, DROP_REWRITE);
		off += n * ANSWER_SIZE(v6);
	}
	if (edns) {
		struct opt o = { .type = bpf_htons(TYPE_OPT), .size = bpf_htons(1232) };

		if (bpf_skb_store_bytes(skb, off, &o, sizeof(o), 0))
			return drop(skb, DROP_REWRITE);
	}
	total = sizeof(h) + body;
	port = h.udp.dest;
	h.udp.dest = h.udp.source;
	h.udp.source = port;
	h.udp.len = bpf_htons(total);
	h.udp.check = 0; /* RFC 768: none. The answer crosses memory only. */
	h.dns.flags1 |= 0x84; /* QR, AA; RD as asked */
	h.dns.flags2 = 0x80 | rcode; /* RA */
	h.dns.answers = denial ? 0 : bpf_htons(n);
	h.dns.authorities = denial ? bpf_htons(1) : 0;
	h.dns.additionals = edns ? bpf_htons(1) : 0;
	if (bpf_skb_store_bytes(skb, l4, &h, sizeof(h), 0))
		return drop(skb, DROP_REWRITE);
	if (over_v6 ? dns_turn6(skb, s, total) || dns_checksum6(skb, s, total) : dns_turn4(skb, s, total))
		return drop(skb, DROP_REWRITE);
	note(skb, !denial ? DNS_ANSWERED : rcode ? DNS_NO_NAME : DNS_NO_DATA);
	return bpf_redirect(skb->ifindex, 0);
}

#endif
