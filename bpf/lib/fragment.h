/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments of packets that belong to a flow. The first one has the ports and finds the flow; what became of it tells where the others go. Only
 * fragments in order find their first one. */
#ifndef STRAKE_FRAGMENT_H
#define STRAKE_FRAGMENT_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "conntrack.h"
#include "parse.h"

#define FLOW_FRAGMENTS 8192

struct fragment_key {
	struct addr saddr, daddr;
	__be32 id;
	__u32 proto; /* IPv4 */
};

#define FRAGMENT_LIFE 30 /* seconds, as the kernel's: identifications are used again */

struct fragment {
	struct addr saddr, daddr; /* what they become */
	__u32 ifindex, service;
	__u8 reply, flags; /* of the flow */
	__u16 pad;
	__u32 seen; /* monotonic clock, seconds */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FLOW_FRAGMENTS);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} flow_fragments SEC(".maps");

static __always_inline void fragment_key_of(const struct packet *p, struct fragment_key *key)
{
	key->saddr = p->saddr;
	key->daddr = p->daddr;
	key->id = p->id;
	key->proto = p->v6 ? 0 : p->proto; /* RFC 8200 4.5: identified without it */
}

/* The packet at hand is a first fragment of s->key, s->flow. */
static __always_inline void fragment_note(struct scratch *s)
{
	struct fragment_key key;
	struct fragment f = { .saddr = s->flow.saddr, .daddr = s->flow.daddr, .ifindex = s->flow.ifindex, .service = s->flow.service, .reply = s->key.reply, .flags = s->flow.flags, .seen = seconds_now() };

	fragment_key_of(&s->p, &key);
	bpf_map_update_elem(&flow_fragments, &key, &f, BPF_ANY);
}

/* Whether the packet at hand, a later fragment, is of a flow: then s->flow has its addresses, interface and flags, and s->key its direction. */
static __always_inline int fragment_get(struct scratch *s)
{
	struct fragment_key key;
	struct fragment *f;

	fragment_key_of(&s->p, &key);
	f = bpf_map_lookup_elem(&flow_fragments, &key);
	if (!f || (__s32)(seconds_now() - f->seen) > FRAGMENT_LIFE)
		return 0;
	s->flow.saddr = f->saddr;
	s->flow.daddr = f->daddr;
	s->flow.ifindex = f->ifindex;
	s->flow.flags = f->flags;
	s->flow.service = f->service;
	s->key.reply = f->reply;
	return 1;
}

#endif
