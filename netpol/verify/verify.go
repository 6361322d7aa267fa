// Package verify proves a node's policy tables: it asks the rows, as the kernel reads them, and the evaluator, which knows nothing of rows, the same questions
// and tells where they disagree.
package verify

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/compiler"
	"github.com/strake-io/strake/netpol/reference"
)

// Options say how much is asked.
type Options struct {
	Node string
	// Questions bounds how many are asked; 0: all. Beyond it they are drawn by lot.
	Questions int
	// Others are addresses of the tables' own subjects that are no pods of the State: containers that are not the cluster's.
	Others []netip.Addr
	// Untold are addresses of pods of which the State has not all: whose they are it does not tell, so that other ends with them are not asked about.
	Untold map[netip.Addr]bool
	// Unasked are addresses of the node's pods of whose policies the State has not all: they are other ends, and it is only held that they have rows.
	Unasked map[netip.Addr]bool
	// Closed are policies, without their UIDs, that deny more than they say, for want of room in the tables: that is no drift. nil: those of which rows say so.
	Closed map[netpol.PolicyRef]bool
}

// Report is what came of it.
type Report struct {
	Node     string   `json:"node"`
	Pods     int      `json:"pods"`   // addresses of pods of the node
	Ends     int      `json:"ends"`   // classes of other ends that were asked about, the addresses at the ends of blocks among them
	Ports    int      `json:"ports"`  // protocols with ports
	Asked    int      `json:"asked"`  // questions
	Of       int      `json:"of"`     // questions that there are
	Drifts   int      `json:"drifts"` // answers that are not the evaluator's, and rows that are missing or nobody's
	Examples []Drift  `json:"examples,omitempty"`
	Closed   []string `json:"closed,omitempty"` // policies that deny more than they say, as the tables have no room for them
}

// Crowded tells in a line of the policies that are closed for want of room; empty if there are none.
func (r Report) Crowded() string {
	if len(r.Closed) == 0 {
		return ""
	}
	return fmt.Sprintf("closed for want of room: %s: %s", strings.Join(r.Closed, ", "), compiler.MakesRoom)
}

// Drift is where tables and evaluator disagree.
type Drift struct {
	From     string `json:"from,omitempty"`
	To       string `json:"to,omitempty"`
	Port     string `json:"port,omitempty"` // 80/TCP
	Kernel   string `json:"kernel"`
	Expected string `json:"expected"`
}

func (d Drift) String() string {
	if d.From == "" {
		return fmt.Sprintf("%s: the kernel has %s, should have %s", d.To, d.Kernel, d.Expected)
	}
	return fmt.Sprintf("%s to %s, %s: the kernel %s, the policies %s", d.From, d.To, d.Port, d.Kernel, d.Expected)
}

// maxExamples bounds what a report tells one by one.
const maxExamples = 20

// end is one of a class of ends that neither rows nor labels tell apart.
type end struct {
	netpol.End
	name  string
	local bool
	class string
	named []port // ports of its own that have names
}

type port struct {
	protocol uint8
	number   uint16
}

func (p port) String() string {
	switch p.protocol {
	case netpol.TCP:
		return fmt.Sprintf("%d/TCP", p.number)
	case netpol.UDP:
		return fmt.Sprintf("%d/UDP", p.number)
	case netpol.SCTP:
		return fmt.Sprintf("%d/SCTP", p.number)
	}
	return fmt.Sprintf("protocol %d", p.protocol)
}

type verifier struct {
	rows    bpf.PolicyRows
	tables  *compiler.Tables
	truth   *reference.Evaluator
	shadow  bool // there are policies in shadow
	closed  map[netpol.PolicyRef]bool
	crowded map[string]bool // of closed those that deny what they should not
	ids     map[netip.Addr]bpf.PolicySubject
	report  Report
}

// Verify holds rows against a State. In the State the node's pods have the addresses that they have on the node.
// It ends with an error when ctx does. What it costs grows with pods and policies, and with the questions, not with their product.
func Verify(ctx context.Context, rows bpf.PolicyRows, s netpol.State, o Options) (Report, error) {
	truth, err := reference.New(s)
	if err != nil {
		return Report{}, err
	}
	v := &verifier{rows: rows, tables: compiler.Interpret(rows), truth: truth, shadow: s.InShadow(), closed: o.Closed, crowded: map[string]bool{}, ids: map[netip.Addr]bpf.PolicySubject{}, report: Report{Node: o.Node}}
	for _, r := range rows.Subjects {
		v.ids[r.Addr] = r
	}
	pods := v.pods(s, o.Node)
	v.subjects(pods, o.Others)
	locals := v.classes(slices.DeleteFunc(slices.Clone(pods), func(e end) bool { return !e.local || o.Unasked[e.Addr] }), true)
	claims := map[netip.Addr]int{} // of two pods with one address, one of which is about to go, it is not told which it is
	for _, e := range pods {
		claims[e.Addr]++
	}
	ends := slices.DeleteFunc(append(pods, edges(s, rows.Peers, o.Untold)...), func(e end) bool { return o.Untold[e.Addr] || claims[e.Addr] > 1 })
	others := v.classes(ends, false)
	ports := portsOf(s, rows.Ports)
	v.report.Ends, v.report.Ports = len(others), len(ports)
	if err := v.ask(ctx, locals, others, ports, o.Questions); err != nil {
		return Report{}, err
	}
	v.report.Closed = slices.Sorted(maps.Keys(v.crowded))
	return v.report, nil
}

func (v *verifier) drift(d Drift) {
	if slices.Contains(v.report.Examples, d) {
		return // the lot asked twice
	}
	v.report.Drifts++
	if len(v.report.Examples) < maxExamples {
		v.report.Examples = append(v.report.Examples, d)
	}
}

// pods are the ends that are pods, each with each of its addresses.
func (v *verifier) pods(s netpol.State, node string) []end {
	var out []end
	for _, p := range s.Pods {
		if !hasAddrs(p) {
			continue
		}
		labels := make([]string, 0, len(p.Labels))
		for k, v := range p.Labels {
			labels = append(labels, k+"="+v)
		}
		slices.Sort(labels)
		var named []port
		for _, c := range append(slices.Clone(p.Spec.Containers), p.Spec.InitContainers...) {
			for _, cp := range c.Ports {
				if number, err := netpol.ProtocolNumber(cp.Protocol); err == nil && cp.Name != "" {
					named = append(named, port{number, uint16(cp.ContainerPort)})
				}
			}
		}
		for _, ip := range p.Status.PodIPs {
			a, err := netip.ParseAddr(ip.IP)
			if err != nil {
				continue
			}
			e := end{name: p.Namespace + "/" + p.Name, local: p.Spec.NodeName == node, named: named}
			e.Pod.Namespace, e.Pod.Name, e.Addr = p.Namespace, p.Name, a.Unmap()
			e.class = fmt.Sprint(p.Namespace, labels, named, e.Addr.Is4(), p.Spec.NodeName == node)
			out = append(out, e)
		}
	}
	return out
}

// subjects holds the rows of the node's pods against the pods that it has.
func (v *verifier) subjects(pods []end, others []netip.Addr) {
	want := map[netip.Addr]bool{}
	for _, a := range others {
		want[a] = true
	}
	for _, e := range pods {
		if !e.local {
			continue
		}
		v.report.Pods++
		want[e.Addr] = true
		if _, ok := v.ids[e.Addr]; !ok {
			v.drift(Drift{To: fmt.Sprintf("%s (%s)", e.name, e.Addr), Kernel: "no row: nothing passes", Expected: "one"})
		}
	}
	for a := range v.ids {
		if !want[a] {
			v.drift(Drift{To: a.String(), Kernel: "a row of a pod", Expected: "none: no pod of this node has that address"})
		}
	}
}

// classes leaves of ends one of each class. What the rows tell apart is no class, so that one that is wrong is asked about by itself.
func (v *verifier) classes(ends []end, subjects bool) []end {
	seen := map[string]bool{}
	var out []end
	for _, e := range ends {
		class := fmt.Sprint(e.class, v.tables.Identity(e.Addr))
		if s, ok := v.ids[e.Addr]; subjects && ok {
			class = fmt.Sprint(class, " ", s.Ingress, s.Egress, s.ShadowIngress, s.ShadowEgress)
		}
		if !seen[class] {
			seen[class] = true
			out = append(out, e)
		}
	}
	return out
}

// questions are those of one address family and one direction: between each of the node's ends and each other end, at all ports and those that the
// end that is spoken to has itself. They are counted and drawn, never listed: there may be billions.
type questions struct {
	locals, others []end
	egress         bool
	ports          []port
	own            [][]port // by the end that is spoken to: its own ports that are not among ports
	before         []int    // by the end that is spoken to: the questions of those before it
	count          int
}

func newQuestions(locals, others []end, egress bool, ports []port) questions {
	q := questions{locals: locals, others: others, egress: egress, ports: ports}
	to, from := locals, len(others)
	if egress {
		to, from = others, len(locals)
	}
	common := make(map[port]bool, len(ports))
	for _, p := range ports {
		common[p] = true
	}
	for _, e := range to {
		own := slices.Clone(e.named)
		slices.SortFunc(own, func(a, b port) int {
			return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.number, b.number))
		})
		own = slices.DeleteFunc(slices.Compact(own), func(p port) bool { return common[p] })
		q.own, q.before = append(q.own, own), append(q.before, q.count)
		q.count += from * (len(ports) + len(own))
	}
	return q
}

// at is one of the questions, by its number.
func (q questions) at(n int) (from, to end, p port) {
	i, found := slices.BinarySearch(q.before, n)
	if !found {
		i-- // the last one that begins before
	}
	n -= q.before[i]
	ports := len(q.ports) + len(q.own[i])
	other, k := n/ports, n%ports
	if k < len(q.ports) {
		p = q.ports[k]
	} else {
		p = q.own[i][k-len(q.ports)]
	}
	if q.egress {
		return q.locals[other], q.others[i], p
	}
	return q.others[other], q.locals[i], p
}

// ask asks everybody on the node about everybody, both ways, or, of more questions than most, so many that are drawn by lot.
func (v *verifier) ask(ctx context.Context, locals, others []end, ports []port, most int) error {
	locals = slices.DeleteFunc(slices.Clone(locals), func(e end) bool {
		_, ok := v.ids[e.Addr]
		return !ok // told already
	})
	var all []questions
	for _, is4 := range []bool{true, false} {
		another := func(e end) bool { return e.Addr.Is4() != is4 }
		here, there := slices.DeleteFunc(slices.Clone(locals), another), slices.DeleteFunc(slices.Clone(others), another)
		for _, egress := range []bool{true, false} {
			q := newQuestions(here, there, egress, ports)
			v.report.Of += q.count
			all = append(all, q)
		}
	}
	one := func(n int) error {
		for _, q := range all {
			if n >= q.count {
				n -= q.count
				continue
			}
			from, to, p := q.at(n)
			v.report.Asked++
			v.compare(from, to, p, q.egress)
			break
		}
		return ctx.Err()
	}
	if most <= 0 || v.report.Of <= most {
		for n := range v.report.Of {
			if err := one(n); err != nil {
				return err
			}
		}
		return nil
	}
	for range most {
		if err := one(rand.IntN(v.report.Of)); err != nil {
			return err
		}
	}
	return nil
}

// compare asks both about one side of a flow: that of the end that is on the node. With policies in shadow it asks what these would make of it, too.
func (v *verifier) compare(from, to end, p port, egress bool) {
	f := netpol.Flow{From: from.End, To: to.End, Protocol: p.protocol, Port: p.number, ViaService: from.Addr == to.Addr, Forwarded: true}
	if p.protocol == netpol.ICMP && from.Addr.Is6() {
		f.Protocol = netpol.ICMPv6
	}
	want, err := v.truth.Judge(f)
	if err != nil {
		return // ends that are no question: an address that nobody has any more
	}
	got := v.tables.Judge(bpf.PolicyQuery{From: from.Addr, To: to.Addr, Protocol: f.Protocol, Port: p.number})
	direction, side, verdict, shadow := netpol.Ingress, want.Ingress, got.Ingress, got.ShadowIngress
	if egress {
		direction, side, verdict, shadow = netpol.Egress, want.Egress, got.Egress, got.ShadowEgress
	}
	drift := Drift{From: name(from), To: name(to), Port: p.String()}
	at := " at " + direction.String()
	if !v.agree(drift, at, verdict, got.NoVerdict, from.Addr == to.Addr, side) || !v.shadow {
		return
	}
	if want, err = v.truth.JudgeShadow(f); err != nil {
		return
	}
	if side = want.Ingress; egress {
		side = want.Egress
	}
	v.agree(drift, at+" with the policies in shadow", cmp.Or(shadow, verdict), false, from.Addr == to.Addr, side)
}

// agree tells whether a verdict of the tables and one of the evaluator are the same, and keeps what they differ in. itself: a pod gets itself by way of a Service.
func (v *verifier) agree(d Drift, at string, verdict *bpf.PolicyVerdict, none, itself bool, side netpol.Side) bool {
	allows := verdict == nil || verdict.Allow || verdict.Tier == bpf.PolicyTierNetworkPolicy && itself
	if none {
		allows = false
	}
	if allows == side.Allowed {
		return true
	}
	d.Kernel = "drops it"
	if allows {
		d.Kernel = "lets it pass"
	}
	if verdict != nil {
		if ref, ok := v.tables.Policy(verdict.Policy); ok {
			if !allows && verdict.Rule == bpf.PolicyNoRoom && (v.closed == nil || v.closed[netpol.PolicyRef{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name}]) {
				v.crowded[ref.String()] = true
				return true
			}
			d.Kernel += fmt.Sprintf(" (%s)", ref)
		}
	}
	d.Kernel += at
	d.Expected = "forbid it: "
	if side.Allowed {
		d.Expected = "allow it: "
	}
	d.Expected += side.Why
	v.drift(d)
	return false
}

func name(e end) string {
	return strings.TrimSpace(fmt.Sprintf("%s %s", e.name, e.Addr))
}
