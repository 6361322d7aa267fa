package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubectl/pkg/drain"

	"github.com/strake-io/strake/cmd/strake/layout"
)

func adminClient(l layout.Layout) (kubernetes.Interface, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", l.AdminKubeconfig())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no control plane in %s: run this on the machine that has it", l.Data)
	}
	if err != nil {
		return nil, err
	}
	rc.QPS, rc.Burst = -1, -1
	return kubernetes.NewForConfig(rc)
}

// RemoveNode evicts a node's pods, takes the node out of the cluster, and removes all of it if it is on this machine.
func RemoveNode(ctx context.Context, l layout.Layout, name string, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("strake node remove needs root: run it with sudo")
	}
	release, err := exclusive(l)
	if err != nil {
		return err
	}
	defer release()
	own, saved, err := Load(l)
	if err != nil {
		return err
	}
	if saved && own.NodeName == name {
		return fmt.Errorf("node %s has the cluster's control plane: `strake down --purge` removes it, and with it the cluster", name)
	}
	number, err := labNumber(l, name)
	if err != nil {
		return err
	}
	c, err := adminClient(l)
	if err != nil {
		return err
	}
	node, err := c.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && number == 0 {
		return fmt.Errorf("the cluster has no node %s: `strake status` lists them", name)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("node %s: %w", name, err)
	}
	steps := []step{
		{"evict the pods of " + name, func(ctx context.Context) error { return evict(ctx, c, node) }},
	}
	if number > 0 {
		steps = append(steps, step{"stop " + name + " and remove its data", func(ctx context.Context) error { return removeLabNode(ctx, own.lab(l), number) }})
	}
	steps = append(steps, step{"remove node " + name, func(ctx context.Context) error { return deleteNode(ctx, c, name) }})
	for _, st := range steps {
		if node.Name == "" && st.name == steps[0].name { // a node that never came to be
			continue
		}
		if err := st.run(ctx, out); err != nil {
			return fmt.Errorf("%s: %w", st.name, err)
		}
	}
	if number == 0 {
		fmt.Fprintf(out, "Node %s is on another machine: run `strake down --purge` there.\n", name)
	}
	return nil
}

// labNumber finds a node on this machine by its name; 0 is none.
func labNumber(l layout.Layout, name string) (int, error) {
	numbers, err := l.LabNodes()
	if err != nil {
		return 0, err
	}
	for _, n := range numbers {
		s, _, err := Load(l.Node(n))
		if err != nil {
			return 0, err
		}
		if s.NodeName == name {
			return n, nil
		}
	}
	return 0, nil
}

// evict keeps new pods off the node and ends those that it has, as `kubectl drain` with leave to lose what can't move.
func evict(ctx context.Context, c kubernetes.Interface, node *corev1.Node) error {
	d := &drain.Helper{
		Ctx: ctx, Client: c, Force: true, GracePeriodSeconds: -1, IgnoreAllDaemonSets: true, DeleteEmptyDirData: true, Out: io.Discard, ErrOut: io.Discard,
	}
	if !nodeIsReady(node) {
		d.SkipWaitForDeleteTimeoutSeconds = 1 // nobody there ends them
	}
	if deadline, ok := ctx.Deadline(); ok {
		d.Timeout = time.Until(deadline)
	}
	if err := drain.RunCordonOrUncordon(d, node, true); err != nil {
		return err
	}
	return drain.RunNodeDrain(d, node.Name)
}
