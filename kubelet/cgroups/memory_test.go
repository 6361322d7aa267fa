package cgroups

import (
	"os"
	"path/filepath"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	const noLimit = "9223372036854771712\n" // what cgroup v1 says of it
	for name, test := range map[string]struct {
		v2      bool
		own     string
		files   map[string]string
		want    uint64
		limited bool
	}{
		"v2":                     {true, "0::/a/b\n", map[string]string{"a/memory.max": "max\n", "a/b/memory.max": "536870912\n"}, 512 << 20, true},
		"v2, a parent has less":  {true, "0::/a/b\n", map[string]string{"a/memory.max": "268435456\n", "a/b/memory.max": "536870912\n"}, 256 << 20, true},
		"v2, no limit":           {true, "0::/a\n", map[string]string{"a/memory.max": "max\n"}, 0, false},
		"v2, another's limit":    {true, "0::/a\n", map[string]string{"a/memory.max": "max\n", "b/memory.max": "4096\n"}, 0, false},
		"v2, a cgroup namespace": {true, "0::/\n", map[string]string{"memory.max": "536870912\n"}, 512 << 20, true},
		"v1": {false, "4:memory:/a/b\n3:cpu,cpuacct:/c\n", map[string]string{"memory/memory.limit_in_bytes": noLimit, "memory/a/memory.limit_in_bytes": "536870912\n",
			"memory/a/b/memory.limit_in_bytes": noLimit}, 512 << 20, true},
		"v1, only the container's part is mounted": {false, "4:memory:/docker/c\n", map[string]string{"memory/memory.limit_in_bytes": "536870912\n"}, 512 << 20, true},
		"hybrid, memory is of v1":                  {false, "4:memory:/a\n0::/u\n", map[string]string{"unified/cgroup.procs": "", "memory/a/memory.limit_in_bytes": "536870912\n"}, 512 << 20, true},
		"hybrid, memory is of v2":                  {false, "3:cpu:/a\n0::/u\n", map[string]string{"unified/cgroup.procs": "", "unified/u/memory.max": "536870912\n"}, 512 << 20, true},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			test.files["../own"] = test.own
			for path, text := range test.files {
				path = filepath.Join(root, "tree", path)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, limited, err := Tree{filepath.Join(root, "tree"), test.v2}.MemoryLimit(filepath.Join(root, "own"))
			if err != nil || got != test.want || limited != test.limited {
				t.Errorf("%d, %v, %v; want %d, %v", got, limited, err, test.want, test.limited)
			}
		})
	}
}
