package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	settle = 30 * time.Second // after a start: caches fill, garbage is collected
	during = 30 * time.Second // how long CPU time is counted
)

// memory of a process in MiB (proc_pid_smaps(5)).
type memory struct {
	rss  float64 // resident, pages of the shared binary counted in every process
	pss  float64 // resident, shared pages divided by who shares them
	anon float64 // neither file nor shared: heap and stacks
}

// idle looks at the cluster's processes while nobody uses the cluster but the demo's client, once a second.
func (b *bench) idle(ctx context.Context) error {
	pids, err := b.components(ctx)
	if err != nil {
		return err
	}
	if err := pause(ctx, settle); err != nil {
		return err
	}
	before := map[string]float64{}
	for name, pid := range pids {
		if before[name], err = cpuSeconds(pid); err != nil {
			return err
		}
	}
	if err := pause(ctx, during); err != nil {
		return err
	}
	var sum memory
	var cpu float64
	for _, name := range []string{"supervisor", "agent", "server", "containerd"} {
		after, err := cpuSeconds(pids[name])
		if err != nil {
			return err
		}
		m, err := memoryOf(pids[name])
		if err != nil {
			return err
		}
		used := 100 * (after - before[name]) / during.Seconds()
		b.report.figure("idle memory of "+name+", RSS", m.rss, "MiB")
		b.report.figure("idle memory of "+name+", PSS", m.pss, "MiB")
		b.report.figure("idle memory of "+name+", anonymous", m.anon, "MiB")
		b.report.figure("idle CPU of "+name, used, "% of a CPU")
		if name != "containerd" {
			sum = memory{sum.rss + m.rss, sum.pss + m.pss, sum.anon + m.anon}
			cpu += used
		}
	}
	b.report.aim("idle memory of all ours, RSS", sum.rss, "MiB", atMost, 500)
	b.report.figure("idle memory of all ours, PSS", sum.pss, "MiB")
	b.report.figure("idle memory of all ours, anonymous", sum.anon, "MiB")
	b.report.figure("idle CPU of all ours", cpu, "% of a CPU")
	return nil
}

// components are the cluster's processes by name.
func (b *bench) components(ctx context.Context) (map[string]int, error) {
	var s struct {
		Components []struct {
			Name string `json:"name"`
			PID  int    `json:"pid"`
		} `json:"components"`
	}
	if err := b.status(ctx, &s); err != nil {
		return nil, err
	}
	pids := map[string]int{}
	for _, c := range s.Components {
		pids[c.Name] = c.PID
	}
	return pids, nil
}

func (b *bench) status(ctx context.Context, into any) error {
	out, err := b.cluster.StrakeCommand(ctx, "status", "-o", "json").Output()
	if err != nil {
		return fmt.Errorf("status: %w%s", err, stderrOf(err))
	}
	return json.Unmarshal(out, into)
}

func stderrOf(err error) string {
	if e, ok := err.(*exec.ExitError); ok {
		return "\n" + string(e.Stderr)
	}
	return ""
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// clockTicks per second in /proc (sysconf(_SC_CLK_TCK)): 100 on every architecture that Go knows.
const clockTicks = 100

// cpuSeconds is the CPU time that a process has used, fields 14 and 15 of /proc/PID/stat (proc_pid_stat(5)).
func cpuSeconds(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f)+2)
	}
	var sum float64
	for _, s := range f[11:13] {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
		sum += float64(n) / clockTicks
	}
	return sum, nil
}

func memoryOf(pid int) (memory, error) {
	var m memory
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(data)) {
		name, rest, _ := strings.Cut(line, ":")
		into := map[string]*float64{"Rss": &m.rss, "Pss": &m.pss, "Anonymous": &m.anon}[name]
		if into == nil {
			continue
		}
		var kb float64
		if _, err := fmt.Sscanf(rest, "%f kB", &kb); err != nil {
			return m, fmt.Errorf("/proc/%d/smaps_rollup: %s: %w", pid, strings.TrimSpace(line), err)
		}
		*into = kb / 1024
	}
	return m, nil
}
