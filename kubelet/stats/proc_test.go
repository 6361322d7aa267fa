package stats

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/kubelet/eviction"
)

func TestMeminfo(t *testing.T) {
	m, err := parseMeminfo([]byte("MemTotal: 1000 kB\nMemFree:  200 kB\nMemAvailable: 600 kB\nInactive(file): 300 kB\nHugePages_Total: 0\n"))
	if err != nil || m != (Meminfo{1000 << 10, 200 << 10, 600 << 10, 300 << 10}) || m.WorkingSet() != 500<<10 {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{"", "MemFree: 1 kB", "MemTotal: x kB", "MemTotal: 99999999999999999999 kB"} {
		if m, err := parseMeminfo([]byte(bad)); err == nil {
			t.Errorf("%q gave %+v", bad, m)
		}
	}
	if got := (Meminfo{Total: 1, Free: 5, InactiveFile: 9}).WorkingSet(); got != 0 {
		t.Errorf("impossible figures gave %d", got)
	}
}

func TestCPU(t *testing.T) {
	if got, err := parseCPU([]byte("cpu  1 2 3 400 500 6 7 8 9 10\ncpu0 1\n")); err != nil || got != uint64(27*10*time.Millisecond) {
		t.Errorf("%d, %v", got, err)
	}
	for _, bad := range []string{"", "cpu", "cpu 1 2 3", "intr 1 2 3 4 5 6 7 8 9", "cpu a b c d e f g h"} {
		if got, err := parseCPU([]byte(bad)); err == nil {
			t.Errorf("%q gave %d", bad, got)
		}
	}
}

func TestNetwork(t *testing.T) {
	list := parseNetwork([]byte("Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed\n    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n  eth0:  100 1 2 0 0 0 0 0  300 3 4 0 0 0 0 0\n"))
	if want := []link{{"eth0", traffic{100, 1, 2, 0}, traffic{300, 3, 4, 0}}}; !slices.Equal(list, want) {
		t.Errorf("%+v", list)
	}
}

func TestPIDs(t *testing.T) {
	if l, ok := parsePIDs("1000\n", "0.1 0.2 0.3 2/300 4711\n"); !ok || l != (eviction.Level{Available: 700, Capacity: 1000}) {
		t.Errorf("%+v, %v", l, ok)
	}
	for _, bad := range [][2]string{{"", "0 0 0 1/2 3"}, {"5", ""}, {"5", "0 0 0 x 3"}, {"5", "0 0 0 1/y 3"}} {
		if l, ok := parsePIDs(bad[0], bad[1]); ok {
			t.Errorf("%q gave %+v", bad, l)
		}
	}
}

func FuzzProc(f *testing.F) {
	f.Add("cpu  1 2 3 4 5 6 7 8\n")
	f.Add("eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\nMemTotal: 5 kB")
	f.Fuzz(func(t *testing.T, s string) {
		parseMeminfo([]byte(s))
		parseCPU([]byte(s))
		parseNetwork([]byte(s))
		parsePIDs(s, s)
	})
}

func TestDiskUsage(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte(strings.Repeat("x", 100_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if got := DiskUsage(dir); got < 100_000 || got > 140_000 {
		t.Errorf("%d bytes: a file with two names counts once", got)
	}
	if got := DiskUsage(filepath.Join(dir, "none")); got != 0 {
		t.Errorf("what is not there uses %d bytes", got)
	}
}

func TestMetricsText(t *testing.T) {
	m := metrics{}
	m.add("node_cpu_usage_seconds_total", "", 1.5, time.UnixMilli(1700))
	m.add("pod_memory_working_set_bytes", fmt.Sprintf("namespace=%q,pod=%q", "n", "p"), 1e9, time.Time{})
	var b strings.Builder
	if err := m.write(&b); err != nil {
		t.Fatal(err)
	}
	want := "# HELP node_cpu_usage_seconds_total Cumulative cpu time consumed by the node in core-seconds\n# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total 1.5 1700\n" +
		"# HELP pod_memory_working_set_bytes Current working set of the pod in bytes\n# TYPE pod_memory_working_set_bytes gauge\npod_memory_working_set_bytes{namespace=\"n\",pod=\"p\"} 1e+09\n"
	if b.String() != want {
		t.Errorf("%s", b.String())
	}
}
