// Package labtest is a lab for tests: what is made in one goes with the test.
package labtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/strake-io/strake/cmd/strake/ociimage"
	"github.com/strake-io/strake/tests/lab"
)

// New makes the place of a cluster, as lab.New does.
func New(t testing.TB, name, binary string) *lab.Cluster {
	t.Helper()
	c, err := lab.New(name, filepath.Join(t.TempDir(), "data"), binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Background runs a command until the test's end, and tells what it wrote if the test has failed. The command must not be of the test's context,
// which would kill it: it is asked to end.
func Background(t testing.TB, name string, cmd *exec.Cmd) {
	t.Helper()
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			t.Logf("%s:\n%s", name, log.String())
		}
	})
}

// LoadImage makes an image and loads it into the node's containerd.
func LoadImage(t testing.TB, c *lab.Cluster, img ociimage.Image) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := ociimage.Write(f, img); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Strake("image", "import", path); err != nil {
		t.Fatalf("image import: %v\n%s", err, out)
	}
}
