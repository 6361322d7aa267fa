package stats

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/kubelet/eviction"
)

// Levels are what the node has left; what can't be measured is left out.
func (c Config) Levels(ctx context.Context) map[eviction.Signal]eviction.Level {
	out := map[eviction.Signal]eviction.Level{}
	if m, err := Memory(); err == nil {
		out[eviction.Memory] = eviction.Level{Available: m.Available, Capacity: m.Total}
	}
	disk := func(dir string, space, inodes eviction.Signal) {
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			klog.ErrorS(err, "File system can't be measured", "folder", dir)
			return
		}
		out[space] = eviction.Level{Available: fs.Bavail * uint64(fs.Bsize), Capacity: fs.Blocks * uint64(fs.Bsize)}
		out[inodes] = eviction.Level{Available: fs.Ffree, Capacity: fs.Files}
	}
	disk(c.RootDir, eviction.NodeFS, eviction.NodeInodes)
	if dir, err := c.ImageFS(ctx); err == nil {
		disk(dir, eviction.ImageFS, eviction.ImageInodes)
	}
	if l, ok := pids(); ok {
		out[eviction.PID] = l
	}
	return out
}

// pids is how many processes there may be, and are not.
func pids() (eviction.Level, bool) {
	limit, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return eviction.Level{}, false
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return eviction.Level{}, false
	}
	return parsePIDs(string(limit), string(load))
}

// parsePIDs takes the number of threads of /proc/loadavg: its fourth field is RUNNING/ALL (proc_loadavg(5)).
func parsePIDs(limit, load string) (eviction.Level, bool) {
	f := strings.Fields(load)
	if len(f) < 4 {
		return eviction.Level{}, false
	}
	_, all, _ := strings.Cut(f[3], "/")
	used, err := strconv.ParseUint(all, 10, 64)
	if err != nil {
		return eviction.Level{}, false
	}
	most, err := strconv.ParseUint(strings.TrimSpace(limit), 10, 64)
	if err != nil {
		return eviction.Level{}, false
	}
	return eviction.Level{Available: most - min(used, most), Capacity: most}, true
}

// Usage is what pods use: all of them, or only those that have limits of their own on the disk.
func (c Config) Usage(ctx context.Context, all bool) []eviction.Usage {
	var pods []*corev1.Pod
	for _, p := range c.Pods() {
		if all || eviction.Limits(p) {
			pods = append(pods, p)
		}
	}
	if len(pods) == 0 {
		return nil
	}
	containers, err := c.containers(ctx)
	if err != nil {
		klog.ErrorS(err, "What containers use is not known")
	}
	var out []eviction.Usage
	for _, p := range pods {
		u := eviction.Usage{Pod: p, Containers: map[string]eviction.ContainerUsage{}, Volumes: map[string]uint64{}}
		if g, err := c.Cgroups.PodUsage(p); err == nil {
			u.Memory = g.WorkingSet
		}
		for _, st := range containers[string(p.UID)] {
			cs := containerStats(st)
			var x eviction.ContainerUsage
			if cs.Memory != nil && cs.Memory.WorkingSetBytes != nil {
				x.Memory = *cs.Memory.WorkingSetBytes
			}
			x.Disk = DiskUsage(filepath.Join(c.LogsDir(p), cs.Name))
			if cs.Rootfs != nil && cs.Rootfs.UsedBytes != nil {
				x.Disk += *cs.Rootfs.UsedBytes
			}
			u.Disk += x.Disk
			u.Containers[cs.Name] = x
		}
		for _, v := range p.Spec.Volumes {
			if v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumDefault {
				n := DiskUsage(filepath.Join(c.VolumesDir(p), "volumes", v.Name))
				u.Volumes[v.Name] = n
				u.Disk += n
			}
		}
		out = append(out, u)
	}
	return out
}
