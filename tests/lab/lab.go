// Package lab makes the place that a test or a benchmark runs a whole cluster in: a network namespace for the node, one
// for the world outside of it, and a data folder. The machine's own network is never touched.
//
//	outside namespace 198.18.0.1 ── veth ── 198.18.0.2 node's namespace: bin/strake up --data-dir …
package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	// NodeIP is the node's address (the range is for benchmarks, RFC 2544).
	NodeIP = "198.18.0.2"
	// OutsideIP is the address of the outside namespace, the node's default route.
	OutsideIP = "198.18.0.1"
	// NodeIP6 and OutsideIP6 are those of IPv6 (the range is for documentation, RFC 3849).
	NodeIP6    = "2001:db8::2"
	OutsideIP6 = "2001:db8::1"
)

// Cluster is the place of a cluster, or of a machine that joins one.
type Cluster struct {
	Net     string // network namespace of the node
	Outside string // network namespace at the other end of the node's uplink
	Data    string // data folder
	Binary  string // the strake binary

	machine string // the name of the namespace's way out, for a further machine
}

// Machine makes another machine, whose way to the cluster leads through the outside. n tells machines of one cluster apart, from 1.
//
//	outside namespace 198.18.<n>.1 ── veth ── 198.18.<n>.2 machine's namespace: bin/strake join …
//
// Close of the machine is to come before that of the cluster.
func (c *Cluster) Machine(n int, data string) (*Cluster, error) {
	m := &Cluster{Net: fmt.Sprintf("%s-m%d", c.Net, n), Outside: c.Outside, Data: data, Binary: c.Binary, machine: fmt.Sprintf("out%d", n)}
	for _, cmd := range []string{
		"netns add " + m.Net, "-n " + m.Net + " link set lo up",
		"link add up0 netns " + m.Net + " type veth peer name " + m.machine + " netns " + c.Outside,
		fmt.Sprintf("-n %s addr add 198.18.%d.2/24 dev up0", m.Net, n), "-n " + m.Net + " link set up0 up",
		fmt.Sprintf("-n %s addr add 198.18.%d.1/24 dev %s", c.Outside, n, m.machine), "-n " + c.Outside + " link set " + m.machine + " up",
		fmt.Sprintf("-n %s route add default via 198.18.%d.1", m.Net, n),
		"netns exec " + c.Outside + " sysctl -qw net.ipv4.ip_forward=1",
	} {
		if err := ip(cmd); err != nil {
			return nil, errors.Join(err, m.removeNamespaces())
		}
	}
	return m, nil
}

// New makes the namespaces, named after name and a random number. Nothing runs in them yet: Strake("up") is the caller's.
// The data folder is made by the cluster. Close takes all of it away.
func New(name, data, binary string) (*Cluster, error) {
	binary, err := filepath.Abs(binary)
	if err == nil {
		_, err = os.Stat(binary)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: run `make build`", err)
	}
	var id [3]byte
	rand.Read(id[:])
	c := &Cluster{Net: name + "-" + hex.EncodeToString(id[:]), Data: data, Binary: binary}
	c.Outside = c.Net + "-out"
	for _, cmd := range []string{
		"netns add " + c.Net, "netns add " + c.Outside,
		"-n " + c.Net + " link set lo up", "-n " + c.Outside + " link set lo up",
		"link add up0 netns " + c.Net + " type veth peer name out0 netns " + c.Outside,
		"-n " + c.Net + " addr add " + NodeIP + "/24 dev up0", "-n " + c.Net + " addr add " + NodeIP6 + "/64 dev up0 nodad", "-n " + c.Net + " link set up0 up",
		"-n " + c.Outside + " addr add " + OutsideIP + "/24 dev out0", "-n " + c.Outside + " addr add " + OutsideIP6 + "/64 dev out0 nodad", "-n " + c.Outside + " link set out0 up",
		"-n " + c.Net + " route add default via " + OutsideIP, "-n " + c.Net + " route add default via " + OutsideIP6,
	} {
		if err := ip(cmd); err != nil {
			return nil, errors.Join(err, c.removeNamespaces())
		}
	}
	return c, nil
}

// Close stops the cluster, removes its data and then the namespaces. Repeating it is fine.
func (c *Cluster) Close() error {
	if _, err := os.Stat("/run/netns/" + c.Net); err != nil {
		return nil
	}
	out, err := c.Strake("down", "--purge")
	if err != nil {
		// The namespaces stay: without them nobody could stop what still runs in them.
		return fmt.Errorf("down --purge of the cluster in namespace %s: %w\n%s", c.Net, err, out)
	}
	return c.removeNamespaces()
}

func (c *Cluster) removeNamespaces() error {
	var errs []error
	all := []string{c.Net}
	if c.machine == "" { // the outside is the cluster's
		all = append(all, c.Outside)
	}
	for _, ns := range all {
		if _, err := os.Stat("/run/netns/" + ns); err == nil {
			errs = append(errs, ip("netns del "+ns))
		}
	}
	return errors.Join(errs...)
}

func ip(args string) error {
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w\n%s", args, err, out)
	}
	return nil
}

// Command runs a program in the node's namespace; not by `ip netns exec`, which hides the cgroup tree.
func (c *Cluster) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=/run/netns/" + c.Net}, args...)...)
}

// StrakeCommand is a strake command for this cluster.
func (c *Cluster) StrakeCommand(ctx context.Context, args ...string) *exec.Cmd {
	return c.Command(ctx, append([]string{c.Binary, "--data-dir", c.Data}, args...)...)
}

// Strake runs a strake command for this cluster and returns all it wrote.
func (c *Cluster) Strake(args ...string) (string, error) {
	out, err := c.StrakeCommand(context.Background(), args...).CombinedOutput()
	return string(out), err
}

// REST is the administrator's way to the API server, from outside of the node's namespace.
func (c *Cluster) REST() (*rest.Config, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.Data, "admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	rc.QPS, rc.Burst = -1, -1
	rc.Dial = c.Dial
	return rc, nil
}

// Dial connects from within the node's namespace: a socket stays in the namespace that it was made in.
func (c *Cluster) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, so no other one meets the namespace
		var r result
		defer func() { done <- r }()
		ns, err := os.Open("/run/netns/" + c.Net)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			r.err = fmt.Errorf("enter namespace %s: %w", c.Net, err)
			return
		}
		// A literal address and no fallback, so that the socket is made on this thread.
		r.conn, r.err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, addr)
	}()
	r := <-done
	return r.conn, r.err
}
