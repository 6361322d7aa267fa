package cluster

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

func TestInterruptedStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var cause error
	steps := []step{{"API server ready", func(context.Context) error { cancel(); return errors.New("connection refused") }}}
	err := new(start).run(ctx, steps, func(_ context.Context, err error) error { cause = err; return nil }, io.Discard)
	if err == nil || err.Error() != "API server ready: interrupted" || !errors.Is(cause, errInterrupted) {
		t.Errorf("%v, undone because of %v", err, cause)
	}
}

// What the components said is for who does not know why the start failed.
func TestLastWords(t *testing.T) {
	l := layout.Layout{Data: t.TempDir()}
	writeFile(t, l.Log("server"), "strake: port 6443 is taken\n")
	u := start{l: l}
	if err := u.lastWords(errors.New("not in time")); err == nil || !strings.Contains(err.Error(), "strake: port 6443 is taken") {
		t.Errorf("%v, want what the server said last", err)
	}
	for _, cause := range []error{errInterrupted, &crash{component: "server"}} {
		if err := u.lastWords(cause); err != nil {
			t.Errorf("%T: %v, want nothing", cause, err)
		}
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
		t.Fatal(err)
	}
}

// programs is a made-up node of this test, where shells are the server, the agent and the supervisor.
type programs struct {
	layout.Layout
	t     *testing.T
	shell string // the program file of all
}

func newPrograms(t *testing.T) programs {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: not root: pid files are below /run, which is root's")
	}
	shell, err := exec.LookPath("sh")
	if err == nil {
		shell, err = filepath.EvalSymlinks(shell)
	}
	if err != nil {
		t.Fatal(err)
	}
	l, err := layout.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(l.Run(), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(l.Run()) })
	writeFile(t, filepath.Join(l.Data, "wait"), "read line\n")
	return programs{l, t, shell}
}

// run starts the component with more arguments after the first, which stands in the place of the data folder.
func (p programs) run(component string, args ...string) supervisor.Process {
	p.t.Helper()
	cmd := exec.Command(p.shell, append([]string{filepath.Join(p.Data, "wait")}, args...)...)
	input, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { input.Close() })
	go cmd.Wait()
	process, err := supervisor.Record(p.Pid(component), cmd.Process.Pid)
	if err != nil {
		p.t.Fatal(err)
	}
	return process
}

func TestOtherRelease(t *testing.T) {
	other := filepath.Join(t.TempDir(), "strake")
	writeFile(t, other, "")
	for name, run := range map[string]func(programs){
		"a server without a supervisor":  func(p programs) { p.run("server") },
		"the agent of a supervisor":      func(p programs) { p.run(supervisor.Own, other, "agent"); p.run("agent") },
		"a supervisor of what has ended": func(p programs) { p.run(supervisor.Own, p.shell, "server", "agent") },
		"a supervisor of what is gone":   func(p programs) { p.run(supervisor.Own, other+".gone", "server") },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPrograms(t)
			run(p)
			if !otherRelease(p.Layout, other) {
				t.Error("it is not seen that another release runs")
			}
		})
	}
	t.Run("the same", func(t *testing.T) {
		p := newPrograms(t)
		p.run(supervisor.Own, p.shell, "server", "agent")
		p.run("server")
		if otherRelease(p.Layout, p.shell) {
			t.Error("what runs is taken for another release")
		}
	})
}

func TestStopPrograms(t *testing.T) {
	p := newPrograms(t)
	all := []supervisor.Process{p.run("server"), p.run("agent"), p.run(supervisor.Own, p.shell, "server", "agent"), p.run("containerd")}
	if err := stopPrograms(p.Layout); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, false, false, true} {
		if got := all[i].Alive(); got != want {
			t.Errorf("process %d of server, agent, supervisor and containerd: alive %v, want %v", i, got, want)
		}
	}
}
