package dnstop

import (
	"cmp"
	"math/bits"
	"slices"
	"strings"
	"time"
)

// Who did what with a question.
const (
	Kernel   = "kernel"   // it was answered at the pod's interface
	Resolver = "resolver" // the agent answered it
	Passed   = "passed"   // it left the kernel for a name server that does not tell us
)

// Question is one that was asked, from either source.
type Question struct {
	Time   time.Time     `json:"time"`
	Client string        `json:"client"` // a pod, NAMESPACE/NAME, or an address
	Name   string        `json:"name"`   // lower case
	Type   string        `json:"type"`
	Layer  string        `json:"layer"`          // Kernel, Resolver or Passed
	Code   string        `json:"code,omitempty"` // such as NXDOMAIN; none if it was passed
	By     string        `json:"by,omitempty"`   // what of the resolver answered, as its log has it
	Took   time.Duration `json:"nanoseconds"`
}

const denied = "NXDOMAIN"

// Row is what is known of one name, or of one client.
type Row struct {
	Name     string  `json:"name"`
	Queries  uint64  `json:"queries"`
	Kernel   uint64  `json:"kernel"`   // of these the kernel has answered
	Denied   uint64  `json:"nxdomain"` // of these are NXDOMAIN
	Failed   uint64  `json:"servfail"`
	Clients  int     `json:"clients,omitempty"` // of a name: how many have asked
	Names    int     `json:"names,omitempty"`   // of a client: how many it has asked for
	MeanUs   float64 `json:"meanMicroseconds"`  // of those that were answered
	others   map[string]bool
	answered uint64
	took     time.Duration
}

// Layer is what is known of those that one layer has answered.
type Layer struct {
	Layer    string  `json:"layer"`
	Queries  uint64  `json:"queries"`
	Denied   uint64  `json:"nxdomain"`
	Failed   uint64  `json:"servfail"`
	MedianUs float64 `json:"medianMicroseconds"`
	P99Us    float64 `json:"p99Microseconds"`
	took     histogram
}

// Report is what was seen in a time.
type Report struct {
	Time    time.Time `json:"time"` // its end
	Seconds float64   `json:"seconds"`
	Queries uint64    `json:"queries"`
	Rate    float64   `json:"queriesPerSecond"`
	Denied  float64   `json:"nxdomainShare"` // of those that were answered
	Kernel  float64   `json:"kernelShare"`
	Lost    uint64    `json:"lost"` // queries that are in none of these numbers: they came faster than they were read
	Layers  []Layer   `json:"layers"`
	Names   []Row     `json:"names"`
	Clients []Row     `json:"clients"`
}

// maxRows bounds the names, and the clients, that are told apart in the time of a report, and the clients of a name. What comes later is in the
// sums, and in a row of its own.
const (
	maxRows = 20_000
	rest    = "(others)"
)

// counts are those of one report.
type counts struct {
	names, clients map[string]*Row
	layers         map[string]*Layer
}

func newCounts() *counts {
	return &counts{names: map[string]*Row{}, clients: map[string]*Row{}, layers: map[string]*Layer{}}
}

func row(of map[string]*Row, name string) *Row {
	r := of[name]
	if r == nil && len(of) >= maxRows {
		name = rest
		r = of[name]
	}
	if r == nil {
		r = &Row{Name: name, others: map[string]bool{}}
		of[name] = r
	}
	return r
}

func (c *counts) add(q Question) {
	l := c.layers[q.Layer]
	if l == nil {
		l = &Layer{Layer: q.Layer}
		c.layers[q.Layer] = l
	}
	l.Queries++
	if q.Layer != Passed {
		l.took.add(q.Took)
	}
	switch q.Code {
	case denied:
		l.Denied++
	case "SERVFAIL":
		l.Failed++
	}
	row(c.names, q.Name+" "+q.Type).add(q, q.Client)
	row(c.clients, q.Client).add(q, q.Name)
}

func (r *Row) add(q Question, other string) {
	r.Queries++
	switch q.Code {
	case denied:
		r.Denied++
	case "SERVFAIL":
		r.Failed++
	}
	if q.Layer == Kernel {
		r.Kernel++
	}
	if q.Layer != Passed {
		r.answered++
		r.took += q.Took
	}
	if len(r.others) < maxRows {
		r.others[other] = true
	}
}

// report sums up, with so many rows.
func (c *counts) report(now time.Time, took time.Duration, lost uint64, rows int, by string) Report {
	r := Report{Time: now, Seconds: took.Seconds(), Lost: lost}
	var answered, denials uint64
	for _, l := range c.layers {
		l.MedianUs, l.P99Us = micros(l.took.quantile(0.5)), micros(l.took.quantile(0.99))
		r.Queries += l.Queries
		denials += l.Denied
		if l.Layer != Passed {
			answered += l.Queries
		}
		r.Layers = append(r.Layers, *l)
	}
	slices.SortFunc(r.Layers, func(a, b Layer) int { return strings.Compare(a.Layer, b.Layer) })
	r.Rate = float64(r.Queries) / max(took.Seconds(), 1e-9)
	if answered > 0 {
		r.Denied = float64(denials) / float64(answered)
	}
	if k := c.layers[Kernel]; k != nil {
		r.Kernel = float64(k.Queries) / float64(r.Queries)
	}
	r.Names, r.Clients = top(c.names, rows, by), top(c.clients, rows, by)
	for i := range r.Names {
		r.Names[i].Clients = len(r.Names[i].others)
	}
	for i := range r.Clients {
		r.Clients[i].Names = len(r.Clients[i].others)
	}
	return r
}

// Orders are those of the rows, by name: the most comes first.
var Orders = map[string]func(Row) float64{
	"queries":  func(r Row) float64 { return float64(r.Queries) },
	"nxdomain": func(r Row) float64 { return float64(r.Denied) },
	"servfail": func(r Row) float64 { return float64(r.Failed) },
	"latency":  func(r Row) float64 { return r.MeanUs },
}

func top(of map[string]*Row, n int, by string) []Row {
	all := make([]Row, 0, len(of))
	for _, r := range of {
		if r.answered > 0 {
			r.MeanUs = micros(r.took) / float64(r.answered)
		}
		all = append(all, *r)
	}
	slices.SortFunc(all, func(a, b Row) int {
		return cmp.Or(cmp.Compare(Orders[by](b), Orders[by](a)), cmp.Compare(b.Queries, a.Queries), strings.Compare(a.Name, b.Name))
	})
	return all[:min(n, len(all))]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// histogram counts durations in buckets of which eight are as wide as they begin late: a quantile is right by an eighth.
type histogram struct {
	buckets [64 * 8]uint64
	n       uint64
}

func bucket(d time.Duration) int {
	v := uint64(max(d, 1))
	if v < 8 {
		return int(v)
	}
	shift := bits.Len64(v) - 4
	return (shift+1)*8 + int(v>>shift)&7
}

func (h *histogram) add(d time.Duration) {
	h.buckets[bucket(d)]++
	h.n++
}

// quantile is the lower end of the bucket that it is in; zero of nothing.
func (h *histogram) quantile(q float64) time.Duration {
	seen := uint64(0)
	for i, n := range h.buckets {
		if seen += n; n > 0 && float64(seen) >= q*float64(h.n) {
			if i < 8 {
				return time.Duration(i)
			}
			return time.Duration(uint64(8+i%8) << (i/8 - 1))
		}
	}
	return 0
}
