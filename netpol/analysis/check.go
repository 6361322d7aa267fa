package analysis

import (
	"fmt"
	"net/netip"
	"path"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/netpol"
)

// Result is whether an assertion holds.
type Result struct {
	Assertion
	Holds bool `json:"holds"`
	// Problem tells why it can't hold whatever the policies are: it is about nobody.
	Problem string `json:"problem,omitempty"`
	// Judged are the pairs of classes of ends that were looked at; Against those that are not as they should be.
	Judged  int `json:"judged"`
	Against int `json:"against,omitempty"`
	// Counterexample is a flow that is not as it should be.
	Counterexample *Counterexample `json:"counterexample,omitempty"`
}

// Counterexample is a flow, and why it is allowed, or not.
type Counterexample struct {
	From     string         `json:"from"`
	To       string         `json:"to"`
	Address  string         `json:"address,omitempty"` // of the end that is no pod, or of whom is asked
	Protocol string         `json:"protocol"`
	Port     uint16         `json:"port,omitempty"`
	Allowed  bool           `json:"allowed"`
	Verdict  netpol.Verdict `json:"verdict"`
}

// CheckAll judges assertions on all pairs of ends. The evaluator explains the counterexamples.
func CheckAll(s netpol.State, list []Assertion, e Evaluator) ([]Result, error) {
	var blocks []netip.Prefix
	for _, a := range list {
		for _, side := range [][]target{a.from, a.to, a.notFrom, a.notTo} {
			for _, t := range side {
				if t.block.IsValid() {
					blocks = append(blocks, t.block)
				}
			}
		}
	}
	c := checker{a: New(s, Options{Blocks: blocks}), e: e, spaces: map[string]labels.Set{}}
	for _, n := range s.Namespaces {
		c.spaces[n.Name] = n.Labels
	}
	var out []Result
	for _, a := range list {
		r, err := c.check(a)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// party is a single end.
type party struct {
	name string
	end  netpol.End
	pod  *corev1.Pod
	node string // that it is on
	host bool   // it is the node's own stack
}

type checker struct {
	a      *Analysis
	e      Evaluator
	spaces map[string]labels.Set
}

// pod tells whether a pod is meant by one of the targets.
func (c *checker) pod(list []target, m member) bool {
	return slices.ContainsFunc(list, func(t target) bool { return t.pods || t.byPod && c.byPod(t, m.pod) })
}

func (c *checker) byPod(t target, p *corev1.Pod) bool {
	match := func(pattern, name string) bool {
		ok, _ := path.Match(pattern, name) // its error was told when it was parsed
		return ok
	}
	if t.space != "" && !match(t.space, p.Namespace) {
		return false
	}
	if t.pattern != "" && !match(t.pattern, p.Namespace+"/"+p.Name) && !match(t.pattern, p.Namespace+"/"+OwnerOf(p).Name) {
		return false
	}
	if t.spaces != nil {
		set := labels.Set{corev1.LabelMetadataName: p.Namespace}
		for k, v := range c.spaces[p.Namespace] {
			set[k] = v
		}
		if !t.spaces.Matches(set) {
			return false
		}
	}
	return t.labels == nil || t.labels.Matches(labels.Set(p.Labels))
}

// parties are the ends that targets mean, by class, of each class those that it takes for a flow with any other: two, and one on another node, for a node's flows to its own
// pods are none.
func (c *checker) parties(in, out []target, asks bool) (map[int][]party, []int) {
	found := map[int][]party{}
	var order []int
	add := func(class int, p party) {
		if len(found[class]) == 0 {
			order = append(order, class)
		}
		if have := found[class]; len(have) < 2 || len(have) == 2 && have[0].node == have[1].node && have[0].node != p.node {
			found[class] = append(have, p)
		}
	}
	for _, m := range c.a.members {
		for f, class := range m.classes {
			if class < 0 || m.dns && asks || !c.pod(in, m) || c.pod(out, m) {
				continue
			}
			p := party{m.pod.Namespace + "/" + m.pod.Name, netpol.End{Pod: types.NamespacedName{Namespace: m.pod.Namespace, Name: m.pod.Name}, Addr: m.addrs[f]}, m.pod, m.pod.Spec.NodeName, m.pod.Spec.HostNetwork}
			if m.dns {
				p.end.Pod = types.NamespacedName{}
			}
			add(class, p)
		}
	}
	for _, n := range c.a.nodes {
		for f, class := range n.classes {
			is := func(t target) bool { return t.nodes }
			if class >= 0 && slices.ContainsFunc(in, is) && !slices.ContainsFunc(out, is) {
				add(class, party{name: "node " + n.node.Name, end: netpol.End{Addr: n.addrs[f]}, node: n.node.Name, host: true})
			}
		}
	}
	for _, b := range c.a.blocks {
		is := func(t target) bool { return t.world || t.block.IsValid() && t.block.Contains(b.atom.sample) }
		if slices.ContainsFunc(in, is) && !slices.ContainsFunc(out, is) {
			name := World
			if b.atom.prefix.Bits() > 0 {
				name = b.atom.prefix.String()
			}
			add(b.class, party{name: name, end: netpol.End{Addr: b.atom.sample}})
		}
	}
	return found, order
}

// distinct finds a flow between two classes; ok is false if there is but a pod and itself, a node and its own pod, or no pod at all: policies have
// no say in that.
func distinct(from, to []party) (x, y party, ok bool) {
	for _, x = range from {
		for _, y = range to {
			if (x.pod != nil || y.pod != nil) && (x.pod == nil || x.pod != y.pod) && !(x.host && x.node != "" && x.node == y.node) {
				return x, y, true
			}
		}
	}
	return x, y, false
}

func (c *checker) check(a Assertion) (Result, error) {
	r := Result{Assertion: a, Holds: true}
	from, fromOrder := c.parties(a.from, a.notFrom, true)
	if len(fromOrder) == 0 {
		r.Holds, r.Problem = false, "nobody is meant by who begins: "+texts(a.from)
		return r, nil
	}
	for _, t := range a.to {
		to, toOrder := c.parties([]target{t}, a.notTo, false)
		if len(toOrder) == 0 {
			r.Holds, r.Problem = false, "nobody is meant by who is asked: "+t.text
			return r, nil
		}
		want := allPorts()
		if t.ports != nil {
			want = *t.ports
		}
		for _, x := range fromOrder {
			for _, y := range toOrder {
				said := c.a.asked(x, y)
				if said == none {
					continue
				}
				p, q, ok := distinct(from[x], to[y])
				if !ok {
					continue
				}
				r.Judged++
				allowed := c.a.cell(said).Allowed
				wrong := want.and(allowed)
				if a.allow {
					wrong = want.minus(allowed)
				}
				if wrong.Empty() {
					continue
				}
				r.Holds = false
				r.Against++
				if r.Counterexample != nil {
					continue
				}
				example, err := c.example(p, q, wrong, !a.allow)
				if err != nil {
					return r, err
				}
				r.Counterexample = example
			}
		}
	}
	if r.Judged == 0 {
		r.Holds, r.Problem = false, "it is about no flow that policies have a say in"
	}
	return r, nil
}

func texts(list []target) string {
	out := ""
	for i, t := range list {
		if i > 0 {
			out += ", "
		}
		out += t.text
	}
	return out
}

// example is a flow of a set between two ends: on a port that the pod listens on, if one is in the set.
func (c *checker) example(from, to party, in PortSet, allowed bool) (*Counterexample, error) {
	protocol, port, _ := in.first()
	if to.pod != nil {
		for _, p := range containerPorts(to.pod) {
			if n := protocols[slices.Index(protocolNames[:], p.Protocol)]; in.Has(n, p.Port) {
				protocol, port = n, p.Port
				break
			}
		}
	}
	out := &Counterexample{From: from.name, To: to.name, Port: port, Allowed: allowed}
	if i := slices.Index(protocols[:], protocol); i >= 0 {
		out.Protocol = protocolNames[i]
	} else {
		out.Protocol = "ICMP echo"
		if to.end.Addr.Is6() {
			protocol = netpol.ICMPv6
		}
	}
	for _, p := range []party{from, to} {
		if p.pod == nil {
			out.Address = p.end.Addr.String()
		}
	}
	v, err := c.e.Judge(netpol.Flow{From: from.end, To: to.end, Protocol: protocol, Port: port})
	if err != nil {
		return nil, fmt.Errorf("explain %s -> %s: %w", from.name, to.name, err)
	}
	out.Verdict = v
	return out, nil
}
