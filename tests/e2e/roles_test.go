package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os/exec"
	"testing"
	"time"

	"github.com/strake-io/strake/tests/lab/labtest"
)

// TestRolesAsSeparateProcesses runs what the systemd units run, without a supervisor. Commands that look at the node find it.
func TestRolesAsSeparateProcesses(t *testing.T) {
	t.Parallel()
	l := labtest.New(t, "strake-e2e", binary)
	for _, role := range []string{"server", "containerd", "agent"} {
		labtest.Background(t, role, l.StrakeCommand(context.Background(), role))
		if role != "server" {
			continue
		}
		// The agent wants the kubeconfig that the server makes; systemd would start it anew until then.
		eventually(t, 6*time.Minute, func() string {
			out, err := l.Strake("kubectl", "get", "--raw", "/readyz")
			if err != nil {
				return out
			}
			return ""
		})
	}
	eventually(t, 6*time.Minute, func() string {
		out, err := exec.Command("nsenter", "--net=/run/netns/"+l.Net, l.Binary, "--data-dir", l.Data, "status", "-o", "json").Output()
		var st struct {
			Ready bool `json:"ready"`
		}
		if err != nil || json.Unmarshal(out, &st) != nil || !st.Ready {
			return string(out)
		}
		return ""
	})
	(&cluster{Cluster: l, t: t}).busybox()
	eventually(t, 4*time.Minute, func() string {
		out, err := l.Strake("doctor")
		if err != nil {
			return out
		}
		return ""
	})
	if out, err := l.Strake("server"); err == nil || !bytes.Contains([]byte(out), []byte("runs already")) {
		t.Errorf("a second server: %v\n%s", err, out)
	}
}
