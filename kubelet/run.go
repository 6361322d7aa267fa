package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	remote "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/kubelet/cgroups"
	"github.com/strake-io/strake/kubelet/eviction"
	imagegc "github.com/strake-io/strake/kubelet/images"
	"github.com/strake-io/strake/kubelet/logrotate"
	"github.com/strake-io/strake/kubelet/node"
	"github.com/strake-io/strake/kubelet/objects"
	"github.com/strake-io/strake/kubelet/podnet"
	"github.com/strake-io/strake/kubelet/podworker"
	"github.com/strake-io/strake/kubelet/server"
	"github.com/strake-io/strake/kubelet/stats"
	"github.com/strake-io/strake/kubelet/volumes"
)

// Config is all that differs between nodes.
type Config struct {
	NodeName      string
	NodeIPs       []netip.Addr // at most one of each family, the primary family's first
	Port          int          // of the kubelet's API
	Labels        map[string]string
	MaxPods       int64 // zero: 110
	Client        *rest.Config
	CRISocket     string // path of the container runtime's unix socket
	RootDir       string // pods' folders
	PodLogsDir    string
	Cgroup        string   // the node's cgroup, such as /strake-0123abcd
	ClusterDNS    []string // addresses of the cluster's DNS, the primary family's first
	ClusterDomain string
	ResolvConf    string
	// EvictionHard are the thresholds below which the node is short of something; nil: Kubernetes' own.
	EvictionHard []eviction.Threshold
	// Certificate returns what the kubelet's API serves with; it is asked for every connection.
	Certificate  func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	ClientCAFile string
	CalledBy     func(user string, from netip.Addr) // as server.Config has it
}

// callTimeout bounds calls to the container runtime that start nothing long.
const callTimeout = 2 * time.Minute

// Run runs this node's pods until ctx ends. Containers go on running without it.
func Run(ctx context.Context, cfg Config) error {
	if cfg.MaxPods == 0 {
		cfg.MaxPods = 110
	}
	var nodeIPs []string
	var addrs []netip.AddrPort
	for _, a := range cfg.NodeIPs {
		nodeIPs, addrs = append(nodeIPs, a.String()), append(addrs, netip.AddrPortFrom(a, uint16(cfg.Port)))
	}
	if len(nodeIPs) == 0 {
		return errors.New("kubelet: the node has no address")
	}
	pb := rest.CopyConfig(cfg.Client)
	pb.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(pb)
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	endpoint := "unix://" + cfg.CRISocket
	runtime, err := remote.NewRemoteRuntimeService(ctx, endpoint, callTimeout, nil, false)
	if err != nil {
		return fmt.Errorf("kubelet: container runtime at %s: %w", endpoint, err)
	}
	images, err := remote.NewRemoteImageService(ctx, endpoint, callTimeout, nil, false)
	if err != nil {
		return fmt.Errorf("kubelet: container runtime at %s: %w", endpoint, err)
	}
	if err := os.MkdirAll(cfg.RootDir, 0o700); err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	localVolumes := filepath.Join(cfg.RootDir, "local-volumes")
	nodeConfig := node.Config{Annotations: map[string]string{volumes.LocalAnnotation: localVolumes}, Name: cfg.NodeName, IPs: nodeIPs, Port: cfg.Port, Labels: cfg.Labels, MaxPods: cfg.MaxPods, RootDir: cfg.RootDir, Client: client, Runtime: runtime}
	machine, err := node.Inspect(ctx, nodeConfig)
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	memory := machine.Capacity[corev1.ResourceMemory]

	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})

	services := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(dropManagedFields))
	serviceLister := services.Core().V1().Services().Lister()
	ctx, cancel := context.WithCancel(ctx)
	services.Start(ctx.Done())
	defer services.Shutdown()
	defer cancel() // before Shutdown, which waits for it: a part that fails must end the kubelet

	pods := &podworker.Pods{
		Client: client, RuntimeName: machine.RuntimeName, Runtime: runtime, Images: images, Endpoint: endpoint,
		Recorder: events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: cfg.NodeName}),
		Cgroups:  cgroups.New(cfg.Cgroup, memory.Value()),
		Net:      podnet.Config{ClusterDNS: cfg.ClusterDNS, ClusterDomain: cfg.ClusterDomain, ResolvConf: cfg.ResolvConf},
		Services: func() []*corev1.Service {
			list, err := serviceLister.List(labels.Everything())
			if err != nil {
				return nil // a lister of a cache never fails
			}
			return list
		},
		Allocatable: func() corev1.ResourceList { return machine.Allocatable },
		HostIPs:     nodeIPs, LogsDir: cfg.PodLogsDir,
	}
	pods.Objects = objects.New(client, func(uids []types.UID) { pods.Wake(uids...) })
	pods.Volumes = volumes.New(filepath.Join(cfg.RootDir, "pods"), localVolumes, volumes.Sources{
		ConfigMap: func(ctx context.Context, p *corev1.Pod, name string) (*corev1.ConfigMap, error) {
			return pods.Objects.ConfigMap(ctx, p.UID, p.Namespace, name)
		},
		Secret: func(ctx context.Context, p *corev1.Pod, name string) (*corev1.Secret, error) {
			return pods.Objects.Secret(ctx, p.UID, p.Namespace, name)
		},
		Token: func(ctx context.Context, p *corev1.Pod, spec authenticationv1.TokenRequestSpec) (string, time.Time, error) {
			var tr *authenticationv1.TokenRequest
			err := objects.Permitted(ctx, func() (err error) {
				tr, err = client.CoreV1().ServiceAccounts(p.Namespace).CreateToken(ctx, p.Spec.ServiceAccountName, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
				return err
			})
			if err != nil {
				return "", time.Time{}, err
			}
			return tr.Status.Token, tr.Status.ExpirationTimestamp.Time, nil
		},
		Node: machine.Allocatable,
		Claim: func(ctx context.Context, p *corev1.Pod, name string) (*corev1.PersistentVolumeClaim, error) {
			var claim *corev1.PersistentVolumeClaim
			err := objects.Permitted(ctx, func() (err error) {
				claim, err = client.CoreV1().PersistentVolumeClaims(p.Namespace).Get(ctx, name, metav1.GetOptions{})
				return err
			})
			return claim, err
		},
		Volume: func(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
			return client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
		},
	})
	pods.Init(ctx)

	figures := stats.Config{
		NodeName: cfg.NodeName, Boot: node.BootTime(), RootDir: cfg.RootDir, Runtime: runtime, Images: images, Pods: pods.List, Cgroups: pods.Cgroups, Sandbox: pods.SandboxPID,
		VolumesDir: func(p *corev1.Pod) string { return pods.Volumes.PodDir(p.UID) }, LogsDir: pods.LogsOf,
	}
	collector := imagegc.New(runtime, images, figures.ImageFS)
	changed := make(chan struct{}, 1)
	pressure := eviction.New(eviction.Config{
		Thresholds: cfg.EvictionHard, Levels: figures.Levels, Usage: figures.Usage, Reclaim: collector.All, Evict: pods.Evict,
		Changed: func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		},
	})
	nodeConfig.Pressure, nodeConfig.Changed = pressure.Pressure, changed
	pods.Admit = func(p *corev1.Pod) (string, bool) {
		return pressure.Admit(p, cgroups.QOS(p) == corev1.PodQOSBestEffort)
	}

	g, gctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context){pressure.Run, collector.Run, logrotate.Rotator{Runtime: runtime, MaxSize: logrotate.MaxSize, MaxFiles: logrotate.MaxFiles}.Run, pods.KeepClasses, pods.Volumes.Sweep} {
		g.Go(func() error {
			run(gctx)
			return nil
		})
	}
	g.Go(func() error { return node.Run(gctx, nodeConfig, machine) })
	g.Go(func() error {
		return server.Run(gctx, server.Config{
			Addrs: addrs, Certificate: cfg.Certificate, ClientCAFile: cfg.ClientCAFile,
			NodeName: cfg.NodeName, Client: client, Runtime: runtime, Pods: pods, Stats: figures, Probes: pods.Probes(), Healthy: pods.Healthy, RemoveVolume: pods.Volumes.RemoveLocal,
			CalledBy: cfg.CalledBy,
		})
	})
	g.Go(func() error { return watchPods(gctx, client, cfg.NodeName, pods) })
	g.Go(func() error {
		pods.Run(gctx)
		return nil
	})
	return g.Wait()
}

func dropManagedFields(obj any) (any, error) {
	if m, ok := obj.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

// watchPods feeds the workers with the pods that are bound to this node.
func watchPods(ctx context.Context, client kubernetes.Interface, nodeName string, pods *podworker.Pods) error {
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(dropManagedFields), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", nodeName).String()
	}))
	inf := f.Core().V1().Pods()
	_, err := inf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { pods.Set(obj.(*corev1.Pod)) },
		UpdateFunc: func(_, obj any) { pods.Set(obj.(*corev1.Pod)) },
		DeleteFunc: func(obj any) {
			if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = t.Obj
			}
			if p, ok := obj.(*corev1.Pod); ok {
				pods.Gone(p)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), inf.Informer().HasSynced) {
		return nil
	}
	// What pods left here that are gone from the API, because the node was away.
	all, err := inf.Lister().List(labels.Everything())
	if err != nil {
		return fmt.Errorf("kubelet: %w", err)
	}
	live := map[types.UID]bool{}
	for _, p := range all {
		live[p.UID] = true
	}
	if err := pods.RemoveOrphans(ctx, live); err != nil {
		klog.ErrorS(err, "Remains of pods that are gone were not removed")
	}
	<-ctx.Done()
	return nil
}
