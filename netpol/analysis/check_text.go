package analysis

import (
	"fmt"
	"io"
	"strings"
)

// WriteResults writes results for people.
func WriteResults(w io.Writer, list []Result) error {
	failed := 0
	for _, r := range list {
		word := "ok"
		if !r.Holds {
			word = "FAIL"
			failed++
		}
		fmt.Fprintf(w, "%-4s  %s", word, r.Text)
		if r.Name != "" {
			fmt.Fprintf(w, "  # %s", r.Name)
		}
		fmt.Fprintln(w)
		if r.Holds {
			continue
		}
		if r.File != "" {
			fmt.Fprintf(w, "      %s:%d\n", r.File, r.Line)
		}
		for _, line := range r.lines() {
			fmt.Fprintln(w, "      "+line)
		}
		if r.Because != "" {
			fmt.Fprintln(w, "      because: "+r.Because)
		}
	}
	_, err := fmt.Fprintf(w, "\n%s: %d hold, %d fail\n", count(len(list), "assertion"), len(list)-failed, failed)
	return err
}

// lines tell why an assertion does not hold.
func (r Result) lines() []string {
	if r.Counterexample == nil {
		return []string{r.Problem}
	}
	c := r.Counterexample
	word := "denied"
	if c.Allowed {
		word = "allowed"
	}
	what := c.Protocol
	if c.Port > 0 {
		what += fmt.Sprintf(" %d", c.Port)
	}
	address := ""
	if c.Address != "" {
		address = " (" + c.Address + ")"
	}
	return []string{
		fmt.Sprintf("%s -> %s%s, %s is %s", c.From, c.To, address, what, word),
		"on the way out: " + c.Verdict.Egress.Why,
		"on the way in:  " + c.Verdict.Ingress.Why,
		fmt.Sprintf("of %s that policies tell apart, %d against it", count(r.Judged, "pair"), r.Against),
	}
}

// WriteResultsJUnit writes results as JUnit's XML.
func WriteResultsJUnit(w io.Writer, list []Result) error {
	var cases []junitCase
	for _, r := range list {
		c := junitCase{Class: "strake policy check", Name: r.Text, File: r.File, Line: r.Line}
		if r.Name != "" {
			c.Name = r.Name + ": " + r.Text
		}
		if !r.Holds {
			lines := r.lines()
			c.Failure = &junitFailure{lines[0], "assertion", strings.Join(lines, "\n")}
		}
		cases = append(cases, c)
	}
	return writeJUnit(w, "strake policy check", cases)
}
