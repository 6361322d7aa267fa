package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/strake-io/strake/tests/kernel/console"
)

// boot runs a machine until its guest has done its job, the machine ends, or ctx does. What the kernel and the suite print goes to the log.
func (r *result) boot(ctx context.Context, m machine, initramfs, log string) {
	start := time.Now()
	err := r.emulate(ctx, m, initramfs, log)
	r.Seconds = time.Since(start).Seconds()
	if err != nil {
		r.Problems = append(r.Problems, err.Error())
	}
	r.Logs = []string{log}
}

func (r *result) emulate(ctx context.Context, m machine, initramfs, log string) error {
	f, err := os.Create(log)
	if err != nil {
		return err
	}
	defer f.Close()
	kernelLog := filepath.Join(work, "build", m.name()+".console")
	// The guest's clock counts its instructions (a nanosecond each), and jumps to what it waits for when it waits: no test runs out of time
	// because this machine is busy, and none waits in vain. That goes with one processor only, for which a kernel is quicker as well: locks,
	// and waiting for other processors' RCU, fall away. What else this machine does goes first.
	c := exec.CommandContext(ctx, "nice", "-n", "5", "qemu-system-x86_64", "-accel", "tcg", "-icount", "shift=0,sleep=off", "-m", "1536", "-smp", "1",
		"-nodefaults", "-display", "none", "-no-reboot", "-nic", "none", "-serial", "file:"+kernelLog, "-serial", "stdio",
		"-kernel", filepath.Join(m.dir, "boot", "vmlinuz-"+m.release), "-initrd", initramfs,
		"-append", "console=ttyS0 loglevel=5 panic=-1 oops=panic nowatchdog mitigations=off init_on_alloc=0 apparmor=0 audit=0 psi=0 transparent_hugepage=never rcupdate.rcu_cpu_stall_suppress=1") // emulated, it may well stall
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is of the thread
	defer runtime.UnlockOSThread()
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("qemu: %w", err)
	}
	outputs, done := r.listen(out, f)
	ended := c.Wait()
	printed, err := os.ReadFile(kernelLog)
	if err != nil {
		return err
	}
	fmt.Fprintf(f, "\n--- kernel\n%s", printed)
	for _, o := range outputs {
		if err := r.judge(o); err != nil {
			return err
		}
	}
	if t := trouble(printed); t != "" {
		r.Problems = append(r.Problems, "the kernel complains: "+t)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case ended != nil:
		return fmt.Errorf("qemu: %w: %s", ended, strings.TrimSpace(stderr.String()))
	case !done:
		return fmt.Errorf("the machine ended before its guest; the last of the kernel:\n%s", tail(printed, 10))
	}
	return nil
}

var complaint = regexp.MustCompile(`(?m)^.*(panic:|Kernel panic|Oops|BUG:|WARNING:)(.*\n){0,25}`)

// trouble is where the kernel's log, or the guest among it, first tells of a bug.
func trouble(printed []byte) string { return strings.TrimSpace(string(complaint.Find(printed))) }

// output is what a suite printed.
type output struct {
	suite string
	text  bytes.Buffer
	exit  *int // nil if it did not end
}

// listen takes events until the guest says no more. What is no event goes to the log only.
func (r *result) listen(in io.Reader, log io.Writer) (outputs []*output, done bool) {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			var e console.Event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(log, "%s\n", bytes.TrimSpace(line))
			}
			switch {
			case e.Kernel != "":
				r.Kernel = e.Kernel
			case e.Verifier != nil:
				r.Verifier = e.Verifier
			case e.Error != "":
				r.Problems = append(r.Problems, e.Error)
			case e.Suite != "":
				if len(outputs) == 0 || outputs[len(outputs)-1].suite != e.Suite {
					outputs = append(outputs, &output{suite: e.Suite})
				}
				o := outputs[len(outputs)-1]
				if o.exit = e.Exit; e.Exit == nil {
					fmt.Fprintln(&o.text, e.Line)
					fmt.Fprintln(log, strings.TrimPrefix(e.Line, "\x16"))
				}
			}
			done = done || e.Done
		}
		if err != nil {
			return outputs, done
		}
	}
}

func tail(text []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
