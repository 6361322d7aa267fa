// Package layout names every place on disk that a node uses. A node is its data
// folder: all other names follow from it, so that several nodes on one machine
// never meet.
package layout

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/strake-io/strake/atomicfile"
)

// DefaultDataDir is where a node keeps its data unless told otherwise.
const DefaultDataDir = "/var/lib/strake"

// version of the data folder's layout. A folder of another version is refused, never guessed at.
const version = 1

// Layout is the set of places of one node.
type Layout struct {
	Data string // the data folder, absolute
	ID   string // eight hex digits made of Data, for names outside of it; with -N behind for a lab node
}

// New derives the places from a data folder. DATA/nodes/N is that of a lab node: its id is that of DATA, and its number.
func New(dataDir string) (Layout, error) {
	abs, err := filepath.Abs(dataDir)
	if err != nil {
		return Layout{}, fmt.Errorf("data folder %q: %w", dataDir, err)
	}
	l := Layout{Data: abs}
	if first, n, ok := l.LabNode(); ok {
		return first.Node(n), nil
	}
	l.ID = id(abs)
	return l, nil
}

func id(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:4])
}

// Node is the place of a lab node: one that runs beside the first node on the same machine, in a network namespace of its own.
// Lab nodes have the numbers from 2.
func (l Layout) Node(n int) Layout {
	return Layout{Data: l.in("nodes", strconv.Itoa(n)), ID: fmt.Sprintf("%s-%d", l.ID, n)}
}

// LabNode tells whether this is a lab node, which, and where the first node is.
func (l Layout) LabNode() (first Layout, n int, ok bool) {
	nodes, name := filepath.Split(l.Data)
	n, err := strconv.Atoi(name)
	if err != nil || n < 2 || strconv.Itoa(n) != name || filepath.Base(nodes) != "nodes" {
		return Layout{}, 0, false
	}
	data := filepath.Dir(filepath.Clean(nodes))
	return Layout{Data: data, ID: id(data)}, n, true
}

// LabNodes returns the numbers of the lab nodes that have a data folder, in order.
func (l Layout) LabNodes() ([]int, error) {
	entries, err := os.ReadDir(l.Nodes())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("nodes of %s: %w", l.Data, err)
	}
	var list []int
	for _, e := range entries {
		if _, n, ok := (Layout{Data: l.in("nodes", e.Name())}).LabNode(); ok && e.IsDir() {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, nil
}

// Nodes is the folder of the lab nodes' data folders.
func (l Layout) Nodes() string { return l.in("nodes") }

// LabResolvConf is the resolv.conf of lab nodes.
func (l Layout) LabResolvConf() string { return l.in("nodes", "resolv.conf") }

// Netns is the file that names the network namespace of a lab node, where ip-netns(8) looks for it.
func (l Layout) Netns() string { return filepath.Join("/run/netns", "strake-"+l.ID) }

func (l Layout) in(parts ...string) string {
	return filepath.Join(append([]string{l.Data}, parts...)...)
}

// PKI holds certificates and keys.
func (l Layout) PKI() string { return l.in("pki") }

// Etcd is the embedded etcd's data folder.
func (l Layout) Etcd() string { return l.in("etcd") }

// ServerFlags is a file of the operator's, with flags of strake server.
func (l Layout) ServerFlags() string { return l.in("server.flags") }

// Snapshots is where snapshots of the store are put.
func (l Layout) Snapshots() string { return l.in("snapshots") }

// AdminKubeconfig is the administrator's way in.
func (l Layout) AdminKubeconfig() string { return l.in("admin.kubeconfig") }

// Kubeconfig is the way in of a component of ours.
func (l Layout) Kubeconfig(component string) string { return l.in("pki", component+".kubeconfig") }

// Kubelet is the kubelet's root: pods, volumes.
func (l Layout) Kubelet() string { return l.in("kubelet") }

// Containerd holds containerd's configuration and root (images, snapshots).
func (l Layout) Containerd() string { return l.in("containerd") }

// ContainerdConfig is containerd's configuration file.
func (l Layout) ContainerdConfig() string { return l.in("containerd", "config.toml") }

// CNIConf is the folder that containerd reads the network's configuration from.
func (l Layout) CNIConf() string { return l.in("cni", "net.d") }

// CNIBin is the folder of CNI plugins.
func (l Layout) CNIBin() string { return l.in("cni", "bin") }

// CNIState is where the CNI server keeps allocations.
func (l Layout) CNIState() string { return l.in("cni", "state") }

// PolicyHistory is where the agent notes what it has enforced of network policies, and when.
func (l Layout) PolicyHistory() string { return l.in("policy", "history.jsonl") }

// FlowRecord is the folder with the record of flows.
func (l Layout) FlowRecord() string { return l.in("policy", "flows") }

// BPF is the node's own bpffs.
func (l Layout) BPF() string { return l.in("bpf") }

// Log is the log file of a component.
func (l Layout) Log(component string) string { return l.in("log", component+".log") }

// PodLogs is the folder of the containers' logs.
func (l Layout) PodLogs() string { return l.in("log", "pods") }

// Settings is what `up` was told, kept so that a restart needs no flags.
func (l Layout) Settings() string { return l.in("settings.json") }

// Run is the folder of sockets and other things that don't survive a reboot. It is short since a
// unix socket's path is at most 108 bytes (unix(7)).
func (l Layout) Run() string { return filepath.Join("/run/strake", l.ID) }

// ContainerdSocket is where the private containerd serves.
func (l Layout) ContainerdSocket() string { return filepath.Join(l.Run(), "containerd.sock") }

// ContainerdState is containerd's state folder.
func (l Layout) ContainerdState() string { return filepath.Join(l.Run(), "containerd") }

// CNISocket is where the agent serves the CNI plugin.
func (l Layout) CNISocket() string { return filepath.Join(l.Run(), "cni.sock") }

// DNSSocket is where the agent's resolver tells of the queries that it answers.
func (l Layout) DNSSocket() string { return filepath.Join(l.Run(), "dns.sock") }

// DNSForgetSocket is where the agent's resolver is asked to forget answers.
func (l Layout) DNSForgetSocket() string { return filepath.Join(l.Run(), "dns-forget.sock") }

// Pid is the file that names a component's process.
func (l Layout) Pid(component string) string { return filepath.Join(l.Run(), component+".pid") }

// Cgroup is the node's cgroup, as a path below each hierarchy's mount.
func (l Layout) Cgroup() string { return "/strake-" + l.ID }

type stamp struct {
	Version int `json:"version"`
}

func (l Layout) stampFile() string { return l.in("layout.json") }

// Check refuses a data folder of another version, a corrupt one, and one that is not ours.
// An absent or empty folder is fine, and one that holds logs only: so a first start that failed leaves it. So is one with a bpffs that
// somebody mounted for us.
func (l Layout) Check() error {
	data, err := os.ReadFile(l.stampFile())
	if errors.Is(err, fs.ErrNotExist) {
		if l.Ours() {
			return nil
		}
		return fmt.Errorf("data folder %s: holds files that are not ours (no %s); choose an empty folder with --data-dir", l.Data, filepath.Base(l.stampFile()))
	}
	if err != nil {
		return fmt.Errorf("data folder %s: %w", l.Data, err)
	}
	var s stamp
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("data folder %s: %s is corrupt (%w); restore it from a backup, or remove the cluster with `strake down --purge`", l.Data, filepath.Base(l.stampFile()), err)
	}
	if s.Version != version {
		return fmt.Errorf("data folder %s: made by another release (layout %d, this one knows %d); use that release, or another folder with --data-dir", l.Data, s.Version, version)
	}
	return nil
}

// Made tells whether Strake has made the data folder.
func (l Layout) Made() bool {
	_, err := os.Lstat(l.stampFile())
	return err == nil
}

// Ours tells whether all in the data folder may be removed: it is stamped, absent, or has nothing but logs and what BPF leaves.
func (l Layout) Ours() bool {
	if l.Made() {
		return true
	}
	entries, err := os.ReadDir(l.Data)
	foreign := func(e fs.DirEntry) bool { return e.Name() != "log" && e.Name() != filepath.Base(l.BPF()) }
	return errors.Is(err, fs.ErrNotExist) || err == nil && !slices.ContainsFunc(entries, foreign)
}

// folder is one to be made.
type folder struct {
	path string
	mode os.FileMode
}

// Prepare checks the data folder and makes it and the run folder.
func (l Layout) Prepare() error {
	return l.prepare([]folder{ // parents first: each has a mode of its own
		{l.Data, 0o711}, {l.in("log"), 0o700}, {l.PodLogs(), 0o755}, {l.Run(), 0o700}, {l.Containerd(), 0o711}, {l.ContainerdState(), 0o711},
		{l.in("cni"), 0o711}, {l.CNIConf(), 0o700}, {l.CNIBin(), 0o755}, {l.CNIState(), 0o700}, {l.Kubelet(), 0o700},
	})
}

// PrepareProxy is Prepare for a node of which Strake serves the Services alone.
func (l Layout) PrepareProxy() error {
	return l.prepare([]folder{{l.Data, 0o711}, {l.Run(), 0o700}})
}

func (l Layout) prepare(folders []folder) error {
	if err := l.Check(); err != nil {
		return err
	}
	for _, d := range folders {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return fmt.Errorf("data folder %s: %w", l.Data, err)
		}
	}
	data, err := json.Marshal(stamp{Version: version})
	if err != nil {
		return fmt.Errorf("data folder %s: %w", l.Data, err)
	}
	return atomicfile.Write(l.stampFile(), append(data, '\n'), 0o600)
}

// Clear removes all data but the logs.
func (l Layout) Clear() error {
	entries, err := os.ReadDir(l.Data)
	if err != nil {
		return fmt.Errorf("data folder %s: %w", l.Data, err)
	}
	for _, e := range entries {
		if e.Name() == "log" {
			continue
		}
		if err := os.RemoveAll(l.in(e.Name())); err != nil {
			return fmt.Errorf("data folder %s: %w", l.Data, err)
		}
	}
	return nil
}
