package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/cmd/strake/layout"
)

// nsfsMagic is the file system type of namespaces (statfs(2)).
const nsfsMagic = 0x6e736673

// ensureNamespace makes a network namespace with a name, and tells whether it had to: a bind mount holds it, as ip-netns(8) does.
func ensureNamespace(path string) (made bool, err error) {
	fail := func(err error) (bool, error) { return made, fmt.Errorf("namespace %s: %w", path, err) }
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err == nil && st.Type == nsfsMagic {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fail(err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fail(err)
	}
	f.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		return fail(errors.Join(err, os.Remove(path)))
	}
	return true, nil
}

func removeNamespace(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) { // EINVAL: no mount
		return fmt.Errorf("namespace %s: unmount: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("namespace %s: %w", path, err)
	}
	return nil
}

// onThread runs f on a thread that ends with it, so that what f changes of the thread meets nobody else.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- f()
	}()
	return <-done
}

func in(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", ns.Name(), err)
		}
		return f()
	})
}

// Start starts a command in the namespace of a lab node, which it makes if there is none, with the node's name as its host name.
func Start(cmd *exec.Cmd, node layout.Layout, hostname string) error {
	if _, err := ensureNamespace(node.Netns()); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	ns, err := os.Open(node.Netns())
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	defer ns.Close()
	return in(ns, func() error {
		if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("lab: host name %s: %w", hostname, err)
		}
		if err := unix.Sethostname([]byte(hostname[:min(len(hostname), 63)])); err != nil {
			return fmt.Errorf("lab: host name %s: %w", hostname, err)
		}
		return cmd.Start()
	})
}

// Inside tells whether this process is in the namespace of a lab node.
func Inside(node layout.Layout) bool {
	var own, its unix.Stat_t
	if unix.Stat("/proc/self/ns/net", &own) != nil || unix.Stat(node.Netns(), &its) != nil {
		return false
	}
	return own.Ino == its.Ino && own.Dev == its.Dev
}
