// Package logrotate keeps the logs of containers small: a log that grew too
// large is renamed, the runtime opens a new one, and of the old ones only some
// are kept, compressed.
package logrotate

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// Kubernetes' defaults: containerLogMaxSize, containerLogMaxFiles, containerLogMonitorInterval.
const (
	MaxSize  = 10 << 20 // bytes
	MaxFiles = 5        // of a container, the present one included
	every    = 10 * time.Second
)

const (
	stampFormat = "20060102-150405"
	gzSuffix    = ".gz"
	tmpSuffix   = ".tmp"
)

// Rotator rotates the logs of a runtime's containers.
type Rotator struct {
	Runtime  cri.RuntimeService
	MaxSize  int64
	MaxFiles int
}

// Run rotates until ctx ends.
func (r Rotator) Run(ctx context.Context) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if err := r.Rotate(ctx); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Logs of containers were not rotated")
		}
	}
}

// Rotate looks at the logs of all running containers once.
func (r Rotator) Rotate(ctx context.Context) error {
	list, err := r.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	var errs []error
	for _, c := range list {
		resp, err := r.Runtime.ContainerStatus(ctx, c.Id, false)
		if err != nil || resp.GetStatus().GetLogPath() == "" {
			continue // gone meanwhile, or without a log
		}
		if err := r.log(ctx, c.Id, resp.Status.LogPath); err != nil {
			errs = append(errs, fmt.Errorf("log of container %s: %w", c.Id, err))
		}
	}
	return errors.Join(errs...)
}

func (r Rotator) log(ctx context.Context, id, path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r.Runtime.ReopenContainerLog(ctx, id) // someone removed it, or a rotation was cut short
	}
	if err != nil || info.Size() < r.MaxSize {
		return err
	}
	if err := r.tidy(path); err != nil {
		return err
	}
	rotated := path + "." + time.Now().UTC().Format(stampFormat)
	if err := os.Rename(path, rotated); err != nil {
		return err
	}
	if err := r.Runtime.ReopenContainerLog(ctx, id); err != nil {
		// The runtime writes on into the renamed file: it gets its name back, so that nothing is lost.
		return errors.Join(fmt.Errorf("reopen: %w", err), os.Rename(rotated, path))
	}
	return nil
}

// tidy leaves room for one more rotated log: the oldest go, the others are compressed.
func (r Rotator) tidy(path string) error {
	old, err := filepath.Glob(globEscape(path) + ".*")
	if err != nil {
		return err
	}
	var keep []string
	for _, f := range old {
		if strings.HasSuffix(f, tmpSuffix) { // of a compression that was cut short
			if err := os.Remove(f); err != nil {
				return err
			}
			continue
		}
		if _, err := time.Parse(stampFormat, strings.TrimSuffix(strings.TrimPrefix(f, path+"."), gzSuffix)); err == nil {
			keep = append(keep, f)
		}
	}
	slices.Sort(keep)
	for len(keep) > max(r.MaxFiles-2, 0) { // the present one, and the one that it becomes
		if err := os.Remove(keep[0]); err != nil {
			return err
		}
		keep = keep[1:]
	}
	for _, f := range keep {
		if !strings.HasSuffix(f, gzSuffix) {
			if err := compress(f); err != nil {
				return err
			}
		}
	}
	return nil
}

func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

func compress(path string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp := path + tmpSuffix
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	if err = errors.Join(err, z.Close(), out.Close()); err != nil {
		return errors.Join(fmt.Errorf("compress %s: %w", path, err), os.Remove(tmp))
	}
	if err := os.Rename(tmp, path+gzSuffix); err != nil {
		return err
	}
	return os.Remove(path)
}
