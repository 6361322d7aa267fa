package bpf

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// notLocking gives the process no memory to lock, as one has none whose user's other processes have locked more; it counts before Linux 5.11.
func notLocking(t *testing.T) {
	t.Helper()
	var old unix.Rlimit
	must(t, unix.Prlimit(0, unix.RLIMIT_MEMLOCK, nil, &old))
	must(t, unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &unix.Rlimit{Max: old.Max}, nil))
	t.Cleanup(func() { must(t, unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &old, nil)) })
}

// What the kernel has is found out by a command as well, which is not the process that has loaded the programs.
func TestFeatures(t *testing.T) {
	notLocking(t)
	for _, f := range Features() {
		if f.Err != nil && (f.Needed || !errors.Is(f.Err, ebpf.ErrNotSupported)) {
			t.Errorf("%s: %v", f.Name, f.Err)
		}
	}
}

func TestRequirements(t *testing.T) {
	if err := Supported(); err != nil {
		t.Errorf("on a kernel that runs the other tests: %v", err)
	}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"an old kernel":      {ebpf.ErrNotSupported, "lacks a helper"},
		"no capability":      {unix.EPERM, "CAP_BPF"},
		"anything else":      {unix.EIO, "a helper"},
		"a kernel that does": {nil, ""},
	} {
		err := probe([]requirement{{"a helper", func() error { return c.err }}})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
