package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/strake-io/strake/atomicfile"
	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/jointoken"
	"github.com/strake-io/strake/cmd/strake/lab"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
)

// labStart is what an `up` does of the nodes beside the first one.
type labStart struct {
	first bool  // the cluster had no lab before
	nodes []int // that shall run
	added []int // those of nodes that this `up` makes
	names map[int]string
}

// planNodes finds which nodes there are to be on this machine: want of them, the first one included, or those that there are (0).
func (u *upStart) planNodes(want int) error {
	have, err := u.l.LabNodes()
	if err != nil {
		return err
	}
	u.lab = labStart{nodes: have, names: map[int]string{}}
	switch {
	case want < 0 || want > lab.MaxNodes:
		return fmt.Errorf("--%s %d: a machine can have 1 to %d nodes", FlagNodes, want, lab.MaxNodes)
	case want > 0 && want < 1+len(have):
		return fmt.Errorf("the cluster has %d nodes on this machine: --%s %d adds none; take one away with `strake node remove NAME` (its pods go to others)", 1+len(have), FlagNodes, want)
	}
	for n := 2; len(u.lab.nodes) < want-1; n++ {
		if !slices.Contains(have, n) {
			u.lab.nodes = append(u.lab.nodes, n)
			u.lab.added = append(u.lab.added, n)
		}
	}
	slices.Sort(u.lab.nodes)
	for _, n := range u.lab.nodes {
		s, saved, err := Load(u.l.Node(n))
		if err != nil {
			return err
		}
		u.lab.names[n] = s.NodeName
		if !saved { // a new one, or one that did not come to be
			u.lab.names[n] = fmt.Sprintf("%s-%d", u.s.NodeName, n)
		}
	}
	if len(u.lab.nodes) > 0 && u.s.NodeAddrs[0].IsLoopback() {
		return fmt.Errorf("the node's address %s is of this machine alone: further nodes can't reach it; name another with --%s", u.s.NodeAddrs[0], FlagNodeIP)
	}
	if len(u.lab.nodes) == 0 || len(u.s.LabCIDRs) > 0 {
		return nil
	}
	u.lab.first, u.s.LabNode = true, u.s.NodeName
	u.s.LabCIDRs, err = lab.Choose(areV6(u.s.PodCIDRs), slices.Concat(u.s.PodCIDRs, u.s.ServiceCIDRs, u.s.NoMasquerade))
	return err
}

func (s Settings) lab(l layout.Layout) lab.Network {
	return lab.Network{First: l, Ranges: s.LabCIDRs, NodeAddrs: s.NodeAddrs}
}

// labNetwork makes what the nodes are connected by.
func (u *upStart) labNetwork() error {
	if len(u.lab.nodes) == 0 {
		return nil
	}
	if err := os.MkdirAll(u.l.Nodes(), 0o711); err != nil {
		return fmt.Errorf("nodes: %w", err)
	}
	if err := writeLabResolvConf(u.s.ResolvConf, u.l.LabResolvConf()); err != nil {
		return err
	}
	if err := u.s.lab(u.l).EnsureBridge(); err != nil {
		return err
	}
	// An agent that runs does not know yet whom it masquerades. What keeps it running starts it again, and nothing is lost meanwhile.
	if p, ok := supervisor.Find(u.l.Pid("agent")); ok && u.lab.first {
		return p.Stop(20 * time.Second)
	}
	return nil
}

// labNodes brings the further nodes up, as many at a time as there are CPUs, and tells of each.
func (u *upStart) labNodes(ctx context.Context, out io.Writer) error {
	if len(u.lab.nodes) == 0 {
		return nil
	}
	ticket, drop, err := u.ticket(ctx)
	if err != nil {
		return err
	}
	defer drop()
	var mu sync.Mutex
	// One that fails doesn't end the others: each tells what is wrong with it.
	var g errgroup.Group
	g.SetLimit(parallelNodes)
	var errs []error
	for _, n := range u.lab.nodes {
		g.Go(func() error {
			began := time.Now()
			err := u.startNode(ctx, n, ticket)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("node %s: %w", u.lab.names[n], err))
				return nil
			}
			fmt.Fprintf(out, "  %-36s %5.1f s\n", u.lab.names[n]+" Ready", time.Since(began).Seconds())
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs
	return errors.Join(errs...)
}

// parallelNodes is how many nodes are started at a time.
const parallelNodes = 3

// startNode joins a node, or starts one that has joined.
func (u *upStart) startNode(ctx context.Context, n int, t Ticket) error {
	node, network := u.l.Node(n), u.s.lab(u.l)
	made, err := network.EnsureNode(n)
	if err != nil {
		return err
	}
	if made && anyRunning(node) { // in a namespace, or by a link, that is gone
		if err := runNode(ctx, node, u.lab.names[n], nil, "down"); err != nil {
			return err
		}
		if _, err := network.EnsureNode(n); err != nil {
			return err
		}
	}
	wait := "0s"
	if deadline, ok := ctx.Deadline(); ok {
		wait = time.Until(deadline).String()
	}
	args := []string{"join", t.Server, "--token-file", "-", "--node-name", u.lab.names[n], "--node-ip", join(network.Addrs(n)), "--resolv-conf", u.l.LabResolvConf(), "--wait", wait}
	args = append(args, fmt.Sprintf("--%s=%s", FlagXDP, u.s.XDP), fmt.Sprintf("--%s=%d", FlagFlows, u.s.Flows))
	for flag, size := range map[string]int{bpf.FlagMaxFrontends: u.s.MaxFrontends, bpf.FlagMaxBackends: u.s.MaxBackends, bpf.FlagMaxPolicyPeers: u.s.MaxPolicyPeers, bpf.FlagMaxPolicyRules: u.s.MaxPolicyRules} {
		args = append(args, fmt.Sprintf("--%s=%d", flag, size))
	}
	args = append(args, fmt.Sprintf("--%s=%t", FlagRecordFlows, u.s.Recording.On), fmt.Sprintf("--%s=%d", FlagRecordSize, u.s.Recording.Size), fmt.Sprintf("--%s=%v", FlagRecordAge, u.s.Recording.Age))
	for _, h := range t.CAHashes {
		args = append(args, "--ca-cert-hash", h)
	}
	return runNode(ctx, node, u.lab.names[n], strings.NewReader(t.Token), args...)
}

// runNode runs a strake command as a node of the lab would, in its namespace. What main prints of an error becomes the error.
func runNode(ctx context.Context, node layout.Layout, hostname string, stdin io.Reader, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, append(args, "--data-dir", node.Data)...)
	var said strings.Builder
	cmd.Stdin, cmd.Stderr = stdin, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it undoes what it did
	cmd.WaitDelay = time.Minute
	if err := lab.Start(cmd, node, hostname); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		if _, text, ok := strings.Cut("\n"+said.String(), "\nstrake: "); ok { // behind what the libraries log
			return errors.New(strings.TrimSpace(text))
		}
		return fmt.Errorf("strake %s: %w", args[0], err)
	}
	return nil
}

// ticket makes a token that is good for this `up`; drop ends it. Without a node to add there is none.
func (u *upStart) ticket(ctx context.Context) (Ticket, func(), error) {
	// By the bridge's address, which stays when the first node gets another.
	t := Ticket{Server: fmt.Sprintf("https://%s", netip.AddrPortFrom(u.s.lab(u.l).Addrs(1)[0], uint16(u.s.Port)))}
	if !slices.ContainsFunc(u.lab.nodes, func(n int) bool { _, err := os.Stat(u.l.Node(n).Settings()); return err != nil }) {
		return t, func() {}, nil
	}
	tokens, err := jointoken.Connect(u.l.AdminKubeconfig())
	if err != nil {
		return t, nil, err
	}
	made, err := tokens.Create(ctx, jointoken.Request{TTL: 15 * time.Minute, Usages: jointoken.Usages, Description: "of `strake up`, for nodes on this machine"}, time.Now())
	if err != nil {
		return t, nil, err
	}
	t.Token, t.CAHashes = made.Token, []string{made.CAHash}
	return t, func() {
		_ = tokens.Delete(context.WithoutCancel(ctx), made.ID) // it expires by itself if this fails
	}, nil
}

// undoLab takes back the nodes that a failed `up` was to add.
func (u *upStart) undoLab(ctx context.Context) error {
	if !u.touched {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	for _, n := range u.lab.added {
		if u.client != nil {
			if err := deleteNode(ctx, u.client, u.lab.names[n]); err != nil && !u.fresh {
				errs = append(errs, err)
			}
		}
		errs = append(errs, removeLabNode(ctx, u.s.lab(u.l), n))
	}
	return errors.Join(errs...)
}

func deleteNode(ctx context.Context, c kubernetes.Interface, name string) error {
	if err := c.CoreV1().Nodes().Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("node %s: %w", name, err)
	}
	return nil
}

// removeLabNode stops a node of the lab and removes all of it but its Node object.
func removeLabNode(ctx context.Context, network lab.Network, n int) error {
	node := network.First.Node(n)
	var errs []error
	if _, err := os.Stat(node.Data); err == nil {
		errs = append(errs, runNode(ctx, node, "", nil, "down", "--purge"))
	}
	if err := errors.Join(errs...); err != nil {
		return err // something of it runs: the namespace stays
	}
	return network.RemoveNode(n)
}

// downLab stops all nodes of the lab, at the same time.
func downLab(ctx context.Context, l layout.Layout, purge bool) error {
	nodes, err := l.LabNodes()
	if err != nil {
		return err
	}
	args := []string{"down"}
	if purge {
		args = append(args, "--purge")
	}
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			if err := runNode(ctx, l.Node(n), "", nil, args...); err != nil {
				errs[i] = fmt.Errorf("node %d: %w", n, err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return lab.Network{First: l}.Remove()
}

// inItsNamespace refuses to touch a node of the lab from elsewhere: its network would be looked for in the wrong place.
func inItsNamespace(l layout.Layout) error {
	if first, n, ok := l.LabNode(); ok && !lab.Inside(l) {
		return fmt.Errorf("%s is node %d of the cluster in %s and belongs into a namespace of its own: use --data-dir %s, which brings all of its nodes up and down", l.Data, n, first.Data, first.Data)
	}
	return nil
}

// writeLabResolvConf copies a resolv.conf without name servers on loopback: a lab node has a loopback of its own. Where there are no others,
// those that systemd-resolved stands for are taken, if it tells them.
func writeLabResolvConf(from, to string) error {
	var out []string
	servers := 0
	for _, path := range []string{from, "/run/systemd/resolve/resolv.conf"} {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		out, servers = nil, 0
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
				if a, err := netip.ParseAddr(f[1]); err != nil || a.IsLoopback() {
					continue
				}
				servers++
			}
			out = append(out, strings.TrimRight(line, "\n"))
		}
		if servers > 0 {
			break
		}
	}
	return atomicfile.Write(to, []byte(strings.Join(out, "\n")+"\n"), 0o644)
}
