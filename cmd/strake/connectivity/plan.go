package connectivity

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Pod is one of the test's pods.
type Pod struct {
	Name  string
	Node  string
	Host  bool // on the node's own network
	Addrs []netip.Addr
}

// addr is the pod's address of a family.
func (p Pod) addr(family string) (netip.Addr, bool) {
	for _, a := range p.Addrs {
		if familyOf(a) == family {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// Scene is what there is to be tested.
type Scene struct {
	Namespace string
	Families  []string // primary first
	Nodes     []string
	Pods      []Pod // on each node podsPerNode with networks of their own, then one on the node's
	Port      int   // where they serve
	// Services before the pods that have networks of their own: one with ClusterIPs and NodePorts, one headless, and for each node's first pod one of its own.
	ClusterIPs            []netip.Addr
	NodePort, NodePortUDP int
	Outside               string // host:port, or empty
}

// Names of the Services.
const (
	serviceAll      = "all"
	serviceHeadless = "each"
)

func serviceOwn(pod string) string { return "own-" + pod }

// Columns of the matrix, in order.
const (
	ColPodHere   = "pod here"
	ColPodThere  = "pod there"
	ColNode      = "node"
	ColNodeThere = "node there"
	ColClusterIP = "ClusterIP"
	ColNodePort  = "NodePort"
	ColNodePorts = "NodePort there"
	ColHairpin   = "itself"
	ColDNS       = "names"
	ColHeadless  = "headless"
	ColFull      = "full MTU"
	ColLarge     = "fragments"
	ColOutside   = "outside"
)

// Columns are all of them.
var Columns = []string{ColPodHere, ColPodThere, ColNode, ColNodeThere, ColClusterIP, ColNodePort, ColNodePorts, ColHairpin, ColDNS, ColHeadless, ColFull, ColLarge, ColOutside}

// Check is one path with what is expected of it.
type Check struct {
	From   Pod
	Column string
	Family string
	What   string // the target, for people
	Probe  Probe

	WantPods   []string // one of these answers; empty: anybody
	WantClient string   // the address that the answerer sees; empty: any
	WantAddrs  []string // of a name, sorted
}

// tryFor is how long a probe waits for its answer.
const tryFor = 3 * time.Second

// Plan lists all paths of a scene: pure.
func Plan(s Scene) []Check {
	var out []Check
	for _, from := range s.Pods {
		if from.Name != podName(from.Node, 0) && !from.Host {
			continue // the others are targets
		}
		for _, family := range s.Families {
			out = append(out, s.from(from, family)...)
		}
	}
	if s.Outside != "" {
		for _, from := range s.Pods {
			if from.Name == podName(from.Node, 0) || from.Host {
				family := ""
				if host, _, err := net.SplitHostPort(s.Outside); err == nil {
					if a, err := netip.ParseAddr(host); err == nil {
						family = familyOf(a.Unmap())
					}
				}
				out = append(out, Check{From: from, Column: ColOutside, Family: family, What: s.Outside, Probe: Probe{Kind: ProbeTCP, Target: s.Outside, Family: family, Within: tryFor}})
			}
		}
	}
	return out
}

// from are the paths of one pod in one family.
func (s Scene) from(from Pod, family string) []Check {
	var out []Check
	add := func(column, what, kind, target string, c Check) {
		c.From, c.Column, c.Family, c.What = from, column, family, what
		c.Probe = Probe{Kind: kind, Target: target, Family: family, Within: tryFor}
		out = append(out, c)
	}
	at := func(a netip.Addr, port int) string { return netip.AddrPortFrom(a, uint16(port)).String() }
	own, _ := from.addr(family)
	// to is a pod or a node: seen by it with the pod's own address, whatever the way.
	to := func(p Pod, column string) {
		a, ok := p.addr(family)
		if !ok {
			return
		}
		what := "pod " + p.Name
		if p.Host {
			what = "node " + p.Node
		}
		c := Check{WantPods: []string{p.Name}}
		if !from.Host {
			c.WantClient = own.String()
		}
		add(column, what+" by HTTP", ProbeHTTP, at(a, s.Port), c)
		add(column, what+" by UDP", ProbeUDP, at(a, s.Port), Check{})
		add(ColFull, what, ProbeFull, at(a, s.Port), Check{})
		add(ColLarge, what, ProbeLarge, at(a, s.Port), Check{})
	}
	var behind, addrs []string // the Services
	for _, p := range s.Pods {
		if p.Host {
			continue
		}
		behind = append(behind, p.Name)
		if a, ok := p.addr(family); ok {
			addrs = append(addrs, a.String())
		}
	}
	for _, p := range s.Pods {
		switch here := p.Node == from.Node; {
		case p.Name == from.Name:
		case p.Host && here:
			to(p, ColNode)
		case p.Host:
			to(p, ColNodeThere)
		case here && p.Name == podName(p.Node, 1) || here && from.Host && p.Name == podName(p.Node, 0):
			to(p, ColPodHere)
		case !here && p.Name == podName(p.Node, 0):
			to(p, ColPodThere)
		}
	}
	i := slices.IndexFunc(s.ClusterIPs, func(a netip.Addr) bool { return familyOf(a) == family })
	if i >= 0 {
		// Each connection is balanced anew: several meet several backends.
		for n := range 2 * min(len(behind), 8) {
			add(ColClusterIP, fmt.Sprintf("%s by HTTP, connection %d", s.ClusterIPs[i], n+1), ProbeHTTP, at(s.ClusterIPs[i], 80), Check{WantPods: behind})
		}
		add(ColClusterIP, s.ClusterIPs[i].String()+" by UDP", ProbeUDP, at(s.ClusterIPs[i], 80), Check{})
		for _, name := range []string{serviceAll, serviceAll + "." + s.Namespace, serviceAll + "." + s.Namespace + ".svc.${zone}", serviceAll + "." + s.Namespace + ".svc.${zone}."} {
			add(ColDNS, name, ProbeDNS, name, Check{WantAddrs: []string{s.ClusterIPs[i].String()}})
		}
		add(ColDNS, serviceAll+" by HTTP", ProbeHTTP, serviceAll+":80", Check{WantPods: behind})
		if !from.Host {
			add(ColHairpin, "its own Service", ProbeHTTP, serviceOwn(from.Name)+":80", Check{WantPods: []string{from.Name}})
		}
		for _, p := range s.Pods {
			if a, ok := p.addr(family); ok && p.Host && s.NodePort != 0 {
				column := ColNodePorts
				if p.Node == from.Node {
					column = ColNodePort
				}
				add(column, fmt.Sprintf("node %s by HTTP", p.Node), ProbeHTTP, at(a, s.NodePort), Check{WantPods: behind})
				add(column, fmt.Sprintf("node %s by UDP", p.Node), ProbeUDP, at(a, s.NodePortUDP), Check{})
			}
		}
	}
	slices.Sort(addrs)
	add(ColHeadless, serviceHeadless, ProbeDNS, serviceHeadless+"."+s.Namespace+".svc.${zone}.", Check{WantAddrs: addrs})
	add(ColHeadless, serviceHeadless+" by HTTP", ProbeHTTP, net.JoinHostPort(serviceHeadless, strconv.Itoa(s.Port)), Check{WantPods: behind})
	return out
}

// judge says what is wrong with a result; empty if nothing is.
func (c Check) judge(r Result) string {
	switch {
	case r.Error != "" && c.Probe.Kind == ProbeFull && r.Bytes > 0:
		return fmt.Sprintf("%s: a packet of %d bytes", r.Error, r.Bytes)
	case r.Error != "":
		return r.Error
	case len(c.WantPods) > 0 && !slices.Contains(c.WantPods, r.Pod):
		return fmt.Sprintf("%s answered", r.Pod)
	case c.WantClient != "" && !sameAddr(c.WantClient, r.Client):
		return fmt.Sprintf("it is seen as %s, not as %s", r.Client, c.WantClient)
	case c.Probe.Kind == ProbeDNS && !slices.Equal(c.WantAddrs, r.Addrs):
		return fmt.Sprintf("%v, should be %v", r.Addrs, c.WantAddrs)
	}
	return ""
}

func sameAddr(a, b string) bool {
	x, err1 := netip.ParseAddr(a)
	y, err2 := netip.ParseAddr(b)
	return err1 == nil && err2 == nil && x.Unmap() == y.Unmap()
}

// podsPerNode have networks of their own.
const podsPerNode = 2

func podName(node string, n int) string { return fmt.Sprintf("pod-%d-%s", n, node) }

func hostPodName(node string) string { return "host-" + node }
