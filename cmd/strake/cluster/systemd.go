package cluster

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// notSystemds refuses a node whose components systemd keeps running: whoever else ends one or starts one gets in its way, for it starts them again.
func notSystemds(l layout.Layout) error {
	for _, c := range supervisor.All {
		p, ok := supervisor.Find(l.Pid(c))
		if !ok {
			continue
		}
		if unit := unitOf(p.PID, c); unit != "" {
			return fmt.Errorf("systemd runs the node in %s (%s of %s is process %d): use systemctl for it, such as `systemctl restart %s`, or take it from systemd first: `systemctl disable --now strake-agent strake-server strake-containerd`",
				l.Data, c, unit, p.PID, unit)
		}
	}
	return nil
}

// unitOf names systemd's unit whose own process a component is. A process that only comes from one, as those do that `strake up` starts from a unit, is nobody's.
func unitOf(pid int, component string) string {
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "" // it has ended
	}
	unit := ""
	for line := range strings.Lines(string(cgroups)) {
		if name := path.Base(strings.TrimSpace(line)); strings.HasSuffix(name, ".service") {
			unit = name
		}
	}
	ours := "strake-" + component + ".service"
	if unit == ours {
		return unit
	}
	// systemd.exec(5); systemd tells it since version 248.
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || !slices.Contains(strings.Split(string(environ), "\x00"), fmt.Sprintf("SYSTEMD_EXEC_PID=%d", pid)) {
		return ""
	}
	if unit == "" { // a cgroup namespace hides it
		unit = ours
	}
	return unit
}
