/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who asks a backend by its own address, from a port by which he asked a frontend before and got that backend: what the backend answers to the one
 * question and to the other has the same ends, and it would all come from the frontend. So the flow of the frontend gives way, once. */
#ifndef STRAKE_DIRECT_H
#define STRAKE_DIRECT_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "conntrack.h"
#include "parse.h"
#include "service.h"

/* The flow of datagrams whose answers have the row s->key, s->flow goes on from another port of its client's, to the same backend. */
static __always_inline void flow_move(struct __sk_buff *skb, struct scratch *s)
{
	struct flow *f;

	flow_delete(&s->key);
	flow_turn(s);
	s->key = s->back;
	s->flow = s->other;
	flow_turn(s);
	f = flow_row(&s->key);
	if (!f || !flow_is_back_of(f, &s->back)) /* it has moved already */
		return;
	if (flow_take_other(skb, s)) {
		flow_delete(&s->key);
		return;
	}
	s->flow.sport = s->back.dport;
	bpf_map_update_elem(&flows_passing, &s->key, &s->flow, BPF_ANY);
}

/* The packet at hand goes to its receiver as it is, allowed to where there are policies. A connection that goes on has its port for itself; one that has not
 * begun, or is over, ends. */
int __attribute__((noinline)) flow_give_way(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct packet *p;
	struct flow *f;

	if (!skb || !s)
		return 0;
	p = &s->p;
	if (!has_ports(skb, p) || (flow_has_connection(p->proto) && !tcp_opens(p->tcp)))
		return 0;
	s->key.saddr = p->daddr;
	s->key.daddr = p->saddr;
	s->key.sport = p->dport;
	s->key.dport = p->sport;
	s->key.proto = p->proto;
	s->key.reply = 1;
	s->key.pad = 0;
	f = flow_row(&s->key);
	/* Of who is behind the host's stack this is the question to the frontend itself, which comes back translated, on its way to a backend there. */
	if (!f || !f->service || f->flags & FLOW_OWN || flow_is_open(f->state, p->proto))
		return 0;
	if (flow_has_connection(p->proto) || !flow_alive(f, p->proto, seconds_now()))
		return flow_end(skb);
	s->flow = *f;
	flow_move(skb, s);
	return 0;
}

/* The packet at hand is for the node itself, or for who is behind its stack: what such backends answer to flows is turned as it leaves. */
static __always_inline void stack_give_way(struct __sk_buff *skb)
{
	__u32 *leave = answers_leave_now();

	if (leave && *leave)
		flow_give_way(skb);
}

#endif
