package proxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
)

// Config says what to follow and where to write.
type Config struct {
	Informers informers.SharedInformerFactory
	Table     bpf.Table[bpf.LoadBalancer]
	Node      Node
}

// Proxy follows Services.
type Proxy struct {
	cfg      Config
	services corelisters.ServiceLister
	slices   discoverylisters.EndpointSliceLister
	queue    workqueue.TypedRateLimitingInterface[string]
	synced   []cache.InformerSynced

	mu     sync.Mutex
	owners map[string]string // Service key → UID whose rows are written
}

// New registers with the informers; start them afterwards.
func New(cfg Config) (*Proxy, error) {
	svc, sl := cfg.Informers.Core().V1().Services(), cfg.Informers.Discovery().V1().EndpointSlices()
	p := &Proxy{
		cfg: cfg, services: svc.Lister(), slices: sl.Lister(), owners: map[string]string{},
		queue:  workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](10*time.Millisecond, 30*time.Second)),
		synced: []cache.InformerSynced{svc.Informer().HasSynced, sl.Informer().HasSynced},
	}
	ofService := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			p.queue.Add(key)
		}
	}
	ofSlice := func(obj any) {
		if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = t.Obj
		}
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok && s.Labels[discoveryv1.LabelServiceName] != "" {
			p.queue.Add(s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName])
		}
	}
	for _, h := range []struct {
		inf cache.SharedIndexInformer
		f   func(any)
	}{{svc.Informer(), ofService}, {sl.Informer(), ofSlice}} {
		if _, err := h.inf.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: h.f, UpdateFunc: func(_, obj any) { h.f(obj) }, DeleteFunc: h.f}); err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
	}
	return p, nil
}

// Run writes rows until ctx ends. What it has written stays.
func (p *Proxy) Run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), p.synced...) {
		return nil
	}
	if err := p.prune(); err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		p.queue.ShutDown()
	}()
	for {
		key, quit := p.queue.Get()
		if quit {
			return nil
		}
		if err := p.sync(key); err != nil {
			klog.ErrorS(err, "Service is not in the kernel yet, trying again", "service", key)
			p.queue.AddRateLimited(key)
		} else {
			p.queue.Forget(key)
		}
		p.queue.Done(key)
	}
}

// prune deletes the rows of Services that went while nobody watched. It runs before new rows are written, so that a
// frontend that moved from a deleted Service to a new one is free.
func (p *Proxy) prune() error {
	all, err := p.services.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	live := map[string]bool{}
	p.mu.Lock()
	for _, s := range all {
		live[string(s.UID)] = true
		p.owners[s.Namespace+"/"+s.Name] = string(s.UID)
	}
	p.mu.Unlock()
	if _, err := p.cfg.Table.Prune(func(owner string) bool { return live[owner] }); err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	return nil
}

// sync brings the rows of one Service up to date.
func (p *Proxy) sync(key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return nil
	}
	svc, err := p.services.Services(namespace).Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	p.mu.Lock()
	old := p.owners[key]
	p.mu.Unlock()
	// Deleted, or deleted and made anew.
	if old != "" && (svc == nil || string(svc.UID) != old) {
		if _, err := p.cfg.Table.Replace(old, nil); err != nil {
			return err
		}
		p.note(key, "")
	}
	if svc == nil {
		return nil
	}
	endpoints, err := p.slices.EndpointSlices(namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: name}))
	if err != nil {
		return err
	}
	p.note(key, string(svc.UID))
	_, err = p.cfg.Table.Replace(string(svc.UID), Desired(svc, endpoints, p.cfg.Node))
	return err
}

func (p *Proxy) note(key, uid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if uid == "" {
		delete(p.owners, key)
	} else {
		p.owners[key] = uid
	}
}
