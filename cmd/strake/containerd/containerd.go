// Package containerd runs a containerd of the node's own: its root, state and
// socket lie in the node's folders, so that the machine's containerd, if there
// is one, is never touched. It also loads images into it.
package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"text/template"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/atomicfile"
	"github.com/strake-io/strake/cmd/strake/layout"
)

// criNamespace is where containerd's CRI plugin keeps its images and containers.
const criNamespace = "k8s.io"

// PauseImage is the image of every pod's sandbox, made of our own binary.
const PauseImage = "strake.io/pause:1"

// config is version 2, which containerd reads from 1.3 to 2.x.
var config = template.Must(template.New("config.toml").Parse(`# Written by strake at each start; changes are lost.
version = 2
root = "{{.Containerd}}/root"
state = "{{.ContainerdState}}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{{.ContainerdSocket}}"
[ttrpc]
  address = "{{.ContainerdSocket}}.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{{.Containerd}}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + PauseImage + `"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  netns_mounts_under_state_dir = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  tolerate_missing_hugetlb_controller = true
  restrict_oom_score_adj = {{not .MayLowerOOMScore}}
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{{.CNIBin}}"
  conf_dir = "{{.CNIConf}}"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{{.Containerd}}/certs.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
`))

// Binaries finds containerd and runc, and says how to get what is missing.
func Binaries() (path string, err error) {
	path, err = exec.LookPath("containerd")
	if err != nil {
		return "", errors.New("containerd is not installed: run `apt-get install containerd runc`, or put containerd (1.6 or newer) and runc into PATH")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return "", errors.New("runc is not installed: run `apt-get install runc`, or put it into PATH")
	}
	return path, nil
}

// Exec writes the configuration and becomes containerd; it returns only to tell why it could not.
func Exec(l layout.Layout) error {
	path, err := Binaries()
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := config.Execute(&b, struct {
		layout.Layout
		MayLowerOOMScore bool
	}{l, mayLowerOOMScore()}); err != nil {
		return fmt.Errorf("containerd configuration: %w", err)
	}
	if err := atomicfile.Write(l.ContainerdConfig(), b.Bytes(), 0o600); err != nil {
		return err
	}
	if err := unix.Exec(path, []string{"containerd", "--config", l.ContainerdConfig()}, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// mayLowerOOMScore tells whether processes may be protected from the out-of-memory killer: that takes CAP_SYS_RESOURCE
// (proc_pid_oom_score_adj(5)), which root of a confined machine may lack.
func mayLowerOOMScore() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// Client is a connection to the node's containerd.
type Client struct {
	c *client.Client
}

// Connect waits until containerd serves, or ctx ends.
func Connect(ctx context.Context, l layout.Layout) (*Client, error) {
	for {
		_, err := os.Stat(l.ContainerdSocket()) // asked where there is none, the client complains on its own
		if err == nil {
			var c *client.Client
			if c, err = client.New(l.ContainerdSocket(), client.WithTimeout(time.Second), client.WithDefaultNamespace(criNamespace)); err == nil {
				if ok, serr := c.IsServing(ctx); serr == nil && ok {
					return &Client{c: c}, nil
				}
				c.Close()
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("containerd does not serve on %s (its log: %s): %w", l.ContainerdSocket(), l.Log("containerd"), errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Close ends the connection.
func (c *Client) Close() error { return c.c.Close() }

// Version is containerd's own version.
func (c *Client) Version(ctx context.Context) (string, error) {
	v, err := c.c.Version(ctx)
	return v.Version, err
}

// Import loads an image archive (OCI layout or `docker save`) and unpacks its images, so that a
// pod can start of them at once. It returns their names.
func (c *Client) Import(ctx context.Context, archive io.Reader) ([]string, error) {
	ctx = namespaces.WithNamespace(ctx, criNamespace)
	ctx, release, err := c.c.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	defer release(context.WithoutCancel(ctx))
	// The CRI plugin manages only what carries its label. Pinned: nothing could pull these again, so the kubelet must not collect
	// them when the disk is full (containerd 1.7 and newer know of that).
	labels := map[string]string{"io.cri-containerd.image": "managed", "io.cri-containerd.pinned": "pinned"}
	imgs, err := c.c.Import(ctx, archive, client.WithImageLabels(labels))
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	names := make([]string, 0, len(imgs))
	for _, img := range imgs {
		if err := client.NewImage(c.c, img).Unpack(ctx, "overlayfs"); err != nil {
			return nil, fmt.Errorf("unpack image %s: %w", img.Name, err)
		}
		names = append(names, img.Name)
	}
	if len(names) == 0 {
		return nil, errors.New("import image: the archive names no image; make it with `docker save NAME` or give the OCI index an image name")
	}
	return names, nil
}

// Has tells whether an image of this name is there.
func (c *Client) Has(ctx context.Context, name string) bool {
	_, err := c.c.GetImage(namespaces.WithNamespace(ctx, criNamespace), name)
	return err == nil
}

// ImportFile is Import of a file.
func (c *Client) ImportFile(ctx context.Context, path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	defer f.Close()
	return c.Import(ctx, f)
}
