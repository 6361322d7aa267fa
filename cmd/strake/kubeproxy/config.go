package kubeproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/strake-io/strake/atomicfile"
	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/leftovers"
	"github.com/strake-io/strake/cmd/strake/supervisor"
	"github.com/strake-io/strake/kubelet/cgroups"
)

// Config is what the command line says.
type Config struct {
	NodeName string // the host's name by default, as of kube-proxy
	// Kubeconfig is the way to the API server, as an absolute path; without one it is that of a pod.
	Kubeconfig string
	// Addrs are the node's, one of each family at most: without any they are the InternalIPs of the Node object.
	Addrs []netip.Addr
	// Devices are patterns of interfaces where packets for Services come in; without any Wanted chooses.
	Devices []string
	// Cgroup is a folder of the cgroup2 tree, as a path below its mount: processes of the node, pods' included, are in it. "/" is the whole machine.
	Cgroup string
	// NodePorts are ranges of the node's addresses where NodePorts answer; Healthz and Metrics where it tells how it is: as services.Config has them.
	NodePorts        []netip.Prefix
	Healthz, Metrics string
	Flows            int // how many connections the node follows at a time, as bpf.Config has it
	XDP              bpf.XDPMode
	// MaxFrontends and MaxBackends are the sizes of the tables, as bpf.Config has them.
	MaxFrontends, MaxBackends int
	Names                     Names
	// Clean removes what kube-proxy has left, once Services are served without it.
	Clean bool
}

// Settings are what a running agent leaves for the commands that look at it.
type Settings struct {
	NodeName   string       `json:"nodeName"`
	Addrs      []netip.Addr `json:"addrs"`
	Kubeconfig string       `json:"kubeconfig,omitempty"`
	Cgroup     string       `json:"cgroup"`

	NodePorts []netip.Prefix `json:"nodePorts,omitempty"`
	Names     Names          `json:"names,omitzero"`
}

func settingsFile(l layout.Layout) string { return filepath.Join(l.Data, "proxy.json") }

// Load reads the settings; false says that the folder is of no node with this agent.
func Load(l layout.Layout) (Settings, bool, error) {
	var s Settings
	data, err := os.ReadFile(settingsFile(l))
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, false, fmt.Errorf("settings %s: %w; `strake agent --only proxy` writes them anew when it starts", settingsFile(l), err)
	}
	return s, true, nil
}

func (s Settings) save(l layout.Layout) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(settingsFile(l), append(data, '\n'), 0o600)
}

// REST is the way to the API server.
func REST(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		return clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	rc, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("outside of a pod the API server is to be named with --kubeconfig: %w", err)
	}
	return rc, nil
}

// prepare makes the data folder, and notes that this process is the node's agent.
func prepare(l layout.Layout) error {
	if os.Geteuid() != 0 {
		return errors.New("strake agent needs root: run it with sudo")
	}
	if _, err := os.Stat(l.Settings()); err == nil {
		return fmt.Errorf("%s is the folder of a whole node, which serves Services already: name another one with --data-dir", l.Data)
	}
	if err := l.PrepareProxy(); err != nil {
		return err
	}
	if p, ok := supervisor.Find(l.Pid("agent")); ok && p.PID != os.Getpid() {
		return fmt.Errorf("the agent of %s runs already, as process %d", l.Data, p.PID)
	}
	_, err := supervisor.Record(l.Pid("agent"), os.Getpid())
	return err
}

// Cleanup removes all that the agent has put into the kernel, and its folder. One that runs is not disturbed: that is an error.
func Cleanup(l layout.Layout) error {
	if os.Geteuid() != 0 {
		return errors.New("strake agent --cleanup needs root: run it with sudo")
	}
	if _, err := os.Stat(l.Settings()); err == nil {
		return fmt.Errorf("%s is the folder of a whole node: `strake down` removes that", l.Data)
	}
	if p, ok := supervisor.Find(l.Pid("agent")); ok {
		return fmt.Errorf("the agent of %s runs, as process %d: stop it first, it would put all back", l.Data, p.PID)
	}
	if !l.Ours() {
		return fmt.Errorf("data folder %s was not made by strake: it is not removed", l.Data)
	}
	if ok, err := bpf.Mounted(l.BPF()); err != nil {
		return err
	} else if !ok && !l.Made() {
		return fmt.Errorf("there is nothing of strake in %s: name the folder of the agent with --data-dir (of deploy/kube-proxy's it is /sys/fs/bpf/strake)", l.Data)
	}
	return errors.Join(leftovers.DropFlows(context.Background()), bpf.Remove(l.BPF()), bpf.UnmountBPFFS(l.BPF()), os.RemoveAll(l.Run()), os.RemoveAll(l.Data))
}

// cgroup gives the mount of the cgroup2 tree and the node's folder in it.
func (c Config) cgroup() (mount, dir string, err error) {
	mount, dir = cgroups.UnifiedPath(c.Cgroup)
	if _, err := os.Stat(dir); err != nil {
		return "", "", fmt.Errorf("cgroup %s: %w", c.Cgroup, err)
	}
	return mount, filepath.Clean(dir), nil
}
