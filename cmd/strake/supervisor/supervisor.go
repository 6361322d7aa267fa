package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/strake-io/strake/cmd/strake/layout"
)

// Own is the name of the supervisor's own pid file and log.
const Own = "supervisor"

// All are the processes that a node can have.
var All = []string{Own, "containerd", "server", "agent"}

// Program is the name under which the small binary (strake-cni) is the supervisor. It is not a command of the large one:
// that has 75 MiB resident by the time it has nothing to do.
const Program = "strake-supervise"

// Component is a process to keep running.
type Component struct {
	Name    string
	Command []string
	Grace   time.Duration // from SIGTERM to SIGKILL
}

// Components are those named, in the order that they are started in, each a command of the strake binary.
func Components(l layout.Layout, strake string, names []string) []Component {
	list := make([]Component, len(names))
	for i, name := range names {
		list[i] = Component{Name: name, Command: []string{strake, name, "--data-dir", l.Data}, Grace: 20 * time.Second}
	}
	return list
}

const (
	backoffMin = 500 * time.Millisecond
	backoffMax = 30 * time.Second
	// A component that ran this long was healthy: its next failure starts a new back-off.
	healthyAfter = time.Minute
	logMax       = 16 << 20
)

// Run keeps the components running until ctx ends, then stops them, the last one first.
// A component named in keep goes on running when the supervisor stops.
func Run(ctx context.Context, l layout.Layout, components []Component, keep string) error {
	var wg sync.WaitGroup
	stops := make([]context.CancelFunc, len(components))
	dones := make([]chan struct{}, len(components))
	for i, c := range components {
		cctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		stops[i], dones[i] = cancel, done
		wg.Go(func() {
			defer close(done)
			watch(cctx, l, c)
		})
	}
	<-ctx.Done()
	var errs []error
	for i := len(components) - 1; i >= 0; i-- {
		c := components[i]
		stops[i]()
		<-dones[i]
		if c.Name == keep {
			continue
		}
		if p, ok := Find(l.Pid(c.Name)); ok {
			if err := p.Stop(c.Grace); err != nil {
				errs = append(errs, fmt.Errorf("stop %s: %w", c.Name, err))
			}
		}
		if err := Forget(l.Pid(c.Name)); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", c.Name, err))
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// watch starts the component, or adopts the one that runs, and starts it again whenever it ends.
func watch(ctx context.Context, l layout.Layout, c Component) {
	backoff := backoffMin
	for ctx.Err() == nil {
		p, running := Find(l.Pid(c.Name))
		began := time.Now()
		if !running {
			var err error
			if p, err = start(l, c); err != nil {
				klog.ErrorS(err, "Component does not start", "component", c.Name)
			}
		}
		waitOrDone(ctx, p)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > healthyAfter {
			backoff = backoffMin
		}
		klog.InfoS("Component ended, starting it again", "component", c.Name, "pid", p.PID, "in", backoff)
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, backoffMax)
	}
}

// waitOrDone returns when the process has ended or ctx has.
func waitOrDone(ctx context.Context, p Process) {
	ended := make(chan struct{})
	go func() {
		p.WaitExit(-1)
		close(ended)
	}()
	select {
	case <-ctx.Done():
	case <-ended:
	}
}

// start runs a component in a session of its own, so that neither a terminal's signals nor the
// supervisor's end reach it.
func start(l layout.Layout, c Component) (Process, error) {
	log, err := openLog(l.Log(c.Name))
	if err != nil {
		return Process{}, err
	}
	defer log.Close()
	cmd := exec.Command(c.Command[0], c.Command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return Process{}, fmt.Errorf("start %s: %w", c.Name, err)
	}
	go cmd.Wait() // reaps it; its end is seen through the pidfd, as for an adopted process
	return Record(l.Pid(c.Name), cmd.Process.Pid)
}

// openLog appends to a log file; one that has grown beyond logMax is moved aside as .1.
func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > logMax {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("rotate log: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}
