/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services at the packet, for whom no socket hook serves: clients outside, pods of other nodes that ask this one, pods whose sockets are left
 * alone (raw ones, those of virtual machines, and where it is switched off), and what the host's stack forwards of others on this machine. All come to service_in; what a backend answers, to service_answer.
 *
 * A backend gets the packet with its client's address, but where its answer would not come back by this node, or it would not take the packet:
 * - one on another node that was asked from outside, or one outside of the cluster;
 * - a pod that got itself;
 * - any that is asked from the host's stack.
 * Those get it from this node's address and a port of it. But a pod of this node that another plugin has made would answer that address within the
 * host's stack, where none of our programs sees it. It gets the question from the address that was asked, as if that had come in by the uplink:
 * the routes lead the answer for that address to the uplink again, as they led the question there (a flow of FLOW_OWN without FLOW_MASQUERADED). Where
 * both are behind one interface that counts as an uplink, such as a bridge, it gets it from this node's address, and the answer comes in there.
 *
 * The answer is translated back
 * - at the backend's veth, of pods of this node (endpoint_is_quiet spares those that never were asked this way);
 * - where it comes in, if it is for the node's address and such a port;
 * - at the client's veth, for a pod here that asked a backend anywhere else (endpoint_asks);
 * - at the uplink on its way out, of processes on this node that were asked from outside, and of other plugins' pods (answers_leave); at the veth of the pod
 *   that asked, where that is another plugin's (strake_to_beside). */
#ifndef STRAKE_SERVICE_H
#define STRAKE_SERVICE_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "conntrack.h"
#include "dsr.h"
#include "endpoint.h"
#include "fragment.h"
#include "lb.h"
#include "masq.h"
#include "nat.h"
#include "parse.h"
#include "policyflow.h"
#include "refuse.h"
#include "tunnel.h"
#include "verdict.h"

/* Who asks. ASKER_BESIDE: a pod of this node that another plugin has made, behind a link of its own. */
enum asker { ASKER_POD, ASKER_OUTSIDE, ASKER_NODE, ASKER_BESIDE };

/* Whether what this node sends has answers of backends in it. It is set with the first flow of which the answers leave so. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} answers_leave SEC(".maps");

static __always_inline __u32 *answers_leave_now(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&answers_leave, &zero);
}

/* MAC addresses of uplinks by which questions left, for answers that are to come in there. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 64);
	__type(key, __u32); /* ifindex */
	__type(value, __u64);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} uplink_macs SEC(".maps");

/* Whether the packet at hand has ports; those of a first fragment are read. */
static __always_inline int has_ports(struct __sk_buff *skb, struct packet *p)
{
	return p->ports || (p->more && !p->later && l4_of(skb, p) == L4_PORTS);
}

#define SERVICE_NEW_FOR 15 /* seconds */

/* Whether more of a Service's endpoints may be told still. */
static __always_inline int service_is_new(__u32 id)
{
	struct service *about = bpf_map_lookup_elem(&lb_services, &id);

	return about && about->made && (__s32)(seconds_now() - about->made) < SERVICE_NEW_FOR;
}

/* Whether the backend of s->flow is gone. It is looked for once after a backend of any service went. A connection asks the frontend again, for
 * the Service's port may have another name now, and so another number; where there is none any more its Service was deleted, and its backend
 * may well be alive. kube-proxy leaves connections of such Services alone, and so do we here and at the socket (sockets.go). One that was made
 * anew has its endpoints later than the API told of it, and may have them in several slices, one after the other: until it has one and has been
 * there for a while, it says nothing of those of before. */
static __always_inline int service_backend_gone(struct scratch *s, const struct frontend *fe)
{
	__u32 now = lb_generation(), service = s->flow.service;

	if (s->flow.flags & FLOW_HERE && !bpf_map_lookup_elem(&endpoints, &s->flow.daddr))
		return 1;
	if (!service || s->flow.generation == now)
		return 0;
	if (!lb_member(service, &s->flow.daddr, s->flow.dport)) {
		if (!flow_has_connection(s->p.proto) || tcp_opens(s->p.tcp))
			return 1;
		if (fe && fe->service != service) {
			if (!lb_member(fe->service, &s->flow.daddr, s->flow.dport))
				return bpf_map_lookup_elem(&lb_services, &service) || ((fe->all || fe->local) && !service_is_new(fe->service));
			s->flow.service = fe->service;
		} else if (fe || bpf_map_lookup_elem(&lb_services, &service)) {
			return 1;
		}
	}
	s->flow.generation = now;
	return 0;
}

/* What is known of the packet at hand, by its flow and the frontend that it asks. ended: also flows of frontends that are no more are looked for. */
int __attribute__((noinline)) service_known(struct __sk_buff *skb, __u32 ended)
{
	struct scratch *s = scratch();
	struct frontend *fe;
	struct packet *p;

	if (!skb || !s)
		return SERVICE_NONE;
	p = &s->p;
	/* Frontends of loopback addresses are for sockets of the node alone (sock.c): what comes with one from a link or a pod is the kernel's to drop, behind us
	 * (RFC 1122 3.2.1.3, RFC 4291 2.5.3). */
	if (addr_loopback(&p->daddr))
		return SERVICE_NONE;
	if (p->later)
		return !fragment_get(s) ? SERVICE_NONE : s->key.reply ? SERVICE_ANSWER : SERVICE_SEND;
	if (!has_ports(skb, p))
		return SERVICE_NONE;
	fe = lb_frontend(&p->daddr, p->dport, p->proto);
	if (!fe && !ended)
		return SERVICE_NONE;
	flow_key_of(p, &s->key, 0);
	if (!flow_get(skb) || (!fe && !s->flow.service))
		return fe ? SERVICE_NEW : SERVICE_NONE;
	if (!s->flow.service && s->flow.dport == p->dport && addr_eq(&s->flow.daddr, &p->daddr)) /* it left the node before there was the frontend */
		return flow_has_connection(p->proto) && !tcp_opens(p->tcp) ? SERVICE_NONE : SERVICE_NEW;
	if (flow_is_reused(s))
		return SERVICE_NEW;
	if (service_backend_gone(s, fe)) {
		flow_end(skb);
		return fe && (p->proto != IPPROTO_TCP || tcp_opens(p->tcp)) ? SERVICE_NEW : SERVICE_GONE;
	}
	return flow_step(skb) ? drop(skb, DROP_CONNTRACK_FULL) : SERVICE_SEND;
}

#define SERVICE_CHOSEN -7

/* Chooses a backend for the packet at hand, to s->flow. With a stack of its own. */
int __attribute__((noinline)) service_choose(struct __sk_buff *skb, __u32 asker)
{
	struct scratch *s = scratch();
	struct backend be = {};
	struct frontend *fe;
	struct packet *p;

	if (!skb || !s)
		return SERVICE_NONE;
	p = &s->p;
	fe = lb_frontend(&p->daddr, p->dport, p->proto);
	if (!fe)
		return SERVICE_NONE;
	if (fe->flags & FE_SOURCES && asker != ASKER_NODE && !lb_may_ask(fe, &p->saddr))
		return drop(skb, DROP_SOURCE_RANGE);
	switch (lb_choose(fe, asker == ASKER_OUTSIDE, &p->saddr, lb_hash(&p->saddr, p->sport, p->dport, p->proto), &be)) {
	case LB_NO_BACKEND:
		return SERVICE_REFUSED;
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
	s->flow.generation = lb_generation();
	s->flow.flags = 0;
	return SERVICE_CHOSEN;
}

/* Whether the backend of s->flow, no pod of ours, is behind this node's stack: a pod that another plugin made is if its Service says so. */
static __always_inline int service_is_of_stack(const struct scratch *s)
{
	struct member *m = lb_member(s->flow.service, &s->flow.daddr, s->flow.dport);

	return m && m->flags & M_LOCAL && !remote_of(&s->flow.daddr);
}

/* Whether the backend of s->flow is behind the interface by which the packet at hand came in, as pods of one bridge are: it would answer the client
 * there, past us. */
int __attribute__((noinline)) service_is_beside(struct __sk_buff *skb)
{
	struct bpf_fib_lookup fib = {};
	struct scratch *s = scratch();
	long found;

	if (!skb || !s)
		return 0;
	fib.family = s->p.v6 ? 10 : 2; /* AF_INET6, AF_INET */
	fib.ifindex = skb->ifindex;
	if (s->p.v6) {
		__builtin_memcpy(fib.ipv6_src, &s->p.saddr, 16);
		__builtin_memcpy(fib.ipv6_dst, &s->flow.daddr, 16);
	} else {
		fib.ipv4_src = s->p.saddr.w[3];
		fib.ipv4_dst = s->flow.daddr.w[3];
	}
	found = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	return (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH) && fib.ifindex == skb->ifindex;
}

/* To the host's stack, as what came in by an uplink. */
int __attribute__((noinline)) service_enter(struct __sk_buff *skb, __u32 ifindex)
{
	__u64 *mac = bpf_map_lookup_elem(&uplink_macs, &ifindex);

	if (!skb || !mac || bpf_skb_store_bytes(skb, 0, mac, 6, 0))
		return drop(skb, DROP_REWRITE);
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

/* Begins a flow to a frontend. */
int __attribute__((noinline)) service_begin(struct __sk_buff *skb, __u32 asker)
{
	struct scratch *s = scratch();
	struct endpoint *ep;
	int masquerade, begun;

	if (!skb || !s)
		return SERVICE_NONE;
	begun = service_choose(skb, asker);
	if (begun != SERVICE_CHOSEN)
		return begun;
	flow_key_of(&s->p, &s->key, 0);
	ep = bpf_map_lookup_elem(&endpoints, &s->flow.daddr);
	if (ep)
		s->flow.flags = FLOW_HERE;
	if (asker == ASKER_NODE) {
		if (is_node(&s->flow.daddr, s->p.v6)) /* who would believe it? */
			return drop(skb, DROP_NOT_MASQUERADED);
		s->flow.flags |= FLOW_OWN;
		masquerade = ep || !service_is_of_stack(s);
		if (!masquerade)
			s->flow.saddr = s->p.daddr;
	} else if (ep) {
		masquerade = asker == ASKER_POD && ep->ifindex == skb->ifindex;
	} else if (asker == ASKER_POD || is_node(&s->flow.daddr, s->p.v6)) {
		masquerade = 0;
	} else {
		/* What its plugin lets such a pod ask is judged in the host's stack, by the pod's own address: it goes there, as if the pod had asked the backend itself. */
		masquerade = (asker != ASKER_BESIDE && !service_is_of_stack(s)) || service_is_beside(skb);
	}
	if (masquerade && dsr_on && asker == ASKER_OUTSIDE) {
		begun = dsr_begin(skb);
		if (begun != DSR_NONE)
			return begun;
	}
	if (masquerade && !masq_is_on(s->p.v6))
		return drop(skb, DROP_NOT_MASQUERADED);
	s->as = node_of(s->p.v6);
	begun = masquerade ? masq_begin(skb) : flow_begin(skb);
	if (begun)
		return drop(skb, begun == FLOW_NO_PORT ? DROP_NO_PORT : DROP_CONNTRACK_FULL);
	return SERVICE_SEND;
}

/* The packet at hand, which is what s->flow says, to its backend. */
int __attribute__((noinline)) service_forward(struct __sk_buff *skb, __u32 asker)
{
	struct scratch *s = scratch();
	struct path *way = path_now();
	struct endpoint *ep;
	struct packet *p;
	struct remote *r;
	__u32 *leave;

	if (!skb || !s || !way)
		return drop(skb, DROP_NO_REMOTE);
	p = &s->p;
	ep = bpf_map_lookup_elem(&endpoints, &s->flow.daddr);
	if (ep) {
		if (!ep->asked)
			ep->asked = 1;
		note(skb, asker == ASKER_POD ? POD_TO_SERVICE : UPLINK_TO_POD);
		return endpoint_send(skb, ep, asker == ASKER_NODE);
	}
	p->saddr = s->flow.saddr;
	p->daddr = s->flow.daddr;
	r = remote_of(&p->daddr);
	if (asker == ASKER_POD) {
		if (r)
			return remote_send(skb, p, r);
		note(skb, POD_TO_SERVICE);
		return TC_ACT_OK;
	}
	if (r || s->flow.flags & FLOW_MASQUERADED) {
		if (service_hop(skb, p->v6))
			return drop(skb, DROP_HOPS);
		note(skb, asker == ASKER_BESIDE ? POD_TO_SERVICE : UPLINK_TO_REMOTE);
		return r && !remote_is_native(r) ? tunnel_send(skb, r, way) : native_send(skb, p, skb->ifindex);
	}
	leave = answers_leave_now();
	if (leave && !*leave)
		*leave = 1;
	note(skb, asker == ASKER_BESIDE ? POD_TO_SERVICE : UPLINK_TO_NODE);
	return asker == ASKER_NODE ? service_enter(skb, skb->ifindex) : TC_ACT_OK;
}

/* Whether policies let nobody ask the backend of s->flow so. */
static __always_inline int service_denied(struct __sk_buff *skb, const struct scratch *s, __u32 asker)
{
	__u32 how = asker == ASKER_POD ? POLICY_TRANSLATED | POLICY_SOURCE : POLICY_TRANSLATED;
	struct endpoint *to = bpf_map_lookup_elem(&endpoints, &s->flow.daddr);

	if (asker == ASKER_NODE && !skb->ingress_ifindex)
		how |= POLICY_NODE;
	return policy_check(skb, s->p.v6, how, to ? to->ifindex : 0);
}

/* Whether they let a backend's answer go nowhere, that came from a pod at this interface or is for a pod of this node, or an error that
 * passes as such an answer. Between pods of this node it belongs to the flow as the backend sees it. */
static __always_inline int service_answer_denied(struct __sk_buff *skb, const struct scratch *s, __u32 error)
{
	struct endpoint *from = bpf_map_lookup_elem(&endpoints, &s->p.saddr);
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &s->flow.daddr);
	__u32 to = ep ? ep->ifindex : 0;

	if (!from || from->ifindex != skb->ifindex)
		return policy_check(skb, s->p.v6, error ? POLICY_ERROR : POLICY_TRANSLATED, to);
	if (addr_eq(&s->flow.daddr, &s->p.saddr)) /* it asked itself */
		return 0;
	return policy_check(skb, s->p.v6, POLICY_SOURCE | (error ? POLICY_ERROR : 0), to);
}

/* The packet at hand becomes what s->flow says, and goes to its backend. */
int __attribute__((noinline)) service_send(struct __sk_buff *skb, __u32 asker)
{
	struct scratch *s = scratch();
	struct endpoint *ep;

	if (!skb || !s)
		return drop(skb, DROP_REWRITE);
	if (policy_on && service_denied(skb, s, asker))
		return TC_ACT_SHOT;
	if (flow_rewrite(skb))
		return drop(skb, DROP_REWRITE);
	ep = asker == ASKER_POD ? bpf_map_lookup_elem(&endpoints, &s->p.saddr) : 0;
	if (ep && !ep->asks)
		ep->asks = 1;
	return service_forward(skb, asker);
}

/* Up to the host's stack, which expects the answers to what it sent out of the uplink there. */
static __always_inline int service_up(struct __sk_buff *skb, __u32 ifindex)
{
	return skb->ifindex == ifindex ? TC_ACT_OK : service_enter(skb, ifindex);
}

/* To where the question came from, past the host's stack: its own address as a source would be a martian there. */
static __always_inline int service_back(struct __sk_buff *skb, struct scratch *s)
{
	const struct addr *client = &s->flow.daddr;
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, client);
	__u32 ifindex = s->flow.ifindex;
	struct path *to = path_now();
	struct remote *r;

	if (s->flow.flags & FLOW_OWN)
		return service_up(skb, ifindex);
	if (s->flow.flags & FLOW_DIRECT)
		return dsr_back(skb, s, to);
	if (ep)
		return endpoint_redirect(skb, ep);
	if (!to || to->tunnel != ifindex)
		return bpf_redirect_neigh(ifindex, 0, 0, 0);
	r = remote_of(client);
	if (!r || remote_is_native(r))
		return drop(skb, DROP_NO_REMOTE);
	return tunnel_send(skb, r, to);
}

/* What a backend answers: s->key, s->flow are of its direction. */
int __attribute__((noinline)) service_answer(struct __sk_buff *skb)
{
	struct scratch *s = scratch();

	if (!skb || !s)
		return drop(skb, DROP_NO_BACKEND);
	if (policy_on && service_answer_denied(skb, s, 0))
		return TC_ACT_SHOT;
	if (!s->p.later && flow_step(skb))
		return drop(skb, DROP_CONNTRACK_FULL);
	if (flow_rewrite(skb))
		return drop(skb, DROP_REWRITE);
	if (s->flow.flags & FLOW_DIRECT && s->p.proto == IPPROTO_TCP && s->p.tcp & TCP_SYN && dsr_clamp(skb))
		return drop(skb, DROP_REWRITE);
	note(skb, s->flow.flags & FLOW_DIRECT ? DSR_TO_CLIENT : s->flow.flags & FLOW_HERE ? POD_TO_UPLINK : REMOTE_TO_UPLINK);
	return service_back(skb, s);
}

/* Whether the packet at hand is an answer of a backend. */
static __always_inline int service_answers(struct __sk_buff *skb, struct scratch *s)
{
	if (s->p.later)
		return fragment_get(s) && s->key.reply;
	if (!has_ports(skb, &s->p))
		return 0;
	flow_key_of(&s->p, &s->key, 1);
	return flow_get(skb) && flow_rewrites(s);
}

/* Another source for an ICMP error: of a router, whom other nodes would not believe in their tunnel. */
static __always_inline int error_source(struct __sk_buff *skb, const struct packet *p, const struct addr *addr)
{
	return (p->v6 && bpf_l4_csum_replace(skb, p->l4 + ICMP_CHECKSUM, 0, addr_diff(&p->saddr, addr), pseudo6(skb))) ||
	       nat_address(skb, ETH_HLEN, p->v6, 1, &p->saddr, addr);
}

/* An ICMP error about a packet of a flow to a frontend, from this side of the translation or the other (ours): it goes where that packet came
 * from. SERVICE_NONE: it is none; SERVICE_AWAY. */
int __attribute__((noinline)) service_error(struct __sk_buff *skb, __u32 ours, __u32 asker)
{
	struct scratch *s = scratch();
	int failed;

	if (!skb || !s || s->p.later || l4_of(skb, &s->p) != L4_ERROR)
		return SERVICE_NONE;
	failed = flow_error(skb, ERROR_OF_SERVICE | (ours ? ERROR_OURS : 0));
	if (failed == ERROR_AWAY && asker == ASKER_OUTSIDE)
		return SERVICE_AWAY;
	if (failed)
		return failed == -1 ? SERVICE_NONE : drop(skb, DROP_REWRITE);
	if (policy_on && service_answer_denied(skb, s, 1))
		return TC_ACT_SHOT;
	if (s->key.reply)
		return service_back(skb, s);
	if (s->flow.flags & FLOW_MASQUERADED && !addr_eq(&s->p.saddr, &s->key.saddr) && error_source(skb, &s->p, &s->flow.saddr))
		return drop(skb, DROP_REWRITE);
	return service_forward(skb, asker);
}

/* The packet at hand of s->flow goes on its way; but where both ends are behind the host's stack it has left that to be translated alone. */
static __always_inline int service_on(struct __sk_buff *skb, const struct scratch *s)
{
	return (s->flow.flags & (FLOW_OWN | FLOW_MASQUERADED)) == FLOW_OWN ? service_enter(skb, s->flow.ifindex) : TC_ACT_OK;
}

/* An answer, or an error, that is on its right way already: its addresses change, and it goes on. SERVICE_NONE: it is none. */
int __attribute__((noinline)) service_untranslate(struct __sk_buff *skb, __u32 ours, __u32 reason)
{
	struct scratch *s = scratch();
	int failed;

	if (!skb || !s)
		return SERVICE_NONE;
	if (is_icmp(s->p.proto, s->p.v6)) {
		if (s->p.later || l4_of(skb, &s->p) != L4_ERROR)
			return SERVICE_NONE;
		failed = flow_error(skb, ERROR_OF_SERVICE | (ours ? ERROR_OURS : 0));
		return failed == -1 ? SERVICE_NONE : failed ? drop(skb, DROP_REWRITE) : service_on(skb, s);
	}
	if (!service_answers(skb, s))
		return SERVICE_NONE;
	if (!s->p.later && flow_step(skb))
		return drop(skb, DROP_CONNTRACK_FULL);
	if (flow_rewrite(skb))
		return drop(skb, DROP_REWRITE);
	note(skb, reason);
	return service_on(skb, s);
}

static __always_inline int service_verdict(struct __sk_buff *skb, int found, __u32 asker)
{
	switch (found) {
	case SERVICE_SEND:
		return service_send(skb, asker);
	case SERVICE_ANSWER:
		return service_answer(skb);
	case SERVICE_REFUSED:
	case SERVICE_GONE:
		return refuse(skb, found == SERVICE_GONE ? DROP_BACKEND_GONE : DROP_NO_BACKEND);
	}
	return found;
}

/* What a pod sends to where no pod is: -1 if it is for no frontend. */
static __always_inline int service_of_pod(struct __sk_buff *skb, const struct endpoint *own)
{
	int found = service_known(skb, endpoint_asks(own));

	if (found == SERVICE_NEW)
		found = service_begin(skb, ASKER_POD);
	return service_verdict(skb, found, ASKER_POD);
}

/* Notes the MAC address of the uplink by which the packet at hand leaves, if it is another than before. */
int __attribute__((noinline)) service_note_mac(struct __sk_buff *skb)
{
	__u64 *known, mac = 0;
	__u32 ifindex;

	if (!skb || bpf_skb_load_bytes(skb, 6, &mac, 6))
		return -1;
	ifindex = skb->ifindex;
	known = bpf_map_lookup_elem(&uplink_macs, &ifindex);
	if (known && *known == mac)
		return 0;
	return bpf_map_update_elem(&uplink_macs, &ifindex, &mac, BPF_ANY) ? -1 : 0;
}

/* What the host's stack sends out of the uplink: SERVICE_NONE if it is for no frontend. */
static __always_inline int service_of_node(struct __sk_buff *skb)
{
	int found = service_known(skb, 0);

	if ((found == SERVICE_NEW || found == SERVICE_SEND) && service_note_mac(skb))
		return drop(skb, DROP_REWRITE);
	if (found == SERVICE_NEW)
		found = service_begin(skb, ASKER_NODE);
	if (found == SERVICE_REFUSED || found == SERVICE_GONE) /* it has no way back from here */
		return drop(skb, found == SERVICE_GONE ? DROP_BACKEND_GONE : DROP_NO_BACKEND);
	return service_verdict(skb, found, ASKER_NODE);
}

/* Whether what ASKER_BESIDE sends, and s->flow is of if it is known (found), is left to the host's stack, where the uplink's program meets it if it leaves: what is of a
 * flow that began elsewhere, and who sends by an address that is not behind his link, which the stack may not believe. */
static __always_inline int service_passes_beside(struct __sk_buff *skb, struct scratch *s, int found)
{
	if (found == SERVICE_SEND || found == SERVICE_ANSWER)
		return s->flow.ifindex != skb->ifindex;
	if (found != SERVICE_NEW)
		return 0;
	s->flow.daddr = s->p.saddr;
	return !service_is_beside(skb);
}

/* What comes to the node: -1 if it is for no frontend and answers nobody for whom the node sent something. */
static __always_inline int service_in(struct __sk_buff *skb, __u32 asker)
{
	struct scratch *s = scratch();
	int found, verdict, ended;

	if (!s)
		return SERVICE_NONE;
	if (is_icmp(s->p.proto, s->p.v6)) {
		verdict = service_error(skb, 0, asker);
		if (verdict == SERVICE_AWAY)
			return dsr_send(skb);
		return verdict == SERVICE_NONE ? masq_in(skb) : verdict;
	}
	/* It may have been a frontend's. To the node's own address that is asked for connections alone: what else comes there is the node's. */
	if (is_node(&s->p.daddr, s->p.v6))
		ended = s->p.proto == IPPROTO_TCP && !tcp_opens(s->p.tcp);
	else
		ended = !bpf_map_lookup_elem(&endpoints, &s->p.daddr);
	found = service_known(skb, ended);
	if (found == SERVICE_NONE || found == SERVICE_NEW) { /* a pod may have had the port before it became a NodePort */
		verdict = masq_in(skb);
		if (verdict == MASQ_FORWARDED)
			found = SERVICE_ANSWER;
		else if (verdict != -1)
			return verdict;
	}
	if (asker == ASKER_BESIDE && service_passes_beside(skb, s, found))
		return SERVICE_NONE;
	if (found == SERVICE_SEND && s->flow.flags & FLOW_AWAY && s->p.more && dsr_leaves(skb))
		found = SERVICE_NEW;
	if (found == SERVICE_NEW)
		found = service_begin(skb, asker);
	if (found == SERVICE_SEND && s->flow.flags & FLOW_AWAY)
		return dsr_send(skb);
	return service_verdict(skb, found, asker);
}

/* What dsr_open found within another node's packet. */
static __always_inline int service_within(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	int found, verdict;
	struct packet *p;

	if (!s)
		return drop(skb, DROP_DSR);
	p = &s->p;
	if (is_icmp(p->proto, p->v6)) { /* it may come from anywhere, and is as good as the flow that it is about */
		verdict = service_error(skb, 0, ASKER_OUTSIDE);
		return verdict < 0 ? drop(skb, DROP_DSR) : verdict;
	}
	found = service_known(skb, 1);
	if (found == SERVICE_NEW || (found == SERVICE_NONE && has_ports(skb, p)))
		found = dsr_accept(skb);
	if (found == SERVICE_SEND && s->flow.flags & FLOW_HERE)
		return service_send(skb, ASKER_OUTSIDE);
	if (found >= 0)
		return found;
	return drop(skb, found == SERVICE_GONE ? DROP_BACKEND_GONE : DROP_DSR);
}

#endif
