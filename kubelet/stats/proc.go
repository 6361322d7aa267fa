package stats

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Meminfo is the part of /proc/meminfo that is used here, in bytes.
type Meminfo struct{ Total, Free, Available, InactiveFile uint64 }

// WorkingSet is what is used and can't be freed at once.
func (m Meminfo) WorkingSet() uint64 {
	used := m.Total - min(m.Free, m.Total)
	return used - min(m.InactiveFile, used)
}

// Memory reads the machine's memory.
func Memory() (Meminfo, error) { return readMeminfo("/proc/meminfo") }

func readMeminfo(path string) (Meminfo, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Meminfo{}, fmt.Errorf("memory: %w", err)
	}
	return parseMeminfo(data)
}

func parseMeminfo(data []byte) (Meminfo, error) {
	var m Meminfo
	fields := map[string]*uint64{"MemTotal": &m.Total, "MemFree": &m.Free, "MemAvailable": &m.Available, "Inactive(file)": &m.InactiveFile}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		name, rest, _ := strings.Cut(sc.Text(), ":")
		dst := fields[name]
		f := strings.Fields(rest)
		if dst == nil || len(f) == 0 {
			continue
		}
		kb, err := strconv.ParseUint(f[0], 10, 54)
		if err != nil {
			return m, fmt.Errorf("memory: %s: %w", name, err)
		}
		*dst = kb << 10
	}
	if m.Total == 0 {
		return m, fmt.Errorf("memory: no MemTotal")
	}
	return m, nil
}

// tick is the unit of /proc/stat: USER_HZ, which is 100 on all machines that Linux runs on.
const tick = 10 * time.Millisecond

// nodeCPU is what all CPUs together have worked since the machine started, in nanoseconds.
func nodeCPU() (uint64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("CPU time: %w", err)
	}
	return parseCPU(data)
}

func parseCPU(data []byte) (uint64, error) {
	line, _, _ := bytes.Cut(data, []byte{'\n'})
	f := strings.Fields(string(line))
	if len(f) < 9 || f[0] != "cpu" {
		return 0, fmt.Errorf("CPU time: /proc/stat begins with %q", line)
	}
	var sum uint64
	for i, s := range f[1:9] { // user nice system idle iowait irq softirq steal (proc_stat(5))
		n, err := strconv.ParseUint(s, 10, 54)
		if err != nil {
			return 0, fmt.Errorf("CPU time: %w", err)
		}
		if i != 3 && i != 4 {
			sum += n
		}
	}
	return sum * uint64(tick), nil
}

// link is a network interface and what went through it.
type link struct {
	name           string
	received, sent traffic
}

type traffic struct{ bytes, packets, errors, dropped uint64 }

// readNetwork reads the counters of a network namespace's interfaces, of which none is loopback.
func readNetwork(path string) ([]link, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseNetwork(data), nil
}

func parseNetwork(data []byte) []link {
	var out []link
	for _, line := range strings.Split(string(data), "\n") {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || len(f) < 16 || name == "lo" {
			continue
		}
		n := func(i int) uint64 {
			v, err := strconv.ParseUint(f[i], 10, 64)
			if err != nil {
				return 0
			}
			return v
		}
		out = append(out, link{name, traffic{n(0), n(1), n(2), n(3)}, traffic{n(8), n(9), n(10), n(11)}})
	}
	return out
}

// DiskUsage is the size of what lies below a folder on its own file system, as du tells it; what can't be read counts
// as nothing.
func DiskUsage(dir string) uint64 {
	info, err := os.Lstat(dir)
	if err != nil {
		return 0
	}
	root, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	var sum uint64
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Dev != root.Dev {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		sum += uint64(st.Blocks) * 512
		return nil
	})
	return sum
}
