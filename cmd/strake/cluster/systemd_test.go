package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// TestSystemdsNodes: what systemd starts again when it ends, no command of ours ends, nor does one start a supervisor beside it.
func TestSystemdsNodes(t *testing.T) {
	l, err := layout.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(l.Run(), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(l.Run()) })
	// server plays a server that was started so, by a shell that names its own pid.
	server := func(env string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", "export "+env+"; exec sh -c 'echo started; exec sleep 1000'")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Wait() }) // it is killed
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if _, err := supervisor.Record(l.Pid("server"), cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	commands := func() map[string]error {
		up, join := &upStart{start: newStart(l)}, &joinStart{start: newStart(l)}
		return map[string]error{
			"up": up.check(Defaults(), func(string) bool { return false }, 0), "join": join.check(context.Background(), Defaults(), func(string) bool { return false }),
		}
	}
	server("SYSTEMD_EXEC_PID=1") // the pid of the unit that our supervisor came from
	for name, err := range commands() {
		if err != nil && strings.Contains(err.Error(), "systemd") {
			t.Errorf("%s takes our own process for systemd's: %v", name, err)
		}
	}
	server("SYSTEMD_EXEC_PID=$$")
	all := commands()
	if os.Geteuid() == 0 {
		all["down"] = Down(t.Context(), l, false, io.Discard)
	}
	p, ok := supervisor.Find(l.Pid("server"))
	if !ok {
		t.Fatal("systemd's process was ended")
	}
	for name, err := range all {
		if want := fmt.Sprintf("process %d", p.PID); err == nil || !strings.Contains(err.Error(), "systemctl") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want a line that names systemd and %s", name, err, want)
		}
	}
}
