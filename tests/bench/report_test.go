package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/tests/bench/turns"
)

func TestReport(t *testing.T) {
	r := Report{Version: "v1", Kernel: "6.1", CPUs: 2, CPU: "some"}
	r.figure("a figure", 12.34, "s")
	r.aim("reached", 7.9, "s", atMost, 8)
	r.aim("missed", 8.1, "s", atMost, 8)
	c := turns.Result{A: turns.Side{Rate: 970, Median: 1, P95: 3}, B: turns.Side{Rate: 1000, Median: 2, P95: 4}, Ratio: 0.97, Low: 0.9, High: 1.1}
	r.rates("as good", c, "1/s", 1, 0.97)
	c.Ratio = 0.96
	r.rates("worse", c, "Mbit/s", 2, 0.97)
	r.latencies("told", c)
	var b strings.Builder
	if err := r.print(&b, "table"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a figure 12.3 s", "reached 7.90 s <= 8 yes", "missed 8.10 s <= 8 NO", "as good 970 1/s 1000 0.970 (0.90-1.10) >= 0.97x yes",
		"worse 1940 Mbit/s 2000 0.960 (0.90-1.10) >= 0.97x NO", "told, median 1.00 µs 2.00 0.500", "told, p95 3.00 µs 4.00 0.750"} {
		found := false
		for line := range strings.Lines(b.String()) {
			found = found || strings.Join(strings.Fields(line), " ") == want
		}
		if !found {
			t.Errorf("no line %q in\n%s", want, b.String())
		}
	}
	b.Reset()
	if err := r.print(&b, "json"); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil || len(back.Rows) != 7 || *back.Rows[4].Met || !*back.Rows[3].Met || back.Rows[5].Met != nil {
		t.Errorf("%v: %s", err, b.String())
	}
}

func TestQuantile(t *testing.T) {
	values := []float64{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.5: 3, 0.95: 5, 1: 5} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile %g of %v is %g, want %g", q, values, got, want)
		}
	}
}

// TestProcess looks at the test's own process, which has used memory and CPU time.
func TestProcess(t *testing.T) {
	for used := (unix.Rusage{}); used.Utime.Nano() < int64(50*time.Millisecond); {
		if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
			t.Fatal(err)
		}
	}
	cpu, err := cpuSeconds(os.Getpid())
	if err != nil || cpu <= 0 || cpu > 1000 {
		t.Errorf("%g s, %v", cpu, err)
	}
	m, err := memoryOf(os.Getpid())
	if err != nil || m.anon <= 0 || m.pss < m.anon || m.rss < m.pss || m.rss > 10000 {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := cpuSeconds(0); err == nil {
		t.Error("there is a process 0")
	}
}
