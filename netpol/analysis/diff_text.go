package analysis

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteText writes a difference for people: what one may more has a +, what it may less a -.
func (d *Diff) WriteText(w io.Writer) error {
	for _, e := range d.Policies {
		fmt.Fprintf(w, "%s %s %s\n", e.Policy.Kind, e.Policy, e.What)
	}
	if len(d.Policies) > 0 {
		fmt.Fprintln(w)
	}
	if len(d.Changes) > 0 {
		t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
		fmt.Fprintln(t, " \tFROM\tTO\tPORTS\tDECIDED BY")
		for i := 0; i < len(d.Changes); { // those of one end that say the same are in one line
			c := d.Changes[i]
			next := i
			var to []string
			for ; next < len(d.Changes); next++ {
				o := d.Changes[next]
				if o.From != c.From || o.Opened != c.Opened || o.Closed != c.Closed || o.Family != c.Family || decided(o, true) != decided(c, true) || decided(o, false) != decided(c, false) {
					break
				}
				to = append(to, o.To)
			}
			family := ""
			if c.Family != "" {
				family = " (" + c.Family + ")"
			}
			if c.Opened != "" {
				fmt.Fprintf(t, "+\t%s\t%s%s\t%s\t%s\n", c.From, some(to, 8), family, c.Opened, decided(c, true))
			}
			if c.Closed != "" {
				fmt.Fprintf(t, "-\t%s\t%s%s\t%s\t%s\n", c.From, some(to, 8), family, c.Closed, decided(c, false))
			}
			i = next
		}
		if err := t.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	for _, v := range []struct {
		what string
		list []string
	}{{"Only before", d.Gone}, {"Only after", d.Appeared}} {
		if len(v.list) > 0 {
			fmt.Fprintf(w, "%s, and not compared: %s\n", v.what, some(v.list, 10))
		}
	}
	_, err := fmt.Fprintf(w, "%s compared: %d may more, %d may less\n", count(d.Counts.Pairs, "pair"), d.Counts.Opened, d.Counts.Closed)
	return err
}

// decided names the rules that decide what is opened, or closed, after the change.
func decided(c Change, opened bool) string {
	var out []string
	said := map[string]bool{}
	add := func(s string) {
		if s != "" && !said[s] {
			said[s] = true
			out = append(out, s)
		}
	}
	for _, r := range c.Ranges {
		if r.Allowed != opened {
			continue
		}
		if opened || !r.egress.allowed {
			add(r.Egress)
		}
		if opened || !r.ingress.allowed {
			add(r.Ingress)
		}
	}
	if len(out) == 0 && opened {
		return "no policy"
	}
	return strings.Join(out, "; ")
}
