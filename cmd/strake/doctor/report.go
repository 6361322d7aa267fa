package doctor

import (
	"fmt"
	"io"
	"strings"
)

// Status is the outcome of a check.
type Status string

// Outcomes. A Warning is something that works today and may not tomorrow; Unknown could not be looked at.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Failure Status = "failure"
	Unknown Status = "unknown"
)

// Check is one thing that was looked at.
type Check struct {
	Group  string `json:"group"`
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`         // what was found
	Hint   string `json:"hint,omitempty"` // what to do about it
}

// Report is all of an examination.
type Report struct {
	Node     string  `json:"node"`
	OK       bool    `json:"ok"` // nothing failed, and all could be looked at
	Failures int     `json:"failures"`
	Warnings int     `json:"warnings"`
	Unknown  int     `json:"unknown"`
	Checks   []Check `json:"checks"`
}

// Groups, in the order in which they are shown.
const (
	groupKernel    = "kernel"
	groupMounts    = "mounts and cgroups"
	groupSysctls   = "sysctls"
	groupUplink    = "uplink and MTU"
	groupClock     = "clock"
	groupLeftovers = "other plugins' leftovers"
	groupNetwork   = "node network"
	groupAPI       = "API and certificates"
)

func (r *Report) add(c Check) {
	switch c.Status {
	case Failure:
		r.Failures++
	case Warning:
		r.Warnings++
	case Unknown:
		r.Unknown++
	}
	r.OK = r.Failures == 0 && r.Unknown == 0
	r.Checks = append(r.Checks, c)
}

// Code is the exit code of the command: 0 if nothing failed, 1 if something did, 2 if something could not be looked at.
func (r Report) Code() int {
	switch {
	case r.Failures > 0:
		return 1
	case r.Unknown > 0:
		return 2
	}
	return 0
}

// Print shows a report to a person.
func (r Report) Print(w io.Writer) {
	marks := map[Status]string{OK: "✓", Warning: "!", Failure: "✗", Unknown: "?"}
	fmt.Fprintf(w, "node %s\n", r.Node)
	group := ""
	for _, c := range r.Checks {
		if c.Group != group {
			group = c.Group
			fmt.Fprintf(w, "\n%s\n", group)
		}
		fmt.Fprintf(w, "  %s %s: %s\n", marks[c.Status], c.Name, strings.ReplaceAll(c.Detail, "\n", "\n      "))
		if c.Hint != "" && c.Status != OK {
			fmt.Fprintf(w, "      → %s\n", c.Hint)
		}
	}
	fmt.Fprintf(w, "\n%d checks: %d failed, %d warnings, %d not looked at\n", len(r.Checks), r.Failures, r.Warnings, r.Unknown)
}

// group collects checks of one group.
type group struct {
	name string
	r    *Report
}

func (g group) ok(name, format string, args ...any) {
	g.r.add(Check{Group: g.name, Name: name, Status: OK, Detail: fmt.Sprintf(format, args...)})
}

func (g group) warn(name, hint, format string, args ...any) {
	g.r.add(Check{Group: g.name, Name: name, Status: Warning, Detail: fmt.Sprintf(format, args...), Hint: hint})
}

func (g group) fail(name, hint, format string, args ...any) {
	g.r.add(Check{Group: g.name, Name: name, Status: Failure, Detail: fmt.Sprintf(format, args...), Hint: hint})
}

func (g group) unknown(name string, err error, hint string) {
	g.r.add(Check{Group: g.name, Name: name, Status: Unknown, Detail: err.Error(), Hint: hint})
}
