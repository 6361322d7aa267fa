package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	remote "k8s.io/cri-client/pkg"

	"github.com/strake-io/strake/atomicfile"
	"github.com/strake-io/strake/cmd/strake/containerd"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/ociimage"
)

// SmallBinary finds strake-cni beside our own binary.
func SmallBinary() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), "strake-cni")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("strake-cni is not beside %s: run `make build`", self)
	}
	return path, nil
}

func installPlugin(l layout.Layout) error {
	src, err := SmallBinary()
	if err != nil {
		return err
	}
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	// Runtimes before containerd 2.1 want a plugin called loopback as well; it is the same binary by another name.
	for _, name := range []string{"strake-cni", "loopback"} {
		if err := atomicfile.Write(filepath.Join(l.CNIBin(), name), data, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// sandboxes lists the ids of those that the node's containerd knows. It is asked so rarely that no connection is kept.
func sandboxes(ctx context.Context, l layout.Layout) (ids []string, err error) {
	rt, err := remote.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + l.ContainerdSocket()).WithConnectionTimeout(30 * time.Second).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rt.Close(ctx)) }()
	list, err := rt.ListPodSandbox(ctx, nil)
	for _, s := range list {
		ids = append(ids, s.Id)
	}
	return ids, err
}

// connectRuntime waits for containerd and gives it the sandbox's image, made of our own binary.
func connectRuntime(ctx context.Context, l layout.Layout) error {
	c, err := containerd.Connect(ctx, l)
	if err != nil {
		return err
	}
	defer c.Close()
	pause, err := SmallBinary()
	if err != nil {
		return err
	}
	return LoadImage(ctx, c, ociimage.Image{Name: containerd.PauseImage, Files: map[string]string{"/pause": pause}, Entrypoint: []string{"/pause"}, User: "65535"})
}

// LoadImage makes an image and loads it, unless it is there.
func LoadImage(ctx context.Context, c *containerd.Client, img ociimage.Image) error {
	if c.Has(ctx, img.Name) {
		return nil
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(ociimage.Write(w, img)) }()
	_, err := c.Import(ctx, r)
	return err
}
