package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/tests/bench/turns"
)

// Row is one figure.
type Row struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Rival  float64 `json:"rival,omitempty"` // the same of what it is compared with
	Ratio  float64 `json:"ratio,omitempty"` // value by rival, measured pair by pair
	Low    float64 `json:"low,omitempty"`   // 95 % confidence limits of the ratio
	High   float64 `json:"high,omitempty"`
	Target string  `json:"target,omitempty"` // such as "<= 8"; of the ratio where there is one
	Met    *bool   `json:"met,omitempty"`
}

// Report is all figures of a run, and of what.
type Report struct {
	Date    string `json:"date"`
	Version string `json:"version"`
	Kernel  string `json:"kernel"`
	CPU     string `json:"cpu"`
	CPUs    int    `json:"cpus"`
	Rows    []Row  `json:"rows"`
}

func newReport(strake string) (*Report, error) {
	version, err := exec.Command(strake, "version").Output()
	if err != nil {
		return nil, fmt.Errorf("%s version: %w (run `make build`)", strake, err)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	return &Report{
		Date: time.Now().UTC().Format(time.DateOnly), Version: strings.TrimSpace(string(version)),
		Kernel: unix.ByteSliceToString(u.Release[:]), CPU: cpuModel(), CPUs: runtime.NumCPU(),
	}, nil
}

func cpuModel() string {
	data, _ := os.ReadFile("/proc/cpuinfo") // there is none on some machines; then the model stays unnamed
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// Bounds of a target.
const (
	atMost  = "<="
	atLeast = ">="
)

// figure adds a row without a target.
func (r *Report) figure(name string, value float64, unit string) {
	r.Rows = append(r.Rows, Row{Name: name, Value: value, Unit: unit})
}

// aim adds a row with a target for its value.
func (r *Report) aim(name string, value float64, unit, bound string, target float64) {
	r.Rows = append(r.Rows, Row{Name: name, Value: value, Unit: unit, Target: fmt.Sprintf("%s %g", bound, target), Met: meets(value, bound, target)})
}

// against adds a row of a value and the rival's; a target, if there is a bound, is of their ratio.
func (r *Report) against(name string, value, rival float64, unit, bound string, target float64) {
	row := Row{Name: name, Value: value, Unit: unit, Rival: rival, Ratio: value / rival}
	if bound != "" {
		row.Target, row.Met = fmt.Sprintf("%s %gx", bound, target), meets(row.Ratio, bound, target)
	}
	r.Rows = append(r.Rows, row)
}

// rates adds a row of what was measured in turns, in units of so many requests a second; a target, if it isn't 0, is the
// least ratio.
func (r *Report) rates(name string, c turns.Result, unit string, requests, target float64) {
	row := Row{Name: name, Value: c.A.Rate * requests, Unit: unit, Rival: c.B.Rate * requests, Ratio: c.Ratio, Low: c.Low, High: c.High}
	if target != 0 {
		row.Target, row.Met = fmt.Sprintf("%s %gx", atLeast, target), meets(c.Ratio, atLeast, target)
	}
	r.Rows = append(r.Rows, row)
}

// latencies adds the rows of a comparison's median and 95th percentile.
func (r *Report) latencies(name string, c turns.Result) {
	r.Rows = append(r.Rows,
		Row{Name: name + ", median", Value: c.A.Median, Unit: "µs", Rival: c.B.Median, Ratio: c.A.Median / c.B.Median},
		Row{Name: name + ", p95", Value: c.A.P95, Unit: "µs", Rival: c.B.P95, Ratio: c.A.P95 / c.B.P95})
}

// tails adds the rows of a comparison's median and 99th percentile.
func (r *Report) tails(name string, c turns.Result) {
	r.Rows = append(r.Rows,
		Row{Name: name + ", median", Value: c.A.Median, Unit: "µs", Rival: c.B.Median, Ratio: c.A.Median / c.B.Median},
		Row{Name: name + ", p99", Value: c.A.P99, Unit: "µs", Rival: c.B.P99, Ratio: c.A.P99 / c.B.P99})
}

func meets(value float64, bound string, target float64) *bool {
	met := value <= target
	if bound == atLeast {
		met = value >= target
	}
	return &met
}

func (r *Report) json() ([]byte, error) {
	data, err := json.MarshalIndent(r, "", "  ")
	return append(data, '\n'), err
}

func (r *Report) save(file string) error {
	data, err := r.json()
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

func (r *Report) print(w io.Writer, format string) error {
	if format == "json" {
		data, err := r.json()
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "strake %s, %s, Linux %s, %d CPUs (%s)\n\n", r.Version, r.Date, r.Kernel, r.CPUs, r.CPU)
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHAT\tVALUE\tUNIT\tRIVAL\tRATIO\tTARGET\tMET")
	for _, row := range r.Rows {
		rival, ratio, met := "", "", ""
		if row.Rival != 0 {
			rival, ratio = number(row.Rival), fmt.Sprintf("%.3f", row.Ratio)
			if row.High != 0 {
				ratio += fmt.Sprintf(" (%.2f-%.2f)", row.Low, row.High)
			}
		}
		if row.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*row.Met]
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Name, number(row.Value), row.Unit, rival, ratio, row.Target, met)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	met, missed := 0, []string(nil)
	for _, row := range r.Rows {
		if row.Met != nil && *row.Met {
			met++
		} else if row.Met != nil {
			missed = append(missed, fmt.Sprintf("  %s: %s\n", row.Name, row.Target))
		}
	}
	if met+len(missed) > 0 {
		fmt.Fprintf(&b, "\n%d of %d targets are met.\n", met, met+len(missed))
	}
	if len(missed) > 0 {
		fmt.Fprintf(&b, "Missed:\n%s", strings.Join(missed, ""))
	}
	_, err := w.Write(b.Bytes())
	return err
}

// number prints three digits or more.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
