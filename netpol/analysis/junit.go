package analysis

import (
	"encoding/xml"
	"io"
	"strings"
)

// The parts of JUnit's XML that tools read.
type (
	junitSuites struct {
		XMLName xml.Name     `xml:"testsuites"`
		Suites  []junitSuite `xml:"testsuite"`
	}
	junitSuite struct {
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string        `xml:"classname,attr"`
		Name    string        `xml:"name,attr"`
		File    string        `xml:"file,attr,omitempty"`
		Line    int           `xml:"line,attr,omitempty"`
		Failure *junitFailure `xml:"failure"`
		Out     string        `xml:"system-out,omitempty"`
	}
	junitFailure struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr"`
		Text    string `xml:",chardata"`
	}
)

func writeJUnit(w io.Writer, name string, cases []junitCase) error {
	s := junitSuite{Name: name, Tests: len(cases), Cases: cases}
	for _, c := range cases {
		if c.Failure != nil {
			s.Failures++
		}
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(junitSuites{Suites: []junitSuite{s}}); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// WriteLintJUnit writes findings as JUnit's XML: those as grave as failOn are failures; a check without findings is a test that passes.
func WriteLintJUnit(w io.Writer, list []Finding, failOn Severity) error {
	return writeJUnit(w, "strake policy lint", lintCases(list, failOn))
}

// WriteJUnit writes a report as JUnit's XML: findings that are errors, and what does not hold, are failures.
func (r *Report) WriteJUnit(w io.Writer) error {
	cases := lintCases(r.Findings, Error)
	for _, c := range r.claims() {
		one := junitCase{Class: c.part, Name: c.name, Out: c.text}
		if !c.holds {
			one.Out = ""
			one.Failure = &junitFailure{c.name, c.part, c.text}
		}
		cases = append(cases, one)
	}
	return writeJUnit(w, "strake policy report", cases)
}

func lintCases(list []Finding, failOn Severity) (cases []junitCase) {
	for _, check := range Checks {
		some := false
		for _, f := range list {
			if f.Check != check.ID {
				continue
			}
			some = true
			c := junitCase{Class: check.ID, Name: strings.TrimSpace(f.Object.Kind + " " + f.Object.String() + " " + f.Field), File: f.File, Line: f.Line}
			if f.Reaches(failOn) {
				c.Failure = &junitFailure{f.Message, string(f.Severity), f.Hint}
			} else {
				c.Out = f.Message
			}
			cases = append(cases, c)
		}
		if !some {
			cases = append(cases, junitCase{Class: check.ID, Name: check.Title})
		}
	}
	return cases
}
