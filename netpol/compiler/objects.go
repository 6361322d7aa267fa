package compiler

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"strings"
	"unique"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/netpol"
)

// namespace is a Namespace, or the name of one whose object was not seen.
type namespace struct {
	name     string
	known    bool
	labels   labelSet
	keep     keep
	kinds    map[*kind]struct{}
	policies map[*policy]struct{} // NetworkPolicies in it
	blocks   int                  // that they name
}

// keep is what FlowsAnnotation says.
type keep uint8

const (
	keepUnsaid keep = iota
	keepYes
	keepNo
)

func keepOf(annotations map[string]string) keep {
	switch annotations[netpol.FlowsAnnotation] {
	case netpol.FlowsKeep:
		return keepYes
	case netpol.FlowsJudge:
		return keepNo
	}
	return keepUnsaid
}

// kind is all pods of a namespace with the same labels and named ports.
type kind struct {
	key       kindKey
	namespace *namespace
	labels    labelSet
	ports     []namedPort
	pods      []*pod
	local     int // how many are subjects
	// atoms are those that its selectors and names of ports give it, by number.
	atoms []*atom
	was   []*atom // while the rule sets change that ask it by other labels of its namespace: what it was to those that go; nil: the same
	// identities are those that it has by what covers its pods' addresses: one, or a few. Forgotten when atoms changes.
	identities []covered
	selected   []*policy // those that judge it, if it has subjects: in their order
	sets       subjectSets
}

// covered is an identity that a kind's addresses have where these are covered so.
type covered struct {
	by       *cover
	identity *identity
}

type kindKey struct{ namespace, content string }

type namedPort struct {
	name     string
	protocol uint8
	number   uint16
}

// pod is what is kept of a Pod.
type pod struct {
	uid             types.UID
	namespace, name string
	kind            *kind // nil if it is nobody's peer: ended, or with the node's network
	at              int   // its index in kind.pods
	addrs           []netip.Addr
	created         int64
	local           bool
	keep            keep
}

// newer tells which of two pods has an address that both claim.
func (p *pod) newer(q *pod) bool {
	if p.created != q.created {
		return p.created > q.created
	}
	if order := cmp.Or(strings.Compare(p.namespace, q.namespace), strings.Compare(p.name, q.name)); order != 0 {
		return order < 0
	}
	return p.uid < q.uid
}

type node struct {
	labels labelSet
	addrs  []netip.Addr
}

// address is one that pods or nodes have.
type address struct {
	addr     netip.Addr
	pods     []*pod // who claim it; more than one for a moment
	nodes    []*node
	identity *identity
	kind     *kind       // of its pod, when it got its identity
	subject  *subjectRow // in the tables
	of       types.UID   // whose row that is
}

// owner is the pod that has the address; nil: none. What an API object of another node's pod claims takes nothing from a pod of this node: it got the address
// from this node's own range.
func (a *address) owner() *pod {
	var owner *pod
	for _, p := range a.pods {
		if owner == nil || p.local && !owner.local || p.local == owner.local && p.newer(owner) {
			owner = p
		}
	}
	return owner
}

// WithoutForeignClaims gives pods as a Compiler for a node takes them: those of other nodes without addresses that a pod of the node has. No pod is changed; one that
// loses an address is a copy. Without a node all pods are as they were.
func WithoutForeignClaims(pods []*corev1.Pod, node string) []*corev1.Pod {
	if node == "" {
		return pods
	}
	local := map[netip.Addr]bool{}
	for _, p := range pods {
		if p.Spec.NodeName == node && hasAddrs(p) {
			for _, a := range addrsOf(p) {
				local[a] = true
			}
		}
	}
	out := slices.Clone(pods)
	for i, p := range out {
		addrs := addrsOf(p)
		if p.Spec.NodeName == node || !hasAddrs(p) || !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return local[a] }) {
			continue
		}
		p = p.DeepCopy()
		p.Status.PodIP, p.Status.PodIPs = "", nil
		for _, a := range addrs {
			if !local[a] {
				p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
			}
		}
		out[i] = p
	}
	return out
}

// hasAddrs tells whether a pod has addresses of its own: it has not ended, and is not in its node's network.
func hasAddrs(o *corev1.Pod) bool {
	return !o.Spec.HostNetwork && o.Status.Phase != corev1.PodSucceeded && o.Status.Phase != corev1.PodFailed
}

func addrsOf(o *corev1.Pod) (addrs []netip.Addr) {
	for _, ip := range o.Status.PodIPs {
		addrs = appendAddr(addrs, ip.IP)
	}
	if len(addrs) == 0 {
		addrs = appendAddr(addrs, o.Status.PodIP)
	}
	return addrs
}

// word is a string that is kept once, however many objects have it.
func word(s string) string { return unique.Make(s).Value() }

// label is a key with its value.
type label struct{ key, value string }

// labelSet are labels by their keys, in little room. It is a labels.Labels.
type labelSet []label

func words(set map[string]string) labelSet {
	out := make(labelSet, 0, len(set))
	for k, v := range set {
		out = append(out, label{word(k), word(v)})
	}
	slices.SortFunc(out, func(a, b label) int { return strings.Compare(a.key, b.key) })
	return out
}

// Lookup implements labels.Labels, as do the next two.
func (s labelSet) Lookup(key string) (string, bool) {
	for _, l := range s {
		if l.key == key {
			return l.value, true
		}
	}
	return "", false
}

func (s labelSet) Has(key string) bool {
	_, ok := s.Lookup(key)
	return ok
}

func (s labelSet) Get(key string) string {
	value, _ := s.Lookup(key)
	return value
}

// with has another value of a key.
func (s labelSet) with(key, value string) labelSet {
	out := slices.DeleteFunc(slices.Clone(s), func(l label) bool { return l.key == key })
	at, _ := slices.BinarySearchFunc(out, key, func(l label, key string) int { return strings.Compare(l.key, key) })
	return slices.Insert(out, at, label{key, value})
}

// kindContent is what pods of a kind have in common beside their namespace.
func kindContent(set map[string]string, ports []namedPort) string {
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(k)
		b.WriteByte('=')
		b.WriteString(set[k])
		b.WriteByte(0)
	}
	for _, p := range ports {
		b.WriteByte(1)
		b.WriteString(p.name)
		b.Write([]byte{0, p.protocol, byte(p.number >> 8), byte(p.number)})
	}
	return b.String()
}

// namedPorts are those that rules may name: of all containers, and of init containers that stay.
func namedPorts(o *corev1.Pod) []namedPort {
	var out []namedPort
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			protocol, err := netpol.ProtocolNumber(p.Protocol)
			if err == nil && p.Name != "" && 0 < p.ContainerPort && p.ContainerPort <= 65535 {
				out = append(out, namedPort{word(p.Name), protocol, uint16(p.ContainerPort)})
			}
		}
	}
	for i := range o.Spec.Containers {
		add(&o.Spec.Containers[i])
	}
	for i := range o.Spec.InitContainers {
		if c := &o.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	slices.SortFunc(out, comparePorts)
	return slices.Compact(out)
}

func comparePorts(a, b namedPort) int {
	return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.number, b.number))
}

// appendAddr leaves out what is no address: a node's host name.
func appendAddr(to []netip.Addr, text string) []netip.Addr {
	a, err := netip.ParseAddr(text)
	a = a.Unmap().WithZone("")
	if err != nil || slices.Contains(to, a) {
		return to
	}
	return append(to, a)
}

func (c *Compiler) namespace(name string) *namespace {
	n := c.namespaces[name]
	if n == nil {
		n = &namespace{name: word(name), kinds: map[*kind]struct{}{}, policies: map[*policy]struct{}{}}
		n.labels = labelSet{{corev1.LabelMetadataName, n.name}}
		c.namespaces[n.name] = n
	}
	return n
}

// forgetNamespace lets a namespace go that nothing is in.
func (c *Compiler) forgetNamespace(n *namespace) {
	if !n.known && len(n.kinds) == 0 && len(n.policies) == 0 {
		delete(c.namespaces, n.name)
	}
}

// SetNamespace takes a Namespace that is new or has changed.
func (c *Compiler) SetNamespace(o *corev1.Namespace) {
	c.changeNamespace(o.Name, namespaceChange{true, words(o.Labels).with(corev1.LabelMetadataName, word(o.Name)), keepOf(o.Annotations)})
}

// DeleteNamespace takes the end of a Namespace.
func (c *Compiler) DeleteNamespace(name string) {
	if c.namespaces[name] != nil || c.changedNamespaces[name] != nil {
		c.changeNamespace(name, namespaceChange{false, labelSet{{corev1.LabelMetadataName, word(name)}}, keepUnsaid})
	}
}

type namespaceChange struct {
	known  bool
	labels labelSet
	keep   keep
}

func (c *Compiler) changeNamespace(name string, change namespaceChange) {
	if n := c.namespaces[name]; n == nil || len(n.kinds) == 0 { // nobody is judged otherwise by it
		delete(c.changedNamespaces, name)
		n = c.namespace(name)
		n.known, n.labels, n.keep = change.known, change.labels, change.keep
		c.forgetNamespace(n)
		return
	}
	c.changedNamespaces[word(name)] = &change
}

// applyNamespaces makes the changes of namespaces count.
func (c *Compiler) applyNamespaces() {
	for name, change := range c.changedNamespaces {
		n := c.namespace(name)
		relabelled := n.known != change.known || !slices.Equal(n.labels, change.labels)
		if relabelled || n.keep != change.keep {
			for k := range n.kinds {
				c.dirtySubjects(k)
				if relabelled {
					c.dirtyKinds[k] = struct{}{}
					c.relabelled[k] = struct{}{}
				}
			}
		}
		n.known, n.labels, n.keep = change.known, change.labels, change.keep
		c.forgetNamespace(n)
	}
	clear(c.changedNamespaces)
}

// SetPod takes a Pod that is new or has changed.
func (c *Compiler) SetPod(o *corev1.Pod) {
	addrs := addrsOf(o)
	p := &pod{
		uid: podUID(o), namespace: word(o.Namespace), name: o.Name, addrs: addrs,
		created: o.CreationTimestamp.Unix(), keep: keepOf(o.Annotations),
		local: c.options.NodeName == "" || o.Spec.NodeName == c.options.NodeName,
	}
	if !hasAddrs(o) {
		c.setPod(p, nil)
		return
	}
	ports := namedPorts(o)
	k := c.kind(p.namespace, kindContent(o.Labels, ports))
	if k.labels == nil {
		k.labels, k.ports = words(o.Labels), ports
	}
	c.setPod(p, k)
	if len(addrs) == 0 && c.options.NodeName == "" && c.pods[p.uid] == p {
		c.homeless[p] = struct{}{}
	}
}

// podUID is the UID of a pod. Offline a manifest may have none; then its name is.
func podUID(o *corev1.Pod) types.UID {
	if o.UID == "" {
		return types.UID(o.Namespace + "/" + o.Name)
	}
	return o.UID
}

// DeletePod takes the end of a Pod, by its UID.
func (c *Compiler) DeletePod(uid types.UID) {
	if p := c.pods[uid]; p != nil {
		c.setPod(&pod{uid: uid}, nil)
		delete(c.pods, uid)
	}
}

// kind finds or makes a kind; a new one has no labels yet.
func (c *Compiler) kind(ns, content string) *kind {
	key := kindKey{ns, content}
	k := c.kinds[key]
	if k == nil {
		k = &kind{key: key, namespace: c.namespace(ns)}
		k.namespace.kinds[k] = struct{}{}
		c.kinds[key] = k
		c.dirtyKinds[k] = struct{}{}
	}
	return k
}

// setPod makes p what its UID stands for, and one of its kind: nil if it is nobody's peer.
func (c *Compiler) setPod(p *pod, k *kind) {
	old := c.pods[p.uid]
	if old != nil && old.kind == k && old.local == p.local && old.keep == p.keep && old.created == p.created && slices.Equal(old.addrs, p.addrs) {
		return
	}
	if k != nil {
		p.kind, p.at = k, len(k.pods)
		k.pods = append(k.pods, p)
		if p.local {
			if k.local++; k.local == 1 {
				c.dirtyKinds[k] = struct{}{}
			}
		}
		for _, addr := range p.addrs {
			c.claim(p, addr)
		}
	}
	if old != nil && old.kind != nil {
		for _, addr := range old.addrs {
			c.unclaim(old, addr)
		}
		if old.local {
			if old.kind.local--; old.kind.local == 0 {
				c.dirtyKinds[old.kind] = struct{}{}
			}
		}
		last := old.kind.pods[len(old.kind.pods)-1]
		old.kind.pods[old.at], last.at = last, old.at
		old.kind.pods[len(old.kind.pods)-1] = nil
		old.kind.pods = old.kind.pods[:len(old.kind.pods)-1]
		if len(old.kind.pods) == 0 {
			c.dirtyKinds[old.kind] = struct{}{}
		}
	}
	c.pods[p.uid] = p
}

// claim notes that a pod has an address, unclaim that it has it no more.
func (c *Compiler) claim(p *pod, addr netip.Addr) {
	a := c.address(addr)
	a.pods = append(a.pods, p)
	c.move(a)
}

func (c *Compiler) unclaim(p *pod, addr netip.Addr) {
	a := c.addrs[addr]
	a.pods = slices.DeleteFunc(a.pods, func(q *pod) bool { return q == p })
	c.move(a)
}

// move notes that an address is somebody else's, or somebody's who has changed.
func (c *Compiler) move(a *address) {
	c.dirtyAddrs[a] = struct{}{}
	c.movedAddrs[a] = struct{}{}
}

// dnsUID stands for the cluster's DNS, as if it were a pod.
const dnsUID = "cluster DNS"

// SetDNSAddrs takes the addresses of the cluster's DNS where nodes answer it by themselves; see netpol.State.
func (c *Compiler) SetDNSAddrs(addrs []netip.Addr) {
	if len(addrs) == 0 {
		c.DeletePod(dnsUID)
		return
	}
	p := &pod{uid: dnsUID, namespace: "kube-system", name: "kube-dns", created: math.MinInt64} // whoever else has the address comes first
	for _, a := range addrs {
		if a = a.Unmap().WithZone(""); !slices.Contains(p.addrs, a) {
			p.addrs = append(p.addrs, a)
		}
	}
	set := map[string]string{"k8s-app": "kube-dns"}
	ports := []namedPort{{"dns", netpol.UDP, 53}, {"dns-tcp", netpol.TCP, 53}}
	k := c.kind(p.namespace, kindContent(set, ports))
	if k.labels == nil {
		k.labels, k.ports = words(set), ports
	}
	c.setPod(p, k)
}

// SetNode takes a Node that is new or has changed.
func (c *Compiler) SetNode(o *corev1.Node) {
	n := &node{labels: words(o.Labels)}
	for _, a := range o.Status.Addresses {
		n.addrs = appendAddr(n.addrs, a.Address)
	}
	old := c.nodes[o.Name]
	if old != nil && slices.Equal(old.addrs, n.addrs) && slices.Equal(old.labels, n.labels) {
		return
	}
	c.DeleteNode(o.Name)
	c.nodes[word(o.Name)] = n
	for _, addr := range n.addrs {
		a := c.address(addr)
		a.nodes = append(a.nodes, n)
		c.move(a)
	}
}

// DeleteNode takes the end of a Node.
func (c *Compiler) DeleteNode(name string) {
	old := c.nodes[name]
	if old == nil {
		return
	}
	delete(c.nodes, name)
	for _, addr := range old.addrs {
		a := c.addrs[addr]
		a.nodes = slices.DeleteFunc(a.nodes, func(n *node) bool { return n == old })
		c.move(a)
	}
}

// address finds or makes an address.
func (c *Compiler) address(addr netip.Addr) *address {
	a := c.addrs[addr]
	if a == nil {
		a = &address{addr: addr}
		c.addrs[addr] = a
		c.places.add(a)
	}
	return a
}
