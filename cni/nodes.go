package cni

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/strake-io/strake/bpf"
)

// Routing is how packets get from one node to another.
type Routing string

const (
	VXLAN  Routing = "vxlan"  // in a tunnel between the nodes: the fabric sees nodes' addresses only
	Native Routing = "native" // as they are: nodes that share a link route to each other, else the fabric has routes to the nodes' pods
)

// Relay is a node that stands between others: those behind it know the rest by it alone, and are known by it. The zero value is none.
type Relay struct {
	Node   string         // its name
	Behind []netip.Prefix // where the addresses of the nodes behind it are
}

// between tells whether two nodes, neither of them the relay, meet at it.
func (r Relay) between(a, b NodeInfo) bool {
	return r.Node != "" && a.Name != r.Node && b.Name != r.Node && r.hides(a) != r.hides(b)
}

// hides tells whether a node is behind the relay.
func (r Relay) hides(n NodeInfo) bool {
	return n.Name != r.Node && slices.ContainsFunc(n.Addrs, func(a netip.Addr) bool {
		return slices.ContainsFunc(r.Behind, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

// NodeInfo is what matters here of a Node.
type NodeInfo struct {
	Name, UID string
	Created   time.Time
	PodCIDRs  []netip.Prefix
	Addrs     []netip.Addr // InternalIPs
}

// ReadNode takes what matters from a Node, and says what of it can't be read.
func ReadNode(n *corev1.Node) (info NodeInfo, problems []string) {
	info = NodeInfo{Name: n.Name, UID: string(n.UID), Created: n.CreationTimestamp.Time}
	ranges := n.Spec.PodCIDRs
	if len(ranges) == 0 && n.Spec.PodCIDR != "" {
		ranges = []string{n.Spec.PodCIDR}
	}
	for _, text := range ranges {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Bits() == 0 || p.Addr().Is4In6() {
			problems = append(problems, fmt.Sprintf("pod range %q is none", text))
			continue
		}
		info.PodCIDRs = append(info.PodCIDRs, p.Masked())
	}
	for _, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		addr, err := netip.ParseAddr(a.Address)
		if addr = addr.Unmap().WithZone(""); err != nil || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
			problems = append(problems, fmt.Sprintf("InternalIP %q can't be a node's", a.Address))
			continue
		}
		info.Addrs = append(info.Addrs, addr)
	}
	if len(info.PodCIDRs) == 0 {
		problems = append(problems, "it has no pod range yet")
	}
	if len(info.Addrs) == 0 {
		problems = append(problems, "it has no InternalIP yet")
	}
	return info, problems
}

func (n NodeInfo) equal(o NodeInfo) bool {
	return n.Name == o.Name && n.UID == o.UID && n.Created.Equal(o.Created) && slices.Equal(n.PodCIDRs, o.PodCIDRs) && slices.Equal(n.Addrs, o.Addrs)
}

// before orders nodes that claim the same addresses: who was there first has them.
func (n NodeInfo) before(o NodeInfo) bool {
	return cmp.Or(n.Created.Compare(o.Created), cmp.Compare(n.UID, o.UID), cmp.Compare(n.Name, o.Name)) < 0
}

// claims are all ranges that a node says to have.
func (n NodeInfo) claims() []netip.Prefix {
	if len(n.PodCIDRs) == 0 || len(n.Addrs) == 0 {
		return nil
	}
	out := slices.Clone(n.PodCIDRs)
	for _, a := range n.Addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Compact(out)
}

// comparePrefixes orders by address, and the wider one first: what lies within a range follows it.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

type claim struct {
	prefix netip.Prefix
	node   string
}

func compareClaims(a, b claim) int {
	return cmp.Or(comparePrefixes(a.prefix, b.prefix), cmp.Compare(a.node, b.node))
}

// directory is the desired state as a function of the Nodes. It is kept rather than computed anew, so that a change costs what it changes;
// what it says depends on the Nodes that are in it, not on the order in which they came.
type directory struct {
	self    string
	addrs   []netip.Addr // our own
	routing Routing
	relay   Relay
	nodes   map[string]NodeInfo
	sorted  []claim
}

func newDirectory(self string, addrs []netip.Addr, routing Routing, relay Relay) *directory {
	d := &directory{self: self, addrs: addrs, routing: routing, relay: relay, nodes: map[string]NodeInfo{}}
	for _, a := range addrs { // ours before anybody says so
		d.insert(claim{netip.PrefixFrom(a, a.BitLen()), ""})
	}
	return d
}

func (d *directory) insert(c claim) {
	if i, found := slices.BinarySearchFunc(d.sorted, c, compareClaims); !found {
		d.sorted = slices.Insert(d.sorted, i, c)
	}
}

func (d *directory) withdraw(c claim) {
	if i, found := slices.BinarySearchFunc(d.sorted, c, compareClaims); found {
		d.sorted = slices.Delete(d.sorted, i, i+1)
	}
}

// overlapping calls f with the claims that share an address with p.
func (d *directory) overlapping(p netip.Prefix, f func(claim)) {
	from := func(q netip.Prefix) int {
		i, _ := slices.BinarySearchFunc(d.sorted, claim{prefix: q}, compareClaims)
		return i
	}
	for bits := range p.Bits() {
		wider, _ := p.Addr().Prefix(bits)
		for i := from(wider); i < len(d.sorted) && d.sorted[i].prefix == wider; i++ {
			f(d.sorted[i])
		}
	}
	for i := from(p); i < len(d.sorted) && p.Contains(d.sorted[i].prefix.Addr()); i++ {
		f(d.sorted[i])
	}
}

// set notes a node (or that it is gone, with nil) and returns the names of all for which something may have changed.
func (d *directory) set(name string, now *NodeInfo) map[string]bool {
	was, known := d.nodes[name]
	if known == (now != nil) && (!known || was.equal(*now)) {
		return nil
	}
	affected := map[string]bool{name: true}
	others := func(n NodeInfo) {
		for _, p := range n.claims() {
			d.overlapping(p, func(c claim) { affected[c.node] = true })
		}
	}
	if known {
		others(was)
		for _, p := range was.claims() {
			d.withdraw(claim{p, name})
		}
		delete(d.nodes, name)
	}
	if now != nil {
		d.nodes[name] = *now
		for _, p := range now.claims() {
			d.insert(claim{p, name})
		}
		others(*now)
	}
	if name == d.self || affected[d.relay.Node] { // the families of our pods may be others, or the way to other nodes
		for n := range d.nodes {
			affected[n] = true
		}
	}
	delete(affected, "")
	return affected
}

// granted are the ranges that are really a node's, and why others are not: a range is refused if it overlaps one of a node that was there
// first. Ours come before all.
func (d *directory) granted(n NodeInfo) (prefixes []netip.Prefix, refused []string) {
	for _, p := range n.claims() {
		var rival *claim
		d.overlapping(p, func(c claim) {
			if c.node == n.Name || (n.Name == d.self && c.node == "") {
				return
			}
			if c.node == "" || c.node == d.self || (n.Name != d.self && d.nodes[c.node].before(n)) {
				rival = &c
			}
		})
		if rival == nil {
			prefixes = append(prefixes, p)
			continue
		}
		who := rival.node
		if who == "" {
			who = d.self
		}
		refused = append(refused, fmt.Sprintf("%s overlaps %s of node %s", p, rival.prefix, who))
	}
	return prefixes, refused
}

// underlay is where a node's end of the tunnel is: IPv4 if both ends have it, so that both sides choose alike.
func (d *directory) underlay(n NodeInfo) (netip.Addr, bool) {
	for _, is4 := range []bool{true, false} {
		if _, ours := ofFamily(d.addrs, is4); !ours {
			continue
		}
		if a, ok := ofFamily(n.Addrs, is4); ok {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func ofFamily(addrs []netip.Addr, is4 bool) (netip.Addr, bool) {
	i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Is4() == is4 })
	if i < 0 {
		return netip.Addr{}, false
	}
	return addrs[i], true
}

// speaks tells whether we have addresses of a family: the node itself, or its pods.
func (d *directory) speaks(is4 bool) bool {
	if _, ok := ofFamily(d.addrs, is4); ok {
		return true
	}
	return slices.ContainsFunc(d.nodes[d.self].PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is4() == is4 })
}

// nodeRoute is a route of ours, on Gw's way.
type nodeRoute struct {
	Dst         netip.Prefix
	Tunnel      bool       // into the tunnel
	Gw          netip.Addr // native: the node, on our link
	Ifindex     int        // native: that link
	Src         netip.Addr // what the node's own processes send from
	Unreachable bool       // our own range: pods that are gone
}

// onLink is a range of addresses that an uplink reaches without a router.
type onLink struct {
	prefix  netip.Prefix
	ifindex int
}

// want is what should be in the kernel for one node.
type want struct {
	remotes  []bpf.Remote
	routes   []nodeRoute
	over6    bool     // its tunnel goes over IPv6
	problems []string // what could not be
}

// desired is a pure function of the directory and of what our links reach.
func (d *directory) desired(name string, links []onLink) want {
	n, ok := d.nodes[name]
	if !ok {
		return want{}
	}
	var w want
	prefixes, refused := d.granted(n)
	w.problems = refused
	if name == d.self {
		for _, p := range prefixes {
			if slices.Contains(n.PodCIDRs, p) {
				w.routes = append(w.routes, nodeRoute{Dst: p, Unreachable: true})
			}
		}
		return w
	}
	via, viaPrefixes := n, prefixes
	relayed := d.relay.between(n, NodeInfo{Name: d.self, Addrs: d.addrs})
	if relayed {
		via = d.nodes[d.relay.Node]
		viaPrefixes, _ = d.granted(via)
	}
	var end netip.Addr
	if d.routing == VXLAN && len(prefixes) > 0 {
		if end, ok = d.underlay(via); !ok {
			if relayed {
				w.problems = append(w.problems, fmt.Sprintf("the node %s, by which it is reached, has no address that we can use", d.relay.Node))
			} else {
				w.problems = append(w.problems, fmt.Sprintf("it has none of our address families: its InternalIPs are %v, ours %v", n.Addrs, d.addrs))
			}
			return w
		}
		if !slices.Contains(viaPrefixes, netip.PrefixFrom(end, end.BitLen())) {
			return w // another node's address: not where this one can be
		}
		w.over6 = end.Is6()
	}
	for _, p := range prefixes {
		if !d.speaks(p.Addr().Is4()) {
			continue
		}
		w.remotes = append(w.remotes, bpf.Remote{Owner: n.UID, Prefix: p, Node: end, Behind: d.self == d.relay.Node && d.relay.hides(n)})
		if !relayed && !slices.Contains(n.PodCIDRs, p) {
			continue // the node itself is reached as any machine
		}
		r := nodeRoute{Dst: p}
		r.Src, _ = ofFamily(d.addrs, p.Addr().Is4())
		if d.routing == VXLAN {
			r.Tunnel = true
		} else if !r.via(via.Addrs, links) {
			continue // the fabric knows the way
		}
		w.routes = append(w.routes, r)
	}
	return w
}

// via sets the next hop to the node if one of our links reaches it.
func (r *nodeRoute) via(addrs []netip.Addr, links []onLink) bool {
	for _, a := range addrs {
		for _, l := range links {
			if a.Is4() == r.Dst.Addr().Is4() && l.prefix.Contains(a) {
				r.Gw, r.Ifindex = a, l.ifindex
				return true
			}
		}
	}
	return false
}
