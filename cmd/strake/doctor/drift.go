package doctor

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/dns"
	"github.com/strake-io/strake/proxy"
)

// comparison of one table.
type comparison struct {
	table string
	rows  int
	drift []string // one line for each row that is not as it should be
	err   error
}

// compare holds every table against what it should have.
func (e *examination) compare(o *objects, have bpf.Rows) []comparison {
	ofPod := func(lb bpf.LoadBalancer) bool { return strings.HasPrefix(lb.Owner, bpf.HostPortOwner) }
	ofService := func(lb bpf.LoadBalancer) bool { return !ofPod(lb) }
	var pods []bpf.Endpoint
	var ports []bpf.LoadBalancer
	var err error
	if !e.ProxyOnly {
		pods, ports, err = cni.Desired(e.Layout.CNIState(), e.Addrs, indexOfInterface)
	}
	wanted, wantedErr := e.wantedServices(o)
	want := withoutTaken(append(wanted, ports...), have.LoadBalancers)
	services := func(name string, drop func(bpf.LoadBalancer) bool) comparison {
		have, want := slices.DeleteFunc(slices.Clone(have.LoadBalancers), drop), slices.DeleteFunc(slices.Clone(want), drop)
		return comparison{table: name, rows: len(have), drift: differences(flattenServices(want), flattenServices(have))}
	}
	ofServices := services("table of Services", ofPod)
	if wantedErr != nil {
		ofServices = comparison{table: ofServices.table, err: wantedErr}
	}
	out := []comparison{ofServices}
	if e.ProxyOnly {
		return out
	}
	out = append(out, comparison{table: "table of names", rows: len(have.Names), drift: differences(flattenNames(e.wantedNames(o)), flattenNames(have.Names))})
	view := cni.NodeView{Name: e.Name, Addrs: e.Addrs, Uplinks: e.Uplinks, Routing: cni.VXLAN, Relay: e.Relay}
	if e.Native {
		view.Routing = cni.Native
	}
	out = append(out, comparison{table: "table of other nodes", rows: len(have.Remotes),
		drift: differences(flattenRemotes(cni.DesiredRemotes(view, o.nodes)), flattenRemotes(have.Remotes))})
	routes, drift, routesErr := cni.CompareRoutes(view, o.nodes)
	out = append(out, comparison{table: "routes to pods of nodes", rows: routes, drift: drift, err: routesErr}, e.comparePath(view, o.nodes), e.compareLinks(view), e.compareConstants())
	if err != nil {
		return append(out, comparison{table: "table of pods", err: err})
	}
	return append(out, services("table of host ports", ofService),
		comparison{table: "table of pods", rows: len(have.Endpoints), drift: differences(flattenEndpoints(pods), flattenEndpoints(have.Endpoints))})
}

// compareLinks holds the addresses with which pods' packets leave by further links against those that the links have.
func (e *examination) compareLinks(view cni.NodeView) comparison {
	c := comparison{table: "table of further links"}
	want, err := cni.DesiredLinks(view)
	if err != nil {
		c.err = err
		return c
	}
	have, err := bpf.ReadLinks(e.Layout.BPF())
	c.rows, c.drift, c.err = len(have), differences(flattenLinks(want), flattenLinks(have)), err
	return c
}

func flattenLinks(l map[int][]netip.Addr) map[string]string {
	out := map[string]string{}
	for index, addrs := range l {
		texts := make([]string, len(addrs))
		for i, a := range addrs {
			texts[i] = a.String()
		}
		slices.Sort(texts)
		out[or(nameOfInterface(index), fmt.Sprintf("interface %d (gone)", index))] = strings.Join(texts, " and ")
	}
	return out
}

// comparePath holds what the programs know of the way to other nodes against the links as they are.
func (e *examination) comparePath(view cni.NodeView, nodes []corev1.Node) comparison {
	c := comparison{table: "way to other nodes", rows: 1}
	tunnel, mtu, err := bpf.ReadPath(e.Layout.BPF())
	if err != nil {
		c.err = err
		return c
	}
	wantTunnel, wantMTU, err := cni.DesiredPath(view, nodes)
	if err != nil {
		c.err = err
		return c
	}
	if tunnel != wantTunnel {
		c.drift = append(c.drift, fmt.Sprintf("the programs send to the interface with the number %d, the tunnel's is %d", tunnel, wantTunnel))
	}
	if mtu != wantMTU {
		c.drift = append(c.drift, fmt.Sprintf("the programs take %d for the MTU, by the uplink it is %d", mtu, wantMTU))
	}
	return c
}

// compareConstants holds what the programs were told when they were loaded against the node's settings.
func (e *examination) compareConstants() comparison {
	c := comparison{table: "constants of the programs"}
	config, err := e.Datapath()
	if err == nil {
		c.rows, c.drift, err = bpf.CompareConstants(config)
	}
	c.err = err
	return c
}

// slicesByService sorts EndpointSlices by the key of their Service.
func slicesByService(list []discoveryv1.EndpointSlice) map[string][]*discoveryv1.EndpointSlice {
	out := map[string][]*discoveryv1.EndpointSlice{}
	for i := range list {
		s := &list[i]
		if name := s.Labels[discoveryv1.LabelServiceName]; name != "" {
			key := s.Namespace + "/" + name
			out[key] = append(out[key], s)
		}
	}
	return out
}

func (e *examination) wantedServices(o *objects) ([]bpf.LoadBalancer, error) {
	by := slicesByService(o.slices)
	node := proxy.Node{Name: e.Name, Addrs: e.Addrs, Local: e.DNSAddrs, OtherPods: e.ProxyOnly}
	if len(e.NodePorts) > 0 {
		have, err := proxy.InterfaceAddrs()
		if err != nil {
			return nil, err
		}
		node.Addrs = proxy.NodePortAddrs(e.NodePorts, e.Addrs, have, e.DNSAddrs)
	}
	for i := range o.nodes {
		if o.nodes[i].Name == e.Name {
			node.Zone = o.nodes[i].Labels[corev1.LabelTopologyZone]
		}
	}
	var out []bpf.LoadBalancer
	for i := range o.services {
		s := &o.services[i]
		out = append(out, proxy.Desired(s, by[s.Namespace+"/"+s.Name], node)...)
	}
	return out, nil
}

func (e *examination) wantedNames(o *objects) []bpf.Name {
	by := slicesByService(o.slices)
	var out []bpf.Name
	for i := range o.services {
		s := &o.services[i]
		out = append(out, dns.Desired(s, by[s.Namespace+"/"+s.Name], e.Zone)...)
	}
	for i := range o.namespaces {
		out = append(out, dns.DesiredNamespace(&o.namespaces[i], e.Zone)...)
	}
	return out
}

// withoutTaken leaves out the frontends that another row has: two Services may ask for one address and port, and the first has it.
func withoutTaken(want, have []bpf.LoadBalancer) []bpf.LoadBalancer {
	type frontend struct {
		at    netip.AddrPort
		proto uint8
	}
	owner := map[frontend]string{}
	for _, lb := range have {
		for _, f := range lb.Frontends {
			owner[frontend{f.Addr, lb.Protocol}] = lb.Owner
		}
	}
	out := slices.Clone(want)
	for i, lb := range out {
		lb.Frontends = slices.DeleteFunc(slices.Clone(lb.Frontends), func(f bpf.Frontend) bool {
			other, ok := owner[frontend{f.Addr, lb.Protocol}]
			return ok && other != lb.Owner && slices.ContainsFunc(want, func(w bpf.LoadBalancer) bool {
				return w.Owner == other && w.Protocol == lb.Protocol && slices.ContainsFunc(w.Frontends, func(o bpf.Frontend) bool { return o.Addr == f.Addr })
			})
		})
		out[i] = lb
	}
	return out
}

func sorted[T interface {
	comparable
	fmt.Stringer
}](l []T, compare func(T, T) int) string {
	l = slices.Compact(slices.SortedFunc(slices.Values(l), compare))
	s := make([]string, len(l))
	for i, v := range l {
		s[i] = v.String()
	}
	return "[" + strings.Join(s, " ") + "]"
}

func protocolName(p uint8) string {
	switch p {
	case 6:
		return "TCP"
	case 17:
		return "UDP"
	case 132:
		return "SCTP"
	}
	return fmt.Sprintf("protocol %d", p)
}

// The flatten functions give each row a name for people and a text of all that it says.

func flattenServices(l []bpf.LoadBalancer) map[string]string {
	out := map[string]string{}
	for _, lb := range l {
		text := "not what the table takes"
		if n, err := bpf.NormalLoadBalancer(lb); err == nil {
			text = fmt.Sprintf("frontends %v backends %v", n.Frontends, n.Backends)
			if n.Affinity != 0 {
				text += fmt.Sprintf(" affinity %v", n.Affinity)
			}
		}
		out[lb.Name+" "+protocolName(lb.Protocol)+" of "+lb.Owner] = text
	}
	return out
}

func flattenNames(l []bpf.Name) map[string]string {
	out := map[string]string{}
	for _, n := range l {
		out[n.Name+" of "+n.Owner] = sorted(n.Addrs, netip.Addr.Compare)
		if n.Elsewhere {
			out[n.Name+" of "+n.Owner] = "left to user space"
		}
	}
	return out
}

func flattenEndpoints(l []bpf.Endpoint) map[string]string {
	out := map[string]string{}
	for _, ep := range l {
		out[ep.Addr.String()] = fmt.Sprintf("interface %d, pod %s, node %s, of %s", ep.Ifindex, ep.PodMAC, ep.HostMAC, ep.Owner)
	}
	return out
}

func flattenRemotes(l []bpf.Remote) map[string]string {
	out := map[string]string{}
	for _, r := range l {
		at := "by native routing"
		if r.Node.IsValid() {
			at = "at " + r.Node.String()
		}
		if r.Behind {
			at += ", behind this node"
		}
		out[r.Prefix.String()] = at + ", of node " + r.Owner
	}
	return out
}

func indexOfInterface(name string) int {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0
	}
	return l.Attrs().Index
}

// differences tells row by row what is not as it should be.
func differences(want, have map[string]string) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		switch got, ok := have[name]; {
		case !ok:
			out = append(out, fmt.Sprintf("%s is missing, should be %s", name, want[name]))
		case got != want[name]:
			out = append(out, fmt.Sprintf("%s is %s, should be %s", name, got, want[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if _, ok := want[name]; !ok {
			out = append(out, fmt.Sprintf("%s is there and should not be: %s", name, have[name]))
		}
	}
	return out
}
