package observed

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/flows"
)

// Recommendation are the policies that admit what was observed, and nothing else that a policy can tell from it.
type Recommendation struct {
	Basis    []string                                 `json:"basis"` // what they rest on, and what they leave out
	Policies []*networkingv1.NetworkPolicy            `json:"policies"`
	notes    map[*networkingv1.NetworkPolicy][]string // what a reader should know of one
}

// Recommend makes a policy for each workload of which the record saw pods on the nodes that it is of; namespace: only those in it; empty: all. It admits
// the flows that were allowed. pods are those that there are: selectors are the smallest that choose a workload among them and those of the record.
func Recommend(r *Record, pods []*corev1.Pod, namespace string) *Recommendation {
	k := newKnown(r, pods)
	out := &Recommendation{notes: map[*networkingv1.NetworkPolicy][]string{}}
	sides := map[string]*guarded{}
	of := func(e flows.End) *guarded {
		w := workloadOf(e)
		if e.Pod == "" || isDNS(e) || namespace != "" && w.Namespace != namespace {
			return nil
		}
		if sides[w.key()] == nil {
			sides[w.key()] = &guarded{Workload: w, ingress: peers{}, egress: peers{}}
		}
		return sides[w.key()]
	}
	refused := refusedThere(r)
	for _, o := range r.Flows {
		egress, ingress := o.Judged()
		if from := of(o.From); from != nil && egress {
			if n, is := refused[pairKey(o)]; is && o.Verdict == flows.Allowed && !slices.Contains(o.Sides, "destination") {
				o.Verdict, o.Count = flows.Dropped, n
				refused[pairKey(o)] = 0 // they are told once, whatever rules let them out
			}
			from.add(from.egress, k, o, o.To)
		}
		if to := of(o.To); to != nil && slices.Contains(o.Sides, "destination") {
			if ingress {
				to.add(to.ingress, k, o, o.From)
			} else {
				to.seen = true
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(sides)) {
		g := sides[key]
		if !g.seen {
			continue // its pods are on other nodes
		}
		if len(g.Labels) == 0 {
			out.Basis = append(out.Basis, fmt.Sprintf("Pods of %s without labels have no policy here: no selector chooses them alone.", g.Namespace))
			continue
		}
		selector, alone := k.selector(g.Workload)
		p := &networkingv1.NetworkPolicy{
			TypeMeta:   metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy"},
			ObjectMeta: metav1.ObjectMeta{Namespace: g.Namespace, Name: policyName(out.Policies, g.Namespace, selector)},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: selector}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
			},
		}
		for _, r := range g.ingress.rules() {
			p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: r.peers, Ports: r.ports})
		}
		for _, r := range g.egress.rules() {
			p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: r.peers, Ports: r.ports})
		}
		if !alone {
			out.notes[p] = append(out.notes[p], "Other pods of the namespace have all of these labels, too, and more: they are selected with it.")
		}
		out.notes[p] = append(out.notes[p], slices.Sorted(maps.Keys(g.notes()))...)
		out.Policies = append(out.Policies, p)
	}
	out.Basis = append(window(r), out.Basis...)
	return out
}

// refusedThere are the packets that nodes of who was asked dropped, and let none of these flows through: the nodes of who asked have them as allowed, for
// each judges its side.
func refusedThere(r *Record) map[string]uint64 {
	dropped, allowed := map[string]uint64{}, map[string]bool{}
	for _, o := range r.Flows {
		switch {
		case !slices.Contains(o.Sides, "destination"):
		case o.Verdict == flows.Allowed:
			allowed[pairKey(o)] = true
		default:
			dropped[pairKey(o)] += o.Count
		}
	}
	maps.DeleteFunc(dropped, func(key string, _ uint64) bool { return allowed[key] })
	return dropped
}

// pairKey is what the records of both nodes have of a flow in common.
func pairKey(o Observed) string {
	return fmt.Sprint(endKey(o.From), " ", endKey(o.To), " ", o.Protocol, " ", o.Port)
}

// window tells what the policies rest on.
func window(r *Record) []string {
	var flows uint64
	for _, o := range r.Flows {
		flows += o.Count
	}
	out := []string{
		fmt.Sprintf("Made from %d flows and dropped packets that were recorded from %s to %s on %s.", flows, r.From.UTC().Format(time.RFC3339), r.To.UTC().Format(time.RFC3339), strings.Join(r.Nodes, ", ")),
		"What did not happen in that time is not admitted, nor what was dropped then. Pods on other nodes have no policy here.",
	}
	if r.Losses.Full > 0 {
		out = append(out, fmt.Sprintf("INCOMPLETE: the record had no room for %d flows and packets of that time.", r.Losses.Full))
	}
	if r.Losses.Pruned > 0 || r.Losses.Restarted > 0 {
		out = append(out, fmt.Sprintf("INCOMPLETE: the files had no room for %d counts, and what %d classes of flows had while agents were restarted is not known.", r.Losses.Pruned, r.Losses.Restarted))
	}
	if n := r.Losses.Lost + r.Losses.Skipped; n > 0 {
		out = append(out, fmt.Sprintf("%d samples of that time were left out. Their flows are counted; of clients outside it may be that only the network is known.", n))
	}
	if r.Networks > 0 {
		out = append(out, fmt.Sprintf("Of %d of them, from outside, only the network of the client is known: it is admitted whole.", r.Networks))
	}
	if r.Unknown > 0 {
		out = append(out, fmt.Sprintf("%d packets amid connections of which nobody knows who began them are left out.", r.Unknown))
	}
	return out
}

// WriteYAML writes the policies as manifests, with what they rest on as comments.
func (r *Recommendation) WriteYAML() ([]byte, error) {
	var b bytes.Buffer
	for _, line := range r.Basis {
		fmt.Fprintf(&b, "# %s\n", line)
	}
	for _, p := range r.Policies {
		b.WriteString("---\n")
		for _, line := range r.notes[p] {
			fmt.Fprintf(&b, "# %s\n", line)
		}
		text, err := yaml.Marshal(p)
		if err != nil {
			return nil, fmt.Errorf("policy %s/%s: %w", p.Namespace, p.Name, err)
		}
		b.Write(text)
	}
	return b.Bytes(), nil
}

// guarded is a workload with what it is to be admitted.
type guarded struct {
	Workload
	seen            bool // on a node of the record
	ingress, egress peers
	denied          map[string]*denial // by who was refused what, in words
	remarks         map[string]bool    // what its rules leave out, or admit beside
}

func (g *guarded) add(to peers, k *known, o Observed, other flows.End) {
	g.seen = true
	if o.Verdict != flows.Allowed {
		if g.denied == nil {
			g.denied = map[string]*denial{}
		}
		text := fmt.Sprintf("%s → %s %s", who(o.From), who(o.To), portText(o.Flow))
		if g.denied[text] == nil {
			g.denied[text] = &denial{}
		}
		peer, _ := k.peer(other, g.Namespace)
		g.denied[text].packets += o.Count
		g.denied[text].rules = append(g.denied[text].rules, wanted{to, peerText(peer), flowPort{o.Protocol, o.Port}})
		return
	}
	if !hasPorts(o.Protocol) {
		g.note("Not admitted, for rules have TCP, UDP and SCTP only: %s → %s %s.", who(o.From), who(o.To), o.Protocol)
		return
	}
	peer, alone := k.peer(other, g.Namespace)
	if peer.PodSelector != nil && len(peer.PodSelector.MatchLabels) == 0 { // it would admit all pods of the namespace
		g.note("Not admitted, for no selector chooses pods without labels alone: %s → %s %s.", who(o.From), who(o.To), portText(o.Flow))
		return
	}
	if !alone {
		g.note("%s: other pods of that namespace have all of these labels, too, and more: they are admitted with them.", who(other))
	}
	text := peerText(peer)
	if to[text] == nil {
		to[text] = &admitted{peer: peer, ports: map[flowPort]bool{}}
	}
	to[text].ports[flowPort{o.Protocol, o.Port}] = true
}

func portText(f flows.Flow) string {
	if f.Port == 0 {
		return f.Protocol
	}
	return fmt.Sprintf("%d/%s", f.Port, f.Protocol)
}

func (g *guarded) notes() map[string]bool {
	out := map[string]bool{}
	for text, d := range g.denied {
		if d.stays() {
			out[fmt.Sprintf("Dropped then, and not admitted: %s (%d packets).", text, d.packets)] = true
		}
	}
	maps.Copy(out, g.remarks)
	return out
}

func (g *guarded) note(format string, args ...any) {
	if g.remarks == nil {
		g.remarks = map[string]bool{}
	}
	g.remarks[fmt.Sprintf(format, args...)] = true
}

// denial is what was dropped, and the rules that would admit it. Another pod of the workload may have been allowed the same, and rules are of workloads.
type denial struct {
	packets uint64
	rules   []wanted
}

type wanted struct {
	of   peers
	peer string
	port flowPort
}

// stays tells whether one of the rules is missing.
func (d *denial) stays() bool {
	return slices.ContainsFunc(d.rules, func(r wanted) bool { return r.of[r.peer] == nil || !r.of[r.peer].ports[r.port] })
}

// peers are who is admitted, by the text of a rule's peer.
type peers map[string]*admitted

type admitted struct {
	peer  networkingv1.NetworkPolicyPeer
	ports map[flowPort]bool
}

type flowPort struct {
	protocol string
	port     uint16
}

type rule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

// rules has peers with the same ports together.
func (p peers) rules() []rule {
	by := map[string]*rule{}
	for _, text := range slices.Sorted(maps.Keys(p)) {
		a := p[text]
		list := slices.SortedFunc(maps.Keys(a.ports), func(a, b flowPort) int {
			return cmp.Or(strings.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port))
		})
		key := fmt.Sprint(list)
		if by[key] == nil {
			r := &rule{}
			for _, port := range list {
				protocol, number := corev1.Protocol(port.protocol), intstr.FromInt32(int32(port.port))
				r.ports = append(r.ports, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &number})
			}
			by[key] = r
		}
		by[key].peers = append(by[key].peers, a.peer)
	}
	var out []rule
	for _, key := range slices.Sorted(maps.Keys(by)) {
		out = append(out, *by[key])
	}
	return out
}

func peerText(p networkingv1.NetworkPolicyPeer) string {
	text := ""
	if p.IPBlock != nil {
		text = "~" + p.IPBlock.CIDR
	}
	if p.NamespaceSelector != nil {
		text += labelText(p.NamespaceSelector.MatchLabels)
	}
	if p.PodSelector != nil {
		text += "/" + labelText(p.PodSelector.MatchLabels)
	}
	return text
}

// known is who there is.
type known struct {
	namespaces map[string]map[string]map[string]string // namespace → text of labels → labels, as templates have them
	selectors  map[string]chosen
}

type chosen struct {
	labels map[string]string
	alone  bool
}

func newKnown(r *Record, pods []*corev1.Pod) *known {
	k := &known{map[string]map[string]map[string]string{}, map[string]chosen{}}
	add := func(namespace string, labels map[string]string) {
		if k.namespaces[namespace] == nil {
			k.namespaces[namespace] = map[string]map[string]string{}
		}
		t := templateLabels(labels)
		k.namespaces[namespace][labelText(t)] = t
	}
	for _, p := range pods {
		if !p.Spec.HostNetwork {
			add(p.Namespace, p.Labels)
		}
	}
	for i := range r.Flows {
		for _, e := range []flows.End{r.Flows[i].From, r.Flows[i].To} {
			if e.Pod != "" {
				add(e.Namespace, e.Labels)
			}
		}
	}
	return k
}

// selector is the smallest part of a workload's labels that no other one of its namespace has; alone: there is one.
func (k *known) selector(w Workload) (labels map[string]string, alone bool) {
	if had, ok := k.selectors[w.key()]; ok {
		return had.labels, had.alone
	}
	keys := slices.SortedFunc(maps.Keys(w.Labels), byRank)
	found := chosen{labels: w.Labels}
	for n := 1; n <= len(keys) && !found.alone; n++ {
		if n > maxSubset && n < len(keys) {
			continue
		}
		subsets(keys, n, func(subset []string) bool {
			try := map[string]string{}
			for _, key := range subset {
				try[key] = w.Labels[key]
			}
			if k.chooses(w, try) {
				found = chosen{try, true}
			}
			return !found.alone
		})
	}
	k.selectors[w.key()] = found
	return found.labels, found.alone
}

// maxSubset bounds the search: where so many labels do not single a workload out, all of them are taken.
const maxSubset = 3

// chooses tells whether labels select a workload alone.
func (k *known) chooses(w Workload, labels map[string]string) bool {
	for text, other := range k.namespaces[w.Namespace] {
		if text == labelText(w.Labels) {
			continue
		}
		all := true
		for key, value := range labels {
			if v, ok := other[key]; !ok || v != value {
				all = false
			}
		}
		if all {
			return false
		}
	}
	return true
}

// subsets calls do with each n of the keys, in order, until it is false.
func subsets(keys []string, n int, do func([]string) bool) bool {
	if n == 0 {
		return do(nil)
	}
	for i := 0; i+n <= len(keys); i++ {
		if !subsets(keys[i+1:], n-1, func(rest []string) bool { return do(append([]string{keys[i]}, rest...)) }) {
			return false
		}
	}
	return true
}

// peer is how a rule of a policy in a namespace names an end; alone: it names no other workload. Pods without labels have a selector without any.
func (k *known) peer(e flows.End, namespace string) (_ networkingv1.NetworkPolicyPeer, alone bool) {
	if e.Pod == "" {
		return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: blockOf(e)}}, true
	}
	labels, alone := k.selector(workloadOf(e))
	if isDNS(e) {
		labels, alone = map[string]string{"k8s-app": "kube-dns"}, true
	}
	p := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: labels}}
	if e.Namespace != namespace {
		p.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: e.Namespace}}
	}
	return p, alone
}

// blockOf is the range of an end that is no pod.
func blockOf(e flows.End) string {
	if p, err := netip.ParsePrefix(e.Addr); err == nil {
		return p.Masked().String()
	}
	a, err := netip.ParseAddr(e.Addr)
	if err != nil {
		return e.Addr // the API refuses it, and says so
	}
	return netip.PrefixFrom(a, a.BitLen()).String()
}

// policyName is a name for the policy of a selector, that no other one has.
func policyName(have []*networkingv1.NetworkPolicy, namespace string, selector map[string]string) string {
	var parts []string
	for _, key := range slices.SortedFunc(maps.Keys(selector), byRank) {
		parts = append(parts, strings.ToLower(selector[key]))
	}
	base := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.Join(parts, "-")), "-")
	if len(base) > 200 {
		base = strings.Trim(base[:200], "-")
	}
	if len(validation.IsDNS1123Subdomain(base)) > 0 {
		base = "workload"
	}
	name := base + "-observed"
	for i := 2; slices.ContainsFunc(have, func(p *networkingv1.NetworkPolicy) bool { return p.Namespace == namespace && p.Name == name }); i++ {
		name = fmt.Sprintf("%s-observed-%d", base, i)
	}
	return name
}

// State is a State with the policies of the recommendation, and none else.
func (r *Recommendation) State(s netpol.State) netpol.State {
	s.NetworkPolicies, s.ClusterNetworkPolicies = r.Policies, nil
	return s
}
