//go:build ignore
// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Packets of pods, what passes the node's uplink (for its frontends, from pods to the outside, and back), and what passes the tunnel to other
 * nodes. */
#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "lib/bandwidth.h"
#include "lib/conntrack.h"
#include "lib/direct.h"
#include "lib/dnsbeside.h"
#include "lib/dnsnames.h"
#include "lib/dnswatch.h"
#include "lib/dsr.h"
#include "lib/endpoint.h"
#include "lib/lb.h"
#include "lib/linklocal.h"
#include "lib/masq.h"
#include "lib/nat.h"
#include "lib/neighbour.h"
#include "lib/parse.h"
#include "lib/policyflow.h"
#include "lib/service.h"
#include "lib/tunnel.h"
#include "lib/verdict.h"
#include "lib/xdp.h"

char _license[] SEC("license") = "Dual BSD/GPL";

/* Why a pod's packet goes nowhere, or 0. */
static __always_inline int pod_refused(struct __sk_buff *skb, const struct packet *p, const struct endpoint *ep)
{
	if (!ep)
		return drop(skb, p->v6 && is_link_local(&p->saddr, 1) ? DROP_LINK_LOCAL_SOURCE : DROP_SPOOFED);
	if (p->routed)
		return drop(skb, DROP_SOURCE_ROUTE);
	if (is_link_local(&p->daddr, p->v6) && !link_local_is_allowed(&p->daddr))
		return p->proto == IPPROTO_IGMP && !p->v6 ? link_ignore(skb) : drop(skb, DROP_LINK_LOCAL);
	if (ep->flags & ENDPOINT_LIMITED && exceeds_limit(skb))
		return drop(skb, DROP_BANDWIDTH);
	return 0;
}

/* At the host's side of a pod's veth: what the pod sends. */
SEC("tc")
int strake_pod(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct endpoint *own, *ep;
	struct packet *p;
	struct remote *r;
	int verdict;

	if (!s)
		return drop(skb, DROP_REWRITE);
	p = &s->p;
	switch (parse_fresh(skb, p)) {
	case NOT_IP:
		if (skb->protocol == bpf_htons(ETH_P_ARP) && !skb->vlan_present)
			return arp_from_pod(skb);
		return drop(skb, DROP_NOT_IP);
	case MALFORMED:
		return drop(skb, DROP_MALFORMED);
	case PARSED:
		break;
	}
	if (p->v6) {
		verdict = link_from_pod(skb, p);
		if (verdict >= 0)
			return verdict;
	}
	own = endpoint_of(skb, &p->saddr, p->smac);
	verdict = pod_refused(skb, p, own);
	if (verdict || !own)
		return verdict;

	if (is_dns(p)) {
		__u64 came = dns_watched();

		if (policy_on && policy_check(skb, p->v6, POLICY_SOURCE | POLICY_ONCE, 0))
			return TC_ACT_SHOT;
		verdict = is_plain(p) ? dns_answer(skb, p->v6) : -1;
		if (verdict >= 0) {
			if (came)
				dns_tell(skb, 1, came);
			return verdict;
		}
		if (policy_on && policy_check(skb, p->v6, POLICY_SOURCE | POLICY_JUDGED, 0))
			return TC_ACT_SHOT;
		note(skb, DNS_PASSED);
		if (came)
			dns_tell(skb, 0, came);
		return TC_ACT_OK;
	}
	if (is_icmp(p->proto, p->v6)) {
		verdict = service_error(skb, 1, ASKER_POD);
		if (verdict != SERVICE_NONE)
			return verdict;
	}
	if (!endpoint_is_quiet(own) && service_answers(skb, s))
		return service_answer(skb);
	ep = bpf_map_lookup_elem(&endpoints, &p->daddr);
	if (ep) {
		if (policy_on && ep->ifindex != skb->ifindex && policy_check(skb, p->v6, POLICY_SOURCE, ep->ifindex))
			return TC_ACT_SHOT;
		if (!endpoint_is_quiet(ep))
			flow_give_way(skb);
		note(skb, POD_TO_POD);
		return endpoint_redirect(skb, ep);
	}
	r = remote_of(&p->daddr);
	if (!r || r->is_node) {
		verdict = service_of_pod(skb, own);
		if (verdict != SERVICE_NONE)
			return verdict;
	}
	if (policy_on && policy_check(skb, p->v6, POLICY_SOURCE, 0))
		return TC_ACT_SHOT;
	if (endpoint_asks(own))
		flow_give_way(skb);
	return r ? remote_send(skb, p, r) : TC_ACT_OK;
}

/* At the host's side of a veth of a pod that another plugin has made: names that the kernel knows are answered in the stead of the cluster's
 * name servers, and all else is as if this program were not there. */
SEC("tc")
int strake_dns(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	__u64 came;
	int verdict;

	if (!s || !is_udp(skb) || parse_fresh(skb, &s->p) != PARSED || !asks_name_server(&s->p))
		return TC_ACT_UNSPEC;
	came = dns_watched();
	verdict = is_plain(&s->p) ? dns_answer(skb, s->p.v6) : -1;
	if (verdict < 0)
		note(skb, DNS_PASSED);
	if (came)
		dns_tell(skb, verdict >= 0, came);
	return verdict < 0 ? TC_ACT_UNSPEC : verdict;
}

/* At the host's side of a veth of such a pod: what it asks of Services, where no hook serves the socket. What it asks the node's own address for would
 * reach the host's stack, and its answer the pod, past all other programs. Of name servers the names above come first. */
SEC("tc")
int strake_beside(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	int verdict;

	if (!s || skb->pkt_type != PACKET_HOST || parse_fresh(skb, &s->p) != PARSED || asks_name_server(&s->p))
		return TC_ACT_UNSPEC;
	verdict = service_in(skb, ASKER_BESIDE);
	if (verdict < 0)
		stack_give_way(skb);
	return verdict < 0 || verdict == TC_ACT_OK ? TC_ACT_UNSPEC : verdict;
}

/* There: what it is answered. */
SEC("tc")
int strake_to_beside(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	__u32 *leave = answers_leave_now();

	if (!s || !leave || !*leave || parse_fresh(skb, &s->p) != PARSED)
		return TC_ACT_UNSPEC;
	return service_untranslate(skb, 1, SERVICE_TO_POD) == TC_ACT_SHOT ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/* Whether policies let what goes to a pod by its interface not go there. */
static __always_inline int to_pod_denied(struct __sk_buff *skb, const struct packet *p, enum parsed parsed, const struct endpoint *ep)
{
	if (skb->mark == POLICY_MARK) { /* judged already */
		skb->mark = 0;
		return 0;
	}
	if (parsed == NOT_IP || skb->ingress_ifindex == skb->ifindex) /* what the pod is answered by its own program */
		return 0;
	if (ep)
		return policy_check(skb, p->v6, skb->ingress_ifindex ? 0 : POLICY_NODE, skb->ifindex);
	if (!skb->ingress_ifindex)
		return 0;
	return drop(skb, parsed == MALFORMED ? DROP_MALFORMED : DROP_NO_VERDICT);
}

/* At the host's side of a pod's veth: what goes to the pod by the interface. Most does not. */
SEC("tc")
int strake_to_pod(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct endpoint *ep = 0;
	enum parsed parsed;

	if (!s)
		return policy_on ? drop(skb, DROP_NO_VERDICT) : TC_ACT_OK;
	parsed = parse_fresh(skb, &s->p);
	if (parsed == PARSED)
		ep = bpf_map_lookup_elem(&endpoints, &s->p.daddr);
	if (policy_on && to_pod_denied(skb, &s->p, parsed, ep))
		return TC_ACT_SHOT;
	if (ep && endpoint_asks(ep) && service_untranslate(skb, 0, SERVICE_TO_POD) == TC_ACT_SHOT)
		return TC_ACT_SHOT;
	return TC_ACT_OK;
}

/* What comes in at the uplink by a pod's own address: from a pod or node where routing is native, else from outside. */
static __always_inline int direct(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *ep = bpf_map_lookup_elem(&endpoints, &p->daddr);
	struct remote *r;

	if (!ep) {
		stack_give_way(skb);
		return TC_ACT_OK;
	}
	r = remote_of(&p->saddr);
	if (!r) {
		if (!endpoint_is_quiet(ep))
			flow_give_way(skb);
		masq_note_direct(skb);
		return TC_ACT_OK;
	}
	if (remote_is_native(r)) {
		if (policy_on && policy_check(skb, p->v6, 0, ep->ifindex))
			return TC_ACT_SHOT;
		if (!endpoint_is_quiet(ep))
			flow_give_way(skb);
		note(skb, UPLINK_TO_POD);
		return endpoint_redirect(skb, ep);
	}
	return r->is_node ? TC_ACT_OK : drop(skb, DROP_SPOOFED); /* pods of other nodes come through the tunnel */
}

/* At the uplink's driver: what only passes this node. */
SEC("xdp")
int strake_xdp(struct xdp_md *ctx)
{
	struct scratch *s = scratch();
	struct path *way = path_now();
	struct flow *f;
	int verdict;

	if (!s || !way || way->tunnel || flows_have_before || watched(0) || !xdp_parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, &s->p))
		return XDP_PASS;
	f = xdp_flow(s, 0);
	if (f)
		verdict = xdp_question(ctx, s, f, way);
	else
		verdict = (f = xdp_flow(s, 1)) ? xdp_answer(ctx, s, f) : XDP_PASS;
	if (verdict == XDP_TX)
		count(XDP_FORWARDED);
	return verdict;
}

/* At the uplink: what comes in from outside. What is for no frontend and answers no pod is not ours. */
SEC("tc")
int strake_uplink(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	int verdict;

	/* What another machine is to get may be seen here, too; it has the same Services. */
	if (!s || skb->pkt_type != PACKET_HOST || parse_fresh(skb, &s->p) != PARSED)
		return TC_ACT_OK;
	if (dsr_proto(&s->p)) {
		verdict = dsr_open(skb, 1);
		if (verdict != DSR_NONE)
			return verdict == DSR_OPENED ? service_within(skb) : verdict;
	}
	verdict = service_in(skb, ASKER_OUTSIDE);
	return verdict < 0 ? direct(skb, &s->p) : verdict;
}

/* At the uplink: what goes out. */
SEC("tc")
int strake_egress(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	enum parsed parsed;
	struct endpoint *own;
	struct remote *r;
	__u32 *leave;
	int verdict;

	if (!s)
		return drop(skb, DROP_REWRITE);
	parsed = parse_fresh(skb, &s->p);
	leave = answers_leave_now();
	if (parsed == PARSED && leave && *leave) {
		verdict = service_untranslate(skb, 1, NODE_TO_UPLINK);
		if (verdict != SERVICE_NONE)
			return verdict;
	}
	if (parsed == NOT_IP || !masq_is_on(s->p.v6))
		return TC_ACT_OK;
	own = bpf_map_lookup_elem(&endpoints, &s->p.saddr);
	/* Sockets of the node itself are translated already, but for those of SCTP. */
	if (!own && parsed == PARSED && (skb->ingress_ifindex || s->p.proto == IPPROTO_SCTP)) {
		verdict = service_of_node(skb);
		if (verdict != SERVICE_NONE)
			return verdict;
	}
	if (masq_as(skb))
		return drop(skb, DROP_REWRITE);
	if (addr_eq(&s->p.saddr, &s->as) || is_node(&s->p.saddr, s->p.v6)) {
		if (parsed == PARSED && !skb->ingress_ifindex) /* not what service.h sends in the node's name */
			masq_own(skb);
		return TC_ACT_OK;
	}
	if ((!own && !masq_is_source(&s->p.saddr)) || masq_is_exempt(&s->p.daddr))
		return TC_ACT_OK;
	r = remote_of(&s->p.daddr);
	if (r && remote_is_native(r)) /* another node: it has a way back to the pod */
		return TC_ACT_OK;
	if (parsed == MALFORMED)
		return drop(skb, DROP_MALFORMED);
	return masq_out(skb, s);
}

/* At the tunnel's device: what goes out. What pods send is on its way already; the rest comes from the host's stack. */
SEC("tc")
int strake_tunnel_out(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	enum parsed parsed;
	struct remote *r;
	struct addr node;
	__u32 *leave;

	if (!tunnel_from(skb, &node))
		return TC_ACT_OK;
	if (!s)
		return drop(skb, DROP_REWRITE);
	parsed = parse_fresh(skb, &s->p);
	if (parsed == NOT_IP)
		return drop(skb, DROP_NO_REMOTE);
	leave = answers_leave_now();
	if (parsed == PARSED && leave && *leave && service_untranslate(skb, 1, NODE_TO_UPLINK) == TC_ACT_SHOT)
		return TC_ACT_SHOT;
	r = remote_of(&s->p.daddr);
	if (!r || remote_is_native(r))
		return drop(skb, DROP_NO_REMOTE);
	if (tunnel_to(skb, &r->node))
		return drop(skb, DROP_REWRITE);
	note(skb, HOST_TO_REMOTE);
	return TC_ACT_OK;
}

/* What came through the tunnel from a node and is for another one, as it came: if they know each other by us alone. */
static __always_inline int tunnel_pass_on(struct __sk_buff *skb, const struct packet *p, const struct remote *from)
{
	struct remote *to = remote_of(&p->daddr);

	if (!to || remote_is_native(to) || from->behind == to->behind)
		return drop(skb, DROP_NO_POD);
	if (tunnel_to(skb, &to->node))
		return drop(skb, DROP_REWRITE);
	note(skb, TUNNEL_TO_REMOTE);
	return bpf_redirect(skb->ifindex, 0);
}

/* At the tunnel's device: what comes in. It is from a node that we know, which has the address that it sends from. */
SEC("tc")
int strake_tunnel_in(struct __sk_buff *skb)
{
	struct scratch *s = scratch();
	struct addr from, node;
	struct endpoint *ep;
	struct remote *r;
	int verdict;

	if (!s || tunnel_from(skb, &from))
		return drop(skb, DROP_TUNNEL_STRANGER);
	if (parse_fresh(skb, &s->p) != PARSED)
		return drop(skb, DROP_MALFORMED);
	r = remote_of(&s->p.saddr);
	if (!r || !addr_eq(&r->node, &from)) {
		r = remote_of(&from);
		return drop(skb, r && addr_eq(&r->node, &from) ? DROP_TUNNEL_SPOOFED : DROP_TUNNEL_STRANGER);
	}
	/* The sender of a tunnel's packet does not know our device's MAC address: to the kernel it is for somebody else, and before Linux 6.15
	 * a redirect leaves it at that. */
	bpf_skb_change_type(skb, PACKET_HOST);
	if (dsr_proto(&s->p)) {
		verdict = dsr_open(skb, 0);
		if (verdict != DSR_NONE)
			return verdict == DSR_OPENED ? service_within(skb) : verdict;
	}
	ep = bpf_map_lookup_elem(&endpoints, &s->p.daddr);
	if (ep) {
		if (policy_on && policy_check(skb, s->p.v6, 0, ep->ifindex))
			return TC_ACT_SHOT;
		if (!endpoint_is_quiet(ep))
			flow_give_way(skb);
		note(skb, TUNNEL_TO_POD);
		return endpoint_redirect(skb, ep);
	}
	node = node_of(s->p.v6);
	if (!addr_eq(&s->p.daddr, &node))
		return tunnel_pass_on(skb, &s->p, r);
	verdict = service_in(skb, ASKER_OUTSIDE);
	if (verdict >= 0)
		return verdict;
	stack_give_way(skb);
	note(skb, TUNNEL_TO_NODE);
	return TC_ACT_OK;
}
