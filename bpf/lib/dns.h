/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Questions to the cluster's DNS, as pods ask them. Those that are plain and can be answered in full are turned into their answers and sent
 * back where they came from; all others go up to user space as they are. Reading a question is here, the rest in dnsreply.h (how an answer
 * is sent), dnsnames.h (what is put together of names and addresses) and dnsstored.h (what user space has written down whole). */
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

#define NAME_MAX 256     /* RFC 1035: a name has at most 255 octets */
#define ZONE_MAX 64
#define RAW_MAX 4096     /* a power of two, so that an index can be masked */
#define LABELS 64        /* deeper names are left to user space; addresses of IPv6 have 34 (RFC 3596 2.5) */
#define PLAIN_MAX 512    /* bytes that every client takes (RFC 1035 4.2.1) */
#define ANSWER_MAX 1232  /* and that we send at most, as user space tells in its OPT records */

#define TYPE_A 1
#define TYPE_SOA 6
#define TYPE_PTR 12
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

/* What the agent has said of all names. */
#define NAMES_WHOLE 1 /* every Service and namespace has its row: others do not exist */
#define NAMES_OFF 2   /* user space answers for all */
#define NAMES_PODS 4  /* names of pods are those of any addresses, if there is the namespace */
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

#define DNS_QR 0x80 /* of flags1 */
#define DNS_AA 0x04
#define DNS_RA 0x80 /* of flags2 */
#define DNS_AD 0x20
#define DNS_CD 0x10

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

/* What a stored answer is found by: the whole question, and what else of a query makes a difference. */
struct asked {
	__u16 type;
	__u8 bits; /* zero for answers that don't depend on them */
	__u8 zero;
	struct name_key key;
};

#define ASKED_RD 1
#define ASKED_CD 2
#define ASKED_AD 4
#define ASKED_DO 8

#define OUTSIDE_TTLS 32
#define OUTSIDE_LONG_TTLS 76 /* addresses that ANSWER_MAX has room for */

/* What a table of names has no room for is in one more, which user space makes then, as large as it need be: a row of an array of maps. */
static __always_inline void *dns_more(void *tables)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(tables, &zero);
}

/* The head of a stored answer. */
struct stored {
	__u32 tag;     /* of one writing: at the end of the row once more, so that who reads while it is written anew sees it */
	__u32 ttl;     /* that the records have in the body */
	__u64 expires; /* on the clock of bpf_ktime_get_boot_ns; 0: never */
	__u16 len;     /* of the body: the records, as they come behind the question */
	__u16 stride;  /* bytes of each of the first records, that take turns */
	__u16 turns;   /* how many those are */
	__u16 answers, authorities, additionals;
	__u8 flags1, flags2; /* of the header, as DNS_AA */
	__u8 pad[2];
};

/* An address that is read out of a label, of dns_dashed. */
struct dashed {
	__u32 number, decimal;     /* the group that is read, as hexadecimal and as decimal digits */
	__u32 digits;              /* that it has so far */
	__u32 groups, gap;         /* how many are complete; at which the zeroes are left out, or NO_GAP */
	__u32 dash;                /* the last was a dash behind a group, or the first of all */
	__u32 plain;               /* all groups are those of an IPv4 address */
	__u16 hex[8];
	__u8 bytes[8];
	__u8 addr[16];
};

#define NO_GAP 255

/* The stack is small. */
struct dns_scratch {
	__u8 raw[RAW_MAX];       /* question and what follows, as received */
	struct asked asked;
	struct name_key service; /* the end of the name, of dns_missing */
	__u8 start[LABELS];      /* where each label begins in the name */
	__u32 left, labels, len; /* of dns_name */
	__u32 type, edns, limit; /* of dns_read; the last are the bytes that the client takes */
	__u32 bits;              /* such as ASKED_RD */
	__u32 had;               /* bytes of raw, if those are all that the packet had from the question on; else 0 */
	struct stored stored;    /* what dns_stored sends */
	__u16 ttl_at[OUTSIDE_LONG_TTLS];
	__u32 ttls;
	struct dashed dashed;
	union {
		struct soa soa;
		struct answer answer;
		struct opt opt;
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
		s->asked.key.name[i] = c;
	}
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
	__u32 avail, total, len, end, limit, bits;
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
	__builtin_memset(&s->asked, 0, sizeof(s->asked));
	dns_name(s, avail);
	len = OPAQUE(s->len);
	if (!len || len > NAME_MAX - 1 || OPAQUE(s->labels) > LABELS || len + 4 > avail)
		return -1;
	if (dns_byte(s, len + 2) != 0 || dns_byte(s, len + 3) != 1) /* class IN */
		return -1;
	OPAQUE(s->had) = skb->len == question + avail ? avail : 0;
	OPAQUE(s->type) = dns_byte(s, len) << 8 | dns_byte(s, len + 1);
	OPAQUE(s->edns) = edns;
	OPAQUE(s->limit) = PLAIN_MAX;
	bits = h.dns.flags1 & 1 ? ASKED_RD : 0;
	if (h.dns.flags2 & DNS_CD)
		bits |= ASKED_CD;
	if (h.dns.flags2 & DNS_AD)
		bits |= ASKED_AD;
	end = len + 4;
	if (edns) {
		if (len + 15 > avail || len + 15 > sizeof(s->raw))
			return -1;
		if (dns_byte(s, len + 4) != 0 || dns_byte(s, len + 5) != 0 || dns_byte(s, len + 6) != TYPE_OPT)
			return -1;
		if (dns_byte(s, len + 10) != 0) /* RFC 6891 6.1.3: another version is answered BADVERS */
			return -1;
		end += 11 + (dns_byte(s, len + 13) << 8 | dns_byte(s, len + 14));
		limit = dns_byte(s, len + 7) << 8 | dns_byte(s, len + 8);
		if (limit > PLAIN_MAX)
			OPAQUE(s->limit) = limit < ANSWER_MAX ? limit : ANSWER_MAX;
		if (dns_byte(s, len + 11) & 0x80)
			bits |= ASKED_DO;
	}
	OPAQUE(s->bits) = bits;
	s->asked.type = OPAQUE(s->type);
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
		if (s->asked.key.name[(at + i) & (NAME_MAX - 1)] != dns_zone[i])
			return 0xffff;
	}
	return at;
}

#endif
