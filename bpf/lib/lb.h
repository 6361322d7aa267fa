/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services: a frontend names a service and how many backend slots it has; a slot holds one backend.
 * Addresses and ports are in network order everywhere. All frontends and backends of a service are of one family. */
#ifndef STRAKE_LB_H
#define STRAKE_LB_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"

#define LB_FRONTENDS 65536
#define LB_BACKENDS 262144
#define LB_REVERSE 262144

struct frontend_key {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad[5];
};

struct frontend {
	__u32 service;
	__u32 backends; /* slots 0..backends-1 */
};

struct slot_key {
	__u32 service;
	__u32 slot;
};

struct backend {
	struct addr addr;
	__be16 port;
	__u16 pad[3];
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

/* Who asked for a service: no program reads it, a restarted agent and `strake status` do. */
struct service {
	__u8 owner[64]; /* Service UID */
	__u8 name[192]; /* namespace/name:port */
	__u8 proto;
	__u8 pad[7];
};

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

/* A service that shrinks deletes its last slots after the frontend is rewritten; a program that read the old count may meet
 * a hole, so it falls back to slot 0, which is the last one to go. */
static __always_inline struct backend *lb_pick(const struct frontend *fe, __u32 *slot)
{
	struct backend *be;

	*slot = 0;
	if (!fe->backends)
		return 0;
	*slot = ((__u64)bpf_get_prandom_u32() * fe->backends) >> 32;
	be = lb_slot(fe, *slot);
	if (be)
		return be;
	*slot = 0;
	return lb_slot(fe, 0);
}

#endif
