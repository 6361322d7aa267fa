package bpf

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Magic numbers of linux/magic.h.
const (
	bpffsMagic   = 0xcafe4a11
	cgroup2Magic = 0x63677270
)

func isFS(dir string, magic uint32) (bool, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return uint32(st.Type) == magic, nil
}

// Mounted tells whether a dir is a bpffs, or in one.
func Mounted(dir string) (bool, error) {
	ok, err := isFS(dir, bpffsMagic)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return ok, err
}

func wantFS(dir string, magic uint32, kind string) error {
	ok, err := isFS(dir, magic)
	if err != nil {
		return fmt.Errorf("bpf: %w", err)
	}
	if !ok {
		return fmt.Errorf("bpf: %s is not a %s mount", dir, kind)
	}
	return nil
}

// MountBPFFS makes dir a bpffs of its own, readable by root only. A dir that is one already is left as it is.
func MountBPFFS(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("bpf: mount bpffs: %w", err)
	}
	if ok, err := isFS(dir, bpffsMagic); err != nil || ok {
		return err
	}
	if err := syscall.Mount("bpffs", dir, "bpf", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("bpf: mount bpffs at %s: %w", dir, err)
	}
	return nil
}

// UnmountBPFFS undoes MountBPFFS. A dir that is absent, no bpffs or a folder inside of one is no error.
func UnmountBPFFS(dir string) error {
	if ok, err := Mounted(dir); err != nil || !ok {
		return err
	}
	if err := syscall.Unmount(dir, 0); err != nil && !errors.Is(err, syscall.EINVAL) { // EINVAL: nothing is mounted just there
		return fmt.Errorf("bpf: unmount %s: %w", dir, err)
	}
	return nil
}
