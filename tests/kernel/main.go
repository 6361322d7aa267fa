package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// All that the run makes is below this folder: packages, binaries, initramfs, logs. Remove it to fetch newer kernels.
const work = "bin/kernels"

// modules are those that the node network and its tests need, and most distributions build as such.
var modules = []string{"veth", "vxlan", "bridge", "dummy", "macvlan", "cls_bpf", "sch_ingress", "sch_tbf", "sch_fq", "overlay", "sctp", "ip_vs", "ip_vs_rr", "tcp_diag", "udp_diag"}

// suite is a package whose tests need nothing but a kernel, root and busybox.
type suite struct {
	folder string
	parts  int    // machines that share its tests
	skip   string // tests that can't run there, or take long and meet no kernel
	binary string
	args   []string
}

// suiteTimeout is in the guest's time, which goes on only as the guest works: the suite itself can tell where it hangs.
const suiteTimeout = "25m"

var suites = []suite{
	{folder: "bpf", parts: 2}, // each loads anew what its tests share
	{folder: "tests/podnet", parts: 2},
	{folder: "dns", parts: 1, skip: "^TestNamesFollowTheAPI$"}, // Go against a model in Go
	{folder: "cni", parts: 1, skip: "^(TestStormOfProcesses|TestTwoHundredPodsAtOnce|TestOthersFollowInAChain|TestWrittenConfigIsServed|TestPluginKilledInTheMiddle|TestRubbish|TestAgentAway)$"}, // they build the plugin
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "test-kernels:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	series := flag.String("kernels", "5.10,6.1,6.12", "series of kernels, as Debian 11, Debian 12 and its backports have them")
	pattern := flag.String("run", "", "only tests that match, as in go test -run")
	folders := flag.String("suites", "", "only the tests of these folders, such as bpf,tests/podnet")
	timeout := flag.Duration("timeout", 40*time.Minute, "for one machine")
	atOnce := flag.Int("machines", runtime.NumCPU(), "so many machines at a time, each of one processor and 1.5 GiB")
	update := flag.Bool("update", false, "write "+verifierTable+" anew, and "+costTable+" if its test is run")
	allowMissing := flag.Bool("allow-missing", false, "a kernel that can't be had is told, and no failure")
	flag.Parse()
	if err := os.MkdirAll(filepath.Join(work, "build"), 0o755); err != nil {
		return err
	}
	verified, err := readTable(verifierTable)
	if err != nil {
		return err
	}
	spent, err := readTable(costTable)
	if err != nil {
		return err
	}
	if suites, err = chosen(suites, *folders); err != nil {
		return err
	}
	if suites, err = matching(suites, *pattern); err != nil {
		return err
	}
	guest, err := build(ctx, *pattern)
	if err != nil {
		return err
	}
	objects, err := filepath.Glob("bpf/*_x86_bpfel.o")
	if err != nil {
		return err
	}
	var results []*result
	var kernels []kernel
	bySeries := map[string]*result{}
	source := &apt{dir: filepath.Join(work, "apt")}
	for _, series := range strings.Split(*series, ",") {
		r := &result{Series: series}
		results, bySeries[series] = append(results, r), r
		k, err := source.fetch(series, work)
		if err != nil {
			r.Missing = err.Error()
			fmt.Printf("SKIP %s: %s\n", series, r.Missing)
			continue
		}
		kernels = append(kernels, k)
	}
	if err := runAll(ctx, os.Stdout, plan(kernels, suites, bySeries), *atOnce, *timeout, guest, objects); err != nil {
		return err
	}
	for _, r := range results {
		if r.Missing != "" {
			continue
		}
		if *update && len(r.Verifier) > 0 {
			verified[r.Series] = r.Verifier
		}
		r.Problems = append(r.Problems, compare(verifierTable, verified[r.Series], r.Verifier)...)
		if *update && len(r.Costs) > 0 {
			spent[r.Series] = r.Costs
		}
		if r.Costs != nil {
			r.Problems = append(r.Problems, compare(costTable, spent[r.Series], r.Costs)...)
		}
		r.print(os.Stdout)
	}
	if *update {
		if err := errors.Join(writeJSON(verifierTable, verified), writeJSON(costTable, spent)); err != nil {
			return err
		}
	}
	if err := writeJSON(filepath.Join(work, "report.json"), results); err != nil {
		return err
	}
	return summary(os.Stdout, results, *allowMissing)
}

// chosen are the suites of the folders named; all, if none is.
func chosen(all []suite, folders string) ([]suite, error) {
	if folders == "" {
		return all, nil
	}
	var out []suite
	for folder := range strings.SplitSeq(folders, ",") {
		i := slices.IndexFunc(all, func(s suite) bool { return s.folder == folder })
		if i < 0 {
			return nil, fmt.Errorf("-suites: %q has no tests for other kernels", folder)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// declared is a test in a source.
var declared = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)

// matching are the suites that have a test of the pattern, by the sources in their folders: the others need neither be built nor have a machine.
func matching(all []suite, pattern string) ([]suite, error) {
	var out []suite
	for _, s := range all {
		files, err := filepath.Glob(filepath.Join(s.folder, "*_test.go"))
		if err != nil {
			return nil, err
		}
		found := false
		for _, f := range files {
			source, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			for _, name := range declared.FindAllSubmatch(source, -1) {
				for one := range strings.SplitSeq(pattern, "|") {
					top, _, _ := strings.Cut(one, "/")
					re, err := regexp.Compile(top)
					found = found || err != nil || re.Match(name[1]) // one that is no pattern by itself is for go test to judge
				}
			}
		}
		if found {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("-run %q: no suite has such a test", pattern)
	}
	return out, nil
}

// build makes the binaries that go into every guest.
func build(ctx context.Context, pattern string) (guest string, err error) {
	compile := func(args ...string) error {
		c := exec.CommandContext(ctx, "go", args...)
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	guest = filepath.Join(work, "build", "guest")
	if err := compile("build", "-ldflags", "-s -w", "-o", guest, "./tests/kernel/guest"); err != nil {
		return "", err
	}
	for i := range suites {
		s := &suites[i]
		s.binary = filepath.Join(work, "build", strings.ReplaceAll(s.folder, "/", "-")+".test")
		s.args = []string{"-test.v=test2json", "-test.skip=" + s.skip, "-test.timeout=" + suiteTimeout}
		if pattern != "" {
			s.args, s.parts = append(s.args, "-test.run="+pattern), 1
		}
		if err := compile("test", "-c", "-ldflags", "-s -w", "-o", s.binary, "./"+s.folder); err != nil {
			return "", err
		}
	}
	return guest, nil
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
