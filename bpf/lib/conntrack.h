/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows that are translated. Each has two rows, one for each direction, and a row says what becomes of a packet: both of its ends. So either
 * row tells the key of the other: the packet that it makes, turned round.
 *
 * Rows live in one of two tables. flows_open holds connections (TCP, SCTP) that both sides have agreed on, until they end: nothing but that,
 * and time, takes them out. All else is in flows_passing, where the oldest goes first: what begins, what has ended, datagrams, echoes. Whoever
 * sends a million of those pushes out others of their kind, and no connection. */
#ifndef STRAKE_CONNTRACK_H
#define STRAKE_CONNTRACK_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "parse.h"

#define FLOWS_OPEN 262144 /* rows */
#define FLOWS_PASSING 262144
#define FLOW_PROBES 16

struct flow_key {
	struct addr saddr, daddr;
	__be16 sport, dport; /* of an ICMP echo: its identifier is the port of who asks, 0 that of who answers */
	__u8 proto;
	__u8 reply; /* 0: as who began it sends; 1: as he is answered */
	__u16 pad;
};

/* What has been seen of a flow; both rows have the same. */
enum {
	FLOW_REPLIED = 1,
	FLOW_FIN_OUT = 2, /* of who began it */
	FLOW_FIN_IN = 4,
	FLOW_RESET = 8,
	FLOW_AGREED = 16, /* who began it sent something upon the reply */
	FLOW_OPEN = 32,   /* in scratch only: the row is in flows_open */
};

enum {
	FLOW_MASQUERADED = 1, /* the source became the node's */
	FLOW_HERE = 2,        /* the backend is a pod of this node */
	FLOW_OWN = 4,         /* who asks is behind the host's stack */
	FLOW_AWAY = 8,        /* the backend's node translates it, and answers by itself (dsr.h): of the flow there is this row alone */
	FLOW_DIRECT = 16,     /* another node sent the question so: the answer goes where the routes lead */
};

struct flow {
	struct addr saddr, daddr; /* what a packet becomes */
	__be16 sport, dport;
	__u32 ifindex;    /* that the first packet came in by */
	__u32 service;    /* 0: none */
	__u32 generation; /* of lb_changes, when the backend was last looked for */
	__u32 seen;       /* the last packet of either direction: monotonic clock, seconds */
	__u8 state;
	__u8 flags;
	__u16 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FLOWS_OPEN);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows_open SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FLOWS_PASSING);
	__type(key, struct flow_key);
	__type(value, struct flow);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows_passing SEC(".maps");

/* The tables before these, while tables of another size take over: what is not here yet is there. Set at load, and only until all programs
 * know the new ones. */
const volatile __u8 flows_have_before;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows_open_before SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows_passing_before SEC(".maps");

/* When flows_open had no room last: monotonic clock, seconds; 0: it has. No connection begins then, until the agent has made room; without an
 * agent, it is tried again after a while. */
#define FULL_FOR 2

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows_full SEC(".maps");

/* Tells the agent, once a second at most. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 65536); /* a multiple of the page size */
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flows_events SEC(".maps");

/* A packet that an error quotes. */
struct quoted {
	struct addr saddr, daddr;
	__u32 l4;
	__u8 proto;
};

/* Of the packet at hand. Functions that are verified by themselves (global ones, which on Linux 5.10 take nothing but numbers and the
 * context) meet here: each has the stack nearly to itself, and what one knows does not multiply with what another knows. */
struct scratch {
	struct packet p;
	struct flow_key key, back; /* of the packet's row; of the other one, room for the functions below */
	struct flow flow;          /* what they say */
	struct addr as;            /* the address that it is masqueraded with */
	struct {                   /* what the packet around the one at hand said (dsr.h) */
		struct addr node, backend;
		__be16 port;
	} dsr;
	union {                    /* room for the functions below */
		struct flow other;
		struct quoted quoted;
	};
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

static __always_inline struct scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

/* The time of this tick, by processor: to look at the clock takes as long as to look for a row. */
struct tick {
	__u64 tick; /* jiffies */
	__u32 seconds;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tick);
} ticks SEC(".maps");

/* Monotonic clock, late by a tick at most. */
static __always_inline __u32 seconds_now(void)
{
	__u64 tick = bpf_jiffies64();
	__u32 zero = 0, seconds;
	struct tick *t = bpf_map_lookup_elem(&ticks, &zero);

	if (t && *(volatile __u64 *)&t->tick == tick)
		return *(volatile __u32 *)&t->seconds;
	seconds = bpf_ktime_get_ns() / 1000000000;
	if (t) {
		*(volatile __u32 *)&t->seconds = seconds;
		*(volatile __u64 *)&t->tick = tick;
	}
	return seconds;
}

static __always_inline void flow_key_of(const struct packet *p, struct flow_key *key, __u8 reply)
{
	key->saddr = p->saddr;
	key->daddr = p->daddr;
	key->sport = p->sport;
	key->dport = p->dport;
	key->proto = p->proto;
	key->reply = reply;
	key->pad = 0;
}

/* The key of a flow's other row: the packet that the one with a key makes, turned round. */
static __always_inline void flow_key_back(const struct flow_key *key, const struct flow *f, struct flow_key *back)
{
	back->saddr = f->daddr;
	back->daddr = f->saddr;
	back->sport = f->dport;
	back->dport = f->sport;
	back->proto = key->proto;
	back->reply = !key->reply;
	back->pad = 0;
}

static __always_inline int flow_has_connection(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_SCTP;
}

/* Both sides ended it, or one broke it off. What comes late is still translated. */
static __always_inline int flow_is_over(__u8 state)
{
	return state & FLOW_RESET || (state & (FLOW_FIN_OUT | FLOW_FIN_IN)) == (FLOW_FIN_OUT | FLOW_FIN_IN);
}

static __always_inline int flow_is_open(__u8 state, __u8 proto)
{
	return flow_has_connection(proto) && state & FLOW_AGREED && !flow_is_over(state);
}

/* How long a flow lives without a packet, in seconds. RFC 5382 wants at least 2 h 4 min of an open connection and 4 min of one that begins; a day, and
 * an hour of one that ends, is what kube-proxy sets. A connection that is over is kept for what comes late only: who ends it first keeps the
 * tuple himself, and ports are few. RFC 4787 wants 2 min of UDP. */
static __always_inline __u32 flow_life(__u8 state, __u8 proto)
{
	if (!flow_has_connection(proto))
		return proto == IPPROTO_UDP && state & FLOW_REPLIED ? 180 : 60;
	if (flow_is_over(state))
		return 10;
	if (!(state & FLOW_AGREED))
		return 240;
	return state & (FLOW_FIN_OUT | FLOW_FIN_IN) ? 3600 : 86400;
}

static __always_inline int flow_alive(const struct flow *f, __u8 proto, __u32 now)
{
	return (__s32)(now - f->seen) <= (__s32)flow_life(f->state, proto);
}

/* The state behind a packet. tcp: its flags, 0 for other protocols and where they are not known. */
static __always_inline __u8 flow_next(__u8 state, __u8 tcp, int reply)
{
	if (tcp_opens(tcp) && !reply && flow_is_over(state)) /* the ports are used again */
		state &= FLOW_OPEN;
	state &= ~FLOW_RESET; /* what goes on was not ended by a stranger's RST */
	if (reply)
		state |= FLOW_REPLIED;
	else if (state & FLOW_REPLIED && !(tcp & TCP_SYN))
		state |= FLOW_AGREED;
	if (tcp & TCP_FIN)
		state |= reply ? FLOW_FIN_IN : FLOW_FIN_OUT;
	if (tcp & TCP_RST)
		state |= FLOW_RESET;
	return state;
}

static __always_inline struct flow *flow_row(const struct flow_key *key)
{
	struct flow *f = bpf_map_lookup_elem(&flows_open, key);

	return f ? f : bpf_map_lookup_elem(&flows_passing, key);
}

/* Takes the row of a key over from the tables before. */
static __always_inline void flow_fetch(struct scratch *s, const struct flow_key *key)
{
	struct flow *f = bpf_map_lookup_elem(&flows_open_before, key);

	if (f) {
		s->other = *f;
		bpf_map_update_elem(&flows_open, key, &s->other, BPF_NOEXIST);
		return;
	}
	f = bpf_map_lookup_elem(&flows_passing_before, key);
	if (f) {
		s->other = *f;
		bpf_map_update_elem(&flows_passing, key, &s->other, BPF_NOEXIST);
	}
}

/* Whether the flow of s->key is there and alive: then its row is copied to s->flow. */
int __attribute__((noinline)) flow_get(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow *f;

	if (!skb || !s)
		return 0;
	f = bpf_map_lookup_elem(&flows_open, &s->key);
	if (f) {
		s->flow = *f;
		s->flow.state |= FLOW_OPEN;
	} else {
		f = bpf_map_lookup_elem(&flows_passing, &s->key);
		if (!f && flows_have_before) {
			flow_fetch(s, &s->key);
			f = flow_row(&s->key);
		}
		if (!f) /* another processor may have moved it meanwhile */
			f = bpf_map_lookup_elem(&flows_open, &s->key);
		if (!f)
			return 0;
		s->flow = *f;
	}
	return flow_alive(&s->flow, s->key.proto, seconds_now());
}

/* Whether the packet at hand, which found the flow s->flow by a key of reply 0, begins another one with the same ports: a SYN where the
 * connection before is over. One that is sent twice does not. */
static __always_inline int flow_is_reused(const struct scratch *s)
{
	return tcp_opens(s->p.tcp) && flow_is_over(s->flow.state);
}

/* Whether a row is the other one of a flow with this key: another flow may have got its key since. */
static __always_inline int flow_is_back_of(const struct flow *f, const struct flow_key *key)
{
	return addr_eq(&f->saddr, &key->daddr) && addr_eq(&f->daddr, &key->saddr) && f->sport == key->dport && f->dport == key->sport;
}

static __always_inline void flow_delete(const struct flow_key *key)
{
	if (bpf_map_delete_elem(&flows_open, key))
		bpf_map_delete_elem(&flows_passing, key);
	if (flows_have_before) { /* else it would be fetched again */
		bpf_map_delete_elem(&flows_open_before, key);
		bpf_map_delete_elem(&flows_passing_before, key);
	}
}

/* Takes both rows of the flow of s->key away, if there is one. */
int __attribute__((noinline)) flow_end(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow *f;

	if (!skb || !s)
		return 0;
	f = flow_row(&s->key);
	if (!f)
		return 0;
	flow_key_back(&s->key, f, &s->back);
	flow_delete(&s->key);
	f = flow_row(&s->back);
	if (f && flow_is_back_of(f, &s->key))
		flow_delete(&s->back);
	return 0;
}

/* The row of a flow's other direction, from s->key and s->flow to s->back and s->other. */
static __always_inline void flow_turn(struct scratch *s)
{
	flow_key_back(&s->key, &s->flow, &s->back);
	s->other = s->flow;
	s->other.saddr = s->key.daddr;
	s->other.sport = s->key.dport;
	s->other.daddr = s->key.saddr;
	s->other.dport = s->key.sport;
}

/* Why a flow can't begin. */
#define FLOW_NO_ROOM -1
#define FLOW_NO_PORT -2

/* What a row has at its beginning, but for what who asks for it says. Returns -1 if no connection can begin now. */
static __always_inline int flow_first(struct __sk_buff *skb, struct scratch *s)
{
	__u32 zero = 0, *full = bpf_map_lookup_elem(&flows_full, &zero);

	s->flow.seen = seconds_now();
	s->flow.state = flow_next(0, s->p.tcp, 0);
	s->flow.ifindex = skb->ifindex;
	s->flow.pad = 0;
	return full && *full && (__s32)(s->flow.seen - *full) < FULL_FOR && flow_has_connection(s->key.proto) ? -1 : 0;
}

/* Takes the key s->back with the row s->other, unless a flow has it that is alive. Two processors that find the same row of a flow that is over may both take
 * it: then the last one has it, and the other flow's next step sees that the row is not its own. */
int __attribute__((noinline)) flow_take(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct flow_key peer;
	struct flow *f;

	if (!skb || !s)
		return -1;
	f = flow_row(&s->back);
	if (!f && flows_have_before && (bpf_map_lookup_elem(&flows_open_before, &s->back) || bpf_map_lookup_elem(&flows_passing_before, &s->back)))
		return -1;
	if (f) {
		if (flow_alive(f, s->back.proto, s->flow.seen))
			return -1;
		flow_key_back(&s->back, f, &peer);
		flow_delete(&s->back);
		f = flow_row(&peer);
		if (f && flow_is_back_of(f, &s->back))
			flow_delete(&peer);
	}
	if (bpf_map_update_elem(&flows_passing, &s->back, &s->other, BPF_NOEXIST))
		return -1;
	if (!bpf_map_lookup_elem(&flows_open, &s->back))
		return 0;
	bpf_map_delete_elem(&flows_passing, &s->back); /* whose row it was became a connection meanwhile */
	return -1;
}

enum { FLOW_NO_ROW, FLOW_BEGUN, FLOW_STALE };

/* What stands in the row of the flow at hand, which flow_get did not find or which is to begin anew. FLOW_BEGUN: another processor has begun
 * it meanwhile, with another packet of it, and s->flow is now what that one chose. A connection's first packet comes once; but two datagrams may
 * come at a time. */
static __always_inline int flow_found(struct scratch *s)
{
	struct flow *f = flow_row(&s->key);

	if (!f)
		return FLOW_NO_ROW;
	if (flow_has_connection(s->key.proto) || f->service != s->flow.service || f->generation != s->flow.generation || !flow_alive(f, s->key.proto, s->flow.seen))
		return FLOW_STALE;
	s->flow = *f;
	return FLOW_BEGUN;
}

/* Writes the row s->flow of a flow whose other row s->back is written. If another processor was first, its row is the flow. */
static __always_inline int flow_settle(struct scratch *s)
{
	if (!bpf_map_update_elem(&flows_passing, &s->key, &s->flow, BPF_NOEXIST))
		return 0;
	if (flow_found(s) == FLOW_BEGUN) {
		if (!flow_is_back_of(&s->flow, &s->back))
			bpf_map_delete_elem(&flows_passing, &s->back);
		return 0;
	}
	return bpf_map_update_elem(&flows_passing, &s->key, &s->flow, BPF_ANY) ? FLOW_NO_ROOM : 0;
}

/* flow_take with another port of the client's: the one that it has leads elsewhere. */
static __always_inline int flow_take_other(struct __sk_buff *skb, struct scratch *s)
{
	for (__u32 i = 1; i < FLOW_PROBES; i++) {
		s->back.dport = bpf_htons(1024 + (bpf_get_prandom_u32() & 0x7fff));
		if (!flow_take(skb))
			return 0;
	}
	return -1;
}

/* Begins the flow of the packet at hand: s->key has reply 0; of s->flow the ends, service, generation and flags are set. A flow that had the
 * key before goes. Where the answers would be those of another flow (two frontends with one backend, called from one port), the source gets
 * another port. Returns 0, FLOW_NO_ROOM or FLOW_NO_PORT. */
int __attribute__((noinline)) flow_begin(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	__u32 found;

	if (!skb || !s || flow_first(skb, s))
		return FLOW_NO_ROOM;
	found = flow_found(s);
	if (found == FLOW_BEGUN)
		return 0;
	if (found == FLOW_STALE)
		flow_end(skb);
	flow_turn(s);
	if (flow_take(skb) && flow_take_other(skb, s))
		return FLOW_NO_PORT;
	s->flow.sport = s->back.dport;
	return flow_settle(s);
}

/* Writes what changes with packets into a row: only if it changed, for both directions are often on different processors. */
static __always_inline void flow_mark(struct flow *f, const struct flow *now)
{
	__u8 state = now->state & ~FLOW_OPEN;

	if (f->state != state)
		f->state = state;
	if (f->seen != now->seen)
		f->seen = now->seen;
	if (f->generation != now->generation)
		f->generation = now->generation;
}

/* Puts both rows, s->flow and s->other, into flows_open. Returns -1 if that is full, and tells the agent. */
static __always_inline int flow_open(struct scratch *s)
{
	__u32 zero = 0, *full;

	if (!bpf_map_update_elem(&flows_open, &s->key, &s->flow, BPF_ANY)) {
		if (!bpf_map_update_elem(&flows_open, &s->back, &s->other, BPF_ANY)) {
			bpf_map_delete_elem(&flows_passing, &s->key);
			bpf_map_delete_elem(&flows_passing, &s->back);
			return 0;
		}
		bpf_map_delete_elem(&flows_open, &s->key);
	}
	full = bpf_map_lookup_elem(&flows_full, &zero);
	if (full && *full != s->flow.seen) {
		*full = s->flow.seen;
		bpf_ringbuf_output(&flows_events, full, sizeof(*full), 0);
	}
	return -1;
}

/* flow_next with FLOW_AWAY: whatever goes on was answered, as far as can be seen. */
static __always_inline __u8 flow_next_away(__u8 state, __u8 proto, __u8 tcp)
{
	int begins = !flow_has_connection(proto) || tcp_opens(tcp);

	return flow_next(begins ? 0 : state | FLOW_REPLIED, tcp, 0);
}

/* flow_step with FLOW_AWAY: only one side is seen, and whoever sends two packets could make it a connection. So its row is never in flows_open;
 * where it is pushed out, the client's next packet finds the same backend by its hash. */
static __always_inline int flow_step_away(struct scratch *s, __u32 now)
{
	__u8 state = flow_next_away(s->flow.state, s->key.proto, s->p.tcp);
	struct flow *f;

	if (state == s->flow.state && s->flow.seen == now)
		return 0;
	s->flow.state = state;
	s->flow.seen = now;
	f = flow_row(&s->key);
	if (f)
		flow_mark(f, &s->flow);
	return 0;
}

/* Follows the flow of s->key, s->flow (as flow_get left them, but for another generation) by the packet at hand. Most packets change nothing,
 * and once a second one writes the time, and a row that was pushed out. Returns -1 if it became a connection and there is no room for it. */
int __attribute__((noinline)) flow_step(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	__u32 now = seconds_now();
	struct flow *f;
	__u8 state, was;

	if (!skb || !s)
		return -1;
	if (s->flow.flags & FLOW_AWAY)
		return flow_step_away(s, now);
	was = s->flow.state & FLOW_OPEN;
	state = flow_next(s->flow.state, s->p.tcp, s->key.reply);
	if (state == s->flow.state && s->flow.seen == now)
		return 0;
	s->flow.seen = now;
	s->flow.state = state & ~FLOW_OPEN;
	flow_turn(s);
	f = flow_row(&s->back);
	if (f && !flow_is_back_of(f, &s->key)) { /* another flow took the port: this one gets another at its next packet */
		flow_delete(&s->key);
		return 0;
	}
	if (flow_is_open(state, s->key.proto)) {
		if (!was || !f)
			return flow_open(s);
	} else if (was) {
		bpf_map_update_elem(&flows_passing, &s->key, &s->flow, BPF_ANY);
		bpf_map_update_elem(&flows_passing, &s->back, &s->other, BPF_ANY);
		bpf_map_delete_elem(&flows_open, &s->key);
		bpf_map_delete_elem(&flows_open, &s->back);
		return 0;
	}
	if (f)
		flow_mark(f, &s->flow);
	else
		bpf_map_update_elem(&flows_passing, &s->back, &s->other, BPF_ANY);
	f = flow_row(&s->key);
	if (f)
		flow_mark(f, &s->flow);
	return 0;
}

#endif
