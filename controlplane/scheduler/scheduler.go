package scheduler

import (
	"context"
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	restclient "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"
	"k8s.io/kube-scheduler/framework"

	"github.com/strake-io/strake/controlplane/scheduler/plugins"
)

// Config says for whom the scheduler works.
type Config struct {
	Client kubernetes.Interface
	// KubeConfig is handed to plugins that make clients of their own; may be nil.
	KubeConfig *restclient.Config
	// Name is the spec.schedulerName that it answers to; empty: default-scheduler.
	Name string
	// Plugins that run; nil: DefaultPlugins.
	Plugins []Plugin
	// LeaderElect makes several schedulers take turns by the Lease kube-system/kube-scheduler.
	LeaderElect bool
	// Identity is this scheduler's name in the Lease.
	Identity string
}

// Terms of a leader: a dead one is succeeded within leaseDuration.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// DefaultPlugins are the plugins that run unless Config names others.
func DefaultPlugins() []Plugin {
	return []Plugin{
		{New: plugins.NewPrioritySort}, {New: plugins.NewSchedulingGates},
		{New: plugins.NewNodeName}, {New: plugins.NewNodeUnschedulable}, {New: plugins.NewTaintToleration, Weight: 3},
		{New: plugins.NewNodeAffinity, Weight: 2}, {New: plugins.NewNodePorts}, {New: plugins.NewNodeResourcesFit},
		{New: plugins.NewVolumeRestrictions}, {New: plugins.NewVolumeBinding},
		{New: plugins.NewPodTopologySpread, Weight: 2}, {New: plugins.NewInterPodAffinity, Weight: 2},
		{New: plugins.NewNodeResourcesBalancedAllocation}, {New: plugins.NewDefaultBinder},
	}
}

type scheduler struct {
	nominator
	client     kubernetes.Interface
	kubeConfig *restclient.Config
	name       string
	informers  informers.SharedInformerFactory
	recorder   record.EventRecorder
	extensions *extensions
	queue      *podQueue
	cache      *nodeCache
	snap       *snapshot
	permits    permitted
	preBinding sync.Map // types.UID → *preBinding
	bindings   sync.WaitGroup
}

// Run schedules until ctx ends, or until it lost the lead.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Name == "" {
		cfg.Name = v1.DefaultSchedulerName
	}
	if cfg.Plugins == nil {
		cfg.Plugins = DefaultPlugins()
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: cfg.Client.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, v1.EventSource{Component: cfg.Name})
	if !cfg.LeaderElect {
		return run(ctx, cfg, recorder)
	}
	var result error
	lock := &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "kube-scheduler"},
		Client:    cfg.Client.CoordinationV1(), LockConfig: resourcelock.ResourceLockConfig{Identity: cfg.Identity, EventRecorder: recorder},
	}
	done := make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true, Name: "kube-scheduler",
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				result = run(ctx, cfg, recorder)
				close(done)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	ctx2, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-done:
			cancel() // a scheduler that failed gives up the lead
		case <-ctx2.Done():
		}
	}()
	elector.Run(ctx2)
	if ctx.Err() == nil && result == nil {
		return fmt.Errorf("scheduler %s lost the lead", cfg.Identity)
	}
	return result
}

// newScheduler wires the parts; nothing runs yet.
func newScheduler(ctx context.Context, cfg Config, recorder record.EventRecorder) (*scheduler, error) {
	s := &scheduler{
		client: cfg.Client, kubeConfig: cfg.KubeConfig, name: cfg.Name, recorder: recorder, cache: newNodeCache(), snap: newSnapshot(),
		informers: informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithTransform(func(obj any) (any, error) {
			if m, ok := obj.(metav1.Object); ok {
				m.SetManagedFields(nil)
			}
			return obj, nil
		})),
	}
	var err error
	if s.extensions, err = newExtensions(ctx, cfg.Plugins, handle{s}); err != nil {
		return nil, err
	}
	s.queue = newPodQueue(s.extensions.queueSort.Less, func(p *v1.Pod) string { return s.extensions.hold(ctx, p) }, s.extensions.hints)
	return s, nil
}

func run(ctx context.Context, cfg Config, recorder record.EventRecorder) error {
	s, err := newScheduler(ctx, cfg, recorder)
	if err != nil {
		return err
	}
	nodes, pods := s.informers.Core().V1().Nodes().Informer(), s.informers.Core().V1().Pods().Informer()
	_, err = nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: s.nodeAdded, UpdateFunc: s.nodeUpdated, DeleteFunc: s.nodeDeleted})
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	_, err = pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { s.podChanged(nil, obj) }, UpdateFunc: s.podChanged, DeleteFunc: s.podDeleted,
	})
	if err != nil {
		return fmt.Errorf("scheduler: %w", err)
	}
	for resource, informer := range map[framework.EventResource]cache.SharedIndexInformer{
		framework.PersistentVolumeClaim: s.informers.Core().V1().PersistentVolumeClaims().Informer(), framework.PersistentVolume: s.informers.Core().V1().PersistentVolumes().Informer(),
		framework.StorageClass: s.informers.Storage().V1().StorageClasses().Informer(),
	} {
		if _, err := informer.AddEventHandler(s.tells(resource)); err != nil {
			return fmt.Errorf("scheduler: %w", err)
		}
	}
	s.informers.StartWithContext(ctx)
	defer s.informers.Shutdown()
	defer s.bindings.Wait()
	for _, ok := range s.informers.WaitForCacheSync(ctx.Done()) {
		if !ok {
			return nil
		}
	}
	for {
		for e := s.queue.pop(); e != nil && ctx.Err() == nil; e = s.queue.pop() {
			s.schedule(ctx, e)
		}
		var timer <-chan time.Time
		if next := s.queue.next(); !next.IsZero() {
			timer = time.After(max(time.Until(next), time.Millisecond))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-timer:
		case <-s.queue.wake:
		}
	}
}
