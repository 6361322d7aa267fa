/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Frontends of this node as others ask them: at the uplink, and in the tunnel pods of other nodes. A backend of this node gets the packet as it
 * is; one of another node gets it from this node's address and a port of it, so that the answer comes back here. */
#ifndef STRAKE_NODEPORT_H
#define STRAKE_NODEPORT_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "verdict.h"
#include "endpoint.h"
#include "lb.h"
#include "conntrack.h"
#include "masq.h"
#include "nat.h"
#include "parse.h"
#include "tunnel.h"

/* The answer of a frontend, back to where the question came from. Not through the host's stack: its own address as a source would be a
 * martian there. */
static __always_inline int nodeport_answer(struct __sk_buff *skb, const struct addr *client, __u32 ifindex)
{
	struct path *to = path_now();
	struct remote *r;

	if (!to || to->tunnel != ifindex)
		return bpf_redirect_neigh(ifindex, 0, 0, 0);
	r = remote_of(client);
	if (!r || remote_is_native(r))
		return drop(skb, DROP_NO_REMOTE);
	return tunnel_send(skb, r, to);
}

static __always_inline enum parsed parse_fresh(struct __sk_buff *skb, struct packet *p)
{
	__builtin_memset(p, 0, sizeof(*p));
	return parse(skb, p);
}

#include "refuse.h"

#define NODEPORT_FORWARD -3
#define NODEPORT_REFUSED -4

/* To a backend on another node, as s->flow says; one that begins has no port of this node yet. */
int __attribute__((noinline)) nodeport_forward(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct path *way = path_now();
	struct packet *p;
	struct remote *r;
	int begun;

	if (!skb || !s || !way)
		return drop(skb, DROP_NO_REMOTE);
	p = &s->p;
	r = remote_of(&s->flow.daddr);
	if (!r)
		return drop(skb, DROP_NO_REMOTE);
	if (p->more) /* those that follow have no ports by which they would find there */
		return drop(skb, DROP_NOT_MASQUERADED);
	if (!(s->flow.flags & FLOW_MASQUERADED)) {
		begun = masq_begin(skb);
		if (begun)
			return drop(skb, begun == FLOW_NO_PORT ? DROP_NO_PORT : DROP_CONNTRACK_FULL);
	}
	if (flow_rewrite(skb))
		return drop(skb, DROP_REWRITE);
	note(skb, UPLINK_TO_REMOTE);
	if (remote_is_native(r)) {
		p->saddr = s->flow.saddr;
		p->daddr = s->flow.daddr;
		return native_send(skb, p, skb->ifindex);
	}
	return tunnel_send(skb, r, way);
}

/* What such a backend answers: s->key, s->flow. */
int __attribute__((noinline)) nodeport_return(struct __sk_buff *skb)
{
	struct scratch *s = scratch();

	if (!skb || !s)
		return drop(skb, DROP_NO_BACKEND);
	if (s->p.more)
		return drop(skb, DROP_NO_BACKEND);
	if (flow_step(skb))
		return drop(skb, DROP_CONNTRACK_FULL);
	if (flow_rewrite(skb))
		return drop(skb, DROP_REWRITE);
	note(skb, REMOTE_TO_UPLINK);
	return nodeport_answer(skb, &s->flow.daddr, s->flow.ifindex);
}

#define NODEPORT_CHOSEN -6

/* The backend of a new flow, to s->flow. */
int __attribute__((noinline)) nodeport_choose(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct backend be = {};
	struct frontend *fe;
	struct packet *p;

	if (!skb || !s)
		return drop(skb, DROP_NO_BACKEND);
	p = &s->p;
	fe = lb_frontend(&p->daddr, p->dport, p->proto);
	if (!fe)
		return drop(skb, DROP_NO_BACKEND);
	switch (lb_choose(fe, 1, &p->saddr, lb_hash(&p->saddr, p->sport, &p->daddr, p->dport, p->proto), &be)) {
	case LB_NO_BACKEND:
		return NODEPORT_REFUSED;
	case LB_NOT_HERE:
		return drop(skb, DROP_NO_LOCAL_BACKEND);
	case LB_CHOSEN:
		break;
	}
	s->flow.saddr = p->saddr;
	s->flow.sport = p->sport;
	s->flow.daddr = be.addr;
	s->flow.dport = be.port;
	s->flow.service = fe->service;
	s->flow.generation = 0;
	s->flow.flags = 0;
	return NODEPORT_CHOSEN;
}

/* What comes to the node: -1 if it is for no frontend and answers nobody for whom the node sent something. NODEPORT_FORWARD and
 * MASQ_FORWARDED ask for those two functions. */
int __attribute__((noinline)) nodeport_find(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct frontend *fe;
	struct endpoint *ep;
	struct packet *p;
	int verdict, ports, known;

	if (!skb || !s)
		return -1;
	p = &s->p;
	ports = p->ports || (p->more && !p->later && l4_of(skb, p) == L4_PORTS);
	fe = ports ? lb_frontend(&p->daddr, p->dport, p->proto) : 0;
	flow_key_of(p, &s->key, 0);
	known = fe ? flow_get(skb) : 0;
	if (!known) { /* a pod may have had the port before it became a NodePort */
		verdict = masq_in(skb);
		if (verdict != -1 || !fe)
			return verdict;
		flow_key_of(p, &s->key, 0);
	} else if (!flow_is_reused(s)) {
		ep = bpf_map_lookup_elem(&endpoints, &s->flow.daddr);
		if (ep || (s->flow.flags & FLOW_MASQUERADED && remote_of(&s->flow.daddr))) {
			if (flow_step(skb))
				return drop(skb, DROP_CONNTRACK_FULL);
			if (ep)
				goto here;
			return NODEPORT_FORWARD;
		}
	}
	verdict = nodeport_choose(skb);
	if (verdict != NODEPORT_CHOSEN)
		return verdict;
	ep = bpf_map_lookup_elem(&endpoints, &s->flow.daddr);
	if (!ep) {
		if (masq_is_on(p->v6) && remote_of(&s->flow.daddr))
			return NODEPORT_FORWARD;
		note(skb, UPLINK_REMOTE);
		return TC_ACT_OK;
	}
	if (flow_begin(skb))
		return drop(skb, DROP_CONNTRACK_FULL);
here:
	if (p->more)
		masq_note_fragment(p, &s->flow.daddr);
	if (flow_rewrite(skb))
		return drop(skb, DROP_REWRITE);
	note(skb, UPLINK_TO_POD);
	return endpoint_redirect(skb, ep);
}

static __always_inline int nodeport_in(struct __sk_buff *skb)
{
	int verdict = nodeport_find(skb);

	if (verdict == MASQ_FORWARDED)
		return nodeport_return(skb);
	if (verdict == NODEPORT_REFUSED)
		return refuse(skb, DROP_NO_BACKEND);
	return verdict == NODEPORT_FORWARD ? nodeport_forward(skb) : verdict;
}

#endif
