package bpf

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMountBPFFS(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root")
	}
	dir := filepath.Join(t.TempDir(), "bpf")
	if err := UnmountBPFFS(dir); err != nil {
		t.Fatalf("unmount of an absent dir: %v", err)
	}
	t.Cleanup(func() { UnmountBPFFS(dir) })
	for range 2 { // the second must not stack a mount
		if err := MountBPFFS(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := wantFS(dir, bpffsMagic, "bpffs"); err != nil {
		t.Fatal(err)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := UnmountBPFFS(dir); err != nil {
			t.Fatal(err)
		}
	}
	if ok, _ := isFS(dir, bpffsMagic); ok {
		t.Fatal("still mounted: mounts were stacked")
	}
}
