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
	"slices"
	"strings"
	"time"
)

// All that the run makes is below this folder: packages, binaries, initramfs, logs. Remove it to fetch newer kernels.
const work = "bin/kernels"

// verifierTable is checked in.
const verifierTable = "tests/kernel/verifier.json"

// modules are those that the node network and its tests need, and most distributions build as such.
var modules = []string{"veth", "vxlan", "bridge", "dummy", "cls_bpf", "sch_ingress", "sch_tbf", "sch_fq", "overlay", "sctp", "ip_vs", "ip_vs_rr"}

// suite is a package whose tests need nothing but a kernel, root and busybox.
type suite struct {
	folder string
	skip   string // tests that can't run there, or take long and meet no kernel
	binary string
	args   []string
}

// suiteTimeout is below that of a kernel: the suite itself can tell where it hangs.
const suiteTimeout = "25m"

var suites = []suite{
	{folder: "bpf"},
	{folder: "tests/podnet"},
	{folder: "dns", skip: "^TestNamesFollowTheAPI$"}, // Go against a model in Go
	{folder: "cni", skip: "^(TestStormOfProcesses|TestTwoHundredPodsAtOnce|TestOthersFollowInAChain|TestWrittenConfigIsServed|TestPluginKilledInTheMiddle|TestRubbish|TestAgentAway)$"}, // they build the plugin
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
	timeout := flag.Duration("timeout", 40*time.Minute, "for one kernel")
	update := flag.Bool("update", false, "write "+verifierTable+" anew")
	allowMissing := flag.Bool("allow-missing", false, "a kernel that can't be had is told, and no failure")
	flag.Parse()
	if err := os.MkdirAll(filepath.Join(work, "build"), 0o755); err != nil {
		return err
	}
	table, err := readTable(verifierTable)
	if err != nil {
		return err
	}
	if suites, err = chosen(suites, *folders); err != nil {
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
	source := &apt{dir: filepath.Join(work, "apt")}
	for _, s := range strings.Split(*series, ",") {
		r := &result{Series: s}
		results = append(results, r)
		k, err := source.fetch(s, work)
		if err != nil {
			r.Missing = err.Error()
			fmt.Printf("SKIP %s: %s\n", s, r.Missing)
			continue
		}
		initramfs := filepath.Join(work, "build", s+".img")
		if err := pack(initramfs, guest, k, objects); err != nil {
			return err
		}
		fmt.Printf("kernel %s\n", k.release)
		bounded, cancel := context.WithTimeoutCause(ctx, *timeout, fmt.Errorf("not done after %v", *timeout))
		r.boot(bounded, k, initramfs, filepath.Join(work, s+".log"))
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if *update && len(r.Verifier) > 0 {
			table[s] = r.Verifier
		}
		r.Problems = append(r.Problems, compare(table[s], r.Verifier)...)
		r.print(os.Stdout)
	}
	if *update {
		if err := writeJSON(verifierTable, table); err != nil {
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
		s.args = []string{"-test.v=test2json", "-test.run=" + pattern, "-test.skip=" + s.skip, "-test.timeout=" + suiteTimeout}
		if err := compile("test", "-c", "-ldflags", "-s -w", "-o", s.binary, "./"+s.folder); err != nil {
			return "", err
		}
	}
	return guest, nil
}

func pack(path, guest string, k kernel, objects []string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(writeInitramfs(f, guest, k, modules, objects, suites), f.Close()); err != nil {
		return fmt.Errorf("initramfs of %s: %w", k.release, err)
	}
	return nil
}

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
