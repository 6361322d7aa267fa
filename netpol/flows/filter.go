package flows

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/strake-io/strake/netpol"
)

// Filters by what policies in shadow would do, beside Allowed and Dropped.
const (
	WouldDrop  = "would-drop"
	WouldAllow = "would-allow"
)

// Verdicts are what Filter.Verdict takes.
func Verdicts() []string { return []string{Allowed, Dropped, WouldDrop, WouldAllow} }

// Filter chooses flows; what is empty chooses all.
type Filter struct {
	Verdict   string
	Pod       string // NAMESPACE/NAME, at either end; the name may be that of the workload whose pod it is
	Exact     bool   // there is a pod of that very name, and that one alone is meant: see Meet
	Namespace string // of either end
	Policy    string // NAMESPACE/NAME, or the NAME of a ClusterNetworkPolicy, that decided or would have
}

// Check tells what is wrong with a filter.
func (f Filter) Check() error {
	if f.Verdict != "" && !slices.Contains(Verdicts(), f.Verdict) {
		return fmt.Errorf("verdict %q: it is %s", f.Verdict, strings.Join(Verdicts(), ", "))
	}
	if f.Pod != "" && strings.Count(f.Pod, "/") != 1 {
		return fmt.Errorf("pod %q is not NAMESPACE/NAME", f.Pod)
	}
	return nil
}

// Takes tells whether a flow is chosen.
func (f Filter) Takes(flow *Flow) bool {
	switch f.Verdict {
	case Allowed, Dropped:
		if flow.Verdict != f.Verdict {
			return false
		}
	case WouldDrop:
		if !flow.WouldDrop() {
			return false
		}
	case WouldAllow:
		if !flow.WouldAllow() {
			return false
		}
	}
	if f.Pod != "" && !OfPod(flow.From.Name(), f.Pod, f.Exact) && !OfPod(flow.To.Name(), f.Pod, f.Exact) {
		return false
	}
	if f.Namespace != "" && flow.From.Namespace != f.Namespace && flow.To.Namespace != f.Namespace {
		return false
	}
	return f.Policy == "" || slices.ContainsFunc([]*Decision{flow.Egress, flow.Ingress, flow.ShadowEgress, flow.ShadowIngress}, func(d *Decision) bool {
		return d != nil && d.Policy != nil && d.Policy.String() == f.Policy
	})
}

// Meet looks at a flow, whether it is chosen or not: where a pod has the very name that is asked for, no workload is meant by it.
func (f *Filter) Meet(flow *Flow) {
	f.Exact = f.Exact || f.Pod != "" && (flow.From.Name() == f.Pod || flow.To.Name() == f.Pod)
}

// podSuffix is what controllers add to a workload's name for its pods: a Deployment the hash of its template (a number of 32 bits, written with safe letters)
// and five letters, a DaemonSet, ReplicaSet or Job those alone, a StatefulSet a number, an indexed Job or a CronJob a number before the letters.
var podSuffix = regexp.MustCompile(`^(-[b-df-hj-np-tv-xz2456789]{6,10}|-[0-9]+)?-[b-df-hj-np-tv-xz2456789]{5}$|^-[0-9]+$`)

// OfPod tells whether a name is of the pod that is meant, or, unless there is one of exactly that name, can be of one whose workload is meant, both NAMESPACE/NAME.
func OfPod(name, meant string, exact bool) bool {
	rest, ok := strings.CutPrefix(name, meant)
	return ok && (rest == "" || !exact && podSuffix.MatchString(rest))
}

// Sum is a class of flows, of all that is alike but for the pods of a workload, over a time.
type Sum struct {
	*Flow
	Node    string    `json:"node"`
	Flows   uint64    `json:"flows"`
	Again   uint64    `json:"again"`
	Packets uint64    `json:"packets"` // denied
	Bytes   uint64    `json:"bytes"`
	Since   time.Time `json:"since"`
	Last    time.Time `json:"last"`
}

// Sums adds up counts by class.
type Sums struct {
	by map[string]*Sum
}

// Add takes a line.
func (s *Sums) Add(l Line) {
	if l.Count == nil {
		return
	}
	if s.by == nil {
		s.by = map[string]*Sum{}
	}
	key := l.Node + " " + l.Flow.Key()
	sum := s.by[key]
	if sum == nil {
		sum = &Sum{Flow: l.Flow, Node: l.Node, Since: l.Count.Since}
		s.by[key] = sum
	}
	sum.Flows += l.Count.Flows
	sum.Again += l.Count.Again
	sum.Packets += l.Count.Packets
	sum.Bytes += l.Count.Bytes
	sum.Last = l.Time
}

// Sums are the classes, those with most flows and packets first.
func (s *Sums) Sums() []*Sum {
	return slices.SortedFunc(maps.Values(s.by), func(a, b *Sum) int {
		return cmp.Or(cmp.Compare(b.Flows+b.Packets, a.Flows+a.Packets), strings.Compare(a.Key(), b.Key()), strings.Compare(a.Node, b.Node))
	})
}

// Key is the same for flows that are alike.
func (f *Flow) Key() string {
	return fmt.Sprint(f.Verdict, "|", f.From.key(), "|", f.To.key(), "|", f.Protocol, "|", f.Port, "|", f.Sides, "|", f.Egress, "|", f.Ingress, "|", f.ShadowEgress, "|", f.ShadowIngress)
}

func (e End) key() string {
	if e.Pod != "" {
		return fmt.Sprint(e.Namespace, "/", e.Pod, "@", e.Addr, e.Labels)
	}
	return e.Name()
}

// String is a decision in a few words.
func (d *Decision) String() string {
	switch {
	case d == nil:
		return "no policy"
	case d.Policy == nil && d.Allowed:
		return "no policy decided"
	case d.Policy == nil:
		return "no verdict known"
	case d.Rule == netpol.NoRule && d.Allowed:
		return d.Policy.String()
	case d.Rule == netpol.NoRule:
		return "isolated by " + d.Policy.String()
	}
	return fmt.Sprintf("rule %d of %s", d.Rule, d.Policy)
}

// Why is what decided, in a few words.
func (f *Flow) Why() string {
	var parts []string
	egress, ingress := f.Judged()
	add := func(direction string, d *Decision, shadow *Decision) {
		parts = append(parts, direction+": "+d.String())
		if shadow != nil {
			verb := "drop"
			if shadow.Allowed {
				verb = "allow"
			}
			parts = append(parts, fmt.Sprintf("in shadow: %s would %s", shadow, verb))
		}
	}
	if egress {
		add("egress", f.Egress, f.ShadowEgress)
	}
	if ingress {
		add("ingress", f.Ingress, f.ShadowIngress)
	}
	if !egress && !ingress {
		parts = append(parts, "the pod's own node sends it")
	}
	return strings.Join(parts, "; ")
}

// Text is a line for people.
func (l Line) Text() string {
	at := l.Time.Local().Format("2006-01-02 15:04:05.000")
	switch {
	case l.Kind == KindStart:
		return fmt.Sprintf("%s %s the agent started: up to a second before it is not in the record", at, l.Node)
	case l.Loss != nil:
		text := fmt.Sprintf("%s %s not in the record: %d samples that came too fast, %d beyond the rate (both are counted), %d that are not counted either", at, l.Node, l.Lost, l.Skipped, l.Full)
		if l.Pruned > 0 {
			text += fmt.Sprintf(", %d counts for which the files had no room", l.Pruned)
		}
		if l.Restarted > 0 {
			text += fmt.Sprintf(", what %d classes had between two agents", l.Restarted)
		}
		return text
	case l.Sample == nil:
		return fmt.Sprintf("%s %s %s %s → %s, %s", at, l.Node, l.Verdict, l.From.Name(), l.Flow.target(), l.Why())
	}
	from := l.From.Name()
	if l.Sport != 0 {
		from += fmt.Sprint(":", l.Sport)
	}
	word := l.Verdict
	if l.Event == "again" {
		word += " still"
	}
	to := l.Flow.target()
	if l.Dport != 0 {
		to += fmt.Sprintf(" (port %d, amid a connection that nobody knows)", l.Dport)
	}
	if l.Service != nil {
		name := l.Service.Name
		if name == "" {
			name = l.Service.Addr
		}
		to += fmt.Sprintf(" (by %s port %d)", name, l.Service.Port)
	}
	return fmt.Sprintf("%s %s %s %s → %s, %s", at, l.Node, word, from, to, l.Why())
}

func (f *Flow) target() string {
	if f.Port == 0 {
		return f.To.Name() + " " + f.Protocol
	}
	return fmt.Sprintf("%s %d/%s", f.To.Name(), f.Port, f.Protocol)
}
