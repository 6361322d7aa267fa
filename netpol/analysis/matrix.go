package analysis

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
)

// Matrix is who can reach whom on what.
type Matrix struct {
	Ends    []End
	Answers []*Answer
	Counts  Counts
	// Rows has an answer's number for each pair of ends: Rows[from][to]; -1: there is nothing to tell.
	Rows [][]int32

	a *Analysis
}

// Answer is what is allowed between two ends, of one or both families.
type Answer struct {
	Allowed string  // for people, as PortSet's String; of both families if they differ
	Verdict string  // all, some or none
	pairs   [2]pair // by family
	sets    [2]*Cell
	a       *Analysis
}

// Ranges tell who decides what; ipv6 is there only if it differs from what the first say of IPv4.
func (x *Answer) Ranges() (ranges, ipv6 []Range) {
	ranges, ipv6 = x.a.ranges(x.pairs[0]), x.a.ranges(x.pairs[1])
	if ranges == nil || x.pairs[0] == x.pairs[1] {
		return x.a.ranges(x.pairs[1]), nil
	}
	return ranges, ipv6
}

// MarshalJSON gives an answer with its reasons.
func (x *Answer) MarshalJSON() ([]byte, error) {
	ranges, ipv6 := x.Ranges()
	return json.Marshal(struct {
		Allowed string  `json:"allowed"`
		Verdict string  `json:"verdict"`
		Ranges  []Range `json:"ranges"`
		IPv6    []Range `json:"ipv6,omitempty"`
	}{x.Allowed, x.Verdict, ranges, ipv6})
}

// Counts are those of a Matrix's pairs.
type Counts struct {
	Workloads int `json:"workloads"`
	Pods      int `json:"pods"`
	Outside   int `json:"outside"` // classes of addresses that are no pods'
	Policies  int `json:"policies"`
	Shadow    int `json:"shadow"` // policies that are not enforced
	Pairs     int `json:"pairs"`
	All       int `json:"all"`
	Some      int `json:"some"`
	None      int `json:"none"`
}

// Matrix makes the matrix of the ends that are chosen.
func (a *Analysis) Matrix(from, to func(End) bool) *Matrix {
	m := &Matrix{Ends: a.Ends(), a: a}
	known := answerIDs{all: map[[2]pair]int32{}}
	fromOK, toOK := make([]bool, len(m.Ends)), make([]bool, len(m.Ends))
	workloads := map[string]bool{}
	for i, e := range m.Ends {
		fromOK[i], toOK[i] = from == nil || from(e), to == nil || to(e)
		if e.Workload != "" {
			workloads[e.Kind+e.Namespace+"/"+e.Workload] = true
			m.Counts.Pods += len(e.Pods)
		} else {
			m.Counts.Outside++
		}
	}
	m.Counts.Workloads, m.Counts.Policies, m.Counts.Shadow = len(workloads), len(a.policies), len(a.shadow)
	for i := range m.Ends {
		row := make([]int32, len(m.Ends))
		for j := range m.Ends {
			row[j] = -1
			if !fromOK[i] || !toOK[j] {
				continue
			}
			said := a.between(&m.Ends[i], &m.Ends[j])
			if said == [2]pair{none, none} {
				continue
			}
			id := known.of(said)
			if id == int32(len(m.Answers)) {
				m.Answers = append(m.Answers, a.answerOf(said))
			}
			row[j] = id
			m.Counts.Pairs++
			switch m.Answers[id].Verdict {
			case "all":
				m.Counts.All++
			case "some":
				m.Counts.Some++
			default:
				m.Counts.None++
			}
		}
		m.Rows = append(m.Rows, row)
	}
	return m
}

// answerIDs numbers what is said between ends. Of millions of pairs most say what was said a moment ago: that is found without the map.
type answerIDs struct {
	all    map[[2]pair]int32
	recent [1 << 12]struct {
		said [2]pair
		next int32 // its number and one; 0: nobody was here
	}
}

func (k *answerIDs) of(said [2]pair) int32 {
	at := uint32(said[0].egress+said[1].egress)*0x9e3779b1 + uint32(said[0].ingress+said[1].ingress)*0x85ebca6b
	r := &k.recent[at>>20]
	if r.next == 0 || r.said != said {
		id, ok := k.all[said]
		if !ok {
			id = int32(len(k.all))
			k.all[said] = id
		}
		r.said, r.next = said, id+1
	}
	return r.next - 1
}

func (a *Analysis) answerOf(said [2]pair) *Answer {
	out := &Answer{pairs: said, sets: [2]*Cell{a.cell(said[0]), a.cell(said[1])}, a: a}
	first, second := out.sets[0], out.sets[1]
	if first == nil {
		first, second = second, nil
	}
	out.Allowed = first.Text
	every, some := first.Allowed.Full(), !first.Allowed.Empty()
	if second != nil && second.Text != first.Text {
		out.Allowed = "IPv4: " + first.Text + " | IPv6: " + second.Text
		every, some = every && second.Allowed.Full(), some || !second.Allowed.Empty()
	}
	switch {
	case every:
		out.Verdict = "all"
	case some:
		out.Verdict = "some"
	default:
		out.Verdict = "none"
	}
	return out
}

// has tells whether a port is allowed, in any family.
func (x *Answer) has(p ContainerPort) bool {
	number := protocols[slices.Index(protocolNames[:], p.Protocol)]
	for _, c := range x.sets {
		if c != nil && c.Allowed.Has(number, p.Port) {
			return true
		}
	}
	return false
}

// open are the ports of a destination's containers that an answer allows.
func (x *Answer) open(to End) []string {
	var out []string
	for _, p := range to.Ports {
		if x.has(p) {
			out = append(out, p.String())
		}
	}
	return out
}

// reasons are the rules that decided, each once.
func (x *Answer) reasons() (egress, ingress []string) {
	ranges, ipv6 := x.Ranges()
	for _, r := range append(ranges, ipv6...) {
		if r.Egress != "" && !slices.Contains(egress, r.Egress) {
			egress = append(egress, r.Egress)
		}
		if r.Ingress != "" && !slices.Contains(ingress, r.Ingress) {
			ingress = append(ingress, r.Ingress)
		}
	}
	return egress, ingress
}

// Named chooses ends by a pattern, as path.Match has it, of the name or of the workload's: default/web, default/*, world, 10.0.0.0/8. An empty
// pattern chooses all.
func Named(pattern string) (func(End) bool, error) {
	if pattern == "" {
		return nil, nil
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, err
	}
	return func(e End) bool {
		name := e.Name
		if e.Workload != "" {
			name = e.Namespace + "/" + e.Workload
		}
		ok, _ := path.Match(pattern, name) // its error is above
		return ok || pattern == e.Name || slices.Contains(e.Blocks, pattern) || strings.HasPrefix(pattern, "node") && e.Kind == KindNode
	}, nil
}
