// Package e2e brings up real clusters in network namespaces of their own and uses them as people do.
// Much of their time is spent on waiting: tests that have a cluster of their own are parallel, two at a time (-parallel 2), after those that share one.
// Those that count lost packets are not, for a processor's queue is shared with whatever goes on beside.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/strake-io/strake/tests/lab"
	"github.com/strake-io/strake/tests/lab/labtest"
)

// cluster is a cluster in a lab of the test's own.
type cluster struct {
	*lab.Cluster
	t         *testing.T
	namespace string // of kubectl
}

const (
	binary   = "../../bin/strake"
	nodeName = "node-1"
)

// start brings a cluster up, with further flags of `up`; it goes with the test.
func start(t *testing.T, flags ...string) *cluster {
	t.Helper()
	l := labtest.New(t, "strake-e2e", binary)
	c := &cluster{Cluster: l, t: t, namespace: "default"}
	if out, err := c.Strake(append([]string{"up", "--node-name", nodeName, "--wait", "240s"}, flags...)...); err != nil {
		t.Fatalf("up: %v\n%s", err, out)
	}
	c.busybox()
	c.awaitServiceAccount()
	return c
}

// shared is a cluster that tests share which leave it in order. Whoever comes first brings it up.
var shared struct {
	once sync.Once
	lab  *lab.Cluster
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.lab != nil {
		if err := errors.Join(shared.lab.Close(), os.RemoveAll(shared.dir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// use gives the test a namespace in the shared cluster; it goes with the test.
func use(t *testing.T) *cluster {
	t.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "strake-e2e-"); shared.err != nil {
			return
		}
		if shared.lab, shared.err = lab.New("strake-e2e", filepath.Join(shared.dir, "data"), binary); shared.err != nil {
			return
		}
		if out, err := shared.lab.Strake("up", "--node-name", nodeName, "--wait", "240s"); err != nil {
			shared.err = fmt.Errorf("up: %w\n%s", err, out)
			return
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	c := &cluster{Cluster: shared.lab, t: t, namespace: strings.ToLower(t.Name())}
	c.busybox() // each time: on a disk that is rather full the kubelet removes images that no pod has
	c.kubectl("create", "namespace", c.namespace)
	t.Cleanup(func() { c.kubectl("delete", "namespace", c.namespace, "--timeout=240s") })
	c.awaitServiceAccount()
	return c
}

// in is the same cluster for a part of a test.
func (c *cluster) in(t *testing.T) *cluster {
	return &cluster{Cluster: c.Cluster, t: t, namespace: c.namespace}
}

func (c *cluster) awaitServiceAccount() {
	c.t.Helper()
	eventually(c.t, 40*time.Second, func() string {
		if out, err := c.try("get", "serviceaccount", "default"); err != nil {
			return out
		}
		return ""
	})
}

func (c *cluster) must(cmd *exec.Cmd) string {
	c.t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

// kubectlCommand is kubectl in the test's namespace. It ends with the test.
func (c *cluster) kubectlCommand(args ...string) *exec.Cmd {
	return c.kubectlWithin(c.t.Context(), args)
}

// kubectlWithin is kubectl in the test's namespace: ours, or another one that the environment names.
func (c *cluster) kubectlWithin(ctx context.Context, args []string) *exec.Cmd {
	if other := os.Getenv("STRAKE_KUBECTL"); other != "" {
		return c.Command(ctx, append([]string{other, "--kubeconfig", filepath.Join(c.Data, "admin.kubeconfig"), "-n", c.namespace}, args...)...)
	}
	return c.StrakeCommand(ctx, append([]string{"kubectl", "-n", c.namespace}, args...)...)
}

func (c *cluster) try(args ...string) (string, error) {
	out, err := c.kubectlCommand(args...).CombinedOutput()
	return string(out), err
}

func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	// Not ended with the test: cleanups use it too.
	out, err := c.kubectlWithin(context.Background(), args).CombinedOutput()
	if err != nil {
		c.t.Fatalf("kubectl %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func (c *cluster) apply(manifest string) {
	c.t.Helper()
	cmd := c.kubectlCommand("apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	c.must(cmd)
}

// eventually repeats f until it returns "" and fails with what it returned last. The time is that of a machine with far too much to do, since what
// works ends early: how fast something is, tests/bench measures.
func eventually(t *testing.T, patience time.Duration, f func() string) {
	t.Helper()
	if last := within(patience, f); last != "" {
		t.Fatal(last)
	}
}

// within repeats f until it returns "" or the time is over, and returns what it returned last.
func within(patience time.Duration, f func() string) string {
	deadline := time.Now().Add(patience)
	for {
		last := f()
		if last == "" || time.Now().After(deadline) {
			return last
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// busybox makes an image of the machine's static busybox and loads it.
func (c *cluster) busybox() {
	c.t.Helper()
	c.image("strake.io/busybox:1", "")
}

// image makes one of the machine's static busybox, and what a script puts into the folder root, and loads it.
func (c *cluster) image(name, script string) {
	c.t.Helper()
	dir := c.t.TempDir()
	// The form that `docker save` writes: a layer, a configuration, a manifest.
	c.must(exec.Command("sh", "-ec", fmt.Sprintf(`here=$PWD; cd %s; mkdir -p root/bin root/tmp; cp /bin/busybox root/bin/; for a in sh wget rm mkdir nslookup cat sleep echo env httpd ls true kill test nc stty tty seq wc timeout tar date dd id hostname; do ln -s busybox root/bin/$a; done
%s
tar -C root -cf layer.tar .; sum=$(sha256sum layer.tar | cut -d' ' -f1)
printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%%s"]}}' $sum > config.json
printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' > manifest.json
tar -cf image.tar layer.tar config.json manifest.json`, dir, script, name)))
	if out, err := c.Strake("image", "import", filepath.Join(dir, "image.tar")); err != nil || !strings.Contains(out, name) {
		c.t.Fatalf("image import: %v\n%s", err, out)
	}
}
