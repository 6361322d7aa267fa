package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestFind: also a container's first process is found; one whose number is another's now is not, nor is what no process can be.
func TestFind(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.pid")
	for _, pid := range []int{1, os.Getpid()} {
		want, err := Record(file, pid)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := Find(file); !ok || got != want {
			t.Errorf("process %d: %+v, %v", pid, got, ok)
		}
		if err := os.WriteFile(file, fmt.Appendf(nil, "%d %d\n", pid, want.Start+1), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, ok := Find(file); ok {
			t.Errorf("a former process %d: %+v", pid, got)
		}
	}
	for _, text := range []string{"", "none", "0 0", "-1 0"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, ok := Find(file); ok {
			t.Errorf("%q: %+v", text, got)
		}
	}
}
