// Package server runs the control plane of one node in one process: etcd, the
// API server, the controllers and the scheduler.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/version"

	"github.com/strake-io/strake/cmd/strake/ready"
	"github.com/strake-io/strake/controlplane/apiserver"
	"github.com/strake-io/strake/controlplane/apiserver/quota"
	"github.com/strake-io/strake/controlplane/controllers"
	"github.com/strake-io/strake/controlplane/controllers/accounts"
	"github.com/strake-io/strake/controlplane/pki"
	"github.com/strake-io/strake/controlplane/scheduler"
	"github.com/strake-io/strake/controlplane/store"
)

// account is the ServiceAccount of kube-system by which the server itself writes.
const account = "strake-server"

// Config says where the control plane serves and keeps its data.
type Config struct {
	PKI          pki.Files
	Certificates pki.Config // what is renewed while the server runs
	EtcdDir      string
	Addrs        []netip.Addr // where the API server listens; it is known by the first
	Port         int
	EtcdPort     int // etcd's client port on loopback; its peer port is the next one
	// Ranges of each family, the primary one first.
	ServiceCIDRs, PodCIDRs []netip.Prefix
	NodePorts              utilnet.PortRange              // of NodePorts
	NodeBits               func(podCIDR netip.Prefix) int // length of a node's part of a pod range
	// Kubeconfigs of the controllers and of the scheduler, each with an identity of its own.
	ControllerKubeconfig, SchedulerKubeconfig string
	// NodeSettings is a ConfigMap that tells nodes what they share.
	NodeSettings *corev1.ConfigMap
	NodeName     string // of the node on this machine
	APISettings  *apiserver.Settings
}

// URL is where the API server is reached.
func (c Config) URL() string {
	return fmt.Sprintf("https://%s", netip.AddrPortFrom(c.Addrs[0], uint16(c.Port)))
}

// leastProcs is how many threads run Go code at once at least, on however few CPUs. With two, one that waits for the disk in etcd's write keeps half of them
// from all others until the runtime notices, and the garbage collector works in turns with what answers clients, in pieces of up to 20 ms on each; with
// four it has one thread of its own, and the kernel shares the CPUs between them in pieces of 3 ms. Where the runtime takes fewer threads than there are
// CPUs, a cgroup's quota is why, and it stays at that: more threads would use the quota up sooner, and all be stopped for the rest of each period.
const leastProcs = 4

// moreProcs is how many threads there are to be instead of procs, 0 if those are right.
func moreProcs(procs, cpus int) int {
	if procs == cpus && procs < leastProcs {
		return leastProcs
	}
	return 0
}

// Run serves until ctx ends or a part fails for good.
func Run(ctx context.Context, cfg Config) error {
	if os.Getenv("GOGC") == "" {
		go paceGC(ctx)
	}
	if procs := moreProcs(runtime.GOMAXPROCS(0), runtime.NumCPU()); os.Getenv("GOMAXPROCS") == "" && procs > 0 {
		runtime.GOMAXPROCS(procs)
	}
	var endpoint string
	var client func() *clientv3.Client
	var storeEnds <-chan error // nobody's, where the store is somebody else's
	if cfg.APISettings == nil || len(cfg.APISettings.EtcdServers) == 0 {
		etcd, err := store.Start(ctx, StoreConfig(cfg))
		if err != nil {
			return err
		}
		defer etcd.Close()
		endpoint, client, storeEnds = etcd.Endpoint(), etcd.Client, etcd.Err()
	}
	var controllersRun, schedulerRuns part
	conf := APIServerConfig(cfg, endpoint)
	conf.EtcdClient = client
	conf.Components = map[string]func(context.Context) error{"controller-manager": controllersRun.check, "scheduler": schedulerRuns.check}
	api, err := apiserver.New(conf)
	if err != nil {
		return err
	}
	// The API server outlives its clients here, so that they can give up their leases.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return api.Run(gctx) })
	g.Go(func() error {
		select {
		case err := <-storeEnds:
			return fmt.Errorf("etcd: %w", err)
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error { return pki.Keep(gctx, cfg.Certificates) })
	g.Go(func() error { return runControllers(gctx, cfg, &controllersRun) })
	g.Go(func() error { return runScheduler(gctx, cfg, &schedulerRuns) })
	g.Go(func() error { return tellNodes(gctx, cfg) })
	return g.Wait()
}

// StoreConfig is the store's part of the configuration.
func StoreConfig(cfg Config) store.Config {
	return store.Config{
		Dir: cfg.EtcdDir, Name: "strake", ClientPort: cfg.EtcdPort, PeerPort: cfg.EtcdPort + 1,
		CAFile: cfg.PKI.EtcdCA().Cert, CertFile: cfg.PKI.EtcdServer().Cert, KeyFile: cfg.PKI.EtcdServer().Key,
	}
}

// APIServerConfig is the API server's part of the configuration.
func APIServerConfig(cfg Config, etcdURL string) apiserver.Config {
	f := cfg.PKI
	addrs := make([]net.IP, len(cfg.Addrs))
	for i, a := range cfg.Addrs {
		addrs[i] = a.AsSlice()
	}
	return apiserver.Config{
		BindAddresses: addrs, Port: cfg.Port,
		ServingCertFile: f.APIServer().Cert, ServingKeyFile: f.APIServer().Key, ClientCAFile: f.CA().Cert,
		Settings: cfg.APISettings, EtcdServers: []string{etcdURL}, EtcdCAFile: f.EtcdCA().Cert, EtcdCertFile: f.EtcdClient().Cert, EtcdKeyFile: f.EtcdClient().Key,
		ServiceCIDRs: cfg.ServiceCIDRs, NodePortMin: int32(cfg.NodePorts.Base), NodePortMax: int32(cfg.NodePorts.Base + cfg.NodePorts.Size - 1),
		ServiceAccountKeyFile: f.ServiceAccountKey(), ServiceAccountIssuer: "https://kubernetes.default.svc.cluster.local",
		FrontProxyCAFile: f.FrontProxyCA().Cert, ProxyClientCertFile: f.FrontProxyClient().Cert, ProxyClientKeyFile: f.FrontProxyClient().Key,
		KubeletCAFile: f.CA().Cert, KubeletClientCertFile: f.APIServerKubeletClient().Cert, KubeletClientKeyFile: f.APIServerKubeletClient().Key,
	}
}

// part knows whether a part of the control plane runs.
type part struct{ runs atomic.Bool }

// start notes that it does, until the returned function is called.
func (p *part) start() (end func()) {
	p.runs.Store(true)
	return func() { p.runs.Store(false) }
}

func (p *part) check(context.Context) error {
	if !p.runs.Load() {
		return errors.New("it has not begun yet, or has ended")
	}
	return nil
}

// clientConfig loads a kubeconfig for a component inside of this process's trust. The component is called as the reference's is: who manages a field of an
// object is read from that.
func clientConfig(path, component string) (*rest.Config, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	rc.UserAgent = fmt.Sprintf("%s/%s (%s/%s) strake", component, version.Get().GitVersion, runtime.GOOS, runtime.GOARCH)
	rc.QPS, rc.Burst = -1, -1 // the server's priority and fairness decides
	// Over loopback there is nothing to save, and every watch would keep a decompressor.
	rc.DisableCompression = true
	return rc, nil
}

// connect returns how a component reaches the API server, once that is ready; nil if ctx ended before.
func connect(ctx context.Context, kubeconfig, component string) (*rest.Config, error) {
	rc, err := clientConfig(kubeconfig, component)
	if err != nil {
		return nil, err
	}
	d, err := discovery.NewDiscoveryClientForConfig(rc)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", component, err)
	}
	if ready.API(ctx, d.RESTClient()) != nil {
		return nil, nil
	}
	return rc, nil
}

func runControllers(ctx context.Context, cfg Config, p *part) error {
	rc, err := connect(ctx, cfg.ControllerKubeconfig, "kube-controller-manager")
	if rc == nil {
		return err
	}
	defer p.start()()
	return controllers.Run(ctx, controllers.Config{
		API: rc, PodCIDRs: cfg.PodCIDRs, NodeBits: cfg.NodeBits,
		CAFile: cfg.PKI.CA().Cert, CAKeyFile: cfg.PKI.CA().Key, Server: cfg.URL(), Quota: quota.Evaluators,
	})
}

func runScheduler(ctx context.Context, cfg Config, p *part) error {
	rc, err := connect(ctx, cfg.SchedulerKubeconfig, "kube-scheduler")
	if rc == nil {
		return err
	}
	rc.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	defer p.start()()
	return scheduler.Run(ctx, scheduler.Config{Client: client})
}

// tellNodes tells them what they share and where the API server is, by the ServiceAccount strake-server of kube-system.
func tellNodes(ctx context.Context, cfg Config) error {
	rc, err := connect(ctx, cfg.ControllerKubeconfig, account)
	if rc == nil {
		return err
	}
	own, err := accounts.New(ctx, rc)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(own.Config(account))
	if err != nil {
		return fmt.Errorf("%s: %w", account, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { publish(ctx, cfg, client) })
	wg.Go(func() { announce(ctx, cfg, client) })
	wg.Wait()
	return nil
}
