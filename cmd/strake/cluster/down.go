package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	remote "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
	mount "k8s.io/mount-utils"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/agent"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/supervisor"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/kubelet/cgroups"
)

// Down stops the cluster: its processes, its pods and its network; or the node, if it has joined one. With purge its data goes
// too. A cluster that is down already is no error.
func Down(ctx context.Context, l layout.Layout, purge bool, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("strake down needs root: run it with sudo")
	}
	release, err := exclusive(l)
	if err != nil {
		return err
	}
	defer release()
	if err := notSystemds(l); err != nil {
		return err
	}
	return down(ctx, l, purge, out)
}

func down(ctx context.Context, l layout.Layout, purge bool, out io.Writer) error {
	if purge && !l.Ours() {
		return fmt.Errorf("data folder %s was not made by strake: it is not removed; remove it yourself if you mean it", l.Data)
	}
	if err := inItsNamespace(l); err != nil {
		return err
	}
	if err := downLab(ctx, l, purge); err != nil {
		return err // the first node stays: the others need its network
	}
	var errs []error
	s, _, err := Load(l)
	if err != nil {
		s = Defaults()
		if !purge {
			errs = append(errs, err)
		}
	}
	noAddress := s.completeAddresses()
	if len(s.DNSAddrs) == 0 {
		s.DNSAddrs = []netip.Addr{nth(families[false].serviceCIDR, dnsIndex)}
	}
	errs = append(errs, stopPrograms(l))
	if p, ok := supervisor.Find(l.Pid("containerd")); ok {
		if len(s.NodeAddrs) > 0 {
			if err := removePods(ctx, l, s); err != nil {
				klog.V(1).InfoS("Pods were not removed in good order", "err", err)
			}
		} else if !purge && !s.Joined() {
			errs = append(errs, noAddress)
		}
		errs = append(errs, p.Stop(10*time.Second))
	}
	killShims(l)
	errs = append(errs, cgroups.New(l.Cgroup(), 0).RemoveAll())
	errs = append(errs, cni.RemoveAll(l.CNIState(), "strake-"+l.ID, s.DNSAddrs))
	errs = append(errs, bpf.Remove(l.BPF()), bpf.UnmountBPFFS(l.BPF()), unmountBelow(l.Data, l.Run()))
	errs = append(errs, os.RemoveAll(l.Run()))
	if err := os.Remove(filepath.Dir(l.Run())); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !os.IsNotExist(err) {
		errs = append(errs, err)
	}
	if err := os.Remove(filepath.Join(l.CNIConf(), "10-strake.conflist")); err != nil && !os.IsNotExist(err) {
		errs = append(errs, err)
	}
	if purge {
		errs = append(errs, os.RemoveAll(l.Data))
		if s.Joined() {
			fmt.Fprintf(out, "The cluster still has node %s: `strake node remove %s` on a machine of its control plane removes it.\n", s.NodeName, s.NodeName)
		}
	}
	return errors.Join(errs...)
}

// removePods ends all sandboxes; the CNI calls that this makes are answered here, since the agent is gone.
func removePods(ctx context.Context, l layout.Layout, s Settings) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	d, err := agent.OpenDatapath(s.Agent(l))
	if err != nil {
		return err
	}
	defer d.Close()
	server, err := agent.CNI(l, d, s.NodeAddrs, func() int { return 0 }, func() ([]netip.Prefix, bool) { return nil, false }, nil, nil)
	if err != nil {
		return err
	}
	sctx, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- server.Run(sctx) }()
	defer func() {
		stop()
		<-served
	}()
	rt, err := remote.NewRemoteRuntimeService(ctx, "unix://"+l.ContainerdSocket(), 30*time.Second, nil, false)
	if err != nil {
		return err
	}
	boxes, err := rt.ListPodSandbox(ctx, nil)
	if err != nil {
		return err
	}
	done := make(chan error, len(boxes))
	for _, b := range boxes {
		go func() {
			err := rt.StopPodSandbox(ctx, b.Id)
			if err == nil {
				err = rt.RemovePodSandbox(ctx, b.Id)
			}
			done <- err
		}()
	}
	var errs []error
	for range boxes {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}

// killShims ends the runtime's helpers that serve our containerd and nobody else.
func killShims(l layout.Layout) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return
	}
	for _, path := range procs {
		data, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(data), "containerd-shim") || !strings.Contains(string(data), l.ContainerdSocket()) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/", &pid); err == nil && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended meanwhile
		}
	}
}

// unmountBelow takes away every mount under the folders, the innermost first.
func unmountBelow(dirs ...string) error {
	points, err := mount.New("").List()
	if err != nil {
		return err
	}
	var errs []error
	for i := len(points) - 1; i >= 0; i-- {
		for _, dir := range dirs {
			if rel, err := filepath.Rel(dir, points[i].Path); err == nil && filepath.IsLocal(rel) && rel != "." {
				if err := unix.Unmount(points[i].Path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
					errs = append(errs, fmt.Errorf("unmount %s: %w", points[i].Path, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}
