package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol/compiler"
)

const (
	guardedApps   = 100    // pods of the node, one of each, whom the policies select in turn
	guardedGroups = 1_000  // of pods elsewhere, whom the policies let in
	elsewherePods = 10_000 // in these groups
	guardedPort   = firstBackend
)

// guards are policies of a node of 100 pods, each of which has a hundredth of them. Each lets a group of ten pods elsewhere in at a port, and out to it. Those that
// select the server select the client too, and the one in their middle lets these two have each other.
type guards struct {
	policies       int
	server, client []netip.Addr
}

// guard is one of them.
type guard struct {
	number, app, group int
	middle             bool
}

func (g guards) guard(i int) guard {
	return guard{i, i % guardedApps, (i + i/guardedApps) % guardedGroups, i == (g.policies-1)/guardedApps/2*guardedApps}
}

// elsewhere is the address of a pod elsewhere.
func elsewhere(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 128, byte(i >> 8), byte(i)}) }

// neighbour is the address of the pod of an app, on this node; that of the first is the server's own.
func neighbour(app int) netip.Addr { return netip.AddrFrom4([4]byte{10, 129, 0, byte(app)}) }

func namedPod(name, node string, labels map[string]string, addrs ...netip.Addr) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: name, UID: types.UID(name), Labels: labels},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, a := range addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	return p
}

// rows are what the compiler makes of them.
func (g guards) rows() *bpf.PolicyChange {
	c := compiler.New(compiler.Options{NodeName: "here"})
	c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "bench"}})
	c.SetPod(namedPod("client", "here", map[string]string{"app": "client"}, g.client...))
	c.SetPod(namedPod("server", "here", map[string]string{"app": "app-0"}, g.server...))
	for app := 1; app < guardedApps; app++ {
		c.SetPod(namedPod(fmt.Sprint("neighbour-", app), "here", map[string]string{"app": fmt.Sprint("app-", app)}, neighbour(app)))
	}
	for i := range elsewherePods {
		c.SetPod(namedPod(fmt.Sprint("elsewhere-", i), "there", map[string]string{"group": fmt.Sprint("group-", i%guardedGroups)}, elsewhere(i)))
	}
	for i := range g.policies {
		c.SetNetworkPolicy(g.guard(i).object())
	}
	c.Flush()
	rows := c.Rows()
	return &bpf.PolicyChange{Names: rows.Names, Ports: rows.Ports, Answers: rows.Answers, Peers: rows.Peers, Subjects: rows.Subjects}
}

func (g guard) object() *networkingv1.NetworkPolicy {
	both := metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"app-0", "client"}}}}
	subject := metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint("app-", g.app)}}
	if g.app == 0 {
		subject = both
	}
	peers := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"group": fmt.Sprint("group-", g.group)}}}}
	if g.middle {
		peers = append(peers, networkingv1.NetworkPolicyPeer{PodSelector: &both})
	}
	port := intstr.FromInt32(guardedPort)
	ports := []networkingv1.NetworkPolicyPort{{Port: &port}}
	name := fmt.Sprint("policy-", g.number)
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: name, UID: types.UID(name)},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: subject, PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: peers, Ports: ports}},
			Egress:  []networkingv1.NetworkPolicyEgressRule{{To: peers, Ports: ports}},
		},
	}
}

// nftables writes the rules that an agent of the usual kind keeps for them: what is established passes; for each pod and direction a chain, found by a map,
// which asks the policies of the pod one after the other until one marks the packet; for each policy and direction a chain; for each selector a set. Of the
// policies that select other pods than the two that talk there is their pod's element of the map, which no packet here asks for: nft 1.0.6
// takes minutes for all their chains.
func (g guards) nftables(to io.Writer) error {
	w := bufio.NewWriter(to)
	w.WriteString("table ip guards {\n")
	server, client := g.server[0], g.client[0]
	for i := range guardedGroups {
		var members []string
		for pod := i; pod < elsewherePods; pod += guardedGroups {
			members = append(members, elsewhere(pod).String())
		}
		fmt.Fprintf(w, "\tset group-%d { type ipv4_addr; elements = { %s }; }\n", i, strings.Join(members, ", "))
	}
	directions := []struct{ name, peer, subject string }{{"in", "saddr", "daddr"}, {"out", "daddr", "saddr"}}
	for i := 0; i < g.policies; i += guardedApps {
		p := g.guard(i)
		for _, d := range directions {
			fmt.Fprintf(w, "\tchain policy-%d-%s {\n\t\tip %s @group-%d tcp dport %d meta mark set meta mark or 0x10000\n", i, d.name, d.peer, p.group, guardedPort)
			if p.middle {
				fmt.Fprintf(w, "\t\tip %s { %s, %s } tcp dport %d meta mark set meta mark or 0x10000\n", d.peer, server, client, guardedPort)
			}
			w.WriteString("\t}\n")
		}
	}
	for _, d := range directions {
		for _, pod := range []string{"server", "client"} {
			fmt.Fprintf(w, "\tchain pod-%s-%s {\n\t\tmeta mark set meta mark and 0xfffeffff\n", pod, d.name)
			for i := 0; i < g.policies; i += guardedApps {
				fmt.Fprintf(w, "\t\tjump policy-%d-%s\n\t\tmeta mark and 0x10000 != 0 return\n", i, d.name)
			}
			w.WriteString("\t\tdrop\n\t}\n")
		}
		elements := []string{fmt.Sprintf("%s : jump pod-server-%s", server, d.name), fmt.Sprintf("%s : jump pod-client-%s", client, d.name)}
		for app := 1; app < min(guardedApps, g.policies); app++ {
			elements = append(elements, fmt.Sprintf("%s : jump pod-server-%s", neighbour(app), d.name))
		}
		fmt.Fprintf(w, "\tmap pods-%s { type ipv4_addr : verdict; elements = { %s }; }\n", d.name, strings.Join(elements, ", "))
	}
	w.WriteString(`	chain forward {
		type filter hook forward priority 0; policy accept;
		ct state established,related accept
		ip saddr vmap @pods-out
		ip daddr vmap @pods-in
	}
}
`)
	return w.Flush()
}
