package main

import (
	"context"
	"crypto/rand"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/strake-io/strake/bpf"
	agentmemory "github.com/strake-io/strake/cmd/strake/memory"
	"github.com/strake-io/strake/kubelet/cgroups"
	"github.com/strake-io/strake/mirror"
	"github.com/strake-io/strake/proxy"
	"github.com/strake-io/strake/tests/lab"
)

// agentVariable makes this program an agent that runs the proxy alone, as `strake agent --only proxy` does, or policies alone, and tells what it has written.
const agentVariable = "STRAKE_BENCH_AGENT"

// agentSpec is what it is told.
type agentSpec struct {
	Kubeconfig, Dir, CgroupRoot, Cgroup string
	NodeAddr                            netip.Addr
	Services                            int           // how many there are: it tells when all are written, and of each one after that
	Cluster                             tieredCluster // of pods and policies; without any it runs the proxy
}

// written tells of Services whose rows are in the kernel, or that those of policies are, at a time of the monotonic clock.
type written struct {
	Owners []string // none: first that the datapath is open, then that all rows are written; of policies there are never any
	At     time.Duration
}

// monotonic is the clock that all processes share.
func monotonic() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // fails for unknown clocks only
	return time.Duration(t.Nano())
}

// agent is such a process.
type agent struct {
	cmd   *exec.Cmd
	spec  agentSpec
	began time.Duration
	tells chan written
}

// startAgent starts one in the namespace of a cluster's node, with nothing in the kernel yet.
func startAgent(c *lab.Cluster, dir string, spec agentSpec) (*agent, error) {
	root, _ := cgroups.UnifiedPath("/")
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, err
	}
	var id [4]byte
	rand.Read(id[:])
	spec.Kubeconfig, spec.Dir, spec.NodeAddr = filepath.Join(c.Data, "admin.kubeconfig"), dir, netip.MustParseAddr(lab.NodeIP)
	spec.CgroupRoot, spec.Cgroup = root, filepath.Join(root, "strake-bench-"+hex.EncodeToString(id[:]))
	a := &agent{tells: make(chan written, 1<<16), spec: spec}
	for _, d := range []string{dir, spec.Cgroup} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(a.spec)
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	a.cmd = c.Command(context.Background(), exe)
	a.cmd.Env = append(os.Environ(), agentVariable+"="+string(text))
	a.cmd.Stderr = os.Stderr
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a.began = monotonic()
	if err := a.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(a.tells)
		for heard := gob.NewDecoder(out); ; {
			var w written
			if heard.Decode(&w) != nil {
				return
			}
			a.tells <- w
		}
	}()
	return a, nil
}

// stop ends the process and takes away what it loaded.
func (a *agent) stop() error {
	var errs []error
	errs = append(errs, a.cmd.Process.Signal(unix.SIGTERM), a.cmd.Wait())
	pins := filepath.Join(a.spec.Dir, "bpf")
	errs = append(errs, bpf.Remove(pins), bpf.UnmountBPFFS(pins), os.RemoveAll(a.spec.Dir), os.Remove(a.spec.Cgroup))
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("agent: %w", err)
		}
	}
	return nil
}

// runAgent is the agent's process; it does not return in one.
func runAgent() {
	text := os.Getenv(agentVariable)
	if text == "" {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var spec agentSpec
	err := json.Unmarshal([]byte(text), &spec)
	if err == nil {
		err = spec.run(ctx, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (s agentSpec) run(ctx context.Context, out io.Writer) error {
	debug.SetGCPercent(200) // as the agent does, see cmd/strake/services
	pins := filepath.Join(s.Dir, "bpf")
	if err := bpf.MountBPFFS(pins); err != nil {
		return err
	}
	d, err := bpf.Open(bpf.Config{PinDir: pins, CgroupRoot: s.CgroupRoot, NodeCgroup: s.Cgroup, NodeAddrs: []netip.Addr{s.NodeAddr},
		DNSAddrs: []netip.Addr{netip.MustParseAddr("10.96.255.10")}, Zone: "cluster.local", DNSTTL: 30, Policy: s.Cluster.Policies > 0})
	if err != nil {
		return err
	}
	defer d.Close()
	rc, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig)
	if err != nil {
		return err
	}
	rc.QPS, rc.Burst, rc.ContentType = -1, -1, "application/vnd.kubernetes.protobuf"
	rc.DisableCompression = true
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	tell := gob.NewEncoder(out)
	if err := tell.Encode(written{At: monotonic()}); err != nil {
		return err
	}
	if s.Cluster.Policies > 0 {
		return s.enforce(ctx, d, rc, client, tell)
	}
	f := informers.NewSharedInformerFactory(client, 0)
	objects := mirror.New(client, "bench")
	p, err := proxy.New(proxy.Config{Objects: objects, Informers: f, Table: &toldTable{LoadBalancerTable: d.LoadBalancers(), tell: tell, missing: s.Services}, Synced: func() {
		debug.SetGCPercent(25)
		go agentmemory.GiveBack()
	}, Node: proxy.Node{Name: "bench", Addrs: []netip.Addr{s.NodeAddr}}})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	defer f.Shutdown()
	f.Start(ctx.Done())
	g.Go(func() error { objects.Run(ctx); return nil })
	g.Go(func() error { return p.Run(ctx) })
	return g.Wait()
}

// toldTable tells of what has been written.
type toldTable struct {
	bpf.LoadBalancerTable
	mu      sync.Mutex
	tell    *gob.Encoder
	missing int // Services that have not been written yet
}

// ReplaceAll implements bpf.LoadBalancerTable.
func (t *toldTable) ReplaceAll(want map[string][]bpf.LoadBalancer) (bpf.Changes, map[string]error) {
	c, errs := t.LoadBalancerTable.ReplaceAll(want)
	w := written{At: monotonic()}
	t.mu.Lock()
	defer t.mu.Unlock()
	started := t.missing <= 0
	for owner := range want {
		if errs[owner] != nil {
			continue
		}
		if t.missing--; started {
			w.Owners = append(w.Owners, owner)
		}
	}
	if started == (len(w.Owners) > 0) && t.missing <= 0 {
		if err := t.tell.Encode(w); err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
		}
	}
	return c, errs
}
