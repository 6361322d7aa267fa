// Package netns gives tests network namespaces of their own.
package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Enter moves the test, with its thread, into a network namespace of its own until it ends.
func Enter(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	old, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("a namespace needs root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Setns(int(old.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		old.Close()
		runtime.UnlockOSThread()
	})
}

// inside says that this process is the one that Process has begun.
const inside = "STRAKE_TEST_INSIDE"

// Process is for TestMain, where all threads have to be in the namespace: it begins the program anew, with a network namespace of its own and mounts
// that nobody else sees, and returns in that process alone.
func Process() {
	if os.Getenv(inside) == "" {
		os.Exit(begin())
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Fprintln(os.Stderr, "mounts of the tests' own:", err)
		os.Exit(1)
	}
}

// begin runs this program once more, and returns its exit code.
func begin() int {
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is of the thread
	err := c.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "these tests need root, for namespaces of their own:", err)
		return 1
	}
	return 0
}
