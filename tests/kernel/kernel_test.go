package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/strake-io/strake/tests/kernel/console"
)

func TestNewestKernel(t *testing.T) {
	names := []string{
		"linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-10-cloud-amd64", "linux-image-6.1.0-11-cloud-amd64-unsigned", "linux-image-6.1.0-11-cloud-amd64-dbg",
		"linux-image-6.1.0-11-amd64", "linux-image-6.1.0-11-rt-amd64", "linux-image-6.1.0-0.deb11.52-cloud-amd64",
		"linux-image-6.12.9+deb12-cloud-amd64", "linux-image-6.12.90+deb12-cloud-amd64", "linux-image-6.12.90+deb12.1-cloud-amd64", "linux-image-6.12.100+deb12-cloud-arm64",
	}
	for series, want := range map[string]string{
		"6.1": "linux-image-6.1.0-10-cloud-amd64", "6.12": "linux-image-6.12.90+deb12.1-cloud-amd64", "5.10": "",
	} {
		if got := newest(series, names); got != want {
			t.Errorf("%s: %q, want %q", series, got, want)
		}
	}
}

func TestChosenSuites(t *testing.T) {
	all := []suite{{folder: "a"}, {folder: "b"}, {folder: "c"}}
	for folders, want := range map[string]string{"": "abc", "b": "b", "c,a": "ca", "b,d": ""} {
		list, err := chosen(all, folders)
		got := ""
		for _, s := range list {
			got += s.folder
		}
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q (%v), want %q", folders, got, err, want)
		}
	}
}

// Every part of every suite has a machine on every kernel, and one machine of each kernel counts.
func TestPlan(t *testing.T) {
	results := map[string]*result{"5.10": {}, "6.1": {}}
	machines := plan([]kernel{{series: "5.10"}, {series: "6.1"}}, []suite{{folder: "a/b", parts: 1}, {folder: "c", parts: 2}}, results)
	var names, counting []string
	for _, m := range machines {
		names = append(names, m.name())
		if m.objects {
			counting = append(counting, m.name())
		}
		if m.result == nil || m.result != results[m.series] {
			t.Errorf("%s: its outcome is another kernel's", m.name())
		}
	}
	if want := []string{"5.10-c-1", "5.10-c-2", "6.1-c-1", "6.1-c-2", "5.10-a-b", "6.1-a-b"}; !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
	}
	if want := []string{"5.10-a-b", "6.1-a-b"}; !slices.Equal(counting, want) {
		t.Errorf("%q count, want %q", counting, want)
	}
}

// What came of a kernel's machines is one result, and one machine's failure is the kernel's.
func TestResultsAreAddedUp(t *testing.T) {
	var r result
	r.add(&result{Kernel: "5.10.0-1", Seconds: 2, Passed: []string{"a/A"}, Verifier: map[string]int{"p": 1}, Logs: []string{"x"}, told: map[string]string{"a/A": "fine"}})
	if !r.ok() {
		t.Errorf("%+v", r)
	}
	r.add(&result{Kernel: "5.10.0-1", Seconds: 3, Passed: []string{"b/B"}, Failed: []string{"b/C"}, Skipped: []string{"b/D"}, Logs: []string{"y"}, told: map[string]string{"b/C": "bad"}})
	if got, want := r.outcome(), "5.10.0-1, 5 s: 2 passed, 1 failed, 1 skipped, 0 other problems"; got != want || r.ok() {
		t.Errorf("%q, want %q; ok is %v", got, want, r.ok())
	}
	if r.Verifier["p"] != 1 || r.told["a/A"] != "fine" || r.told["b/C"] != "bad" || len(r.Logs) != 2 {
		t.Errorf("%+v", r)
	}
	if r.add(&result{Problems: []string{"x"}}); len(r.Problems) != 1 {
		t.Errorf("%q", r.Problems)
	}
}

// Only suites that have such a test get a machine.
func TestMatchingSuites(t *testing.T) {
	var all []suite
	for name, source := range map[string]string{"a": "func TestOne(t *testing.T) {\n}\n\nfunc TestTwo(t", "b": "func TestTwo(t *testing.T) {}\n", "c": "func helperTestOne() {}\n"} {
		dir := filepath.Join(t.TempDir(), name)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "x_test.go"), []byte(source), 0o644)); err != nil {
			t.Fatal(err)
		}
		all = append(all, suite{folder: dir})
	}
	slices.SortFunc(all, func(a, b suite) int { return strings.Compare(filepath.Base(a.folder), filepath.Base(b.folder)) })
	for pattern, want := range map[string]string{"": "ab", "One": "a", "^TestTwo$": "ab", "TestNone|TestOne/some_part": "a", "TestTwo/x|TestOne": "ab", "(TestNone|TestOne)": "ab", "TestNone": ""} {
		list, err := matching(all, pattern)
		got := ""
		for _, s := range list {
			got += filepath.Base(s.folder)
		}
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q (%v), want %q", pattern, got, err, want)
		}
	}
}

func TestSources(t *testing.T) {
	got := sources("Other http://other.example/x/\nDebian http://mirror.example/debian/\nDebian http://mirror.example/debian/\nDebian-Security http://sec.example/s/\n")
	for _, want := range []string{"deb http://mirror.example/debian/ bullseye main\n", "deb http://mirror.example/debian/ bookworm-backports main\n", "deb http://sec.example/s/ bookworm-security main\n"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("%q is not there once:\n%s", want, got)
		}
	}
	if strings.Contains(got, "other") || sources("Other http://other.example/x/\n") != "" {
		t.Errorf("another's archive is among them:\n%s", got)
	}
}

func TestModulesComeAfterWhatTheyDependOn(t *testing.T) {
	depends := map[string][]string{"vxlan": {"udp_tunnel", "ip6_udp_tunnel"}, "ip6_udp_tunnel": {"udp_tunnel"}, "udp_tunnel": nil, "veth": nil}
	list, err := ordered([]string{"veth", "vxlan", "builtin", "veth"}, func(name string) (*module, []string, error) {
		if name == "builtin" {
			return nil, nil, nil
		}
		d, ok := depends[name]
		if !ok {
			return nil, nil, errors.New("no " + name)
		}
		return &module{name: name}, d, nil
	})
	var names []string
	for _, m := range list {
		names = append(names, m.name)
	}
	if want := []string{"veth", "udp_tunnel", "ip6_udp_tunnel", "vxlan"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("%v (%v), want %v", names, err, want)
	}
}

// Others can read the archive.
func TestArchive(t *testing.T) {
	var b bytes.Buffer
	a := &archive{w: bufio.NewWriter(&b)}
	want := map[string]string{"d/a": "", "d/bb": "1", "d/ccc": "four", "init": strings.Repeat("x", 70001)}
	a.dir("d")
	for name, text := range want {
		a.file(name, []byte(text))
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := exec.Command("busybox", "cpio", "-i")
	c.Dir, c.Stdin = dir, &b
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		st, _ := os.Stat(filepath.Join(dir, name))
		if err != nil || string(got) != text || st.Mode() != 0o755 {
			t.Errorf("%s: %d bytes, %v, %v", name, len(got), st, err)
		}
	}
}

// A guest's words become a verdict.
func TestVerdict(t *testing.T) {
	const m = "\x16"
	code := func(n int) *int { return &n }
	for name, c := range map[string]struct {
		lines                   []string
		exit                    *int
		passed, failed, skipped []string
		problem                 string
	}{
		"all well": {
			lines:  []string{m + "=== RUN   TestA", m + "=== RUN   TestA/x", "noise", m + "--- PASS: TestA/x (0.00s)", m + "--- PASS: TestA (0.10s)", m + "=== RUN   TestB", m + "--- SKIP: TestB (0.00s)", m + "PASS"},
			exit:   code(0),
			passed: []string{"bpf/TestA/x", "bpf/TestA"}, skipped: []string{"bpf/TestB"},
		},
		"a failure": {
			lines: []string{m + "=== RUN   TestA", "    a_test.go:1: broken", m + "--- FAIL: TestA (0.10s)", m + "FAIL"}, exit: code(1), failed: []string{"bpf/TestA"},
		},
		"a test lies in its output": {
			lines: []string{m + "=== RUN   TestA", "--- PASS: TestA (0.00s)", m + "--- FAIL: TestA (0.10s)", m + "FAIL"}, exit: code(1), failed: []string{"bpf/TestA"},
		},
		"the machine ends": {
			lines: []string{m + "=== RUN   TestA", m + "--- PASS: TestA (0.00s)", m + "=== RUN   TestB"}, passed: []string{"bpf/TestA"}, failed: []string{"bpf/TestB"}, problem: "did not end",
		},
		"a panic": {
			lines: []string{m + "=== RUN   TestA", "panic: no", "goroutine 1 [running]:"}, exit: code(2), failed: []string{"bpf/TestA"},
		},
		"not even a test": {lines: []string{"tests need root"}, exit: code(1), problem: "tests need root"},
	} {
		var said, log bytes.Buffer
		say := json.NewEncoder(&said)
		for _, l := range c.lines {
			say.Encode(console.Event{Suite: "bpf", Line: l})
		}
		if c.exit != nil {
			say.Encode(console.Event{Suite: "bpf", Exit: c.exit})
			say.Encode(console.Event{Done: true})
		}
		var r result
		outputs, done := r.listen(&said, &log)
		if len(outputs) != 1 || done != (c.exit != nil) {
			t.Fatalf("%s: %d suites, done %v", name, len(outputs), done)
		}
		if err := r.judge(outputs[0]); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(r.Passed, c.passed) || !slices.Equal(r.Failed, c.failed) || !slices.Equal(r.Skipped, c.skipped) {
			t.Errorf("%s: passed %q, failed %q, skipped %q", name, r.Passed, r.Failed, r.Skipped)
		}
		if got := strings.Join(r.Problems, "\n"); (got == "") != (c.problem == "") || !strings.Contains(got, c.problem) {
			t.Errorf("%s: %q, want %q", name, got, c.problem)
		}
		if r.ok() != (name == "all well") {
			t.Errorf("%s: ok is %v", name, r.ok())
		}
	}
}

func TestSummaryFails(t *testing.T) {
	good := &result{Series: "6.1", Passed: []string{"a/TestA"}}
	bad := &result{Series: "6.1", Passed: []string{"a/TestA"}, Failed: []string{"a/TestB"}}
	missing := &result{Series: "5.10", Missing: "no mirror"}
	for name, c := range map[string]struct {
		results      []*result
		allowMissing bool
		fails        bool
	}{
		"good":                    {[]*result{good}, false, false},
		"bad":                     {[]*result{good, bad}, true, true},
		"nothing passed":          {[]*result{{Series: "6.1"}}, false, true},
		"missing":                 {[]*result{good, missing}, false, true},
		"missing, which may be":   {[]*result{good, missing}, true, false},
		"all missing, the same":   {[]*result{missing}, true, false},
		"a problem, but no tests": {[]*result{{Series: "6.1", Passed: good.Passed, Problems: []string{"x"}}}, false, true},
	} {
		if err := summary(io.Discard, c.results, c.allowMissing); (err != nil) != c.fails {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a test printed becomes a table, and only that of the test that takes costs.
func TestCosts(t *testing.T) {
	const m = "\x16"
	text := m + "=== RUN   TestProgramCosts\n    cost_test.go:7: cost of TestProgramCosts/IPv4,_a_known_flow: strake_pod: 4366 ns\n    cost_test.go:8: more\n" +
		"    cost_test.go:7: cost of TestProgramCosts/IPv6,_first_packets: strake_uplink: 81 ns\n" + m + "--- PASS: TestProgramCosts (4.36s)\n" + m + "PASS\n"
	for suite, want := range map[string]map[string]int{"bpf": {"IPv4, a known flow (strake_pod)": 4366, "IPv6, first packets (strake_uplink)": 81}, "dns": nil} {
		o := &output{suite: suite, exit: new(int)}
		o.text.WriteString(text)
		var one, r result
		if err := one.judge(o); err != nil {
			t.Fatal(err)
		}
		r.add(&one)
		r.add(&result{})
		if !maps.Equal(r.Costs, want) || (r.Costs == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", suite, r.Costs, want)
		}
	}
}

func TestCompareWithTable(t *testing.T) {
	table := map[string]int{"a": 1000, "b": 50}
	for name, c := range map[string]struct {
		got  map[string]int
		want []string // begins of the problems
	}{
		"the same":     {map[string]int{"a": 1000, "b": 50}, nil},
		"less":         {map[string]int{"a": 10, "b": 5}, nil},
		"a tenth more": {map[string]int{"a": 1100, "b": 55}, nil},
		"more":         {map[string]int{"a": 1101, "b": 56}, []string{"a: 1101 instructions, 1000 are in t.json", "b: "}},
		"a new one":    {map[string]int{"a": 1, "b": 1, "c": 1}, []string{"c is not in "}},
		"one is gone":  {map[string]int{"a": 1}, []string{"b is in "}},
		"nothing":      {nil, []string{"nothing was counted"}},
	} {
		got := compare("t.json", table, c.got)
		if !slices.EqualFunc(got, c.want, strings.HasPrefix) {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestKernelComplains(t *testing.T) {
	calm := "[    0.6] mtrr: your CPUs had inconsistent settings\n[   87.0] hrtimer: interrupt took 1 ns\n"
	if got := trouble([]byte(calm)); got != "" {
		t.Errorf("nothing is wrong, but %q", got)
	}
	for _, line := range []string{
		"[    5.0] WARNING: CPU: 1 PID: 3 at net/core/skbuff.c:5 f+0x1/0x2", "[    5.0] BUG: kernel NULL pointer dereference, address: 0", "[    5.0] Oops: 0000 [#1] SMP",
		"[    5.0] Kernel panic - not syncing: Attempted to kill init!", "panic: runtime error: index out of range",
	} {
		if got := trouble([]byte(calm + line + "\n[    5.1] Call Trace:\n")); got != line+"\n[    5.1] Call Trace:" {
			t.Errorf("%q: %q", line, got)
		}
	}
}
