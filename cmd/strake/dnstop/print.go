package dnstop

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// String is the line for people.
func (q Question) String() string {
	what := q.Code
	if q.Layer == Passed {
		what = "?"
	}
	by := q.Layer
	if q.By != "" {
		by += " (" + q.By + ")"
	}
	return fmt.Sprintf("%s %s %s %s: %s, %s, %.1f µs", q.Time.Local().Format("15:04:05.000000"), q.Client, q.Name, q.Type, what, by, micros(q.Took))
}

// Print is the report for people; before it the screen is cleared if that is wanted.
func (r Report) Print(to io.Writer, clear bool) error {
	var b strings.Builder
	if clear {
		b.WriteString("\x1b[H\x1b[2J")
	}
	fmt.Fprintf(&b, "%s  %d questions in %.1f s (%.0f/s), %.1f %% answered in the kernel, %.1f %% NXDOMAIN", r.Time.Local().Format("15:04:05"), r.Queries, r.Seconds, r.Rate, 100*r.Kernel, 100*r.Denied)
	if r.Lost > 0 {
		fmt.Fprintf(&b, ", %d more not read in time", r.Lost)
	}
	b.WriteString("\n")
	w := tabwriter.NewWriter(&b, 0, 4, 2, ' ', 0)
	share := func(n, of uint64) string {
		if n == 0 {
			return "-"
		}
		return fmt.Sprintf("%.0f %%", 100*float64(n)/float64(of))
	}
	fmt.Fprint(w, "\nLAYER\tQUERIES\tNXDOMAIN\tSERVFAIL\tMEDIAN\tP99\n")
	for _, l := range r.Layers {
		median, p99 := fmt.Sprintf("%.1f µs", l.MedianUs), fmt.Sprintf("%.1f µs", l.P99Us)
		if l.Layer == Passed {
			median, p99 = "?", "?"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", l.Layer, l.Queries, share(l.Denied, l.Queries), share(l.Failed, l.Queries), median, p99)
	}
	rows := func(title, others string, list []Row, n func(Row) int) {
		fmt.Fprintf(w, "\n%s\tQUERIES\tKERNEL\tNXDOMAIN\tSERVFAIL\tMEAN\t%s\n", title, others)
		for _, one := range list {
			mean := "?"
			if one.answered > 0 {
				mean = fmt.Sprintf("%.1f µs", one.MeanUs)
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%d\n", one.Name, one.Queries, share(one.Kernel, one.Queries), share(one.Denied, one.Queries), share(one.Failed, one.Queries), mean, n(one))
		}
	}
	rows("NAME", "CLIENTS", r.Names, func(r Row) int { return r.Clients })
	rows("CLIENT", "NAMES", r.Clients, func(r Row) int { return r.Names })
	w.Flush()
	_, err := io.WriteString(to, b.String())
	return err
}
