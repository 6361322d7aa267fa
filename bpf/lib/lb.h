/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services: a frontend names a service and how many slots each of its two sets has: of all backends, and of those of this node. A slot holds
 * one backend. Addresses and ports are in network order everywhere. All frontends and backends of a service are of one family.
 * Go writes all of it but affinity and hits, in an order in which no program meets half a change (loadbalancers.go). */
#ifndef STRAKE_LB_H
#define STRAKE_LB_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"

/* Sizes unless Config says otherwise. */
#define LB_FRONTENDS 262144
#define LB_BACKENDS 524288
#define LB_MAGLEV 262144
#define LB_SOURCES 65536
#define LB_AFFINITY 65536
#define LB_REVERSE 262144
#define LB_PORTS 65536

struct frontend_key {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad[5];
};

/* Flags of a frontend. */
#define FE_INSIDE_LOCAL 1  /* clients of the cluster get backends of this node alone */
#define FE_OUTSIDE_LOCAL 2 /* clients from outside do */
#define FE_SOURCES 4       /* lb_sources says who may ask from outside of this node */

#define KIND_NODE_PORT 1
#define KIND_HOST_PORT 4

struct frontend {
	__u32 service;
	__u32 all;   /* slots 0..all-1 */
	__u32 local; /* slots LB_LOCAL|0..LB_LOCAL|local-1 */
	__u32 affinity; /* seconds for which a client keeps its backend; 0: each connection chooses */
	__u16 flags;
	__u16 kind; /* FrontendKind in Go */
	__u32 maglev_all, maglev_local; /* sizes of the sets' Maglev tables; 0: none */
};

#define LB_LOCAL (1U << 31) /* in a slot, or in a chunk of a Maglev table: of the local set */

struct slot_key {
	__u32 service;
	__u32 slot;
};

struct backend {
	struct addr addr;
	__be16 port;
	__u16 pad[3];
};

#define M_ALL 1
#define M_LOCAL 2

struct member_key {
	__u32 service;
	__be16 port;
	__u16 pad;
	struct addr addr;
};

/* A backend by its address. One without flags is draining: its flows go on, new ones go elsewhere. One that is not here is gone. */
struct member {
	__u16 flags;
	__u16 weight;
	__u32 pad;
	__u64 hits; /* times it was chosen */
};

#define MAGLEV_CHUNK 64

struct maglev_key {
	__u32 service;
	__u32 chunk; /* number, size of the table << 10, LB_LOCAL: tables of two sizes stand beside each other while one takes over */
};

struct maglev {
	__u16 slots[MAGLEV_CHUNK];
};

struct source_key {
	__u32 prefixlen; /* with the 32 bits of service */
	__u32 service;
	struct addr addr;
};

/* Who has chosen: at the packet the client's address; at the socket its network namespace, as the address that affinity_netns makes. */
struct affinity_key {
	struct addr client;
	__u32 service;
	__u32 pad;
};

struct affinity {
	struct addr addr;
	__be16 port;
	__u16 pad[3];
	__u64 last; /* nanoseconds of the clock that runs since boot */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LB_FRONTENDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} lb_frontends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LB_BACKENDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct slot_key);
	__type(value, struct backend);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} lb_backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LB_BACKENDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct member_key);
	__type(value, struct member);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} lb_members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LB_MAGLEV);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct maglev_key);
	__type(value, struct maglev);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} lb_maglev SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, LB_SOURCES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct source_key);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} lb_sources SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, LB_AFFINITY);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} lb_affinity SEC(".maps");

/* Grows by one after a backend went. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} lb_changes SEC(".maps");

/* Who asked for a service, for the agent and `strake status`; programs ask whether it is there, and since when. */
struct service {
	__u8 owner[64]; /* Service UID */
	__u8 name[192]; /* namespace/name:port */
	__u8 proto;
	__u8 pad[3];
	__u32 made; /* when the first of its Service was: monotonic clock, seconds; 0: its Service had others before, by whatever name of a port */
};

/* Ports of the node on some of its addresses that NodePorts and host ports have: no process of the node gets them on all addresses. */
struct port_key {
	__be16 port;
	__u8 proto;
	__u8 v6;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LB_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, __u8);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} lb_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LB_FRONTENDS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* service */
	__type(value, struct service);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} lb_services SEC(".maps");

static __always_inline struct frontend *lb_frontend(const struct addr *addr, __be16 port, __u8 proto)
{
	struct frontend_key key = { .addr = *addr, .port = port, .proto = proto };

	return bpf_map_lookup_elem(&lb_frontends, &key);
}

/* What a slot of a service holds. */
static __always_inline struct backend *lb_slot(const struct frontend *fe, __u32 slot)
{
	struct slot_key key = { .service = fe->service, .slot = slot };

	return bpf_map_lookup_elem(&lb_backends, &key);
}

/* A backend of a service, also a draining one; 0 if it is gone. */
static __always_inline struct member *lb_member(__u32 service, const struct addr *addr, __be16 port)
{
	struct member_key key = { .service = service, .addr = *addr, .port = port };

	return bpf_map_lookup_elem(&lb_members, &key);
}

/* A number that changes after a backend went: what was found among the members at one number need not be sought again until the next. */
static __always_inline __u32 lb_generation(void)
{
	__u32 zero = 0, *n = bpf_map_lookup_elem(&lb_changes, &zero);

	return n ? *n : 0;
}

/* Whether addr may ask a frontend with FE_SOURCES. */
static __always_inline int lb_may_ask(const struct frontend *fe, const struct addr *addr)
{
	struct source_key key = { .prefixlen = 160, .service = fe->service, .addr = *addr };

	return bpf_map_lookup_elem(&lb_sources, &key) != 0;
}

static __always_inline __u32 lb_mix(__u32 h, __u32 v)
{
	h = (h ^ v) * 0x9e3779b1;
	return h ^ h >> 15;
}

static __always_inline __u32 lb_mix_addr(__u32 h, const struct addr *a)
{
	h = lb_mix(h, a->w[0]);
	h = lb_mix(h, a->w[1]);
	h = lb_mix(h, a->w[2]);
	return lb_mix(h, a->w[3]);
}

/* A number of a flow that is the same on every node. It has nothing of the frontend's address: a node port has another one on each. */
static __always_inline __u32 lb_hash(const struct addr *client, __be16 sport, __be16 dport, __u8 proto)
{
	__u32 h = lb_mix_addr(proto, client);

	h = lb_mix(h, (__u32)sport << 16 | dport);
	return lb_mix(h, 0x85ebca6b);
}

/* A network namespace as a client: no packet has such an address. */
static __always_inline struct addr affinity_netns(__u64 cookie)
{
	struct addr a = { .d = { cookie, ~0ULL } };

	return a;
}

enum lb_choice {
	LB_CHOSEN,
	LB_NO_BACKEND, /* the service has none: refuse */
	LB_NOT_HERE,   /* it has some, but on other nodes, and this frontend is for those of this node alone: drop */
};

/* The backend that a client of this service had last, if it may have it again. */
static __always_inline int lb_again(const struct frontend *fe, const struct affinity_key *key, __u16 set, __u64 now, struct backend *to)
{
	struct affinity *a = bpf_map_lookup_elem(&lb_affinity, key);
	struct member *m;

	if (!a || (__s64)(now - a->last) > (__s64)fe->affinity * 1000000000) /* another processor may just have written a later time */
		return 0;
	to->addr = a->addr;
	to->port = a->port;
	m = lb_member(fe->service, &to->addr, to->port);
	if (!m || !(m->flags & set))
		return 0;
	a->last = now;
	__sync_fetch_and_add(&m->hits, 1);
	return 1;
}

/* The slot that a flow falls to by the Maglev table; by the number of slots if the table is being changed. */
static __always_inline __u32 lb_maglev_slot(const struct frontend *fe, __u32 set, __u32 n, __u32 size, __u32 hash)
{
	__u32 at = hash % size;
	struct maglev_key key = { .service = fe->service, .chunk = set | size << 10 | at / MAGLEV_CHUNK };
	struct maglev *chunk = bpf_map_lookup_elem(&lb_maglev, &key);

	return chunk ? chunk->slots[at % MAGLEV_CHUNK] : hash % n;
}

/* Chooses a backend for a new flow: the client's former one where the Service wants that; for clients from outside that of the hash, which
 * is the same on every node; else any. A service that shrinks deletes its last slots after the frontend is rewritten; a program that read
 * the old count may meet a hole, so it falls back to slot 0, which is the last one to go. */
static __always_inline enum lb_choice lb_choose(const struct frontend *fe, int outside, const struct addr *client, __u32 hash, struct backend *to)
{
	int local = fe->flags & (outside ? FE_OUTSIDE_LOCAL : FE_INSIDE_LOCAL);
	__u32 n = local ? fe->local : fe->all, set = local ? LB_LOCAL : 0;
	__u32 size = local ? fe->maglev_local : fe->maglev_all, slot;
	struct affinity_key key = { .client = *client, .service = fe->service };
	__u64 now = 0;
	struct backend *be;
	struct member *m;

	if (!n)
		return local && fe->all ? LB_NOT_HERE : LB_NO_BACKEND;
	if (fe->affinity) {
		now = bpf_ktime_get_ns();
		if (lb_again(fe, &key, local ? M_LOCAL : M_ALL, now, to))
			return LB_CHOSEN;
		hash = lb_mix(lb_mix_addr(0, client), 0x85ebca6b); /* of the client alone: numbers of services are each node's own */
	}
	if (outside && size)
		slot = lb_maglev_slot(fe, set, n, size, hash);
	else
		slot = ((__u64)bpf_get_prandom_u32() * n) >> 32;
	be = lb_slot(fe, set | slot);
	if (!be)
		be = lb_slot(fe, set);
	if (!be)
		return LB_NO_BACKEND;
	to->addr = be->addr;
	to->port = be->port;
	m = lb_member(fe->service, &to->addr, to->port);
	if (m)
		__sync_fetch_and_add(&m->hits, 1);
	if (fe->affinity) {
		struct affinity a = { .addr = to->addr, .port = to->port, .last = now };

		bpf_map_update_elem(&lb_affinity, &key, &a, BPF_ANY);
	}
	return LB_CHOSEN;
}

#endif
