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
	l := m.newLister(wide)
	texts, ids := []string{}, map[string]int{}
	textOf := make([]int, len(m.Answers)) // answers may say the same for different reasons
	for i, x := range m.Answers {
		id, said := ids[x.Allowed]
		if !said {
			id = len(texts)
			texts, ids[x.Allowed] = append(texts, x.Allowed), id
		}
		textOf[i] = id
	}
	byText := make([][]int, len(texts))
	for i, from := range m.Ends {
		var answers []int
		for j, id := range m.Rows[i] {
			if id < 0 {
				continue
			}
			text := textOf[id]
			if len(byText[text]) == 0 {
				answers = append(answers, text)
			}
			byText[text] = append(byText[text], j)
		}
		slices.SortStableFunc(answers, func(x, y int) int { return rank(texts[x]) - rank(texts[y]) })
		name := from.Name
		if from.HostNetwork {
			name += " (host network)"
		}
		for _, text := range answers {
			fmt.Fprintf(t, "%s\t%s\t%s\n", name, l.list(i, byText[text]), texts[text])
			name, byText[text] = "", byText[text][:0]
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

// lister names ends. Namespaces are numbers in it, as there may be millions of pairs.
type lister struct {
	m        *Matrix
	most     int   // names; 0: all
	space    []int // by end; -1: it is no workload
	ends, in []int // by namespace: ends, and those of a list
	said     []bool
}

func (m *Matrix) newLister(wide bool) *lister {
	l := &lister{m: m, most: 8, space: make([]int, len(m.Ends))}
	if wide {
		l.most = 0
	}
	numbers := map[string]int{}
	for i, e := range m.Ends {
		l.space[i] = -1
		if e.Workload == "" {
			continue
		}
		n, ok := numbers[e.Namespace]
		if !ok {
			n = len(l.ends)
			numbers[e.Namespace], l.ends = n, append(l.ends, 0)
		}
		l.space[i] = n
		l.ends[n]++
	}
	l.in, l.said = make([]int, len(l.ends)), make([]bool, len(l.ends))
	return l
}

// list names ends; a namespace by its name, if all in it are meant.
func (l *lister) list(from int, ends []int) string {
	clear(l.in)
	clear(l.said)
	for _, j := range ends {
		if n := l.space[j]; n >= 0 {
			l.in[n]++
		}
	}
	own := l.space[from]
	if l.m.Rows[from][from] >= 0 {
		own = -1
	}
	var out []string
	count := 0
	for _, j := range ends {
		n := l.space[j]
		every := false
		if n >= 0 {
			whole := l.ends[n]
			if n == own {
				whole-- // itself is nothing to tell
			}
			every = l.in[n] >= 2 && l.in[n] >= whole
		}
		if every && l.said[n] {
			continue
		}
		if count++; l.most == 0 || count <= l.most {
			name := l.m.Ends[j].Name
			if every {
				name = fmt.Sprintf("%s/* (%d)", l.m.Ends[j].Namespace, l.in[n])
			}
			out = append(out, name)
		}
		if every {
			l.said[n] = true
		}
	}
	if more := count - len(out); more > 0 {
		return fmt.Sprintf("%s, +%d", strings.Join(out, ", "), more)
	}
	return strings.Join(out, ", ")
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
