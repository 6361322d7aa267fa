package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/cmd/strake/agent"
	"github.com/strake-io/strake/cmd/strake/layout"
	"github.com/strake-io/strake/cmd/strake/ready"
	"github.com/strake-io/strake/cmd/strake/server"
	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/controlplane/apiserver"
	"github.com/strake-io/strake/controlplane/pki"
)

// RunAgent runs a node until ctx ends. It follows what may change meanwhile: its own addresses, if they were found and not named, and, if it
// has joined, what all nodes share. For that the process begins anew with the new settings, as after an upgrade of the agent: the kernel
// carries on meanwhile, and no packet is lost.
func RunAgent(ctx context.Context, l layout.Layout, s Settings) error {
	if s.Joined() {
		s = refresh(ctx, l, s)
	}
	calls := make(chan netip.Addr, 1)
	also := func(ctx context.Context, s Settings, found chan<- Settings) error {
		return followServer(ctx, l, s, calls, found)
	}
	if !s.Joined() {
		also = nil
	}
	return runFollowing(ctx, l, s, also, func(ctx context.Context, s Settings) error {
		if nodes, err := l.LabNodes(); err == nil && len(nodes) > 0 {
			if err := s.lab(l).EnsureBridge(); err != nil { // its routes go with an address that this node had
				return err
			}
		}
		cfg := s.Agent(l)
		cfg.CalledBy = func(user string, from netip.Addr) {
			if user != pki.KubeletClient {
				return
			}
			select {
			case calls <- from:
			default: // one is being looked at
			}
		}
		return agent.Run(ctx, cfg)
	})
}

// followServer finds the API server where it calls the kubelet from, if it no longer answers where the node knows it. One that the node knows by
// a name is where the name leads.
func followServer(ctx context.Context, l layout.Layout, s Settings, calls <-chan netip.Addr, found chan<- Settings) error {
	known, err := url.Parse(s.APIServer)
	if err != nil {
		return fmt.Errorf("API server %q: %w", s.APIServer, err)
	}
	at, err := netip.ParseAddr(known.Hostname())
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case from := <-calls:
			if from == at || servedAt(ctx, l, s.APIServer) == nil {
				continue
			}
			now := s
			now.APIServer = "https://" + net.JoinHostPort(from.String(), known.Port())
			if err := servedAt(ctx, l, now.APIServer); err != nil {
				klog.InfoS("The API server calls from where it does not answer", "from", from, "err", err)
				continue
			}
			klog.InfoS("The API server is at another address", "was", s.APIServer, "is", now.APIServer)
			select {
			case found <- now:
			case <-ctx.Done():
			}
			return nil
		}
	}
	return nil
}

// RunServer runs the control plane until ctx ends. It follows the machine's addresses as RunAgent does: certificates, kubeconfigs and the
// Service kubernetes name the new ones.
func RunServer(ctx context.Context, l layout.Layout, s Settings, set *apiserver.Settings) error {
	return runFollowing(ctx, l, s, nil, func(ctx context.Context, s Settings) error {
		cfg, err := s.Server(l)
		if err != nil {
			return err
		}
		cfg.APISettings = set
		return server.Run(ctx, cfg)
	})
}

// watch sends other settings, if it finds some, until ctx ends.
type watch func(ctx context.Context, s Settings, found chan<- Settings) error

// runFollowing runs a component with the settings that hold now, and as a new process with those that come instead. also, if there is one, is
// watched besides what all components watch.
func runFollowing(ctx context.Context, l layout.Layout, s Settings, also watch, run func(context.Context, Settings) error) error {
	if now, err := s.withAddresses(onDefaultRoute); err != nil {
		klog.InfoS("The node's address is looked for again when its links change", "addresses", s.NodeAddrs, "err", err)
	} else if !slices.Equal(now.NodeAddrs, s.NodeAddrs) {
		if err := now.Save(l); err != nil {
			return err
		}
		s = now
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	changed := make(chan struct{})
	go func() {
		now, err := follow(running, l, s, also)
		if err == nil {
			err = now.Save(l)
		}
		if err != nil {
			if ctx.Err() == nil && running.Err() == nil {
				klog.ErrorS(err, "Changes of the node's settings are not followed")
			}
			return
		}
		klog.InfoS("Beginning anew with other settings", "addresses", now.NodeAddrs)
		close(changed)
	}()
	ended := make(chan error, 1)
	go func() { ended <- run(running, s) }()
	select {
	case err := <-ended:
		return err
	case <-changed:
		stop() // only now: what ends for this has not ended by itself
	}
	if ctx.Err() != nil {
		return <-ended
	}
	select {
	case err := <-ended:
		if err != nil {
			klog.ErrorS(err, "What ran did not end as it should")
		}
	case <-time.After(endWithin): // it may be killed at any time: so it may be here
	}
	return fmt.Errorf("begin anew: %w", unix.Exec("/proc/self/exe", os.Args, os.Environ()))
}

// endWithin bounds what calls that have begun may take until the agent begins anew.
const endWithin = 10 * time.Second

// follow returns the settings that are to be instead of s, as soon as there are some.
func follow(ctx context.Context, l layout.Layout, s Settings, also watch) (Settings, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	found := make(chan Settings, 3)
	g, ctx := errgroup.WithContext(ctx)
	if s.Joined() {
		g.Go(func() error { return followShared(ctx, l, s, found) })
	}
	if s.FoundAddrs {
		g.Go(func() error { return followAddresses(ctx, s, found) })
	}
	if also != nil {
		g.Go(func() error { return also(ctx, s, found) })
	}
	g.Go(func() error { // there may be nothing to follow
		<-ctx.Done()
		return nil
	})
	failed := make(chan error, 1)
	go func() { failed <- g.Wait() }()
	select {
	case now := <-found:
		return now, nil
	case err := <-failed:
		if err == nil {
			err = ctx.Err()
		}
		return s, err
	}
}

// followShared watches what the control plane tells the nodes.
func followShared(ctx context.Context, l layout.Layout, s Settings, found chan<- Settings) error {
	rc, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig("node-network"))
	if err != nil {
		return err
	}
	c, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return err
	}
	if ready.API(ctx, c.Discovery().RESTClient()) != nil {
		return nil // ctx ended
	}
	f := informers.NewSharedInformerFactoryWithOptions(c, 0, informers.WithNamespace(metav1.NamespaceSystem), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", SettingsConfigMap).String()
	}))
	seen := func(obj any) {
		m, ok := obj.(*corev1.ConfigMap)
		if !ok {
			return
		}
		now, err := s.withShared(m)
		if err != nil {
			klog.ErrorS(err, "What the cluster tells its nodes is not taken")
		} else if !reflect.DeepEqual(now, s) {
			select {
			case found <- now:
			default:
			}
		}
	}
	if _, err := f.Core().V1().ConfigMaps().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, obj any) { seen(obj) }}); err != nil {
		return err
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	<-ctx.Done()
	return nil
}

// withShared are the settings with what a ConfigMap of the control plane says.
func (s Settings) withShared(m *corev1.ConfigMap) (Settings, error) {
	now := s
	var err error
	if now.Shared, err = readShared(m); err != nil {
		return s, err
	}
	if now.Zone != s.Zone {
		return s, fmt.Errorf("the cluster's zone is %s, the node has joined one with %s: join it anew", now.Zone, s.Zone)
	}
	return now, now.check()
}

func readShared(m *corev1.ConfigMap) (s Shared, err error) {
	if err := json.Unmarshal([]byte(m.Data[settingsKey]), &s); err != nil {
		return s, fmt.Errorf("ConfigMap %s/%s, which the control plane of the same release writes: %w", m.Namespace, m.Name, err)
	}
	return s, nil
}

// calm is how long nothing has changed of the node's links before an address that is gone is believed to be: who renews one may take it away
// for a moment. Where there is never calm, it is believed after longest.
const (
	calm    = time.Second
	longest = 10 * time.Second
)

// followAddresses watches the node's links until there are other settings, or ctx ends.
func followAddresses(ctx context.Context, s Settings, found chan<- Settings) error {
	for {
		again, err := followLinks(ctx, s, found)
		if !again || err != nil {
			return err
		}
		klog.InfoS("The kernel's events were lost, looking anew")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(calm):
		}
	}
}

// followLinks is followAddresses until events are lost: then it is to be called again.
func followLinks(ctx context.Context, s Settings, found chan<- Settings) (again bool, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	addrs, routes := make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
	lost := func(error) {} // the channel is closed then
	if err := netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: lost}); err != nil {
		return false, fmt.Errorf("watch addresses: %w", err)
	}
	defer runDry(addrs)
	if err := netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{ErrorCallback: lost}); err != nil {
		return false, fmt.Errorf("watch routes: %w", err)
	}
	defer runDry(routes)
	timer := time.NewTimer(calm) // something may have changed before
	defer timer.Stop()
	first := time.Now() // when what was not looked at yet began
	for {
		event, ok := false, true
		select {
		case <-ctx.Done():
			return false, nil
		case _, ok = <-addrs:
			event = true
		case _, ok = <-routes:
			event = true
		case <-timer.C:
		}
		switch {
		case !ok:
			return ctx.Err() == nil, nil
		case event:
			if first.IsZero() {
				first = time.Now()
			}
			timer.Reset(min(calm, max(0, longest-time.Since(first))))
		default:
			first = time.Time{}
			now, err := s.withAddresses(onDefaultRoute)
			if err != nil {
				klog.InfoS("An address of the node is gone, and no other is there", "addresses", s.NodeAddrs, "err", err)
			} else if !slices.Equal(now.NodeAddrs, s.NodeAddrs) {
				select {
				case found <- now:
				case <-ctx.Done():
				}
				return false, nil
			}
		}
	}
}

// runDry lets the sender of a subscription that was stopped come to its end: it may be about to send.
func runDry[T any](from <-chan T) {
	go func() {
		for range from {
		}
	}()
}

// withAddresses are the settings with the addresses that the node has: those of before that an interface has, and in the place of others what
// a first start would find, where it may look. What the user named stays.
func (s Settings) withAddresses(where place) (Settings, error) {
	if !s.FoundAddrs {
		return s, nil
	}
	list, err := cni.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return s, fmt.Errorf("addresses: %w", err)
	}
	has := func(want netip.Addr) bool {
		return slices.ContainsFunc(list, func(a netlink.Addr) bool {
			have, _ := netip.AddrFromSlice(a.IP)
			return have.Unmap() == want
		})
	}
	now := s
	now.NodeAddrs = slices.DeleteFunc(slices.Clone(s.NodeAddrs), func(a netip.Addr) bool { return !has(a) })
	if len(now.NodeAddrs) == len(s.NodeAddrs) {
		return s, nil
	}
	if way, err := s.addrToServer(); s.Joined() && err == nil && !slices.ContainsFunc(now.NodeAddrs, func(a netip.Addr) bool { return a.Is4() == way.Is4() }) {
		now.NodeAddrs = append(now.NodeAddrs, way)
	}
	if err := now.completeFamilies(where); err != nil {
		return s, err
	}
	return now, now.check()
}

// addrToServer is the machine's address on the way to the API server.
func (s Settings) addrToServer() (netip.Addr, error) {
	server, err := url.Parse(s.APIServer)
	if err != nil || server.Scheme != "https" || server.Port() == "" {
		return netip.Addr{}, fmt.Errorf("API server %q: not a URL such as https://192.0.2.1:6443", s.APIServer)
	}
	c, err := net.Dial("udp", server.Host) // sends nothing
	if err != nil {
		return netip.Addr{}, fmt.Errorf("there is no way to the API server %s: %w", s.APIServer, err)
	}
	defer c.Close()
	at, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("the way to the API server %s: %w", s.APIServer, err)
	}
	return at.Addr().Unmap().WithZone(""), nil
}

// completeFamilies finds the addresses of the families that the cluster has and that are not known yet.
func (s *Settings) completeFamilies(where place) error {
	known := s.NodeAddrs
	s.NodeAddrs = nil
	for _, v6 := range areV6(s.PodCIDRs) {
		i := slices.IndexFunc(known, func(a netip.Addr) bool { return a.Is6() == v6 })
		if i >= 0 {
			s.NodeAddrs = append(s.NodeAddrs, known[i])
			continue
		}
		a, err := nodeAddr(families[v6], where)
		if err != nil {
			return err
		}
		s.NodeAddrs = append(s.NodeAddrs, a)
	}
	return nil
}
