// Package analysis tells what the policies of a State allow between all that can talk: who reaches whom on what, what a change of
// policies opens and closes, what is wrong with them, whether intents hold.
//
// It does not ask for pairs of pods. Pods are put into classes that no policy tells apart, and so are the addresses outside; the
// answer for two classes is a set of exact ranges of ports, with who gave it. A property test holds it against an evaluator that is
// asked flow by flow.
package analysis

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/netpol"
)

// Evaluator judges a single flow: the reference, which explains more than an Analysis does.
type Evaluator interface {
	Judge(netpol.Flow) (netpol.Verdict, error)
}

// Analysis is what the policies of a State say, by classes.
type Analysis struct {
	state    netpol.State
	policies []*policy // enforced ones, in the order in which they are looked at
	shadow   []*policy
	classes  []*class
	members  []member // pods by class, in the State's order
	nodes    []member
	blocks   []outside
	families [2]bool // that there are: IPv4, IPv6

	reasons   []reason
	reasonIDs map[reason]int32
	answers   []answer
	answerIDs map[string]int32
	sets      [2]map[string]*ruleSet
	setsOf    []PortSet // that answers allow
	setIDs    map[string]int32
	cells     map[pair]*Cell // by two of these
}

// class is a set of ends that no policy tells apart. All its members are of one family.
type class struct {
	id      int
	family  int // 0: IPv4, 1: IPv6
	subject bool
	sample  netip.Addr
	pod     types.NamespacedName // of the sample, if it is a pod's
	// ports are what names stand for that policies use.
	ports map[string][]protocolPort
	names string // ports as a key
	sets  [2]*ruleSet
	views [2][]int32 // answers by class of the other end
}

type protocolPort struct {
	protocol int
	port     uint16
}

// member is a pod or a node with its classes, by family; -1: it has no address of it.
type member struct {
	pod     *corev1.Pod
	node    *corev1.Node
	at      int  // of a node with several addresses of a family: which of them, from 0
	dns     bool // it stands for the cluster's DNS that the node network answers
	classes [2]int
	addrs   [2]netip.Addr
}

// outside is a range of addresses that are no pod's.
type outside struct {
	atom  atom
	class int
}

// Options of an Analysis.
type Options struct {
	// Blocks tell addresses apart beside the policies' blocks.
	Blocks []netip.Prefix
}

// New puts a State into classes.
func New(s netpol.State, o Options) *Analysis {
	a := &Analysis{
		state: s, reasonIDs: map[reason]int32{}, answerIDs: map[string]int32{}, setIDs: map[string]int32{}, cells: map[pair]*Cell{},
		sets: [2]map[string]*ruleSet{{}, {}},
	}
	r := newReader()
	for _, b := range o.Blocks {
		r.prefixes[b.Masked()] = true
	}
	for _, n := range s.NetworkPolicies {
		a.add(r.networkPolicy(n))
	}
	for _, c := range s.ClusterNetworkPolicies {
		a.add(r.clusterNetworkPolicy(c))
	}
	inOrder(a.policies)
	inOrder(a.shadow)
	a.answer(answer{}) // of those that no policy guards, see unguarded
	a.classify(r)
	for _, list := range [][]*policy{a.policies, a.shadow} {
		for _, p := range list {
			a.resolve(p)
		}
	}
	for _, c := range a.classes {
		a.guard(c)
	}
	return a
}

func (a *Analysis) add(p *policy) {
	if p.shadow {
		a.shadow = append(a.shadow, p)
	} else {
		a.policies = append(a.policies, p)
	}
}

// alive tells whether a pod counts: those that are done have no part in the network.
func alive(p *corev1.Pod) bool {
	return p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed
}

func addrsOf(values []string) (out [2]netip.Addr) {
	for _, v := range values {
		x, err := netip.ParseAddr(v)
		if err != nil {
			continue
		}
		if x = x.Unmap(); !out[familyOf(x)].IsValid() {
			out[familyOf(x)] = x
		}
	}
	return out
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func podAddrs(p *corev1.Pod) [2]netip.Addr {
	var values []string
	for _, ip := range p.Status.PodIPs {
		values = append(values, ip.IP)
	}
	return addrsOf(append(values, p.Status.PodIP))
}

func (a *Analysis) classify(r *reader) {
	namespaces := map[string]labels.Set{}
	for _, n := range a.state.Namespaces {
		set := labels.Set{}
		for k, v := range n.Labels {
			set[k] = v
		}
		set[corev1.LabelMetadataName] = n.Name
		namespaces[n.Name] = set
	}
	var pods []member
	for _, p := range a.state.Pods {
		if m := (member{pod: p, addrs: podAddrs(p)}); alive(p) && (m.addrs[0].IsValid() || m.addrs[1].IsValid()) {
			pods = append(pods, m)
		}
	}
	if len(a.state.DNSAddrs) > 0 {
		m := member{pod: dnsPod(), dns: true}
		for _, d := range a.state.DNSAddrs {
			if d = d.Unmap(); !m.addrs[familyOf(d)].IsValid() {
				m.addrs[familyOf(d)] = d
			}
		}
		pods = append(pods, m)
	}
	taken := map[netip.Addr]bool{}
	for _, p := range pods {
		if namespaces[p.pod.Namespace] == nil {
			namespaces[p.pod.Namespace] = labels.Set{corev1.LabelMetadataName: p.pod.Namespace}
		}
		for f, x := range p.addrs {
			if x.IsValid() {
				taken[x], a.families[f] = true, true
			}
		}
	}
	nodeOf := map[netip.Addr]*corev1.Node{}
	for _, n := range a.state.Nodes {
		for i, addrs := range nodeAddrs(n) {
			a.nodes = append(a.nodes, member{node: n, at: i, addrs: addrs})
			for f, x := range addrs {
				if x.IsValid() {
					taken[x], nodeOf[x], a.families[f] = true, n, true
				}
			}
		}
	}
	for p := range r.prefixes {
		a.families[familyOf(p.Addr())] = true
	}
	a.families[0] = a.families[0] || !a.families[1]

	g := grouper{a: a, r: r, cover: coverOf(r.prefixes), byKey: map[string]*class{}, in: map[string][]*class{}, labels: map[*class]labels.Set{}, node: map[*class]*corev1.Node{}}
	for i := range pods {
		g.pod(&pods[i], nodeOf)
	}
	a.members = pods
	for i := range a.nodes {
		m := &a.nodes[i]
		for f, x := range m.addrs {
			m.classes[f] = -1
			if x.IsValid() {
				m.classes[f] = g.address(x, m.node).id
			}
		}
	}
	for f, have := range a.families {
		if !have {
			continue
		}
		for _, t := range atomsOf([]int{4, 6}[f], r.prefixes, taken) {
			a.blocks = append(a.blocks, outside{t, g.address(t.sample, nil).id})
		}
	}
	for _, p := range r.peers {
		g.match(p, namespaces)
	}
}

func dnsPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "cluster-dns", Labels: map[string]string{"k8s-app": "kube-dns"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
			{Name: "dns", Protocol: corev1.ProtocolUDP, ContainerPort: 53}, {Name: "dns-tcp", Protocol: corev1.ProtocolTCP, ContainerPort: 53},
		}}}},
	}
}

// nodeAddrs are a node's addresses, the internal ones first, one of each family at a time.
func nodeAddrs(n *corev1.Node) [][2]netip.Addr {
	var out [][2]netip.Addr
	var count [2]int
	seen := map[netip.Addr]bool{}
	rank := func(v corev1.NodeAddress) int {
		return map[corev1.NodeAddressType]int{corev1.NodeInternalIP: -1}[v.Type]
	}
	for _, v := range slices.SortedStableFunc(slices.Values(n.Status.Addresses), func(a, b corev1.NodeAddress) int { return cmp.Compare(rank(a), rank(b)) }) {
		x, err := netip.ParseAddr(v.Address)
		if x = x.Unmap(); err != nil || seen[x] {
			continue
		}
		seen[x] = true
		f := familyOf(x)
		if count[f] == len(out) {
			out = append(out, [2]netip.Addr{})
		}
		out[count[f]][f] = x
		count[f]++
	}
	return out
}

// grouper finds the class of an end.
type grouper struct {
	a      *Analysis
	r      *reader
	cover  cover
	byKey  map[string]*class
	in     map[string][]*class // classes of pods by namespace
	labels map[*class]labels.Set
	node   map[*class]*corev1.Node
}

func (g *grouper) class(key string, make func() *class) *class {
	if c, ok := g.byKey[key]; ok {
		return c
	}
	c := make()
	c.id = len(g.a.classes)
	g.a.classes = append(g.a.classes, c)
	g.byKey[key] = c
	return c
}

func (g *grouper) pod(m *member, nodes map[netip.Addr]*corev1.Node) {
	p := m.pod
	ports, names := g.ports(p)
	var words []string
	for k, v := range p.Labels {
		if g.r.podKeys[k] {
			words = append(words, k+"="+v)
		}
	}
	slices.Sort(words)
	set := labels.Set(p.Labels)
	for f, x := range m.addrs {
		m.classes[f] = -1
		if !x.IsValid() {
			continue
		}
		if p.Spec.HostNetwork {
			key := fmt.Sprintf("host\x00%d\x00%s\x00%s\x00%s", f, names, g.cover.of(x), nodeName(nodes[x]))
			c := g.class(key, func() *class {
				c := &class{family: f, sample: x, pod: types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, ports: ports, names: names}
				g.node[c] = nodes[x]
				return c
			})
			m.classes[f] = c.id
			continue
		}
		key := fmt.Sprintf("pod\x00%t\x00%d\x00%s\x00%s\x00%s\x00%s", m.dns, f, p.Namespace, strings.Join(words, "\x00"), names, g.cover.of(x))
		c := g.class(key, func() *class {
			c := &class{family: f, subject: !m.dns, sample: x, pod: types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, ports: ports, names: names}
			g.labels[c] = set
			g.in[p.Namespace] = append(g.in[p.Namespace], c)
			return c
		})
		m.classes[f] = c.id
	}
}

func nodeName(n *corev1.Node) string {
	if n == nil {
		return ""
	}
	return n.Name
}

func (g *grouper) address(x netip.Addr, n *corev1.Node) *class {
	f := familyOf(x)
	return g.class(fmt.Sprintf("address\x00%d\x00%s\x00%s", f, g.cover.of(x), nodeName(n)), func() *class {
		c := &class{family: f, sample: x}
		g.node[c] = n
		return c
	})
}

// ports are what the names stand for that policies use.
func (g *grouper) ports(p *corev1.Pod) (map[string][]protocolPort, string) {
	out := map[string][]protocolPort{}
	var words []string
	for _, c := range listening(p) {
		for _, port := range c.Ports {
			number, err := netpol.ProtocolNumber(port.Protocol)
			if err != nil || !g.r.names[port.Name] || port.ContainerPort < 1 || port.ContainerPort > lastPort {
				continue
			}
			v := protocolPort{slices.Index(protocols[:], number), uint16(port.ContainerPort)}
			if !slices.Contains(out[port.Name], v) {
				out[port.Name] = append(out[port.Name], v)
				words = append(words, fmt.Sprintf("%s/%d=%d", port.Name, v.protocol, v.port))
			}
		}
	}
	slices.Sort(words)
	return out, strings.Join(words, " ")
}

// listening are the containers of a pod that live as long as it does.
func listening(p *corev1.Pod) []corev1.Container {
	var out []corev1.Container
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = append(out, c)
		}
	}
	return append(out, p.Spec.Containers...)
}

// match finds the classes that a peer matches.
func (g *grouper) match(p *peer, namespaces map[string]labels.Set) {
	p.classes = newBitset(len(g.a.classes))
	switch {
	case p.pods != nil:
		in := []string{p.namespace}
		if p.namespaces != nil {
			in = nil
			for name := range g.in {
				if p.namespaces.Matches(namespaces[name]) {
					in = append(in, name)
				}
			}
		}
		for _, name := range in {
			for _, c := range g.in[name] {
				if p.pods.Matches(g.labels[c]) {
					p.classes.set(c.id)
				}
			}
		}
	case p.nodes != nil:
		for c, n := range g.node {
			if n != nil && p.nodes.Matches(labels.Set(n.Labels)) {
				p.classes.set(c.id)
			}
		}
	default:
		for _, c := range g.a.classes {
			if p.block.Contains(c.sample) && !slices.ContainsFunc(p.except, func(e netip.Prefix) bool { return e.Contains(c.sample) }) {
				p.classes.set(c.id)
			}
		}
	}
}

// resolve finds the classes of a policy's subjects and peers.
func (a *Analysis) resolve(p *policy) {
	p.subjects = p.subject.classes
	for _, list := range p.rules {
		for _, r := range list {
			r.classes = newBitset(len(a.classes))
			for i := range r.classes {
				if r.any {
					r.classes[i] = ^uint64(0)
				}
			}
			for _, one := range r.peers {
				r.classes.or(one.classes)
			}
			if r.any { // the last word has bits of no class
				for i := len(a.classes); i < len(r.classes)*64; i++ {
					r.classes[i/64] &^= 1 << (i % 64)
				}
			}
		}
	}
}
