// Command bench measures a whole cluster that it brings up in a lab of its own (tests/lab), and takes down again; or the
// node network alone (tests/podnet), Services, network policies, or the API server alone. `make bench` and its like run it; docs/benchmarks.md tells what each row means.
//
// Its one idea: what is compared with a rival is measured in turns with it, in the same pods, so that the ratio holds
// on a noisy machine. No figure is asserted: a row says whether its target is met.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/podnet"
)

func main() {
	podnet.Main()
	work()
	runAgent()
	runEtcd()
	runRelay()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.strake, "strake", "bin/strake", "the binary to measure")
	flag.StringVar(&o.load, "load", "bin/bench-load", "the binary of tests/bench/load")
	flag.StringVar(&o.json, "json", "", "write the results to this file as JSON as well")
	flag.StringVar(&o.format, "o", "table", "what to print: table or json")
	flag.StringVar(&o.only, "only", "", "measure only these: "+strings.Join(names(clusterParts), ",")+"; with -podnet "+strings.Join(names(podnetParts), ",")+"; with -services "+strings.Join(names(servicesParts), ",")+"; with -netpol "+strings.Join(names(netpolParts), ",")+"; with -api "+strings.Join(names(apiParts), ",")+" (a comma between)")
	flag.BoolVar(&o.podnet, "podnet", false, "measure the node network alone, without a cluster")
	flag.StringVar(&o.svg, "svg", "", "with -services: draw what was measured into this file")
	flag.StringVar(&o.bpfTests, "bpf-tests", "bin/bpf.test", "the tests of ./bpf, for the programs' costs")
	flag.BoolVar(&o.services, "services", false, "measure Services at growing numbers of them, against kube-proxy's rulesets")
	flag.BoolVar(&o.netpol, "netpol", false, "measure network policies at growing numbers of them, against rules of nftables")
	flag.BoolVar(&o.api, "api", false, "measure the API server alone, beside an etcd alone")
	flag.Float64Var(&o.effort, "effort", 1, "how much to measure: 0.2 is a quick look")
	flag.BoolFunc("quick", "the same as -effort 0.3", func(string) error { o.effort = 0.3; return nil })
	flag.Parse()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	strake, load, json, format, only string
	svg, bpfTests                    string
	effort                           float64
	podnet, services, netpol, api    bool
}

// times scales a number of repetitions.
func (o options) times(n int) int { return max(3, int(o.effort*float64(n))) }

// bench is one run.
type bench struct {
	options
	cluster *lab.Cluster
	client  kubernetes.Interface
	report  *Report
	charts  []*chart
	plane   *plane
}

// part is a measurement.
type part struct {
	name string
	run  func(*bench, context.Context) error
}

// clusterParts are taken in this order: the cluster is idle before it is loaded.
var clusterParts = []part{
	{"start", (*bench).coldStart},
	{"idle", (*bench).idle},
	{"pods", (*bench).podStart},
	{"services", (*bench).services},
	{"dns", (*bench).dns},
	{"join", (*bench).nodeJoin},
}

// parts are those to choose from.
func (o options) parts() []part {
	switch {
	case o.services:
		return servicesParts
	case o.netpol:
		return netpolParts
	case o.api:
		return apiParts
	case o.podnet:
		return podnetParts
	}
	return clusterParts
}

func names(parts []part) []string {
	var all []string
	for _, p := range parts {
		all = append(all, p.name)
	}
	return all
}

func run(ctx context.Context, o options) error {
	all := names(o.parts())
	chosen := all
	if o.only != "" {
		chosen = strings.Split(o.only, ",")
	}
	for _, name := range chosen {
		if !slices.Contains(all, name) {
			return fmt.Errorf("-only %s: there is %s", name, strings.Join(all, ", "))
		}
	}
	if o.format != "table" && o.format != "json" {
		return fmt.Errorf("-o %s: there is table and json", o.format)
	}
	dir, err := os.MkdirTemp("", "strake-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{options: o}
	if b.report, err = newReport(o.strake); err != nil {
		return err
	}
	if o.api {
		if b.plane, err = newPlane(dir, o.strake); err != nil {
			return err
		}
		defer func() {
			if err := b.plane.close(); err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
			}
		}()
	} else if !o.podnet && !o.services && !o.netpol {
		if b.cluster, err = lab.New("strake-bench", filepath.Join(dir, "data"), o.strake); err != nil {
			return err
		}
		// Also when interrupted: a signal ends ctx, and what is measured returns.
		defer func() {
			if err := b.cluster.Close(); err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
			}
		}()
	}
	// What was measured before a part failed, or somebody ended it, is told too.
	errs := []error{b.measure(ctx, chosen)}
	if o.json != "" {
		errs = append(errs, b.report.save(o.json))
	}
	if o.svg != "" && len(b.charts) > 0 {
		errs = append(errs, b.saveCharts(o.svg))
	}
	return errors.Join(append(errs, b.report.print(os.Stdout, o.format))...)
}

func (b *bench) measure(ctx context.Context, chosen []string) error {
	if b.cluster != nil && !slices.Contains(chosen, "start") {
		if _, err := b.up(ctx); err != nil {
			return err
		}
	}
	if b.plane != nil && !slices.Contains(chosen, "start") {
		if _, err := b.plane.start(ctx); err != nil {
			return err
		}
	}
	for _, p := range b.parts() {
		if !slices.Contains(chosen, p.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s measuring: %s\n", time.Now().Format(time.TimeOnly), p.name)
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}
