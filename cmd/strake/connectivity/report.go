package connectivity

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Outcome of a check.
type Outcome struct {
	From     string        `json:"from"` // node, or node's pod
	Pod      string        `json:"pod"`
	Column   string        `json:"column"`
	Family   string        `json:"family,omitempty"`
	Target   string        `json:"target"`
	OK       bool          `json:"ok"`
	Reason   string        `json:"reason,omitempty"`
	Attempts int           `json:"attempts"`
	Took     time.Duration `json:"tookNs,omitempty"`
}

// Figure is what one path carries, beside the path from node to node.
type Figure struct {
	Path            string        `json:"path"`
	Family          string        `json:"family"`
	BitsPerS        float64       `json:"bitsPerS"`
	RoundTrip       time.Duration `json:"roundTripNs"`
	ThroughputRatio float64       `json:"throughputRatio"` // to the reference: more is better
	RoundTripRatio  float64       `json:"roundTripRatio"`  // reference's time by its own: more is better
	Error           string        `json:"error,omitempty"`
}

// Report of a test.
type Report struct {
	OK        bool      `json:"ok"`
	Namespace string    `json:"namespace"`
	Families  []string  `json:"families"`
	Nodes     []string  `json:"nodes"`
	NotReady  []string  `json:"notReady,omitempty"` // nodes that were left out
	Checks    []Outcome `json:"checks"`
	Failures  int       `json:"failures"`
	Reference string    `json:"reference,omitempty"`
	Figures   []Figure  `json:"figures,omitempty"`
}

func (r *Report) add(o Outcome) {
	r.Checks = append(r.Checks, o)
	if !o.OK {
		r.Failures++
	}
}

// Print shows the matrix: rows from, columns to; numbers lead to the reasons below it.
func (r Report) Print(w io.Writer) {
	type cell struct{ ok, failed, note int }
	var rows []string
	cells := map[string]map[string]*cell{}
	var notes []string
	numbers := map[string]int{}
	for _, o := range r.Checks {
		row := o.From
		if o.Family != "" && len(r.Families) > 1 {
			row += " " + o.Family
		}
		if o.Family == "" && len(r.Families) > 1 {
			row += " " + r.Families[0]
		}
		if cells[row] == nil {
			cells[row] = map[string]*cell{}
			rows = append(rows, row)
		}
		c := cells[row][o.Column]
		if c == nil {
			c = &cell{}
			cells[row][o.Column] = c
		}
		if o.OK {
			c.ok++
			continue
		}
		c.failed++
		key := row + "|" + o.Column
		line := fmt.Sprintf("%s: %s", o.Target, o.Reason)
		if n, ok := numbers[key]; ok {
			notes[n-1] += "; " + line
			continue
		}
		notes = append(notes, fmt.Sprintf("%s → %s: %s", row, o.Column, line))
		numbers[key], c.note = len(notes), len(notes)
	}
	width := 4
	for _, row := range rows {
		width = max(width, len(row))
	}
	columns := slices.DeleteFunc(slices.Clone(Columns), func(c string) bool {
		return !slices.ContainsFunc(rows, func(row string) bool { return cells[row][c] != nil })
	})
	fmt.Fprintf(w, "%-*s", width, "from")
	for _, c := range columns {
		fmt.Fprintf(w, "  %s", c)
	}
	fmt.Fprintln(w)
	for _, row := range rows {
		line := fmt.Sprintf("%-*s", width, row)
		for _, column := range columns {
			text, signs := "–", 1
			if c := cells[row][column]; c != nil && c.failed > 0 {
				text = fmt.Sprintf("✗ [%d]", c.note)
				signs = len(text) - len("✗") + 1
			} else if c != nil {
				text = "✓"
			}
			line += "  " + text + strings.Repeat(" ", max(0, len(column)-signs))
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
	for i, n := range notes {
		fmt.Fprintf(w, "[%d] %s\n", i+1, n)
	}
	for _, n := range r.NotReady {
		fmt.Fprintf(w, "✗ node %s is not Ready and was left out\n", n)
	}
	fmt.Fprintf(w, "%d paths, %d failed\n", len(r.Checks), r.Failures)
	if len(r.Figures) == 0 {
		return
	}
	fmt.Fprintf(w, "\nbeside %s (ratios over 1 are better than that)\n", r.Reference)
	for _, f := range r.Figures {
		if f.Error != "" {
			fmt.Fprintf(w, "  %-28s %s  ✗ %s\n", f.Path, f.Family, f.Error)
			continue
		}
		fmt.Fprintf(w, "  %-28s %s  %7.2f Gbit/s (%.2f)  %8s round trip (%.2f)\n", f.Path, f.Family, f.BitsPerS/1e9, f.ThroughputRatio, f.RoundTrip.Round(100*time.Nanosecond), f.RoundTripRatio)
	}
}
