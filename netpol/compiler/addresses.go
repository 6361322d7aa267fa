package compiler

import (
	"math"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/netpol"
)

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

// appendAddr leaves out what is no address: a node's host name.
func appendAddr(to []netip.Addr, text string) []netip.Addr {
	a, err := netip.ParseAddr(text)
	a = a.Unmap().WithZone("")
	if err != nil || slices.Contains(to, a) {
		return to
	}
	return append(to, a)
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

type node struct {
	labels labelSet
	addrs  []netip.Addr
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
