package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/cmd/strake/doctor"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// toolCommands look at what the cluster does.
func toolCommands(place places) []*cobra.Command {
	return []*cobra.Command{
		doctorCommand(place), monitorCommand(place), connectivityCommand(place), bundleCommand(place), serviceCommand(place), traceCommand(place), policyCommand(place), migrateCommand(place), dnsCommand(place),
	}
}

// exitError ends the command with a code of its own; without an error nothing more is said.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// enteredNode marks a process that enterNode started anew.
const enteredNode = "STRAKE_IN_NODE"

// enterNode continues the command in the network namespace of the node: that of its processes. A node none of which runs is looked at from
// where the command was started. The process begins anew, since a namespace belongs to a thread, and a Go program has many.
func enterNode(l layout.Layout) error {
	if os.Getenv(enteredNode) != "" {
		return nil
	}
	for _, component := range []string{"agent", "containerd", "supervisor"} {
		p, ok := supervisor.Find(l.Pid(component))
		if !ok {
			continue
		}
		path := fmt.Sprintf("/proc/%d/ns/net", p.PID)
		theirs, err1 := os.Readlink(path)
		ours, err2 := os.Readlink("/proc/self/ns/net")
		if err1 != nil || err2 != nil {
			continue
		}
		if theirs == ours {
			return nil
		}
		return execIn(path)
	}
	return nil
}

// entered is the node that --data-dir names, looked at from within its network namespace.
func entered(place places) (doctor.Node, error) {
	l, err := place()
	if err != nil {
		return doctor.Node{}, err
	}
	node, err := examined(l)
	if err != nil {
		return doctor.Node{}, err
	}
	return node, enterNode(l)
}

// clientOf asks the API server as a node may.
func clientOf(node doctor.Node) (kubernetes.Interface, error) {
	rc, err := node.REST()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(rc)
}

// execIn runs the very command again in another network namespace. It returns only if that fails.
func execIn(namespace string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	f, err := os.Open(namespace)
	if err != nil {
		return fmt.Errorf("the node's network namespace: %w", err)
	}
	defer f.Close()
	runtime.LockOSThread() // the process that exec makes is as the calling thread is
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("the node's network namespace: %w", err)
	}
	return fmt.Errorf("run %s: %w", self, unix.Exec(self, os.Args, append(os.Environ(), enteredNode+"=1")))
}
