package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
)

// MemoryLimit is how many bytes a process may use: the least limit of its cgroup and of those above that. file tells its cgroups, such as
// /proc/self/cgroup. What is above the part of the tree that is mounted here is not seen.
func (t Tree) MemoryLimit(file string) (limit uint64, limited bool, err error) {
	own, err := cgroups.ParseCgroupFile(file)
	if err != nil {
		return 0, false, fmt.Errorf("own cgroup: %w", err)
	}
	var errs []error
	look := func(mount, path, name string) {
		for dir := filepath.Join("/", path); ; dir = filepath.Dir(dir) {
			n, ok, err := readLimit(filepath.Join(mount, dir, name))
			errs = append(errs, err)
			if ok && (!limited || n < limit) {
				limit, limited = n, true
			}
			if dir == "/" {
				return
			}
		}
	}
	if u := t.Unified(); u != "" {
		look(u, own[""], "memory.max")
	}
	if path, ok := own["memory"]; ok && !t.V2 {
		look(filepath.Join(t.Root, "memory"), path, "memory.limit_in_bytes")
	}
	return limit, limited, errors.Join(errs...)
}

// readLimit reads a file of a number of bytes, or of the word max. There is none at the root of cgroup2, nor where a container has but its own part of the tree.
func readLimit(file string) (n uint64, ok bool, err error) {
	data, err := os.ReadFile(file)
	text := strings.TrimSpace(string(data))
	if errors.Is(err, fs.ErrNotExist) || err == nil && text == "max" {
		return 0, false, nil
	}
	if err == nil {
		n, err = strconv.ParseUint(text, 10, 64)
	}
	if err != nil {
		return 0, false, fmt.Errorf("memory limit %s: %w", file, err)
	}
	return n, true, nil
}
