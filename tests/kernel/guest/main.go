// Guest is the first process of a machine that runs the tests of the node network on another kernel. It reads its job, says what
// happens on the second serial port, and turns the machine off. The first port is the kernel's.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/tests/kernel/console"
)

// port is where the machine that started this one listens.
const port = "/dev/ttyS1"

const cgroupRoot = "/sys/fs/cgroup"

func main() {
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "guest: power off:", err) // and the kernel panics, for its first process ends
	}
}

func work() error {
	if len(os.Args) == 1 {
		if err := mount(); err != nil {
			return err
		}
		return unix.Exec("/proc/self/exe", []string{"/init", "mounted"}, os.Environ()) // libraries look into /proc when they start
	}
	tty, err := os.OpenFile(port, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer tty.Close()
	events := json.NewEncoder(tty)
	events.SetEscapeHTML(false)
	say := func(e console.Event) {
		if err := events.Encode(e); err != nil {
			fmt.Fprintln(os.Stderr, "guest:", err)
		}
	}
	if err := run(say); err != nil {
		say(console.Event{Error: err.Error()})
	}
	say(console.Event{Done: true})
	return unix.IoctlSetInt(int(tty.Fd()), unix.TCSBRK, 1) // wait until all is sent
}

// mount makes the file systems of a usual Linux.
func mount() error {
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}, {"cgroup2", cgroupRoot}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return nil
}

func run(say func(console.Event)) error {
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return err
	}
	say(console.Event{Kernel: unix.ByteSliceToString(uname.Release[:])})
	data, err := os.ReadFile(console.JobFile)
	if err != nil {
		return err
	}
	var job console.Job
	if err := json.Unmarshal(data, &job); err != nil {
		return fmt.Errorf("%s: %w", console.JobFile, err)
	}
	for _, path := range job.Modules {
		if err := loadModule(path); err != nil {
			return err
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if out, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		return fmt.Errorf("busybox: %w: %s", err, out)
	}
	os.Setenv("PATH", "/bin")
	os.Setenv("HOME", "/tmp")
	os.Setenv("GOGC", "400") // collecting garbage is a tenth of a suite's work, and there is memory
	if len(job.Objects) > 0 {
		counts, err := countInstructions(job.Objects)
		say(console.Event{Verifier: counts})
		if err != nil {
			say(console.Event{Error: "the verifier: " + err.Error()}) // the suite tells more
		}
	}
	if err := runSuite(job.Suite, say); err != nil {
		return fmt.Errorf("%s: %w", job.Suite.Name, err)
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("module %s: %w", path, err)
	}
	return nil
}

// share are the tests of the suite's part, as a flag.
func share(s console.Suite) (string, error) {
	c := exec.Command(s.Path, "-test.list=.")
	c.Stderr = os.Stderr
	list, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("-test.list: %w", err)
	}
	var names []string
	for i, name := range strings.Fields(string(list)) {
		if i%s.Parts == s.Part {
			names = append(names, name)
		}
	}
	return "-test.run=^(" + strings.Join(names, "|") + ")$", nil
}

func runSuite(s console.Suite, say func(console.Event)) error {
	args := s.Args
	if s.Parts > 1 {
		tests, err := share(s)
		if err != nil {
			return err
		}
		args = append(args, tests)
	}
	c := exec.Command(s.Path, args...)
	c.Dir = "/tmp"
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	c.Stdout, c.Stderr = w, w
	err = c.Start()
	w.Close()
	if err != nil {
		return err
	}
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			say(console.Event{Suite: s.Name, Line: strings.TrimSuffix(line, "\n")})
		}
		if err != nil { // also when what the suite left running holds the pipe no more
			break
		}
	}
	if err := c.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		return err
	}
	code := c.ProcessState.ExitCode()
	say(console.Event{Suite: s.Name, Exit: &code})
	return nil
}
