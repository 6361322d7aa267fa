package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/cmd/strake/agent"
	"github.com/strake-io/strake/cmd/strake/containerd"
	"github.com/strake-io/strake/cmd/strake/demo"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/ociimage"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// start is one start of a node: an `up` or a `join`.
type start struct {
	l         layout.Layout
	fresh     bool // nothing runs yet
	isNew     bool // there was no node in the data folder
	touched   bool // the data folder has been written to
	changed   bool // what runs has begun with other settings
	s         Settings
	client    kubernetes.Interface                   // with the rights of the node's components, or more
	processes map[string]map[supervisor.Process]bool // seen so far, by component
}

func newStart(l layout.Layout) start {
	_, err := os.Stat(l.Settings())
	return start{l: l, fresh: !anyRunning(l), isNew: errors.Is(err, fs.ErrNotExist), processes: map[string]map[supervisor.Process]bool{}}
}

// run does the steps and tells each on out. undo is what follows a failure.
func (u *start) run(ctx context.Context, steps []step, undo func(context.Context, error) error, out io.Writer) error {
	for _, st := range steps {
		if err := st.run(ctx, out); err != nil {
			if errors.Is(ctx.Err(), context.Canceled) {
				err = errInterrupted // whatever it kept from being done
			}
			if full := enoughSpace(u.l.Data, fullFree); u.touched && full != nil {
				err = full // whatever was said of it
			}
			return errors.Join(fmt.Errorf("%s: %w", st.name, err), undo(ctx, err))
		}
	}
	return nil
}

// errInterrupted is a start that somebody ended, by Ctrl-C: nothing is wrong.
var errInterrupted = errors.New("interrupted")

// undo takes back what a failed start has started.
func (u *start) undo(ctx context.Context, cause error) error {
	if !u.fresh || !u.touched {
		return nil
	}
	words := u.lastWords(cause)
	if err := down(context.WithoutCancel(ctx), u.l, false, io.Discard); err != nil {
		return errors.Join(words, err)
	}
	if u.isNew {
		return errors.Join(words, u.l.Clear())
	}
	return words
}

type step struct {
	name string
	do   func(context.Context) error
}

func (s step) run(ctx context.Context, out io.Writer) error {
	began := time.Now()
	err := s.do(ctx)
	mark := "✓"
	if err != nil {
		mark = "✗"
	}
	fmt.Fprintf(out, "%s %-36s %5.1f s\n", mark, s.name, time.Since(began).Seconds())
	return err
}

// poll repeats f until it succeeds, ctx ends (f's last error is the cause), or a component has ended too often to hope.
func (u *start) poll(ctx context.Context, f func() error) error {
	var last error
	for {
		err := f()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil && last != nil {
			err = last // f's is no more than that its time was over
		}
		last = err
		if err := u.crashing(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not in time: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// crash is the end of a start: one component does not stay alive.
type crash struct {
	component string
	lives     int
	log       string
}

func (c *crash) Error() string {
	data, err := os.ReadFile(c.log)
	if err != nil {
		return fmt.Sprintf("%s ended %d times; its log: %v", c.component, c.lives, err)
	}
	return fmt.Sprintf("%s ended %d times, saying (%s): %s", c.component, c.lives, c.log, lastError(string(data)))
}

// maxLives is how often a component may be started before a start of the cluster is given up.
const maxLives = 3

func (u *start) crashing() error {
	for _, name := range u.s.Components() {
		p, ok := supervisor.Find(u.l.Pid(name))
		if !ok {
			continue
		}
		if u.processes[name] == nil {
			u.processes[name] = map[supervisor.Process]bool{}
		}
		u.processes[name][p] = true
		if n := len(u.processes[name]); n > maxLives {
			return &crash{component: name, lives: n - 1, log: u.l.Log(name)}
		}
	}
	return nil
}

func running(l layout.Layout, component string) bool {
	_, ok := supervisor.Find(l.Pid(component))
	return ok
}

// anyRunning tells whether something of the cluster runs, with or without a supervisor.
func anyRunning(l layout.Layout) bool {
	return slices.ContainsFunc(supervisor.All, func(c string) bool { return running(l, c) })
}

// supervise starts the background process, unless it runs. What runs with other settings is ended, for the supervisor to start it again:
// nothing of the node's network depends on that it runs.
func (u *start) supervise(context.Context) error {
	l := u.l
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if otherRelease(l, self) {
		if err := stopPrograms(l); err != nil {
			return fmt.Errorf("stop what runs of another release: %w", err)
		}
	} else if u.changed && !u.fresh {
		for _, c := range supervisor.Components(l, "", []string{"server", "agent"}) {
			if p, ok := supervisor.Find(l.Pid(c.Name)); ok {
				if err := p.Stop(c.Grace); err != nil {
					return fmt.Errorf("stop %s: %w", c.Name, err)
				}
			}
		}
	}
	if running(l, supervisor.Own) {
		return nil
	}
	small, err := agent.SmallBinary()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(l.Log(supervisor.Own), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(small, append([]string{l.Data, self}, u.s.Components()...)...)
	cmd.Args[0] = supervisor.Program
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := supervisor.Record(l.Pid(supervisor.Own), cmd.Process.Pid); err != nil {
		return err
	}
	return cmd.Process.Release()
}

const (
	// stopOne is how long the server or the agent may take to end.
	stopOne = 20 * time.Second
	// stopAll is how long a supervisor may take: it ends both, one after the other, kills what does not end, and waits for that as well.
	stopAll = 2*(stopOne+10*time.Second) + 10*time.Second
)

// stopPrograms ends the node's own programs: the supervisor, which would start others again, then those that it leaves or has never been there for.
func stopPrograms(l layout.Layout) error {
	var errs []error
	for _, name := range []string{supervisor.Own, "agent", "server"} {
		grace := stopOne
		if name == supervisor.Own {
			grace = stopAll
		}
		if p, ok := supervisor.Find(l.Pid(name)); ok {
			if err := p.Stop(grace); err != nil {
				errs = append(errs, fmt.Errorf("stop %s: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// otherRelease tells whether a part of the node is another program file than ours, one elsewhere or one that ours has replaced, or whether
// the supervisor would start another: at this moment there may be none, if it does not stay alive.
func otherRelease(l layout.Layout, self string) bool {
	ours, err := os.Stat(self)
	if err != nil {
		return false
	}
	if p, ok := supervisor.Find(l.Pid(supervisor.Own)); ok {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
		if f := strings.Split(string(args), "\x00"); err == nil && len(f) > 2 { // see supervise
			theirs, err := os.Stat(f[2])
			if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(ours, theirs) {
				return true
			}
		}
	}
	return slices.ContainsFunc([]string{"server", "agent"}, func(name string) bool {
		p, ok := supervisor.Find(l.Pid(name))
		if !ok {
			return false
		}
		theirs, err := os.Stat(fmt.Sprintf("/proc/%d/exe", p.PID))
		return err == nil && !os.SameFile(ours, theirs)
	})
}

// loadImage makes the demo's image of our own binary.
func (u *start) loadImage(ctx context.Context) error {
	c, err := containerd.Connect(ctx, u.l)
	if err != nil {
		return err
	}
	defer c.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return agent.LoadImage(ctx, c, ociimage.Image{Name: demo.Image, Files: map[string]string{"/strake": self}, Entrypoint: []string{"/strake"}, User: "65532"})
}

func (u *start) nodeReady(ctx context.Context) error {
	name := u.s.NodeName
	n, err := u.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			if cond.Status == corev1.ConditionTrue {
				return nil
			}
			return fmt.Errorf("node %s is not Ready: %s", name, cond.Message)
		}
	}
	return fmt.Errorf("node %s has not told how it is", name)
}

// lastWords are what the components said last, for somebody whose start failed. A crash has said it already, and an interrupted start is nobody's fault.
func (u *start) lastWords(cause error) error {
	if errors.As(cause, new(*crash)) || errors.Is(cause, errInterrupted) {
		return nil
	}
	var words []error
	for _, name := range u.s.Components() {
		data, err := os.ReadFile(u.l.Log(name))
		if err != nil {
			continue // it has not been started
		}
		if line := lastError(string(data)); line != "" {
			words = append(words, fmt.Errorf("%s said (%s): %s", name, u.l.Log(name), line))
		}
	}
	return errors.Join(words...)
}

// lastError finds the line that tells why a process ended: the last of ours (main prints it), else the start of a panic, else the last.
func lastError(log string) string {
	lines := strings.Split(strings.TrimSpace(log), "\n")
	for _, prefix := range []string{"strake:", "panic:", "containerd:"} {
		for i := len(lines) - 1; i >= 0; i-- {
			if strings.HasPrefix(lines[i], prefix) {
				return lines[i]
			}
		}
	}
	return lines[len(lines)-1]
}
