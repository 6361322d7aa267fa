package atomicfile

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func names(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, c := range []struct {
		data string
		mode os.FileMode
	}{{"one", 0o600}, {"two, and longer", 0o644}, {"", 0o755}} {
		if err := Write(path, []byte(c.data), c.mode); err != nil {
			t.Fatal(err)
		}
		have, err := os.ReadFile(path)
		info, serr := os.Stat(path)
		if err != nil || serr != nil || string(have) != c.data || info.Mode().Perm() != c.mode {
			t.Errorf("%q of mode %v, want %q of %v (%v, %v)", have, info.Mode(), c.data, c.mode, err, serr)
		}
	}
	if left := names(t, dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// Who reads while it is written sees one content or the other.
func TestReadersSeeWholeFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	content := func(n int) []byte { return bytes.Repeat([]byte{byte('a' + n%2)}, 1<<16+n%2) }
	if err := Write(path, content(0), 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		for n := range 200 {
			if err := Write(path, content(n), 0o600); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for {
		have, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(have, content(0)) && !bytes.Equal(have, content(1)) {
			t.Fatalf("%d bytes, %v", len(have), err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
	}
}

// A full disk leaves the old content, and nothing unfinished.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); errors.Is(err, unix.EPERM) {
		t.Skip("NOT TESTED: no right to mount a small disk, which is root's")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "file")
	if err := Write(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Write(path, make([]byte, 1<<20), 0o600)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		t.Errorf("%v", err)
	}
	if have, err := os.ReadFile(path); err != nil || string(have) != "old" {
		t.Errorf("%q, %v", have, err)
	}
	if left := names(t, dir); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}
