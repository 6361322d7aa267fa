package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// Open finds the settings of the node that a component is to run, and writes down that this process is the component: it may
// have been started by the supervisor, by systemd or by hand.
func Open(place func() (layout.Layout, error), component string) (layout.Layout, Settings, error) {
	l, err := place()
	if err != nil {
		return l, Settings{}, err
	}
	if os.Geteuid() != 0 {
		return l, Settings{}, fmt.Errorf("strake %s needs root: run it with sudo", component)
	}
	s, _, err := Load(l)
	if err == nil {
		err = s.complete()
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
	_, err = supervisor.Record(l.Pid(component), os.Getpid())
	return l, s, err
}

// Status is how the cluster is.
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
	Name    string `json:"name"`
	Address string `json:"address"`
	Version string `json:"version"`
	Ready   bool   `json:"ready"`
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
	s := Status{Nodes: []Node{}}
	all := true
	for _, name := range append([]string{"supervisor"}, components...) {
		p, ok := supervisor.Find(l.Pid(name))
		c := Component{Name: name, Running: ok}
		if ok {
			c.PID = p.PID
		}
		all = all && (ok || name == "supervisor") // systemd may be in its place
		s.Components = append(s.Components, c)
	}
	var err error
	if s.Datapath, err = bpf.ReadStatus(l.BPF()); err != nil {
		s.Problem = err.Error()
	}
	if err := s.askAPI(ctx, l); err != nil {
		s.Problem = err.Error()
		return s, nil
	}
	s.Ready = all && len(s.Nodes) > 0
	for _, n := range s.Nodes {
		s.Ready = s.Ready && n.Ready
	}
	return s, nil
}

func (s *Status) askAPI(ctx context.Context, l layout.Layout) error {
	rc, err := clientcmd.BuildConfigFromFlags("", l.AdminKubeconfig())
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
		s.Version = v.GitVersion
	}
	for _, n := range nodes.Items {
		node := Node{Name: n.Name, Version: n.Status.NodeInfo.KubeletVersion}
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				node.Address = a.Address
			}
		}
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady {
				node.Ready = cond.Status == corev1.ConditionTrue
			}
		}
		s.Nodes = append(s.Nodes, node)
	}
	pods, err := c.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("the API server does not answer: %w", err)
	}
	for _, p := range pods.Items {
		s.Pods.Total++
		if p.Status.Phase == corev1.PodRunning {
			s.Pods.Running++
		}
		for _, cond := range p.Status.Conditions {
			if cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue {
				s.Pods.Ready++
			}
		}
	}
	return nil
}

// Print shows the status to a person.
func (s Status) Print(w io.Writer) {
	word := func(ok bool, yes, no string) string {
		if ok {
			return yes
		}
		return no
	}
	fmt.Fprintf(w, "cluster      %s\n", word(s.Ready, "ready", "not ready"))
	if s.Problem != "" {
		fmt.Fprintf(w, "problem      %s\n", s.Problem)
	}
	for _, c := range s.Components {
		fmt.Fprintf(w, "%-12s %s\n", c.Name, word(c.Running, fmt.Sprintf("running, pid %d", c.PID), "not running"))
	}
	for _, n := range s.Nodes {
		fmt.Fprintf(w, "node         %s  %s  %s  %s\n", n.Name, n.Address, n.Version, word(n.Ready, "Ready", "NotReady"))
	}
	fmt.Fprintf(w, "pods         %d, %d running, %d ready\n", s.Pods.Total, s.Pods.Running, s.Pods.Ready)
	fmt.Fprintf(w, "datapath     %d links attached\n", len(s.Datapath.Links))
	for _, m := range s.Datapath.Maps {
		fmt.Fprintf(w, "  %-14s %6d of %d rows\n", m.Name, m.Rows, m.Max)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Datapath.Counters)) {
		if n := s.Datapath.Counters[name]; n > 0 {
			fmt.Fprintf(w, "  %-22s %d packets\n", name, n)
		}
	}
}
