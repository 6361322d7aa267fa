package cluster

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/strake-io/strake/cmd/strake/kubeproxy"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// An agent that runs serves nothing where its bpffs is gone, or nothing is attached.
func TestStatusOfANodeWithNothingAttached(t *testing.T) {
	for name, prepare := range map[string]func(l layout.Layout) error{
		"no folder":    func(layout.Layout) error { return nil },
		"empty folder": func(l layout.Layout) error { return os.MkdirAll(l.BPF(), 0o700) },
		"unreadable":   func(l layout.Layout) error { return os.WriteFile(l.BPF(), nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			l, err := layout.New(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Dir(l.Pid("agent")), 0o700); err != nil {
				t.Fatal(err)
			}
			if _, err := supervisor.Record(l.Pid("agent"), os.Getpid()); err != nil {
				t.Fatal(err)
			}
			if err := prepare(l); err != nil {
				t.Fatal(err)
			}
			if st := inspectProxy(l, kubeproxy.Settings{}); st.Ready || st.Problem == "" || !st.Components[0].Running {
				t.Errorf("%+v", st)
			}
			if _, err := readDatapath(l); err == nil {
				t.Error("the node's network is there")
			}
		})
	}
}
