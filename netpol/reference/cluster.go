package reference

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/netpol"
)

// cluster is who is there, and at which addresses.
type cluster struct {
	namespaces map[string]labels.Set
	pods       map[types.NamespacedName]*pod
	byAddr     map[netip.Addr]*pod // of pods with a network of their own, and of the cluster's DNS
	nodes      map[string]*node
	nodeAt     map[netip.Addr][]*node
	count      int // of pods
}

type node struct {
	labels labels.Set
	addrs  []netip.Addr
}

type pod struct {
	types.NamespacedName
	number      int // from 0
	labels      labels.Set
	namespace   labels.Set // the labels of its namespace
	node        string     // empty: none yet
	addrs       []netip.Addr
	ports       []containerPort
	hostNetwork bool
	ended       corev1.PodPhase // Succeeded or Failed; empty: neither
	created     int64
	dns         bool // stands for the cluster's DNS where nodes answer it

	once   sync.Once
	guards guards
}

// containerPort is a port of a pod that has a name.
type containerPort struct {
	name     string
	protocol uint8
	number   int32
}

func readCluster(s netpol.State) (*cluster, error) {
	c := &cluster{namespaces: map[string]labels.Set{}, pods: map[types.NamespacedName]*pod{}, byAddr: map[netip.Addr]*pod{}, nodes: map[string]*node{}, nodeAt: map[netip.Addr][]*node{}}
	for _, n := range s.Namespaces {
		if n == nil {
			return nil, errors.New("a Namespace is nil")
		}
		c.namespaces[n.Name] = namespaceLabels(n.Name, n.Labels)
	}
	for _, n := range s.Nodes {
		if n == nil {
			return nil, errors.New("a Node is nil")
		}
		c.addNode(n)
	}
	for _, p := range s.Pods {
		if p == nil {
			return nil, errors.New("a Pod is nil")
		}
		c.addPod(p)
	}
	c.addDNS(s.DNSAddrs)
	return c, nil
}

// namespaceLabels: the API server sets kubernetes.io/metadata.name and keeps it so (facts 36): offline it is there too.
func namespaceLabels(name string, have map[string]string) labels.Set {
	out := labels.Set{}
	for k, v := range have {
		out[k] = v
	}
	out[corev1.LabelMetadataName] = name
	return out
}

func (c *cluster) labelsOf(namespace string) labels.Set {
	if _, ok := c.namespaces[namespace]; !ok { // offline, a namespace without an object
		c.namespaces[namespace] = namespaceLabels(namespace, nil)
	}
	return c.namespaces[namespace]
}

func (c *cluster) addPod(o *corev1.Pod) {
	p := &pod{
		NamespacedName: types.NamespacedName{Namespace: o.Namespace, Name: o.Name},
		number:         c.count,
		labels:         o.Labels,
		namespace:      c.labelsOf(o.Namespace),
		node:           o.Spec.NodeName,
		ports:          containerPorts(o),
		hostNetwork:    o.Spec.HostNetwork,
		created:        o.CreationTimestamp.Unix(),
	}
	for _, ip := range o.Status.PodIPs { // of both families (facts 43)
		p.addrs = appendAddr(p.addrs, ip.IP)
	}
	if len(p.addrs) == 0 {
		p.addrs = appendAddr(p.addrs, o.Status.PodIP)
	}
	if p.hostNetwork {
		if n := c.nodes[p.node]; len(p.addrs) == 0 && n != nil {
			p.addrs = n.addrs
		}
	}
	// Facts 34: pods that have ended leave all sets at once; their addresses may be others' already. Those that terminate stay (facts 33).
	if phase := o.Status.Phase; phase == corev1.PodSucceeded || phase == corev1.PodFailed {
		p.ended = phase
	}
	c.count++
	c.pods[p.NamespacedName] = p
	if p.hostNetwork || p.ended != "" {
		return // facts 19: the address is the node's
	}
	for _, a := range p.addrs {
		if have := c.byAddr[a]; have == nil || newer(p, have) {
			c.byAddr[a] = p
		}
	}
}

// newer tells which of two pods an address belongs to that both claim: for a moment there are two of them where one follows the other.
func newer(a, b *pod) bool {
	if a.created != b.created {
		return a.created > b.created
	}
	return a.String() < b.String()
}

// addDNS: where the node network answers DNS by itself, policies name it as if there were the usual pods.
func (c *cluster) addDNS(addrs []netip.Addr) {
	if len(addrs) == 0 {
		return
	}
	p := &pod{
		NamespacedName: types.NamespacedName{Namespace: "kube-system", Name: "kube-dns"},
		number:         c.count,
		labels:         labels.Set{"k8s-app": "kube-dns"},
		namespace:      c.labelsOf("kube-system"),
		ports:          []containerPort{{"dns", netpol.UDP, 53}, {"dns-tcp", netpol.TCP, 53}},
		dns:            true,
	}
	for _, a := range addrs {
		a = a.Unmap()
		p.addrs = append(p.addrs, a)
		if c.byAddr[a] == nil {
			c.byAddr[a] = p
		}
	}
}

// containerPorts: of all containers, and of init containers that go on beside them (facts 2, 45).
func containerPorts(o *corev1.Pod) []containerPort {
	var out []containerPort
	add := func(c corev1.Container) {
		for _, p := range c.Ports {
			if proto, err := netpol.ProtocolNumber(p.Protocol); err == nil && p.Name != "" {
				out = append(out, containerPort{p.Name, proto, p.ContainerPort})
			}
		}
	}
	for _, c := range o.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for _, c := range o.Spec.Containers {
		add(c)
	}
	return out
}

// nodeAddrs: CNP: "It selects the nodeIPs as the peer type by matching on the IPs present in the node.Status.Addresses field of the node."
func nodeAddrs(n *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		out = appendAddr(out, a.Address)
	}
	return out
}

func (c *cluster) addNode(o *corev1.Node) {
	n := &node{labels: o.Labels, addrs: nodeAddrs(o)}
	c.nodes[o.Name] = n
	for _, a := range n.addrs {
		c.nodeAt[a] = append(c.nodeAt[a], n)
	}
}

// appendAddr leaves out what is no address: a node's host name, a pod's empty one.
func appendAddr(to []netip.Addr, text string) []netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || slices.Contains(to, a.Unmap()) {
		return to
	}
	return append(to, a.Unmap())
}

func (c *cluster) hasAddress(node string, a netip.Addr) bool {
	n := c.nodes[node]
	return n != nil && a.IsValid() && slices.Contains(n.addrs, a)
}

// UnknownPodError: a question names a pod that is not there.
type UnknownPodError struct{ Pod types.NamespacedName }

func (e *UnknownPodError) Error() string { return fmt.Sprintf("no pod %s", e.Pod) }

// parties looks the ends of a flow up, and settles which family is spoken.
func (c *cluster) parties(f netpol.Flow) (from, to party, err error) {
	fromAddrs, err := c.lookUp(f.From, &from)
	if err != nil {
		return from, to, fmt.Errorf("from: %w", err)
	}
	toAddrs, err := c.lookUp(f.To, &to)
	if err != nil {
		return from, to, fmt.Errorf("to: %w", err)
	}
	switch {
	case len(fromAddrs) == 0 && len(toAddrs) == 0: // both have no address yet
	case len(fromAddrs) == 0:
		to.addr = toAddrs[0]
		from.v6, to.v6 = to.addr.Is6(), to.addr.Is6()
	case len(toAddrs) == 0:
		from.addr = fromAddrs[0]
		from.v6, to.v6 = from.addr.Is6(), from.addr.Is6()
	default:
		if from.addr, to.addr, err = oneFamily(fromAddrs, toAddrs); err != nil {
			return from, to, err
		}
		from.v6, to.v6 = from.addr.Is6(), to.addr.Is6()
	}
	from.nodes, to.nodes = c.nodeAt[from.addr], c.nodeAt[to.addr]
	return from, to, nil
}

func oneFamily(from, to []netip.Addr) (netip.Addr, netip.Addr, error) {
	for _, a := range from {
		for _, b := range to {
			if a.Is6() == b.Is6() {
				return a, b, nil
			}
		}
	}
	return netip.Addr{}, netip.Addr{}, fmt.Errorf("%s and %s have no addresses of one family", from[0], to[0])
}

// lookUp finds who an end is, and the addresses that may be meant.
func (c *cluster) lookUp(e netpol.End, p *party) ([]netip.Addr, error) {
	addr := e.Addr.Unmap().WithZone("")
	if e.Pod == (types.NamespacedName{}) {
		if !addr.IsValid() {
			return nil, errors.New("neither a pod nor an address")
		}
		p.pod = c.byAddr[addr]
		return []netip.Addr{addr}, nil
	}
	found := c.pods[e.Pod]
	if found == nil {
		return nil, &UnknownPodError{e.Pod}
	}
	if found.ended != "" {
		return nil, fmt.Errorf("pod %s has ended (%s): it sends and gets nothing", found, found.ended)
	}
	if found.hostNetwork { // facts 19: a node's address, not a pod
		p.host = found
	} else {
		p.pod = found
	}
	if !e.Addr.IsValid() {
		return found.addrs, nil
	}
	if !slices.Contains(found.addrs, addr) {
		return nil, fmt.Errorf("pod %s does not have the address %s", found, addr)
	}
	return []netip.Addr{addr}, nil
}
