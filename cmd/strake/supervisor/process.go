package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/atomicfile"
)

// Process is one incarnation of a component: a pid alone may be reused by the kernel, a pid with
// its start time is not.
type Process struct {
	PID   int
	Start uint64 // clock ticks after boot, field 22 of /proc/PID/stat (proc_pid_stat(5))
}

// Find reads a pid file and returns the process it names if that still runs.
func Find(pidFile string) (Process, bool) {
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return Process{}, false
	}
	var p Process
	if _, err := fmt.Sscanf(string(data), "%d %d", &p.PID, &p.Start); err != nil || p.PID < 1 {
		return Process{}, false
	}
	return p, p.Alive()
}

// Alive tells whether the process still runs (a zombie doesn't).
func (p Process) Alive() bool {
	state, start, err := readStat(p.PID)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

func readStat(pid int) (state byte, start uint64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The command name (field 2) may hold blanks and parentheses: count from its last parenthesis.
	i := bytes.LastIndexByte(data, ')')
	if i < 0 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: no command name", pid)
	}
	f := strings.Fields(string(data[i+1:]))
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(f))
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return f[0][0], start, err
}

// Record writes the pid file of a process that was just started.
func Record(pidFile string, pid int) (Process, error) {
	_, start, err := readStat(pid)
	if err != nil {
		return Process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	p := Process{PID: pid, Start: start}
	return p, atomicfile.Write(pidFile, fmt.Appendf(nil, "%d %d\n", p.PID, p.Start), 0o600)
}

// WaitExit blocks until the process is gone or the time is over, and tells which. A negative
// timeout waits for ever.
func (p Process) WaitExit(timeout time.Duration) bool {
	if p.PID == 0 {
		return true
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return !p.Alive()
	}
	defer unix.Close(fd)
	deadline := time.Now().Add(timeout)
	for p.Alive() {
		wait := -1
		if timeout >= 0 {
			left := time.Until(deadline)
			if left <= 0 {
				return false
			}
			wait = int(left.Milliseconds()) + 1
		}
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, wait)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return !p.Alive()
		}
	}
	return true
}

// Stop asks the process to end, and kills it if it has not done so in time.
func (p Process) Stop(grace time.Duration) error {
	if !p.Alive() {
		return nil
	}
	if err := p.signal(unix.SIGTERM); err != nil {
		return err
	}
	if p.WaitExit(grace) {
		return nil
	}
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	if !p.WaitExit(10 * time.Second) {
		return fmt.Errorf("process %d does not end, not even by SIGKILL", p.PID)
	}
	return nil
}

// signal goes through a pidfd that was checked against the start time, so that it can't hit a stranger.
func (p Process) signal(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.Alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %v to process %d: %w", sig, p.PID, err)
	}
	return nil
}

// Forget removes a pid file.
func Forget(pidFile string) error {
	if err := os.Remove(pidFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
