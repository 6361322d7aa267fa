/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Questions for names and what became of them, for who looks (`strake dns top`). While nobody does, a question pays for one look into an
 * array. Who looks renews a lease, as of the monitor: the first program that finds it expired ends it. */
#ifndef STRAKE_DNSWATCH_H
#define STRAKE_DNSWATCH_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "service.h"

#define DNS_EVENTS (1 << 20) /* bytes; a multiple of the page size */
#define DNS_HEADER 12        /* bytes; what is shorter is none */
#define DNS_CAPTURE 271      /* a header, the longest name, type and class */

/* As bpf/dnswatch.go reads it. */
struct dns_event {
	__u64 time;     /* when the question came: monotonic clock, ns */
	__u32 took;     /* ns until the answer was made; 0: it was passed on */
	__u32 ifindex;
	__u32 captured; /* bytes of data */
	__u32 pad;
	struct addr client;
	__u8 data[DNS_CAPTURE + 1]; /* the answer, or the question if it was passed on */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, DNS_EVENTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} dns_events SEC(".maps");

#define DNS_WATCH_UNTIL 0 /* monotonic clock, ns; 0: nobody looks */
#define DNS_WATCH_LOST 1  /* events that there was no room for */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} dns_watch SEC(".maps");

/* The time, if somebody looks. */
static __always_inline __u64 dns_watched(void)
{
	__u32 row = DNS_WATCH_UNTIL;
	__u64 *until = bpf_map_lookup_elem(&dns_watch, &row);

	return until && *until ? bpf_ktime_get_ns() : 0;
}

/* Tells of a question that came at a time; the packet at hand is its answer, or itself. */
int __attribute__((noinline)) dns_tell(struct __sk_buff *skb, __u32 answered, __u64 came)
{
	struct scratch *s = scratch();
	__u32 row = DNS_WATCH_UNTIL, l4;
	__u64 *w = bpf_map_lookup_elem(&dns_watch, &row), len;
	struct dns_event *e;

	if (!skb || !s || !w)
		return 0;
	if (came > *w) {
		*w = 0;
		return 0;
	}
	e = bpf_ringbuf_reserve(&dns_events, sizeof(*e), 0);
	if (!e) {
		row = DNS_WATCH_LOST;
		w = bpf_map_lookup_elem(&dns_watch, &row);
		if (w)
			__sync_fetch_and_add(w, 1);
		return 0;
	}
	l4 = s->p.l4 + sizeof(struct udphdr); /* behind options, too: such a question is passed on */
	len = skb->len > l4 ? skb->len - l4 : 0;
	e->time = came;
	e->took = answered ? bpf_ktime_get_ns() - came : 0;
	e->ifindex = skb->ifindex;
	e->captured = e->pad = 0;
	e->client = s->p.saddr;
	if (len > DNS_CAPTURE)
		len = DNS_CAPTURE;
	asm volatile("" : "+r"(len)); /* one number, of 64 bits, as Linux 5.10 follows it */
	if (len >= DNS_HEADER) {
		asm volatile("" : "+r"(len)); /* else both bounds are one comparison of another number, from which Linux 5.10 learns nothing */
		if (len <= DNS_CAPTURE && !bpf_skb_load_bytes(skb, l4, e->data, len))
			e->captured = len;
	}
	bpf_ringbuf_submit(e, 0);
	return 0;
}

#endif
