package observed

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/flows"
	"github.com/strake-io/strake/netpol/reference"
)

// Replayed is what other policies would have made of recorded flows.
type Replayed struct {
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	Nodes   []string  `json:"nodes"`
	Flows   uint64    `json:"flows"`   // that were judged, and packets that were dropped
	Unknown uint64    `json:"unknown"` // packets amid connections of which nobody knows who began them
	Breaks  []Group   `json:"breaks"`  // allowed then, and dropped by these policies
	Opens   []Group   `json:"opens"`   // the reverse
	// Uncounted are flows of which nothing is known, see flows.Loss.
	Uncounted uint64 `json:"uncounted"`
	// Networks are flows of Flows whose client outside is known by his network only: he is judged as its first address. Unsampled are the samples that
	// were left out, of any flows.
	Networks  uint64 `json:"networks"`
	Unsampled uint64 `json:"unsampled"`
	// Pruned and Restarted are counts and classes of which not all is known, see flows.Loss.
	Pruned    uint64 `json:"pruned"`
	Restarted uint64 `json:"restarted"`
}

// Group are flows between two workloads on one port.
type Group struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"`
	Count    uint64 `json:"count"`
	Was      string `json:"was"` // what decided then
	Would    string `json:"would"`
	Example  string `json:"example"` // of the pods
}

func nameOf(p *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

// Replay judges the flows by a State's policies. Its pods, namespaces and nodes are those of now; pods that are gone are as the record has them. Of each
// flow those directions count that were judged then: of one between two nodes each has its own. What the node of who was asked dropped does not break where it left.
func Replay(r *Record, s netpol.State) (*Replayed, error) {
	state, err := populate(s, r)
	if err != nil {
		return nil, err
	}
	e, err := reference.New(state.State)
	if err != nil {
		return nil, err
	}
	out := &Replayed{From: r.From, To: r.To, Nodes: r.Nodes, Unknown: r.Unknown, Uncounted: r.Losses.Full, Networks: r.Networks, Unsampled: r.Losses.Lost + r.Losses.Skipped,
		Pruned: r.Losses.Pruned, Restarted: r.Losses.Restarted}
	breaks, opens := map[string]*Group{}, map[string]*Group{}
	refused := refusedThere(r)
	for _, o := range r.Flows {
		v, err := state.judge(e, o.Flow)
		if err != nil {
			return nil, err
		}
		out.Flows += o.Count
		egress, ingress := o.Judged()
		var would []string
		allowed := true
		side := func(judged bool, name string, s netpol.Side) {
			if judged {
				would = append(would, name+": "+s.Why)
				allowed = allowed && s.Allowed
			}
		}
		side(egress, "egress", v.Egress)
		side(ingress, "ingress", v.Ingress)
		groups := breaks
		_, dropped := refused[pairKey(o)] // what left the one node and was dropped by the other can't break
		switch {
		case allowed == (o.Verdict == flows.Allowed), !allowed && dropped:
			continue
		case allowed:
			groups = opens
		}
		g := Group{From: who(o.From), To: who(o.To), Protocol: o.Protocol, Port: o.Port, Was: o.Why(), Would: strings.Join(would, "; "), Example: o.From.Name() + " → " + o.To.Name()}
		key := fmt.Sprint(g.From, "|", g.To, "|", g.Protocol, g.Port, "|", g.Was, "|", g.Would)
		if groups[key] == nil {
			groups[key] = &g
		}
		groups[key].Count += o.Count
	}
	out.Breaks, out.Opens = sorted(breaks), sorted(opens)
	return out, nil
}

func (w withPods) judge(e *reference.Evaluator, f flows.Flow) (netpol.Verdict, error) {
	protocol, err := protocolNumber(f.Protocol)
	if err != nil {
		return netpol.Verdict{}, fmt.Errorf("a recorded flow: %w", err)
	}
	v, err := e.Judge(netpol.Flow{From: w.ends[endKey(f.From)], To: w.ends[endKey(f.To)], Protocol: protocol, Port: f.Port, ViaService: f.From.Addr == f.To.Addr})
	if err != nil {
		return v, fmt.Errorf("a recorded flow, %s to %s: %w", f.From.Name(), f.To.Name(), err)
	}
	return v, nil
}

func sorted(m map[string]*Group) []Group {
	out := []Group{}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, *m[key])
	}
	slices.SortStableFunc(out, func(a, b Group) int { return cmp.Compare(b.Count, a.Count) })
	return out
}

// Differs tells whether anything would break, or be opened.
func (r *Replayed) Differs() bool { return len(r.Breaks)+len(r.Opens) > 0 }

// WriteText writes it for people.
func (r *Replayed) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d flows and dropped packets of %s, from %s to %s\n", r.Flows, strings.Join(r.Nodes, ", "), r.From.Local().Format(time.DateTime), r.To.Local().Format(time.DateTime))
	if r.Unknown > 0 {
		fmt.Fprintf(&b, "not judged: %d packets amid connections of which nobody knows who began them\n", r.Unknown)
	}
	if r.Networks > 0 {
		fmt.Fprintf(&b, "judged by the first address of the client's network: %d flows and packets from outside without a sample (%d samples were left out)\n", r.Networks, r.Unsampled)
	}
	if r.Pruned > 0 || r.Restarted > 0 {
		fmt.Fprintf(&b, "not known: %d counts for which the files had no room, and what %d classes of flows had while agents were restarted\n", r.Pruned, r.Restarted)
	}
	if r.Uncounted > 0 {
		fmt.Fprintf(&b, "not known: %d flows and packets for which the record had no room\n", r.Uncounted)
	}
	for _, part := range []struct {
		title string
		list  []Group
	}{{"would break:", r.Breaks}, {"would be opened:", r.Opens}} {
		if len(part.list) > 0 {
			fmt.Fprintf(&b, "\n%s\n", part.title)
		}
		for _, g := range part.list {
			port := g.Protocol
			if g.Port != 0 {
				port = fmt.Sprintf("%d/%s", g.Port, g.Protocol)
			}
			fmt.Fprintf(&b, "  %s → %s %s: %d\n    was:   %s\n    would: %s\n    such as %s\n", g.From, g.To, port, g.Count, g.Was, g.Would, g.Example)
		}
	}
	if !r.Differs() {
		fmt.Fprintln(&b, "these policies would have said the same of all of them")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
