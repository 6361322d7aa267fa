package proxy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
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
	cfg              Config
	services, slices cache.Indexer
	queue            workqueue.TypedRateLimitingInterface[string]
	synced           []cache.InformerSynced

	mu     sync.Mutex
	owners map[string]string // Service key → UID whose rows are written

	syncs, failures, added, updated, deleted atomic.Uint64
}

// Metrics counts since the start.
type Metrics struct {
	Syncs    uint64 // Services looked at
	Failures uint64 // of them, those to be tried again
	Added    uint64 // rows
	Updated  uint64
	Deleted  uint64
	Waiting  int // Services in the queue now
}

// Metrics tells what has been done.
func (p *Proxy) Metrics() Metrics {
	return Metrics{
		Syncs: p.syncs.Load(), Failures: p.failures.Load(), Added: p.added.Load(), Updated: p.updated.Load(), Deleted: p.deleted.Load(), Waiting: p.queue.Len(),
	}
}

// byService is the index of EndpointSlices by the key of their Service.
const byService = "proxy-service"

// serviceOf is the key of the Service that a slice belongs to, or empty.
func serviceOf(s *discoveryv1.EndpointSlice) string {
	if name := s.Labels[discoveryv1.LabelServiceName]; name != "" {
		return s.Namespace + "/" + name
	}
	return ""
}

// New registers with the informers; start them afterwards.
func New(cfg Config) (*Proxy, error) {
	svc, sl := cfg.Informers.Core().V1().Services().Informer(), cfg.Informers.Discovery().V1().EndpointSlices().Informer()
	if err := sl.AddIndexers(cache.Indexers{byService: func(obj any) ([]string, error) {
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok && serviceOf(s) != "" {
			return []string{serviceOf(s)}, nil
		}
		return nil, nil
	}}); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p := &Proxy{
		cfg: cfg, services: svc.GetIndexer(), slices: sl.GetIndexer(), owners: map[string]string{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](10*time.Millisecond, 30*time.Second)),
	}
	for _, informer := range []cache.SharedIndexInformer{svc, sl} {
		registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: p.enqueue, DeleteFunc: p.enqueue, UpdateFunc: func(old, obj any) { p.enqueue(old); p.enqueue(obj) }, // a slice may change its Service
		})
		if err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
		p.synced = append(p.synced, registration.HasSynced)
	}
	return p, nil
}

// enqueue notes the Service that an object is, or belongs to.
func (p *Proxy) enqueue(obj any) {
	if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = t.Obj
	}
	switch o := obj.(type) {
	case *corev1.Service:
		p.queue.Add(o.Namespace + "/" + o.Name)
	case *discoveryv1.EndpointSlice:
		if key := serviceOf(o); key != "" {
			p.queue.Add(key)
		}
	}
}

// Run writes rows until ctx ends. What it has written stays.
func (p *Proxy) Run(ctx context.Context) error {
	defer p.queue.ShutDown()
	if !cache.WaitForCacheSync(ctx.Done(), p.synced...) {
		return nil
	}
	backoff := wait.Backoff{Duration: 10 * time.Millisecond, Factor: 2, Steps: 12, Cap: 30 * time.Second}
	for p.prune() != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff.Step()):
		}
	}
	defer context.AfterFunc(ctx, p.queue.ShutDown)()
	for {
		key, quit := p.queue.Get()
		if quit {
			return nil
		}
		p.syncs.Add(1)
		if err := p.sync(key); err != nil {
			p.failures.Add(1)
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
	live := map[string]bool{}
	p.mu.Lock()
	for _, obj := range p.services.List() {
		if s, ok := obj.(*corev1.Service); ok {
			live[string(s.UID)] = true
			p.owners[s.Namespace+"/"+s.Name] = string(s.UID)
		}
	}
	p.mu.Unlock()
	changes, err := p.cfg.Table.Prune(func(owner string) bool { return live[owner] || strings.HasPrefix(owner, bpf.HostPortOwner) })
	p.count(changes)
	if err != nil {
		klog.ErrorS(err, "Rows of Services that are gone are in the kernel still, trying again")
	}
	return err
}

func (p *Proxy) count(c bpf.Changes) {
	p.added.Add(uint64(c.Added))
	p.updated.Add(uint64(c.Updated))
	p.deleted.Add(uint64(c.Deleted))
}

func (p *Proxy) replace(owner string, want []bpf.LoadBalancer) error {
	changes, err := p.cfg.Table.Replace(owner, want)
	p.count(changes)
	return err
}

// sync brings the rows of one Service up to date.
func (p *Proxy) sync(key string) error {
	obj, exists, err := p.services.GetByKey(key)
	if err != nil {
		return err
	}
	svc, ok := obj.(*corev1.Service)
	if exists && !ok {
		return errors.New("proxy: the cache of Services holds something else")
	}
	p.mu.Lock()
	old := p.owners[key]
	p.mu.Unlock()
	// Deleted, or deleted and made anew.
	if old != "" && (!exists || string(svc.UID) != old) {
		if err := p.replace(old, nil); err != nil {
			return err
		}
		p.note(key, "")
	}
	if !exists {
		return nil
	}
	list, err := p.slices.ByIndex(byService, key)
	if err != nil {
		return err
	}
	var endpoints []*discoveryv1.EndpointSlice
	for _, o := range list {
		if s, ok := o.(*discoveryv1.EndpointSlice); ok {
			endpoints = append(endpoints, s)
		}
	}
	p.note(key, string(svc.UID))
	return p.replace(string(svc.UID), Desired(svc, endpoints, p.cfg.Node))
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
