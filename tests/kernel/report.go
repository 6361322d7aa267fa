package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// result is what became of one kernel.
type result struct {
	Series   string         `json:"series"`
	Missing  string         `json:"missing,omitempty"` // why there is no such kernel
	Kernel   string         `json:"kernel,omitempty"`
	Seconds  float64        `json:"seconds,omitempty"` // of all its machines together
	Passed   []string       `json:"passed,omitempty"`  // suite/test
	Failed   []string       `json:"failed,omitempty"`
	Skipped  []string       `json:"skipped,omitempty"`
	Problems []string       `json:"problems,omitempty"` // other than failed tests
	Verifier map[string]int `json:"verifier,omitempty"`
	Costs    map[string]int `json:"costs,omitempty"` // nil if costTest did not run
	Logs     []string       `json:"logs,omitempty"`  // of its machines

	told map[string]string // what failed and skipped tests printed
}

func (r *result) ok() bool {
	return r.Missing == "" && len(r.Failed) == 0 && len(r.Problems) == 0 && len(r.Passed) > 0
}

// add takes what came of one more machine with the same kernel.
func (r *result) add(one *result) {
	r.Kernel = cmp.Or(r.Kernel, one.Kernel)
	r.Seconds += one.Seconds
	r.Passed = append(r.Passed, one.Passed...)
	r.Failed = append(r.Failed, one.Failed...)
	r.Skipped = append(r.Skipped, one.Skipped...)
	r.Problems = append(r.Problems, one.Problems...)
	r.Logs = append(r.Logs, one.Logs...)
	if one.Verifier != nil {
		r.Verifier = one.Verifier
	}
	if one.Costs != nil {
		r.Costs = one.Costs
	}
	if r.told == nil {
		r.told = map[string]string{}
	}
	maps.Copy(r.told, one.told)
}

// outcome is a line.
func (r *result) outcome() string {
	return fmt.Sprintf("%s, %.0f s: %d passed, %d failed, %d skipped, %d other problems", r.Kernel, r.Seconds, len(r.Passed), len(r.Failed), len(r.Skipped),
		len(r.Problems))
}

// judge sorts the tests of a suite by what they printed.
func (r *result) judge(o *output) error {
	c := exec.Command("go", "tool", "test2json")
	c.Stdin, c.Stderr = &o.text, os.Stderr
	events, err := c.Output()
	if err != nil {
		return fmt.Errorf("test2json: %w", err)
	}
	if r.told == nil {
		r.told = map[string]string{}
	}
	open := map[string]bool{}
	failures, printed := len(r.Failed), ""
	for line := range bytes.Lines(events) {
		var e struct{ Action, Test, Output string }
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("test2json: %w", err)
		}
		if e.Test == "" {
			printed += e.Output
			continue
		}
		name := o.suite + "/" + e.Test
		switch e.Action {
		case "run":
			open[name] = true
		case "output":
			if !strings.HasPrefix(e.Output, "=== ") {
				r.told[name] += e.Output
			}
		case "pass":
			r.Passed = append(r.Passed, name)
		case "fail":
			r.Failed = append(r.Failed, name)
		case "skip":
			r.Skipped = append(r.Skipped, name)
		}
		if e.Action == "pass" || e.Action == "fail" || e.Action == "skip" {
			delete(open, name)
		}
	}
	if slices.Contains(r.Passed, costTest) {
		r.Costs = costs(r.told[costTest])
	}
	for name := range open {
		r.Failed = append(r.Failed, name)
		r.told[name] += "(it did not end)\n"
	}
	if o.exit == nil {
		r.Problems = append(r.Problems, o.suite+": the suite did not end")
	} else if *o.exit != 0 && len(r.Failed) == failures {
		r.Problems = append(r.Problems, fmt.Sprintf("%s: exit code %d: %s", o.suite, *o.exit, tail([]byte(printed), 20)))
	}
	return nil
}

func (r *result) print(w io.Writer) {
	for _, list := range []struct {
		verdict string
		names   []string
	}{{"SKIP", r.Skipped}, {"FAIL", r.Failed}} {
		for _, name := range slices.Sorted(slices.Values(list.names)) {
			fmt.Fprintf(w, "  %s %s\n%s", list.verdict, name, indent(r.told[name]))
		}
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "  FAIL\n%s", indent(p))
	}
}

func indent(text string) string {
	text = strings.TrimSpace(text)
	if text == "" {
		return ""
	}
	return "    " + strings.ReplaceAll(text, "\n", "\n    ") + "\n"
}

// summary has a line per kernel, and is an error unless all is well.
func summary(w io.Writer, results []*result, allowMissing bool) error {
	tested, failed := 0, 0
	for _, r := range results {
		if r.Missing != "" {
			fmt.Fprintf(w, "SKIP %-5s not tested: %s\n", r.Series, r.Missing)
			if !allowMissing {
				failed++
			}
			continue
		}
		tested++
		verdict, more := "ok  ", ""
		if !r.ok() {
			failed++
			verdict, more = "FAIL", ", see "+filepath.Join(work, r.Series+"-*.log")
		}
		fmt.Fprintf(w, "%s %-5s %s%s\n", verdict, r.Series, r.outcome(), more)
	}
	switch {
	case failed > 0:
		return fmt.Errorf("%d of %d kernels failed or were not tested", failed, len(results))
	case tested == 0:
		fmt.Fprintln(w, "SKIPPED: NO OTHER KERNEL WAS TESTED")
	}
	return nil
}

// costTest tells the time that each program takes for a packet. A machine's clock counts its instructions, so here it is their number.
const costTest = "bpf/TestProgramCosts"

var costLine = regexp.MustCompile(`cost of TestProgramCosts/(\S+): (\w+): (\d+) ns`)

// costs reads what costTest printed: instructions by what is done and the program that does it.
func costs(printed string) map[string]int {
	out := map[string]int{}
	for _, line := range costLine.FindAllStringSubmatch(printed, -1) {
		n, err := strconv.Atoi(line[3])
		if err == nil {
			out[strings.ReplaceAll(line[1], "_", " ")+" ("+line[2]+")"] = n
		}
	}
	return out
}

// table holds numbers of instructions by series of kernels and what they were counted for.
type table map[string]map[string]int

// The tables are checked in: what the verifier walks through for each program, and what each packet costs.
const verifierTable, costTable = "tests/kernel/verifier.json", "tests/kernel/costs.json"

func readTable(path string) (table, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return table{}, nil
	}
	if err != nil {
		return nil, err
	}
	t := table{}
	if err := json.Unmarshal(data, &t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// growth is how much more, in percent, there may be before somebody has to say that it is meant.
const growth = 10

// compare tells what in the counts the table of that name does not allow.
func compare(path string, want, got map[string]int) (problems []string) {
	const cure = "; if that is meant, run it with -update"
	names := map[string]bool{}
	for _, m := range []map[string]int{want, got} {
		for name := range m {
			names[name] = true
		}
	}
	if len(got) == 0 {
		return []string{"nothing was counted for " + path}
	}
	for name := range names {
		n, counted := got[name]
		limit, known := want[name]
		switch {
		case !known:
			problems = append(problems, fmt.Sprintf("%s is not in %s: %d instructions%s", name, path, n, cure))
		case !counted:
			problems = append(problems, fmt.Sprintf("%s is in %s, but was not counted%s", name, path, cure))
		case n*100 > limit*(100+growth):
			problems = append(problems, fmt.Sprintf("%s: %d instructions, %d are in %s%s", name, n, limit, path, cure))
		}
	}
	slices.Sort(problems)
	return problems
}
