package bpf

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

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
