// Package plainnode makes a cluster in which nobody serves Services: a control plane, containerd and a kubelet, whose pods have the network of Debian's
// ptp plugin. It is somebody else's cluster, as far as `strake agent --only proxy` can tell.
package plainnode

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/atomicfile"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/ociimage"
	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/lab/labtest"
)

// podCIDR is the range of pods' addresses.
const podCIDR = "10.211.0.0/24"

// plugins is where Debian has the CNI plugins.
const plugins = "/usr/lib/cni"

// Start makes the cluster in a lab's place. It ends with the test; the lab is to be closed after that.
func Start(t testing.TB, c *lab.Cluster) {
	t.Helper()
	l, err := layout.New(c.Data)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Dir(c.Binary)
	kubelet := filepath.Join(bin, "plainnode-kubelet") // which is linked once
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", kubelet, "./tests/lab/plainnode/kubelet")
	build.Dir = filepath.Dir(bin)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build.Args, err, out)
	}
	// Not with the test's context, which would kill them.
	labtest.Background(t, "server", c.StrakeCommand(context.Background(), "server"))
	await(t, c, "get", "--raw", "/readyz")
	if err := network(t, l); err != nil {
		t.Fatal(err)
	}
	labtest.Background(t, "containerd", c.StrakeCommand(context.Background(), "containerd"))
	labtest.Background(t, "kubelet", c.Command(context.Background(), kubelet, c.Data, filepath.Join(bin, "strake-cni")))
	await(t, c, "wait", "--for=condition=Ready", "node", "--all", "--timeout=10s")
}

// await repeats a command of kubectl until it succeeds.
func await(t testing.TB, c *lab.Cluster, args ...string) {
	t.Helper()
	const patience = 6 * time.Minute
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		out, err := c.Strake(append([]string{"kubectl"}, args...)...)
		if err == nil {
			return
		}
		if time.Since(began) > patience {
			t.Fatalf("kubectl %v: %v\n%s", args, err, out)
		}
	}
}

// network gives the node's containerd the plugin ptp.
func network(t testing.TB, l layout.Layout) error {
	t.Helper()
	conf, err := json.Marshal(map[string]any{"cniVersion": "0.4.0", "name": "plain", "plugins": []any{map[string]any{
		"type": "ptp", "ipam": map[string]any{
			"type": "host-local", "dataDir": filepath.Join(t.TempDir(), "ipam"),
			"ranges": [][]map[string]string{{{"subnet": podCIDR}}}, "routes": []map[string]string{{"dst": "0.0.0.0/0"}},
		},
	}}})
	if err != nil {
		return err
	}
	for _, name := range []string{"ptp", "host-local", "loopback"} {
		if err := os.Symlink(filepath.Join(plugins, name), filepath.Join(l.CNIBin(), name)); err != nil {
			return err
		}
	}
	return atomicfile.Write(filepath.Join(l.CNIConf(), "10-plain.conflist"), conf, 0o644)
}

// BPFFS mounts one for a test alone: /sys/fs/bpf is the machine's.
func BPFFS(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount a bpffs at %s: %v", dir, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount the bpffs at %s: %v", dir, err)
		}
	})
	return dir
}

// MayLiftLimits tells whether containers can have CAP_SYS_RESOURCE here: root of a confined machine may lack it. The agent wants it before Linux 5.11
// alone.
func MayLiftLimits(t testing.TB) bool {
	t.Helper()
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return has == 1
}

// LoadStrake loads the image that the last stage of deploy/kube-proxy/Dockerfile makes.
func LoadStrake(t testing.TB, c *lab.Cluster, name string) {
	t.Helper()
	root := filepath.Dir(filepath.Dir(c.Binary))
	text, err := os.ReadFile(filepath.Join(root, "deploy", "kube-proxy", "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	img := ociimage.Image{Name: name, Files: map[string]string{}}
	_, last, ok := strings.Cut(string(text), "\nFROM scratch\n")
	for line := range strings.Lines(last) {
		switch word, rest, _ := strings.Cut(strings.TrimSpace(line), " "); word {
		case "COPY":
			from, to, _ := strings.Cut(rest, " ")
			img.Files[to] = filepath.Join(root, from)
		case "ENTRYPOINT":
			ok = json.Unmarshal([]byte(rest), &img.Entrypoint) == nil && ok
		default:
			ok = false
		}
	}
	if !ok || len(img.Files) == 0 || len(img.Entrypoint) == 0 {
		t.Fatalf("the last stage of the Dockerfile is not what this can read:\n%s", text)
	}
	labtest.LoadImage(t, c, img)
}
