/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What becomes of packets, for who watches (`strake monitor`). While nobody does, a packet that is counted pays for one look into an array.
 *
 * Who watches renews a lease each second, so that nothing is left on when he is killed: the first program that finds the lease expired
 * ends it. */
#ifndef STRAKE_MONITOR_H
#define STRAKE_MONITOR_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define EVENTS (1 << 19) /* bytes; a multiple of the page size */
#define CAPTURE 128

/* As bpf/monitor.go reads it. */
struct event {
	__u64 time;     /* monotonic clock, ns */
	__u32 reason;
	__u32 length;   /* of the packet with its Ethernet header */
	__u32 ifindex;
	__u32 from;     /* the interface that it came in by; 0: the node itself sends it */
	__u32 captured; /* bytes of data */
	__u32 pid;      /* of who asked for a socket; 0: this is a packet */
	__u32 policy;   /* that denies it; 0: none */
	__u32 rule;     /* of the policy */
	__u8 data[CAPTURE];
};

/* What stands in data for a socket. */
struct socket_event {
	__u8 addr[16];
	__u16 port; /* network order */
	__u8 proto;
	__u8 pad;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events SEC(".maps");

struct watch {
	__u64 until; /* monotonic clock, ns; 0: nobody watches */
	__u32 all;   /* every verdict, else drops alone */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct watch);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} monitor SEC(".maps");

/* How many events there was no room for. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} events_lost SEC(".maps");

static __always_inline struct watch *watched(int dropped)
{
	__u32 zero = 0;
	struct watch *w = bpf_map_lookup_elem(&monitor, &zero);

	return w && w->until && (dropped || w->all) ? w : 0;
}

/* Room for an event, with all filled in that it has whatever it is about; 0 if there is none, or the lease is over. */
static __always_inline struct event *event_begin(__u32 reason)
{
	__u64 now = bpf_ktime_get_ns();
	struct watch *w = watched(1);
	struct event *e;
	__u32 zero = 0;
	__u64 *lost;

	if (!w)
		return 0;
	if (now > w->until) {
		w->until = 0;
		return 0;
	}
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		lost = bpf_map_lookup_elem(&events_lost, &zero);
		if (lost)
			__sync_fetch_and_add(lost, 1);
		return 0;
	}
	e->time = now;
	e->reason = reason;
	e->length = e->ifindex = e->from = e->captured = e->pid = e->policy = e->rule = 0;
	return e;
}

#endif
