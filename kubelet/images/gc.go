// Package images removes images that no container uses when the disk fills up,
// those first that were not used for longest.
package images

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// Kubernetes' defaults: imageGCHighThresholdPercent, imageGCLowThresholdPercent, imageMinimumGCAge.
const (
	highPercent = 85
	lowPercent  = 80
	minAge      = 2 * time.Minute
	gcEvery     = 5 * time.Minute
)

// Collector removes images.
type Collector struct {
	runtime cri.RuntimeService
	images  cri.ImageManagerService
	dir     func(context.Context) (string, error) // the file system of the images

	mu   sync.Mutex
	seen map[string]record // by id
}

type record struct{ found, used time.Time }

// New returns a collector; dir tells the folder that holds the images.
func New(runtime cri.RuntimeService, images cri.ImageManagerService, dir func(context.Context) (string, error)) *Collector {
	return &Collector{runtime: runtime, images: images, dir: dir, seen: map[string]record{}}
}

// Run frees space as needed until ctx ends.
func (c *Collector) Run(ctx context.Context) {
	t := time.NewTicker(gcEvery)
	defer t.Stop()
	for {
		if err := c.collect(ctx); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Unused images were not removed")
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (c *Collector) collect(ctx context.Context) error {
	unused, err := c.unused(ctx, time.Now())
	if err != nil {
		return err
	}
	dir, err := c.dir(ctx)
	if err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("file system of images %s: %w", dir, err)
	}
	capacity, available := fs.Blocks*uint64(fs.Bsize), fs.Bavail*uint64(fs.Bsize)
	free := toFree(capacity, available)
	if free == 0 {
		return nil
	}
	freed, err := c.remove(ctx, choose(unused, free, time.Now()))
	if err == nil && freed < free {
		err = fmt.Errorf("the disk of %s is %d %% full, and of %d bytes that images should free only %d could be", dir, 100-available*100/max(capacity, 1), free, freed)
	}
	return err
}

// toFree is how much has to go, in bytes: nothing below the high mark, down to the low one above it.
func toFree(capacity, available uint64) uint64 {
	if capacity == 0 || (capacity-min(available, capacity))*100 < highPercent*capacity {
		return 0
	}
	return capacity*(100-lowPercent)/100 - min(available, capacity*(100-lowPercent)/100)
}

// All removes every image that no container uses, whatever its age.
func (c *Collector) All(ctx context.Context) error {
	unused, err := c.unused(ctx, time.Now())
	if err != nil {
		return err
	}
	_, err = c.remove(ctx, unused)
	return err
}

// candidate is an image that no container uses.
type candidate struct {
	id          string
	size        uint64
	found, used time.Time
}

// unused lists the images that may go, the ones first that were not used for longest. The image of the sandboxes, and
// what the runtime has pinned, stay.
func (c *Collector) unused(ctx context.Context, now time.Time) ([]candidate, error) {
	list, err := c.images.ListImages(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	containers, err := c.runtime.ListContainers(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	used := map[string]bool{}
	for _, x := range containers {
		used[x.ImageRef], used[x.GetImage().GetImage()] = true, true
	}
	keep, err := c.sandboxImage(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	present := map[string]bool{}
	var out []candidate
	for _, img := range list {
		present[img.Id] = true
		r, ok := c.seen[img.Id]
		if !ok {
			r.found = now
		}
		busy := used[img.Id] || slices.ContainsFunc(img.RepoTags, func(t string) bool { return used[t] }) || slices.ContainsFunc(img.RepoDigests, func(t string) bool { return used[t] })
		if busy {
			r.used = now
		}
		c.seen[img.Id] = r
		if !busy && !img.Pinned && !slices.Contains(img.RepoTags, keep) && img.Id != keep {
			out = append(out, candidate{img.Id, img.Size, r.found, r.used})
		}
	}
	for id := range c.seen {
		if !present[id] {
			delete(c.seen, id)
		}
	}
	slices.SortFunc(out, func(a, b candidate) int {
		if n := a.used.Compare(b.used); n != 0 {
			return n
		}
		return a.found.Compare(b.found)
	})
	return out, nil
}

// sandboxImage asks the runtime for the image of its sandboxes: without it no pod would start.
func (c *Collector) sandboxImage(ctx context.Context) (string, error) {
	resp, err := c.runtime.Status(ctx, true)
	if err != nil {
		return "", fmt.Errorf("status of the runtime: %w", err)
	}
	return sandboxImage(resp), nil
}

func sandboxImage(resp *runtimeapi.StatusResponse) string {
	var cfg struct {
		SandboxImage string `json:"sandboxImage"`
	}
	if json.Unmarshal([]byte(resp.GetInfo()["config"]), &cfg) != nil {
		return ""
	}
	return cfg.SandboxImage
}

// choose takes as many as give that many bytes, but none that came or was used just now.
func choose(unused []candidate, bytes uint64, now time.Time) []candidate {
	var out []candidate
	var sum uint64
	for _, x := range unused {
		if sum >= bytes {
			break
		}
		if now.Sub(x.found) < minAge || now.Sub(x.used) < minAge {
			continue
		}
		out = append(out, x)
		sum += x.size
	}
	return out
}

func (c *Collector) remove(ctx context.Context, list []candidate) (freed uint64, err error) {
	for _, x := range list {
		klog.InfoS("Image is removed to free space", "image", x.id, "bytes", x.size)
		if err := c.images.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: x.id}); err != nil {
			return freed, fmt.Errorf("remove image %s: %w", x.id, err)
		}
		freed += x.size
	}
	return freed, nil
}
