package analysis

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Severity of a finding.
type Severity string

const (
	Error   Severity = "error"   // what is written does not do what it says
	Warning Severity = "warning" // likely a mistake, or a hole
	Info    Severity = "info"    // worth knowing
)

// Severities from the gravest on.
var Severities = []Severity{Error, Warning, Info}

// Finding is something about a policy or a workload that its owner may not know.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Object   Object   `json:"object"`
	Field    string   `json:"field,omitempty"` // path in the object
	Message  string   `json:"message"`
	Hint     string   `json:"hint"`
	File     string   `json:"file,omitempty"` // of manifests: where the object is
	Line     int      `json:"line,omitempty"`
}

// Object names what a finding is about.
type Object struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
}

func (o Object) String() string {
	if o.Namespace == "" {
		return o.Name
	}
	return o.Namespace + "/" + o.Name
}

// Check is a kind of findings.
type Check struct {
	ID    string
	Title string // what is wrong, in general
	Hint  string // what can be done
}

// Checks of Lint. Their IDs stay as they are: people suppress by them.
var Checks = []Check{
	{"invalid", "The API would refuse this today; it admits nothing.", "Correct the field."},
	{"ignored-rules", "Rules in a direction that policyTypes does not name have no effect.", "Name the direction in policyTypes, or remove the rules."},
	{"implied-types", "Without policyTypes, a policy isolates ingress always, and egress only if it has egress rules.", "Write policyTypes out."},
	{"unused-policy", "The policy selects no pod.", "Correct the selector, or remove the policy."},
	{"rule-never-matches", "The rule matches nothing that there is.", "Correct its peers or ports, or remove it."},
	{"peer-selects-nothing", "A peer matches nothing that there is.", "Correct its selectors: labels are case-sensitive, and a podSelector alone means the policy's own namespace."},
	{"except-covers-cidr", "The exceptions leave nothing of the block.", "Correct cidr or except."},
	{"port-name-unresolved", "No pod that is asked has a container port of this name and protocol.", "Name the port in the pod's containers, or give its number. A name never matches an address outside."},
	{"service-address", "The block is a Service's address, which policies never see: they judge the backend that was chosen.", "Name the backends by their labels, with the port they listen on."},
	{"redundant-rule", "Other rules admit all that this one admits.", "Remove it."},
	{"overridden-rule", "Policies of the Admin tier decide all that this rule would admit.", "Remove it, or correct the policy of the Admin tier."},
	{"unreached-rule", "Rules before it decide all that it matches.", "Move it before them, or remove it."},
	{"priority-tie", "Two policies of one tier have the same priority, and both decide of the same flows: which one counts is not defined by the API.", "Give them different priorities."},
	{"allow-all", "The rule admits everybody to everything.", "Name peers and ports."},
	{"world-open", "The rule is about every address there is, pods included.", "Name the ranges that are meant; keep pods out with except."},
	{"one-family", "The rule names all addresses of one family only, and the cluster has both.", "Name 0.0.0.0/0 and ::/0."},
	{"block-covers-pods", "The block covers pods, which it matches too.", "Select pods by labels; keep them out of blocks with except."},
	{"dns-forgotten", "Pods whose egress is restricted can't ask the cluster's DNS.", "Allow UDP and TCP 53 to the pods k8s-app=kube-dns of kube-system."},
	{"unguarded-workload", "No policy guards the workload.", "Write one, or a default: a policy with an empty podSelector."},
}

// LintCounts are the numbers of findings.
type LintCounts struct {
	Error   int `json:"error"`
	Warning int `json:"warning"`
	Info    int `json:"info"`
}

// CountFindings counts by severity.
func CountFindings(list []Finding) (c LintCounts) {
	for _, f := range list {
		switch f.Severity {
		case Error:
			c.Error++
		case Warning:
			c.Warning++
		default:
			c.Info++
		}
	}
	return c
}

// Reaches tells whether a finding is as grave as a severity or graver; nothing is as grave as "never".
func (f Finding) Reaches(s Severity) bool {
	limit := slices.Index(Severities, s)
	return limit >= 0 && slices.Index(Severities, f.Severity) <= limit
}

func sortFindings(list []Finding) {
	order := func(id string) int { return slices.IndexFunc(Checks, func(c Check) bool { return c.ID == id }) }
	slices.SortStableFunc(list, func(a, b Finding) int {
		return cmp.Or(
			cmp.Compare(a.Object.Kind, b.Object.Kind), cmp.Compare(a.Object.Namespace, b.Object.Namespace), cmp.Compare(a.Object.Name, b.Object.Name),
			cmp.Compare(slices.Index(Severities, a.Severity), slices.Index(Severities, b.Severity)), cmp.Compare(order(a.Check), order(b.Check)), cmp.Compare(a.Field, b.Field))
	})
}

// WriteFindings writes findings for people, object by object.
func WriteFindings(w io.Writer, list []Finding) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	var last Object
	for i, f := range list {
		if i == 0 || f.Object != last {
			last = f.Object
			at := ""
			if f.File != "" {
				at = fmt.Sprintf("  (%s:%d)", f.File, f.Line)
			}
			if i > 0 {
				fmt.Fprintln(t)
			}
			fmt.Fprintf(t, "%s %s%s\n", f.Object.Kind, f.Object, at)
		}
		said := f.Message
		if f.Field != "" {
			said = f.Field + ": " + said
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\n", f.Severity, f.Check, said)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	c := CountFindings(list)
	if len(list) > 0 {
		fmt.Fprintln(w)
		var said []string
		for _, one := range Checks {
			if slices.ContainsFunc(list, func(f Finding) bool { return f.Check == one.ID }) {
				said = append(said, one.ID+"\t"+one.Hint)
			}
		}
		fmt.Fprintln(w, "What to do:")
		fmt.Fprintf(t, "  %s\n", strings.Join(said, "\n  "))
		if err := t.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	_, err := fmt.Fprintf(w, "%s: %s, %s, %d worth knowing\n", count(len(list), "finding"), count(c.Error, "error"), count(c.Warning, "warning"), c.Info)
	return err
}
