package analysis

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/strake-io/strake/netpol"
)

// Diff is what a change of policies opens and closes.
type Diff struct {
	Changes []Change `json:"changes"`
	// Appeared and Gone are workloads that only one of the States has. No flow of theirs is in Changes.
	Appeared []string   `json:"appeared,omitempty"`
	Gone     []string   `json:"gone,omitempty"`
	Policies []Edit     `json:"policies"` // those that differ
	Counts   DiffCounts `json:"counts"`
}

// Edit is a policy that was added, removed or changed.
type Edit struct {
	Policy netpol.PolicyRef `json:"policy"`
	What   string           `json:"what"` // added, removed or changed
}

// DiffCounts are those of the pairs that were compared.
type DiffCounts struct {
	Pairs  int `json:"pairs"`
	Opened int `json:"opened"` // pairs that may more than before
	Closed int `json:"closed"` // pairs that may less; some pairs are both
}

// Change is what one pair of ends may more, or less.
type Change struct {
	From   string  `json:"from"`
	To     string  `json:"to"`
	Family string  `json:"family,omitempty"` // IPv4 or IPv6, if both are there and not the same
	Opened string  `json:"opened,omitempty"` // as PortSet's String
	Closed string  `json:"closed,omitempty"`
	Before string  `json:"before"`
	After  string  `json:"after"`
	Ranges []Range `json:"ranges"` // what is different, as it is after the change, with the rules that decide
}

// Differs tells whether anything is allowed or denied that was not before.
func (d *Diff) Differs() bool { return len(d.Changes) > 0 }

// unit is an end that both States have.
type unit struct {
	name          string
	before, after [2]int // classes
	subject       bool   // in either
	single        bool   // one pod, which does not ask itself
}

// Compare tells what the policies of a State allow that those of another did not, and the reverse. Pods are told apart by their
// workloads, and by their names if policies treat pods of a workload differently.
func Compare(before, after netpol.State) *Diff {
	blocks := append(blocksOf(before), blocksOf(after)...)
	b, a := New(before, Options{Blocks: blocks}), New(after, Options{Blocks: blocks})
	d := &Diff{Changes: []Change{}, Policies: edits(before, after)}
	units := d.units(b, a)
	for i := range units {
		for j := range units {
			from, to := &units[i], &units[j]
			if !from.subject && !to.subject || i == j && from.single {
				continue
			}
			d.Counts.Pairs++
			var list []Change
			for f, family := range []string{"IPv4", "IPv6"} {
				if from.before[f] < 0 || from.after[f] < 0 || to.before[f] < 0 || to.after[f] < 0 {
					continue
				}
				was, is := b.cell(b.asked(from.before[f], to.before[f])), a.cell(a.asked(from.after[f], to.after[f]))
				if was.Text == is.Text {
					list = append(list, Change{})
					continue
				}
				c := Change{From: from.name, To: to.name, Family: family, Before: was.Text, After: is.Text}
				opened, closed := is.Allowed.minus(was.Allowed), was.Allowed.minus(is.Allowed)
				if !opened.Empty() {
					c.Opened = opened.String()
				}
				if !closed.Empty() {
					c.Closed = closed.String()
				}
				c.Ranges = only(a.ranges(a.asked(from.after[f], to.after[f])), opened.or(closed))
				list = append(list, c)
			}
			d.take(list)
		}
	}
	return d
}

// take keeps the changes of a pair: of both families one, if they are the same.
func (d *Diff) take(list []Change) {
	if len(list) == 2 && list[0].Before == list[1].Before && list[0].After == list[1].After {
		list = list[:1]
	}
	if len(list) == 1 {
		list[0].Family = ""
	}
	var opened, closed bool
	for _, c := range list {
		if c.From == "" || c.Opened == "" && c.Closed == "" {
			continue
		}
		d.Changes = append(d.Changes, c)
		opened, closed = opened || c.Opened != "", closed || c.Closed != ""
	}
	if opened {
		d.Counts.Opened++
	}
	if closed {
		d.Counts.Closed++
	}
}

// only gives the parts of ranges that are in a set.
func only(list []Range, in PortSet) []Range {
	var out []Range
	for _, r := range list {
		i := slices.Index(protocolNames[:], r.Protocol)
		if i < 0 {
			if in.Other {
				out = append(out, r)
			}
			continue
		}
		for _, p := range in.Of[i] {
			if from, to := max(p.From, r.Ports.From), min(p.To, r.Ports.To); from <= to {
				one := r
				one.Ports = &Ports{from, to}
				out = append(out, one)
			}
		}
	}
	return out
}

// blocksOf are the blocks that a State's policies name.
func blocksOf(s netpol.State) []netip.Prefix {
	r := newReader()
	for _, n := range s.NetworkPolicies {
		r.networkPolicy(n)
	}
	for _, c := range s.ClusterNetworkPolicies {
		r.clusterNetworkPolicy(c)
	}
	var out []netip.Prefix
	for p := range r.prefixes {
		out = append(out, p)
	}
	slices.SortFunc(out, func(x, y netip.Prefix) int {
		return cmp.Or(x.Addr().Compare(y.Addr()), cmp.Compare(x.Bits(), y.Bits()))
	})
	return out
}

func edits(before, after netpol.State) []Edit {
	was, is := netpol.Hashes(before), netpol.Hashes(after)
	out := []Edit{}
	for ref, h := range was {
		if now, ok := is[ref]; !ok {
			out = append(out, Edit{ref, "removed"})
		} else if now != h {
			out = append(out, Edit{ref, "changed"})
		}
	}
	for ref := range is {
		if _, ok := was[ref]; !ok {
			out = append(out, Edit{ref, "added"})
		}
	}
	slices.SortFunc(out, func(x, y Edit) int {
		return cmp.Or(cmp.Compare(x.Policy.Kind, y.Policy.Kind), cmp.Compare(x.Policy.Namespace, y.Policy.Namespace), cmp.Compare(x.Policy.Name, y.Policy.Name))
	})
	return out
}

// units are the ends of both States.
func (d *Diff) units(before, after *Analysis) []unit {
	var out []unit
	was, is := byOwner(before), byOwner(after)
	var owners []Owner
	for o := range was {
		if is[o] == nil {
			d.Gone = append(d.Gone, o.String())
			continue
		}
		owners = append(owners, o)
	}
	for o := range is {
		if was[o] == nil {
			d.Appeared = append(d.Appeared, o.String())
		}
	}
	slices.Sort(d.Gone)
	slices.Sort(d.Appeared)
	slices.SortFunc(owners, func(x, y Owner) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name), cmp.Compare(x.Kind, y.Kind))
	})
	for _, o := range owners {
		parts := pairsOf(was[o], is[o])
		for i := range parts {
			parts[i].name = o.Namespace + "/" + o.Name
			if len(parts) > 1 {
				parts[i].name += " (" + parts[i].pods + ")"
			}
			out = append(out, parts[i].unit)
		}
	}
	for _, n := range before.nodes {
		for _, m := range after.nodes {
			if n.node.Name == m.node.Name && n.at == m.at {
				out = append(out, unit{name: "node " + m.nodeName(), before: n.classes, after: m.classes})
			}
		}
	}
	world := -1
	for _, x := range before.blocks {
		for _, y := range after.blocks {
			if x.atom.prefix != y.atom.prefix {
				continue
			}
			f := familyOf(x.atom.sample)
			if x.atom.prefix.Bits() == 0 && world >= 0 {
				out[world].before[f], out[world].after[f] = x.class, y.class
				continue
			}
			u := unit{name: x.atom.prefix.String(), before: [2]int{-1, -1}, after: [2]int{-1, -1}}
			u.before[f], u.after[f] = x.class, y.class
			if x.atom.prefix.Bits() == 0 {
				u.name, world = World, len(out)
			}
			out = append(out, u)
		}
	}
	return out
}

func (o Owner) String() string { return strings.ToLower(o.Kind) + " " + o.Namespace + "/" + o.Name }

func byOwner(a *Analysis) map[Owner][]member {
	out := map[Owner][]member{}
	for _, m := range a.members {
		o := OwnerOf(m.pod)
		if m.dns {
			o.Kind = KindDNS
		}
		out[o] = append(out[o], m)
	}
	return out
}

type part struct {
	unit
	pods string
}

// pairsOf are the pods of a workload before and after, those alike as one: by their names, if both States have some of the same, else in
// their order.
func pairsOf(was, is []member) []part {
	type key struct {
		before, after [2]int
	}
	seen := map[key]int{}
	var out []part
	take := func(x, y member) {
		k := key{x.classes, y.classes}
		if i, ok := seen[k]; ok {
			out[i].single = false
			out[i].pods += ", " + y.pod.Name
			return
		}
		seen[k] = len(out)
		subject := func(m member) bool { return !m.dns && !m.pod.Spec.HostNetwork }
		out = append(out, part{unit{before: x.classes, after: y.classes, subject: subject(x) || subject(y), single: true}, y.pod.Name})
	}
	names := map[string]member{}
	for _, m := range was {
		names[m.pod.Name] = m
	}
	for _, m := range is {
		if x, ok := names[m.pod.Name]; ok {
			take(x, m)
		}
	}
	if len(out) == 0 {
		for i := range max(len(was), len(is)) {
			take(was[min(i, len(was)-1)], is[min(i, len(is)-1)])
		}
	}
	if len(out) == 1 {
		out[0].single = len(was) == 1 && len(is) == 1
	}
	return out
}
