package analysis

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/netpol"
)

// Kinds of ends that are no workloads.
const (
	KindNode    = "Node"
	KindOutside = "Outside"
	KindDNS     = "ClusterDNS" // answered by the node network: there are no pods
)

// World is the name of the addresses that no policy names.
const World = "world"

// End is a row and a column of a matrix: pods of one workload, nodes, or addresses outside, that are treated alike.
type End struct {
	Name      string          `json:"name"` // namespace/workload; "nodes"; a block; "world"
	Kind      string          `json:"kind"`
	Namespace string          `json:"namespace,omitempty"`
	Workload  string          `json:"workload,omitempty"`
	Part      bool            `json:"part,omitempty"` // only some pods of the workload: policies treat the others differently
	Pods      []string        `json:"pods,omitempty"`
	Blocks    []string        `json:"blocks,omitempty"`
	Ports     []ContainerPort `json:"ports,omitempty"`
	// HostNetwork: these pods share their node's network. Policies see them as the node.
	HostNetwork bool `json:"hostNetwork,omitempty"`

	classes [2]int // by family; -1: none
	subject bool
	members []member
	atoms   []outside
}

// ContainerPort is a port that a pod's containers name.
type ContainerPort struct {
	Name     string `json:"name,omitempty"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
}

func (p ContainerPort) String() string { return fmt.Sprintf("%d/%s", p.Port, p.Protocol) }

// Owner is who made a pod.
type Owner struct{ Kind, Namespace, Name string }

// OwnerOf is the workload of a pod; itself, if nothing made it. Of a ReplicaSet that a Deployment made it is the Deployment, which is told by the
// pod's label of the template's hash; of a CronJob's Job it is the CronJob, by the time at the end of its name.
func OwnerOf(p *corev1.Pod) Owner {
	c := metav1.GetControllerOfNoCopy(p)
	if c == nil {
		return Owner{"Pod", p.Namespace, p.Name}
	}
	o := Owner{c.Kind, p.Namespace, c.Name}
	if hash := p.Labels["pod-template-hash"]; o.Kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(o.Name, "-"+hash); ok {
			o.Kind, o.Name = "Deployment", name
		}
	}
	if i := strings.LastIndexByte(o.Name, '-'); o.Kind == "Job" && i > 0 && len(o.Name)-i > 8 && strings.Trim(o.Name[i+1:], "0123456789") == "" {
		o.Kind, o.Name = "CronJob", o.Name[:i]
	}
	return o
}

func containerPorts(p *corev1.Pod) []ContainerPort {
	var out []ContainerPort
	for _, c := range listening(p) {
		for _, v := range c.Ports {
			if _, err := netpol.ProtocolNumber(v.Protocol); err != nil || v.ContainerPort < 1 || v.ContainerPort > lastPort {
				continue
			}
			one := ContainerPort{v.Name, uint16(v.ContainerPort), string(cmp.Or(v.Protocol, corev1.ProtocolTCP))}
			if !slices.Contains(out, one) {
				out = append(out, one)
			}
		}
	}
	return out
}

// Ends are all that can talk: workloads by name, then nodes, then the addresses outside. Pods of a workload that policies treat
// differently are ends of their own.
func (a *Analysis) Ends() []End {
	groups := map[Owner][]End{}
	var order []Owner
	kinds := map[[2]string]map[string]bool{}
	for _, m := range a.members {
		o := OwnerOf(m.pod)
		if m.dns {
			o.Kind = KindDNS
		}
		if len(groups[o]) == 0 {
			order = append(order, o)
			k := [2]string{o.Namespace, o.Name}
			if kinds[k] == nil {
				kinds[k] = map[string]bool{}
			}
			kinds[k][o.Kind] = true
		}
		parts := groups[o]
		i := slices.IndexFunc(parts, func(e End) bool { return e.classes == m.classes && e.HostNetwork == m.pod.Spec.HostNetwork })
		if i < 0 {
			i = len(parts)
			parts = append(parts, End{Kind: o.Kind, Namespace: o.Namespace, Workload: o.Name, Ports: containerPorts(m.pod), HostNetwork: m.pod.Spec.HostNetwork,
				classes: m.classes, subject: !m.dns && !m.pod.Spec.HostNetwork})
		}
		parts[i].members = append(parts[i].members, m)
		if !m.dns {
			parts[i].Pods = append(parts[i].Pods, m.pod.Name)
		}
		groups[o] = parts
	}
	var out []End
	for _, o := range order {
		parts := a.collapse(groups[o])
		for i := range parts {
			p := &parts[i]
			p.Name = o.Namespace + "/" + o.Name
			if len(kinds[[2]string{o.Namespace, o.Name}]) > 1 {
				p.Name = o.Namespace + "/" + strings.ToLower(o.Kind) + "/" + o.Name
			}
			if p.Part = len(parts) > 1; p.Part {
				p.Name += " (" + some(p.Pods, 3) + ")"
			}
		}
		out = append(out, parts...)
	}
	slices.SortStableFunc(out, func(x, y End) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Workload, y.Workload), cmp.Compare(x.Name, y.Name))
	})
	out = append(out, a.nodeEnds()...)
	return append(out, a.outsideEnds()...)
}

// some names the first of a list.
func some(list []string, n int) string {
	if len(list) <= n {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s, +%d", strings.Join(list[:n], ", "), len(list)-n)
}

// collapse joins the parts of one thing that every pod is allowed the same with, both ways.
func (a *Analysis) collapse(parts []End) []End {
	if len(parts) < 2 {
		return parts
	}
	byKey := map[string]int{}
	var out []End
	for _, p := range parts {
		key := fmt.Sprint(p.HostNetwork, a.behaviour(p.classes))
		i, ok := byKey[key]
		if !ok {
			byKey[key] = len(out)
			out = append(out, p)
			continue
		}
		o := &out[i]
		o.Pods, o.members, o.atoms, o.Blocks = append(o.Pods, p.Pods...), append(o.members, p.members...), append(o.atoms, p.atoms...), append(o.Blocks, p.Blocks...)
		for _, port := range p.Ports {
			if !slices.Contains(o.Ports, port) {
				o.Ports = append(o.Ports, port)
			}
		}
	}
	return out
}

// behaviour is what is allowed to and from all classes of pods, as a key.
func (a *Analysis) behaviour(classes [2]int) string {
	var out []byte
	add := func(c *Cell) {
		out = append(out, byte(c.shape), byte(c.shape>>8), byte(c.shape>>16), byte(c.shape>>24))
	}
	for _, mine := range classes {
		out = append(out, '/')
		if mine < 0 {
			continue
		}
		for _, c := range a.classes {
			if c.family == a.classes[mine].family && (c.subject || a.classes[mine].subject) {
				add(a.cell(a.asked(mine, c.id)))
				add(a.cell(a.asked(c.id, mine)))
			}
		}
	}
	return string(out)
}

func (a *Analysis) nodeEnds() []End {
	var parts []End
	for _, m := range a.nodes {
		parts = append(parts, End{Kind: KindNode, classes: m.classes, members: []member{m}})
	}
	parts = a.collapse(parts)
	for i := range parts {
		var names []string
		for _, m := range parts[i].members {
			if !slices.ContainsFunc(parts[i].members, func(o member) bool { return o.node == m.node && o.at < m.at }) {
				names = append(names, m.nodeName())
			}
		}
		parts[i].Name = "nodes"
		if parts[i].Part = len(parts) > 1; parts[i].Part {
			parts[i].Name = "nodes (" + some(names, 3) + ")"
		}
	}
	return parts
}

// nodeName is that of the node, with the address where that is not its first one.
func (m member) nodeName() string {
	if m.at == 0 {
		return m.node.Name
	}
	words := []string{m.node.Name}
	for _, x := range m.addrs {
		if x.IsValid() {
			words = append(words, x.String())
		}
	}
	return strings.Join(words, " ")
}

func (a *Analysis) outsideEnds() []End {
	var parts []End
	world := -1
	for _, b := range a.blocks {
		f := familyOf(b.atom.sample)
		if b.atom.prefix.Bits() == 0 && world >= 0 { // of both families one
			parts[world].classes[f] = b.class
			parts[world].atoms = append(parts[world].atoms, b)
			continue
		}
		e := End{Kind: KindOutside, classes: [2]int{-1, -1}, atoms: []outside{b}}
		e.classes[f] = b.class
		if b.atom.prefix.Bits() == 0 {
			world = len(parts)
		} else {
			e.Blocks = []string{b.atom.prefix.String()}
		}
		parts = append(parts, e)
	}
	parts = a.collapse(parts)
	for i := range parts {
		p := &parts[i]
		p.Name = some(p.Blocks, 3)
		if slices.ContainsFunc(p.atoms, func(o outside) bool { return o.atom.prefix.Bits() == 0 }) {
			p.Name, p.Blocks = World, append([]string{World}, p.Blocks...)
		}
	}
	slices.SortStableFunc(parts, func(x, y End) int {
		if w, v := x.Name == World, y.Name == World; w != v {
			return map[bool]int{true: 1, false: -1}[w]
		}
		return smallest(x).Compare(smallest(y))
	})
	return parts
}

func smallest(e End) netip.Addr {
	a := e.atoms[0].atom.prefix.Addr()
	for _, o := range e.atoms[1:] {
		if o.atom.prefix.Addr().Less(a) {
			a = o.atom.prefix.Addr()
		}
	}
	return a
}

// between is what is said from one end to another, of each family that both have. It is none where there is nothing to ask: no pod is in it that
// policies guard, or it is a single pod and itself.
func (a *Analysis) between(from, to *End) [2]pair {
	out := [2]pair{none, none}
	if !from.subject && !to.subject || from.subject && to.subject && len(from.members) == 1 && len(to.members) == 1 && from.members[0].pod == to.members[0].pod {
		return out
	}
	for f := range out {
		if x, y := from.classes[f], to.classes[f]; x >= 0 && y >= 0 {
			out[f] = a.asked(x, y)
		}
	}
	return out
}
