package analysis

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// WriteText writes a matrix for people: for each end, what it may reach on what; those that it may reach on the same things are in
// one line. wide names all of them.
func (m *Matrix) WriteText(w io.Writer, wide bool) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "FROM\tTO\tALLOWED")
	spaces := map[string]int{} // ends of each namespace
	for _, e := range m.Ends {
		if e.Workload != "" {
			spaces[e.Namespace]++
		}
	}
	for i, from := range m.Ends {
		byAnswer := map[string][]int{}
		var answers []string
		for j, id := range m.Rows[i] {
			if id < 0 {
				continue
			}
			text := m.Answers[id].Allowed
			list, said := byAnswer[text]
			if !said {
				answers = append(answers, text)
			}
			byAnswer[text] = append(list, j)
		}
		slices.SortStableFunc(answers, func(x, y string) int { return rank(x) - rank(y) })
		name := from.Name
		if from.HostNetwork {
			name += " (host network)"
		}
		for _, text := range answers {
			fmt.Fprintf(t, "%s\t%s\t%s\n", name, m.list(i, byAnswer[text], spaces, wide), text)
			name = ""
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	c := m.Counts
	fmt.Fprintf(w, "\n%s, %s, %s of addresses outside, %s%s\n", count(c.Workloads, "workload"), count(c.Pods, "pod"), count(c.Outside, "class"), count(c.Policies, "policy"), inShadow(c.Shadow))
	_, err := fmt.Fprintf(w, "%s: %d allowed everything, %d something, %d nothing\n", count(c.Pairs, "pair"), c.All, c.Some, c.None)
	return err
}

func inShadow(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (and %d in shadow, which allow and deny nothing)", n)
}

func count(n int, what string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(what, "y"):
		what = strings.TrimSuffix(what, "y") + "ies"
	case strings.HasSuffix(what, "s"):
		what += "es"
	default:
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// rank puts what is restricted first, then all, then none.
func rank(allowed string) int {
	switch allowed {
	case "all":
		return 1
	case "none":
		return 2
	}
	return 0
}

// list names ends; a namespace by its name, if all in it are meant.
func (m *Matrix) list(from int, ends []int, spaces map[string]int, wide bool) string {
	in := map[string]int{}
	for _, j := range ends {
		if m.Ends[j].Workload != "" {
			in[m.Ends[j].Namespace]++
		}
	}
	var out []string
	said := map[string]bool{}
	for _, j := range ends {
		e := m.Ends[j]
		whole := spaces[e.Namespace]
		if m.Rows[from][from] < 0 && m.Ends[from].Workload != "" && m.Ends[from].Namespace == e.Namespace {
			whole-- // itself is nothing to tell
		}
		switch {
		case e.Workload == "" || in[e.Namespace] < 2 || in[e.Namespace] < whole:
			out = append(out, e.Name)
		case !said[e.Namespace]:
			said[e.Namespace] = true
			out = append(out, fmt.Sprintf("%s/* (%d)", e.Namespace, in[e.Namespace]))
		}
	}
	if wide {
		return strings.Join(out, ", ")
	}
	return some(out, 8)
}

// WriteJSON writes a matrix for machines. Pairs name their answer by its number.
func (m *Matrix) WriteJSON(w io.Writer) error {
	b := bufio.NewWriterSize(w, 1<<16)
	part := func(key string, v any) error {
		text, err := json.Marshal(v)
		if err == nil {
			_, err = fmt.Fprintf(b, "%q:%s,\n", key, text)
		}
		return err
	}
	b.WriteString("{")
	if err := part("counts", m.Counts); err != nil {
		return err
	}
	if err := part("ends", m.Ends); err != nil {
		return err
	}
	if err := part("answers", m.Answers); err != nil {
		return err
	}
	b.WriteString(`"pairs":[`)
	names := make([]string, len(m.Ends))
	for i, e := range m.Ends {
		text, err := json.Marshal(e.Name)
		if err != nil {
			return err
		}
		names[i] = string(text)
	}
	sep := "\n"
	for i, row := range m.Rows {
		for j, id := range row {
			if id < 0 {
				continue
			}
			fmt.Fprintf(b, `%s{"from":%s,"to":%s,"answer":%d`, sep, names[i], names[j], id)
			if open := m.Answers[id].open(m.Ends[j]); len(open) > 0 {
				fmt.Fprintf(b, `,"containerPorts":["%s"]`, strings.Join(open, `","`))
			}
			b.WriteByte('}')
			sep = ",\n"
		}
	}
	b.WriteString("]}\n")
	return b.Flush()
}

// WriteCSV writes a line for each pair.
func (m *Matrix) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	_ = c.Write([]string{"from", "to", "verdict", "allowed", "container ports", "egress", "ingress"}) // Flush keeps its error
	type words struct{ egress, ingress string }
	reasons := make([]words, len(m.Answers))
	for i := range m.Answers {
		e, in := m.Answers[i].reasons()
		reasons[i] = words{strings.Join(e, "; "), strings.Join(in, "; ")}
	}
	for i, row := range m.Rows {
		for j, id := range row {
			if id < 0 {
				continue
			}
			x := m.Answers[id]
			_ = c.Write([]string{m.Ends[i].Name, m.Ends[j].Name, x.Verdict, x.Allowed, strings.Join(x.open(m.Ends[j]), " "), reasons[id].egress, reasons[id].ingress})
		}
	}
	c.Flush()
	return c.Error()
}

// WriteDot writes a graph of all that is allowed, for Graphviz.
func (m *Matrix) WriteDot(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintln(b, "digraph policies {\n  rankdir=LR; node [shape=box, fontname=\"sans-serif\"]; edge [fontname=\"sans-serif\", fontsize=10];")
	open := ""
	for i, e := range m.Ends {
		if e.Namespace != open {
			if open != "" {
				fmt.Fprintln(b, "  }")
			}
			if open = e.Namespace; open != "" {
				fmt.Fprintf(b, "  subgraph %q {\n    label=%q;\n", "cluster_"+open, open)
			}
		}
		fmt.Fprintf(b, "  n%d [label=%q];\n", i, e.Name)
	}
	if open != "" {
		fmt.Fprintln(b, "  }")
	}
	for i, row := range m.Rows {
		for j, id := range row {
			if id < 0 || m.Answers[id].Verdict == "none" {
				continue
			}
			fmt.Fprintf(b, "  n%d -> n%d [label=%q];\n", i, j, m.Answers[id].Allowed)
		}
	}
	fmt.Fprintln(b, "}")
	return b.Flush()
}
