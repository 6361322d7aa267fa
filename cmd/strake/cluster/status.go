package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/kubeproxy"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// Status is how the cluster is. Components and Datapath are those of the node whose data folder was asked for.
type Status struct {
	Ready      bool        `json:"ready"`
	Components []Component `json:"components"`
	Version    string      `json:"version,omitempty"` // of the API server
	Nodes      []Node      `json:"nodes"`
	Pods       Pods        `json:"pods"`
	Datapath   bpf.Status  `json:"datapath"`
	Problem    string      `json:"problem,omitempty"`
}

// Component is one process.
type Component struct {
	Name    string `json:"name"`
	Running bool   `json:"running"`
	PID     int    `json:"pid,omitempty"`
}

// Node is one node.
type Node struct {
	Name      string   `json:"name"`
	Address   string   `json:"address"` // the first of Addresses
	Addresses []string `json:"addresses"`
	Roles     []string `json:"roles"`
	Version   string   `json:"version"`
	Ready     bool     `json:"ready"`

	// Of the nodes beside the first one on this machine.
	DataDir    string      `json:"dataDir,omitempty"`
	Components []Component `json:"components,omitempty"`
	Datapath   *bpf.Status `json:"datapath,omitempty"`
}

// Pods counts pods.
type Pods struct {
	Total   int `json:"total"`
	Running int `json:"running"`
	Ready   int `json:"ready"`
}

// Inspect looks at processes, API and kernel. What can't be reached is told, not an error.
func Inspect(ctx context.Context, l layout.Layout) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if p, alone, err := kubeproxy.Load(l); err != nil || alone {
		return inspectProxy(l, p), err
	}
	st := Status{Nodes: []Node{}}
	s, _, err := Load(l)
	if err != nil {
		st.Problem = err.Error()
	}
	var all bool
	st.Components, all = inspectComponents(l, s)
	var served error
	if st.Datapath, served = readDatapath(l); served != nil {
		st.Problem = served.Error()
	}
	if err := st.askAPI(ctx, l, s); err != nil {
		st.Problem = err.Error()
	}
	known := len(st.Nodes)
	labReady, err := st.inspectLab(l)
	if err != nil && st.Problem == "" {
		st.Problem = err.Error()
	}
	st.Ready = all && served == nil && labReady && err == nil && known > 0
	for _, n := range st.Nodes {
		st.Ready = st.Ready && n.Ready
	}
	return st, nil
}

// inspectProxy looks at a node of which Strake serves the Services alone: what else it has is somebody else's to tell.
func inspectProxy(l layout.Layout, s kubeproxy.Settings) Status {
	st := Status{Nodes: []Node{}, Components: []Component{{Name: "agent"}}}
	if p, ok := supervisor.Find(l.Pid("agent")); ok {
		st.Components[0].Running, st.Components[0].PID, st.Ready = true, p.PID, true
	} else {
		st.Problem = "the agent of node " + s.NodeName + " does not run: Services are served as they were, until it does"
	}
	var err error
	if st.Datapath, err = readDatapath(l); err != nil && st.Ready {
		st.Ready, st.Problem = false, err.Error()
	}
	return st
}

// readDatapath reads what a node's kernel holds. That nothing is attached is an error: an agent has it attached before its node is Ready.
func readDatapath(l layout.Layout) (bpf.Status, error) {
	s, err := bpf.ReadStatus(l.BPF())
	if err == nil && len(s.Links) == 0 {
		err = fmt.Errorf("nothing of the node's network is attached (%s is gone or empty): restart the agent; what it says is in %s", l.BPF(), l.Log("agent"))
	}
	return s, err
}

// inspectComponents tells which components of a node run, and whether all do; systemd may be in the supervisor's place.
func inspectComponents(l layout.Layout, s Settings) (list []Component, all bool) {
	all = true
	for _, name := range append([]string{supervisor.Own}, s.Components()...) {
		p, ok := supervisor.Find(l.Pid(name))
		c := Component{Name: name, Running: ok}
		if ok {
			c.PID = p.PID
		}
		all = all && (ok || name == supervisor.Own)
		list = append(list, c)
	}
	return list, all
}

// inspectLab adds what is known here of the nodes beside the first one; what is wrong with one does not hide the others.
func (st *Status) inspectLab(l layout.Layout) (ready bool, err error) {
	numbers, err := l.LabNodes()
	if err != nil {
		return false, err
	}
	ready = true
	var problems []error
	for _, n := range numbers {
		node := l.Node(n)
		s, _, err := Load(node)
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(st.Nodes, func(n Node) bool { return n.Name == s.NodeName })
		if i < 0 {
			i = len(st.Nodes)
			st.Nodes = append(st.Nodes, Node{Name: s.NodeName, Addresses: []string{}, Roles: []string{}})
		}
		found, all := inspectComponents(node, s)
		st.Nodes[i].DataDir, st.Nodes[i].Components, ready = node.Data, found, ready && all
		d, served := readDatapath(node)
		if served != nil {
			problems = append(problems, fmt.Errorf("node %s: %w", s.NodeName, served))
		}
		st.Nodes[i].Datapath = &d
	}
	return ready, errors.Join(problems...)
}

const rolePrefix = "node-role.kubernetes.io/"

func (st *Status) askAPI(ctx context.Context, l layout.Layout, s Settings) error {
	path := l.AdminKubeconfig()
	if s.Joined() {
		path = l.Kubeconfig("node-network") // it may read nodes and pods
	}
	rc, err := clientcmd.BuildConfigFromFlags("", path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no cluster in %s: run `strake up`", l.Data)
	case err != nil:
		return err
	}
	c, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	nodes, err := c.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("the API server does not answer: %w", err)
	}
	if v, err := c.Discovery().ServerVersion(); err == nil {
		st.Version = v.GitVersion
	}
	for _, n := range nodes.Items {
		node := Node{Name: n.Name, Version: n.Status.NodeInfo.KubeletVersion, Ready: nodeIsReady(&n), Addresses: internalAddrs(&n), Roles: []string{}}
		if len(node.Addresses) > 0 {
			node.Address = node.Addresses[0]
		}
		for label := range n.Labels {
			if role, ok := strings.CutPrefix(label, rolePrefix); ok {
				node.Roles = append(node.Roles, role)
			}
		}
		slices.Sort(node.Roles)
		st.Nodes = append(st.Nodes, node)
	}
	pods, err := c.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("the API server does not answer: %w", err)
	}
	for _, p := range pods.Items {
		st.Pods.Total++
		if p.Status.Phase == corev1.PodRunning {
			st.Pods.Running++
		}
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
				st.Pods.Ready++
			}
		}
	}
	return nil
}

func nodeIsReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func internalAddrs(n *corev1.Node) []string {
	list := []string{}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			list = append(list, a.Address)
		}
	}
	return list
}

// Print shows the status to a person.
func (st Status) Print(w io.Writer) {
	word := func(ok bool, yes, no string) string {
		if ok {
			return yes
		}
		return no
	}
	fmt.Fprintf(w, "cluster      %s\n", word(st.Ready, "ready", "not ready"))
	if st.Problem != "" {
		fmt.Fprintf(w, "problem      %s\n", st.Problem)
	}
	for _, c := range st.Components {
		fmt.Fprintf(w, "%-12s %s\n", c.Name, word(c.Running, fmt.Sprintf("running, pid %d", c.PID), "not running"))
	}
	for _, n := range st.Nodes {
		fmt.Fprintf(w, "node         %s  %s  %s  %s", n.Name, word(len(n.Addresses) > 0, strings.Join(n.Addresses, ","), "its address is not known"), n.Version, word(n.Ready, "Ready", "NotReady"))
		if len(n.Roles) > 0 {
			fmt.Fprintf(w, "  %s", strings.Join(n.Roles, ","))
		}
		for _, c := range n.Components {
			fmt.Fprintf(w, "  %s %s", c.Name, word(c.Running, fmt.Sprint(c.PID), "not running"))
		}
		if n.Datapath != nil {
			fmt.Fprintf(w, "  %d links", len(n.Datapath.Links))
		}
		fmt.Fprintln(w)
	}
	if len(st.Nodes) > 0 {
		fmt.Fprintf(w, "pods         %d, %d running, %d ready\n", st.Pods.Total, st.Pods.Running, st.Pods.Ready)
	}
	fmt.Fprintf(w, "datapath     %d links attached\n", len(st.Datapath.Links))
	for _, m := range st.Datapath.Maps {
		fmt.Fprintf(w, "  %-14s %6d of %d rows\n", m.Name, m.Rows, m.Max)
	}
	for _, name := range slices.Sorted(maps.Keys(st.Datapath.Counters)) {
		if n := st.Datapath.Counters[name]; n > 0 {
			fmt.Fprintf(w, "  %-22s %d packets\n", name, n)
		}
	}
}
