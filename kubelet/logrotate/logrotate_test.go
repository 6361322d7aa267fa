package logrotate

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type fake struct {
	cri.RuntimeService
	path     string
	reopened int
	err      error
}

func (f *fake) ListContainers(context.Context, *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	return []*runtimeapi.Container{{Id: "c"}}, nil
}

func (f *fake) ContainerStatus(context.Context, string, bool) (*runtimeapi.ContainerStatusResponse, error) {
	return &runtimeapi.ContainerStatusResponse{Status: &runtimeapi.ContainerStatus{LogPath: f.path}}, nil
}

func (f *fake) ReopenContainerLog(context.Context, string) error {
	f.reopened++
	if f.err != nil {
		return f.err
	}
	return os.WriteFile(f.path, nil, 0o640)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestRotate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b]*") // a name that is a pattern, too
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f := &fake{path: filepath.Join(dir, "0.log")}
	r := Rotator{Runtime: f, MaxSize: 10, MaxFiles: 4}
	write(t, f.path, "short")
	if err := r.Rotate(t.Context()); err != nil || f.reopened != 0 {
		t.Fatalf("a short log: %v, reopened %d times", err, f.reopened)
	}
	for i := range 4 {
		write(t, fmt.Sprintf("%s.2020010%d-000000", f.path, i+1), fmt.Sprint("old", i))
	}
	write(t, f.path+".20200101-000000.gz.tmp", "cut short")
	write(t, f.path+".kept-by-hand", "")
	write(t, filepath.Join(dir, "10.log"), "another container's")
	write(t, f.path, "more than ten bytes")
	if err := r.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	rotated := ""
	for _, e := range left {
		names = append(names, e.Name())
		if data, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil && string(data) == "more than ten bytes" {
			rotated = e.Name()
		}
	}
	if rotated == "" || rotated == "0.log" || len(names) != 6 || f.reopened != 1 {
		t.Errorf("left %q, rotated %q, reopened %d times: want the present, the new, two compressed, and two that are no business of ours", names, rotated, f.reopened)
	}
	z, err := os.Open(f.path + ".20200104-000000.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	g, err := gzip.NewReader(z)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(g); err != nil || string(data) != "old3" {
		t.Errorf("%q, %v", data, err)
	}
}

// If the runtime does not reopen, the log keeps its name: nothing that is written is lost.
func TestReopenFails(t *testing.T) {
	f := &fake{path: filepath.Join(t.TempDir(), "0.log"), err: errors.New("no")}
	write(t, f.path, "more than ten bytes")
	r := Rotator{Runtime: f, MaxSize: 10, MaxFiles: 3}
	if err := r.Rotate(t.Context()); err == nil {
		t.Error("no error")
	}
	if data, err := os.ReadFile(f.path); err != nil || string(data) != "more than ten bytes" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestVanishedLogIsReopened(t *testing.T) {
	f := &fake{path: filepath.Join(t.TempDir(), "0.log")}
	if err := (Rotator{Runtime: f, MaxSize: 10, MaxFiles: 3}).Rotate(t.Context()); err != nil || f.reopened != 1 {
		t.Errorf("%v, reopened %d times", err, f.reopened)
	}
}
