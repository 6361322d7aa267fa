package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/tests/lab/labtest"
)

// TestBadStarts: whatever is in the way of `up` is told in one line with its cure, and nothing half-started is left.
func TestBadStarts(t *testing.T) {
	t.Parallel()
	l := labtest.New(t, "strake-e2e", binary)
	c := &cluster{Cluster: l, t: t}
	settings := func(content string) func(*testing.T) {
		return func(t *testing.T) {
			if err := os.MkdirAll(l.Data, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(l.Data, "layout.json"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, b := range []struct {
		name    string
		prepare func(*testing.T)
		args    []string // after nsenter; nil: strake up
		want    string
	}{
		{"not root", nil, []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", l.Binary, "up", "--data-dir", l.Data}, "needs root"},
		{"no right to load BPF", nil, []string{"setpriv", "--bounding-set", "-bpf,-sys_admin", l.Binary, "up", "--data-dir", l.Data}, "CAP_BPF"},
		{"no containerd", nil, []string{"env", "PATH=/nowhere", l.Binary, "up", "--data-dir", l.Data}, "apt-get install containerd runc"},
		{"a port that is taken", listen(c, "6443"), nil, "198.18.0.2:6443 is taken by another process, but the API server (another: --port)"},
		{"an address of nobody", nil, []string{l.Binary, "up", "--data-dir", l.Data, "--node-ip", "192.0.2.1"}, "name another with --node-ip"},
		{"ranges that overlap", nil, []string{l.Binary, "up", "--data-dir", l.Data, "--service-cidr", "10.244.0.0/16"}, "overlap"},
		{"a folder of somebody else", func(t *testing.T) {
			if err := os.MkdirAll(filepath.Join(l.Data, "photos"), 0o700); err != nil {
				t.Fatal(err)
			}
		}, nil, "choose an empty folder with --data-dir"},
		{"a folder of another release", settings(`{"version":99}`), nil, "made by another release"},
		{"a damaged folder", settings(`{"ver`), nil, "layout.json is corrupt"},
	} {
		t.Run(b.name, func(t *testing.T) {
			if b.prepare != nil {
				b.prepare(t)
			}
			before := folder(l.Data)
			args := b.args
			if args == nil {
				args = []string{l.Binary, "up", "--data-dir", l.Data}
			}
			out, err := c.Command(t.Context(), args...).CombinedOutput()
			last := strings.TrimSpace(string(out))
			last = last[strings.LastIndexByte(last, '\n')+1:]
			if err == nil || !strings.HasPrefix(last, "strake: ") || !strings.Contains(last, b.want) {
				t.Errorf("%v, want %q in the last line of\n%s", err, b.want, out)
			}
			if after := folder(l.Data); after != before {
				t.Errorf("the data folder held\n%s\nand now\n%s", before, after)
			}
			nothingRuns(t, c)
			if err := os.RemoveAll(l.Data); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("down where nothing is", func(t *testing.T) { // nor an address, which only pods that are to be removed need
		if out, err := exec.Command("unshare", "--net", l.Binary, "down", "--data-dir", l.Data).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("a disk that fills up", func(t *testing.T) { fullDisk(t, c) })
	t.Run("a damaged database", func(t *testing.T) { damagedDatabase(t, c) })
}

func folder(path string) string {
	out, _ := exec.Command("find", path).Output() // it may be absent
	return string(out)
}

func nothingRuns(t *testing.T, c *cluster) {
	t.Helper()
	out, _ := exec.Command("pgrep", "-af", c.Data).Output() // 1: none
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if len(out) > 0 || strings.Contains(string(mounts), c.Data+"/") {
		t.Errorf("left:\n%s\n%s", out, mounts)
	}
}

// listen takes a port of the node for one test.
func listen(c *cluster, port string) func(*testing.T) {
	return func(t *testing.T) {
		cmd := c.Command(t.Context(), "busybox", "nc", "-l", "-p", port)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		c.must(c.Command(t.Context(), "sh", "-c", "for i in $(seq 100); do ss -Hltn sport = :"+port+" | grep -q . && exit; sleep 0.05; done; exit 1"))
	}
}

// fullDisk gives the cluster a disk that is big enough at first and then is filled by somebody else.
func fullDisk(t *testing.T, c *cluster) {
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", c.Data, "tmpfs", 0, "size=1100M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(c.Data, 0); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	fill := exec.CommandContext(ctx, "sh", "-c", "while ! test -d "+c.Data+"/etcd/member/wal; do sleep 0.01; done; dd if=/dev/zero of="+c.Data+"/log/fill bs=1M")
	if err := fill.Start(); err != nil {
		t.Fatal(err)
	}
	defer fill.Wait() // ends with an error: no space left, or what it waits for did not come
	defer cancel()
	out, err := c.Strake("up", "--wait", "60s")
	if err == nil || !strings.Contains(out, "free some") || !strings.Contains(out, "MiB left") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, left := range []string{"etcd", "pki", "settings.json", "containerd"} {
		if _, err := os.Stat(filepath.Join(c.Data, left)); err == nil {
			t.Errorf("%s is left", left)
		}
	}
	nothingRuns(t, c)
}

func damagedDatabase(t *testing.T, c *cluster) {
	if out, err := c.Strake("up"); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	if out, err := c.Strake("down"); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	db := filepath.Join(c.Data, "etcd", "member", "snap", "db")
	if err := os.WriteFile(db, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := c.Strake("up", "--wait", "60s")
	if err == nil || !strings.Contains(out, "server ended") || !strings.Contains(out, "restore the folder from a backup") {
		t.Errorf("%v\n%s", err, out)
	}
	if data, err := os.ReadFile(db); err != nil || string(data) != "rubbish" {
		t.Errorf("the data was changed: %v", err)
	}
	nothingRuns(t, c)
}
