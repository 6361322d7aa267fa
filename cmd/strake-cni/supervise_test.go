package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// TestSupervise runs the supervisor over components that do nothing: one that is killed comes back, those that run are found
// again by the next supervisor, and all but containerd end with it.
func TestSupervise(t *testing.T) {
	components := []string{"containerd", "server", "agent"}
	dir := t.TempDir()
	l, err := layout.New(filepath.Join(dir, "data"))
	if err == nil {
		err = l.Prepare()
	}
	if err != nil {
		t.Fatal(err)
	}
	strake := filepath.Join(dir, "strake")
	if err := os.WriteFile(strake, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, name := range components {
			if p, ok := supervisor.Find(l.Pid(name)); ok {
				p.Stop(time.Second)
			}
		}
		os.RemoveAll(l.Run())
	})
	start := func() *exec.Cmd {
		cmd := exec.Command(binary, append([]string{l.Data, strake}, components...)...)
		cmd.Args[0] = supervisor.Program
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		return cmd
	}
	// await waits for a component to run as another process than before.
	await := func(name string, before supervisor.Process) supervisor.Process {
		t.Helper()
		for late := time.Now().Add(20 * time.Second); time.Now().Before(late); time.Sleep(10 * time.Millisecond) {
			if p, ok := supervisor.Find(l.Pid(name)); ok && p != before {
				return p
			}
		}
		t.Fatalf("%s does not run", name)
		panic("not reached")
	}

	first := start()
	ps := map[string]supervisor.Process{}
	for _, name := range components {
		ps[name] = await(name, supervisor.Process{})
	}
	if err := syscall.Kill(ps["agent"].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ps["agent"] = await("agent", ps["agent"])

	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.Wait()
	second := start()
	if err := syscall.Kill(ps["server"].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ps["server"] = await("server", ps["server"]) // so it watches
	if p, ok := supervisor.Find(l.Pid("agent")); !ok || p != ps["agent"] {
		t.Errorf("the agent did not go on under the second supervisor: was %v, is %v", ps["agent"], p)
	}

	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("asked to end: %v", err)
	}
	for name, want := range map[string]bool{"containerd": true, "server": false, "agent": false} {
		if alive := ps[name].Alive(); alive != want {
			t.Errorf("%s alive: %v, want %v", name, alive, want)
		}
	}
}
