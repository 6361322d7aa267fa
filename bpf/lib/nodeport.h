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

/* Of the packet at hand. Functions that are verified by themselves (global ones, which on Linux 5.10 take nothing but numbers and the
 * context) meet here: each has the stack nearly to itself, and what one knows does not multiply with what another knows. */
struct scratch {
	struct packet p;
	struct flow_key key, back;
	struct flow to, front;
	struct masq row;
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

static __always_inline enum parsed parse_fresh(struct __sk_buff *skb, struct packet *p)
{
	__builtin_memset(p, 0, sizeof(*p));
	return parse(skb, p);
}

#include "refuse.h"

#define NODEPORT_FORWARD -3
#define NODEPORT_REFUSED -4

/* To a backend on another node: the flow s->key has the row s->to. */
int __attribute__((noinline)) nodeport_forward(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct path *way = path_now();
	struct packet *p;
	struct masq *m = 0;
	struct remote *r;
	struct addr node;

	if (!skb || !s || !way)
		return drop(skb, DROP_NO_REMOTE);
	p = &s->p;
	r = remote_of(&s->to.addr);
	if (!r)
		return drop(skb, DROP_NO_REMOTE);
	if (p->more) /* those that follow have no ports by which they would find there */
		return drop(skb, DROP_NOT_MASQUERADED);
	node = node_of(p->v6);
	s->row.addr = p->saddr;
	s->row.port = p->sport;
	s->row.state = FORWARDED;
	s->row.seen = masq_now();
	masq_key(&s->back, &s->to.addr, s->to.port, &node, s->to.via, p->proto, 1);
	if (s->to.via && bpf_map_lookup_elem(&flows, &s->back))
		m = bpf_map_lookup_elem(&masq_flows, &s->back);
	if (m && addr_eq(&m->addr, &p->saddr) && m->port == p->sport && m->state & FORWARDED) {
		masq_touch(m, p->tcp, 0, s->row.seen);
	} else {
		if (masq_pick(skb, &s->back, &s->row, s->to.via))
			return drop(skb, DROP_NO_PORT);
		s->to.via = s->back.dport;
		s->front.addr = p->daddr;
		s->front.port = p->dport;
		s->front.via = 0;
		s->front.ifindex = skb->ifindex;
		if (bpf_map_update_elem(&flows, &s->key, &s->to, BPF_ANY) || bpf_map_update_elem(&flows, &s->back, &s->front, BPF_ANY))
			return drop(skb, DROP_CONNTRACK_FULL);
	}
	if (nat(skb, p, 0, &s->to.addr, s->to.port) || nat(skb, p, 1, &node, s->to.via))
		return drop(skb, DROP_REWRITE);
	note(skb, UPLINK_TO_REMOTE);
	if (remote_is_native(r)) {
		p->saddr = node;
		p->daddr = s->to.addr;
		return native_send(skb, p, skb->ifindex);
	}
	return tunnel_send(skb, r, way);
}

/* What such a backend answers. */
int __attribute__((noinline)) nodeport_return(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct addr client, addr;
	struct flow_key key;
	__be16 client_port;
	struct packet *p;
	struct masq *m;
	struct flow *f;
	__u32 ifindex;

	if (!skb || !s)
		return drop(skb, DROP_NO_BACKEND);
	p = &s->p;
	masq_key(&key, &p->saddr, p->sport, &p->daddr, p->dport, p->proto, 1);
	m = bpf_map_lookup_elem(&masq_flows, &key);
	f = bpf_map_lookup_elem(&flows, &key);
	if (!m || !f || p->more)
		return drop(skb, DROP_NO_BACKEND);
	masq_touch(m, p->tcp, 1, masq_now());
	client = m->addr;
	client_port = m->port;
	addr = f->addr;
	ifindex = f->ifindex;
	if (nat(skb, p, 1, &addr, f->port) || nat(skb, p, 0, &client, client_port))
		return drop(skb, DROP_REWRITE);
	note(skb, REMOTE_TO_UPLINK);
	return nodeport_answer(skb, &client, ifindex);
}

/* What comes to the node: -1 if it is for no frontend and answers nobody for whom the node sent something. NODEPORT_FORWARD and
 * MASQ_FORWARDED ask for those two functions. */
int __attribute__((noinline)) nodeport_find(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct frontend *fe;
	struct endpoint *ep;
	struct backend *be;
	struct packet *p;
	struct flow *f;
	int verdict, ports;
	__u32 slot;

	if (!skb || !s)
		return -1;
	p = &s->p;
	ports = p->ports || (p->more && !p->later && l4_of(skb, p) == L4_PORTS);
	fe = ports ? lb_frontend(&p->daddr, p->dport, p->proto) : 0;
	flow_key_of(p, &s->key, 0);
	f = fe ? bpf_map_lookup_elem(&flows, &s->key) : 0;
	if (!f) { /* a pod may have had the port before it became a NodePort */
		verdict = masq_in(skb, p, &s->back);
		if (verdict != -1 || !fe)
			return verdict;
	}
	if (f && !tcp_opens(p->tcp)) {
		s->to = *f;
		ep = bpf_map_lookup_elem(&endpoints, &s->to.addr);
		if (ep)
			goto here;
		if (s->to.via && remote_of(&s->to.addr))
			return NODEPORT_FORWARD;
	}
	be = lb_pick(fe, &slot);
	if (!be)
		return NODEPORT_REFUSED;
	s->to.addr = be->addr;
	s->to.port = be->port;
	s->to.via = 0;
	s->to.ifindex = 0;
	ep = bpf_map_lookup_elem(&endpoints, &s->to.addr);
	if (!ep) {
		if (masq_is_on(p->v6) && remote_of(&s->to.addr))
			return NODEPORT_FORWARD;
		note(skb, UPLINK_REMOTE);
		return TC_ACT_OK;
	}
	masq_key(&s->back, &s->to.addr, s->to.port, &p->saddr, p->sport, p->proto, 1);
	s->front.addr = p->daddr;
	s->front.port = p->dport;
	s->front.via = 0;
	s->front.ifindex = skb->ifindex;
	if (bpf_map_update_elem(&flows, &s->key, &s->to, BPF_ANY) || bpf_map_update_elem(&flows, &s->back, &s->front, BPF_ANY))
		return drop(skb, DROP_CONNTRACK_FULL);
here:
	if (p->more)
		masq_note_fragment(p, &s->to.addr);
	if (nat(skb, p, 0, &s->to.addr, s->to.port))
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
