package cluster

import (
	"fmt"
	"os"
	"slices"

	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// Open finds the settings of the node that a component is to run, and writes down that this process is the component: it may
// have been started by the supervisor, by systemd or by hand. The server of a folder without settings makes a cluster of the default ones,
// and keeps them, for the commands that look at the node.
func Open(place func() (layout.Layout, error), component string) (layout.Layout, Settings, error) {
	l, err := place()
	if err != nil {
		return l, Settings{}, err
	}
	if os.Geteuid() != 0 {
		return l, Settings{}, fmt.Errorf("strake %s needs root: run it with sudo", component)
	}
	s, saved, err := Load(l)
	if err == nil {
		err = inItsNamespace(l)
	}
	if err == nil {
		err = s.complete()
	}
	if err == nil && !slices.Contains(s.Components(), component) {
		err = fmt.Errorf("%s is the folder of a node that has joined %s: it has no %s", l.Data, s.APIServer, component)
	}
	if err == nil {
		err = l.Prepare()
	}
	if err != nil {
		return l, s, err
	}
	if p, ok := supervisor.Find(l.Pid(component)); ok && p.PID != os.Getpid() {
		return l, s, fmt.Errorf("%s of %s runs already, as process %d", component, l.Data, p.PID)
	}
	if !saved && component == "server" {
		if err := s.Save(l); err != nil {
			return l, s, err
		}
	}
	_, err = supervisor.Record(l.Pid(component), os.Getpid())
	return l, s, err
}
