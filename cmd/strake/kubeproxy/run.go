package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/cmd/strake/informer"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/services"
	"github.com/strake-io/strake/mirror"
	"github.com/strake-io/strake/proxy"
)

// Run serves Services on this node until ctx ends. What it has put into the kernel goes on working then.
func Run(ctx context.Context, l layout.Layout, c Config) error {
	if err := checkPatterns(c.Devices); err != nil {
		return err
	}
	if err := prepare(l); err != nil {
		return err
	}
	rc, err := REST(c.Kubeconfig)
	if err != nil {
		return err
	}
	rc.QPS, rc.Burst, rc.UserAgent, rc.ContentType = -1, -1, "strake-proxy", "application/vnd.kubernetes.protobuf"
	rc.DisableCompression = true // as the agent's
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	given := len(c.Addrs) > 0
	if !given {
		if c.Addrs, err = awaitAddrs(ctx, client, c.NodeName); err != nil || ctx.Err() != nil {
			return err
		}
	}
	mount, dir, err := c.cgroup()
	if err != nil {
		return err
	}
	if err := bpf.MountBPFFS(l.BPF()); err != nil {
		return err
	}
	d, err := bpf.Open(bpf.Config{PinDir: l.BPF(), CgroupRoot: mount, NodeCgroup: dir, NodeAddrs: c.Addrs, MaxFrontends: c.MaxFrontends, MaxBackends: c.MaxBackends, Flows: c.Flows, XDP: c.XDP, Zone: c.Names.Zone, DNSTTL: namesTTL, Beside: true})
	if err != nil {
		return err
	}
	defer d.Close()
	if err := (Settings{NodeName: c.NodeName, Addrs: c.Addrs, Kubeconfig: c.Kubeconfig, Cgroup: c.Cgroup, NodePorts: c.NodePorts, Names: c.Names}).save(l); err != nil {
		return err
	}
	f := informer.OwnNode(client, c.NodeName)
	objects := mirror.New(client, c.NodeName)
	served, err := services.New(services.Config{
		Client: client, Objects: objects, Informers: f, Datapath: d, Node: proxy.Node{Name: c.NodeName, Addrs: c.Addrs, OtherPods: true}, NodePorts: c.NodePorts, Healthz: c.Healthz, Metrics: c.Metrics, Namespaces: podNamespaces,
	})
	if err != nil {
		return err
	}
	names, err := c.Names.besides(client, objects, d)
	if err != nil {
		return err
	}
	devices := devices{node: c.Addrs, places: []*place{
		{"Packets for Services are served", func(list []Device) []int { return Wanted(list, c.Devices) }, d.AttachUplink, d.DetachUplink, d.Uplinks, map[int]bool{}},
		{"What a pod's packets ask of Services is served", func(list []Device) []int { return ofOnePod(list, Wanted(list, c.Devices)) }, d.AttachBeside, d.DetachBeside, d.BesideAt, map[int]bool{}},
		{"Names are answered", c.Names.at, d.AttachNames, d.DetachNames, d.NamesAt, map[int]bool{}},
	}}
	if err := devices.apply(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	defer f.Shutdown()
	f.Start(ctx.Done())
	g.Go(func() error { objects.Run(ctx); return nil })
	g.Go(func() error { return served.Run(ctx) })
	g.Go(func() error { return devices.run(ctx) })
	g.Go(func() error { return names.run(ctx) })
	g.Go(func() error { return kubeProxy(ctx, c.Clean, served.Settled) })
	if !given {
		g.Go(func() error { return watchAddrs(ctx, client, c.NodeName, c.Addrs) })
	}
	return g.Wait()
}

// podNamespaces are the paths of pods' network namespaces, where runtimes keep them.
func podNamespaces() []string {
	paths, _ := filepath.Glob("/run/netns/*") // the pattern is right
	return paths
}

// InternalAddrs are the node's addresses as its object says, the first of each family.
func InternalAddrs(n *corev1.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		ip, err := netip.ParseAddr(a.Address)
		if a.Type != corev1.NodeInternalIP || err != nil || ip.Is4In6() || ip.Zone() != "" {
			continue
		}
		if !slices.ContainsFunc(out, func(o netip.Addr) bool { return o.Is4() == ip.Is4() }) {
			out = append(out, ip)
		}
	}
	return out
}

// awaitAddrs asks the API server until the node has addresses.
func awaitAddrs(ctx context.Context, client kubernetes.Interface, name string) ([]netip.Addr, error) {
	const pause, patience = time.Second, 10 * time.Second
	var told time.Time
	for {
		n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			if addrs := InternalAddrs(n); len(addrs) > 0 {
				return addrs, nil
			}
			err = fmt.Errorf("node %s has no InternalIP yet", name)
		}
		if ctx.Err() != nil {
			return nil, nil
		}
		if time.Since(told) > patience {
			klog.ErrorS(err, "Waiting for the node's addresses (--hostname-override names another node, --bind-address gives them)", "node", name)
			told = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(pause):
		}
	}
}

// errMoved ends the agent: what starts it again starts it with the addresses that the node has now.
var errMoved = errors.New("the node's addresses have changed")

// watchAddrs fails once the node has other addresses.
func watchAddrs(ctx context.Context, client kubernetes.Interface, name string, addrs []netip.Addr) error {
	return informer.FollowNode(ctx, client, name, func(n *corev1.Node) error {
		if now := InternalAddrs(n); len(now) > 0 && !slices.Equal(now, addrs) {
			return fmt.Errorf("%w from %v to %v: start the agent again", errMoved, addrs, now)
		}
		return nil
	})
}
