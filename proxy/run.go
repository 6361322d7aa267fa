package proxy

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/component-base/metrics"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
)

// Config says what to follow and where to write.
type Config struct {
	Informers informers.SharedInformerFactory
	Table     bpf.LoadBalancerTable
	Node      Node // its zone is followed
	// Recorder tells of Services that can't be served as they ask; nil: only the log does.
	Recorder record.EventRecorder
	// Registry gets the metrics; nil: nobody does.
	Registry metrics.KubeRegistry
}

// Proxy follows Services.
type Proxy struct {
	cfg              Config
	services, slices cache.Indexer
	queue            workqueue.TypedRateLimitingInterface[string]
	synced           []cache.InformerSynced
	started          time.Time

	changes *changes
	metrics *instruments
	health  *health
	checks  *healthChecks
	trouble *trouble

	mu   sync.Mutex
	node Node
	gone map[string][]string // by Service key: UIDs of Services that are no more, whose rows are to go
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

func keyOf(s *corev1.Service) string { return s.Namespace + "/" + s.Name }

// New registers with the informers; start them afterwards.
func New(cfg Config) (*Proxy, error) {
	svc, sl, nodes := cfg.Informers.Core().V1().Services().Informer(), cfg.Informers.Discovery().V1().EndpointSlices().Informer(), cfg.Informers.Core().V1().Nodes().Informer()
	if err := sl.AddIndexers(cache.Indexers{byService: func(obj any) ([]string, error) {
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok && serviceOf(s) != "" {
			return []string{serviceOf(s)}, nil
		}
		return nil, nil
	}}); err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	if cfg.Recorder == nil {
		cfg.Recorder = &record.FakeRecorder{} // without a channel it says nothing
	}
	if cfg.Registry == nil {
		cfg.Registry = metrics.NewKubeRegistry()
	}
	m := newInstruments()
	m.register(cfg.Registry)
	p := &Proxy{
		cfg: cfg, services: svc.GetIndexer(), slices: sl.GetIndexer(), started: time.Now(),
		changes: newChanges(m), metrics: m, trouble: newTrouble(cfg.Recorder, cfg.Node.Name), node: cfg.Node, gone: map[string][]string{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](10*time.Millisecond, 30*time.Second)),
	}
	p.health = newHealth(p.changes, m)
	p.checks = newHealthChecks(cfg.Node.Addrs, p.health.healthy)
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		svc:   handlers(p.serviceChanged),
		sl:    handlers(p.sliceChanged),
		nodes: handlers(p.nodeChanged),
	} {
		registration, err := informer.AddEventHandler(handler)
		if err != nil {
			return nil, fmt.Errorf("proxy: %w", err)
		}
		p.synced = append(p.synced, registration.HasSynced)
	}
	return p, nil
}

// handlers makes one function of three: old is nil for what is new, and now for what is gone.
func handlers[T any](changed func(old, now *T)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if now, ok := obj.(*T); ok {
				changed(nil, now)
			}
		},
		UpdateFunc: func(before, obj any) {
			old, ok1 := before.(*T)
			now, ok2 := obj.(*T)
			if ok1 && ok2 {
				changed(old, now)
			}
		},
		DeleteFunc: func(obj any) {
			if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = t.Obj
			}
			if old, ok := obj.(*T); ok {
				changed(old, nil)
			}
		},
	}
}

// serviceChanged notes that a Service's rows are to be looked at. A Service that was deleted and made anew between two lists comes
// as one that changed its UID.
func (p *Proxy) serviceChanged(old, now *corev1.Service) {
	key := ""
	if now != nil {
		key = keyOf(now)
	}
	if old != nil && (now == nil || old.UID != now.UID) {
		key = keyOf(old)
		p.mu.Lock()
		p.gone[key] = append(p.gone[key], string(old.UID))
		p.mu.Unlock()
	}
	p.changes.note(key, 1, 0, time.Time{})
	p.queue.Add(key)
}

func (p *Proxy) sliceChanged(old, now *discoveryv1.EndpointSlice) {
	var before, after, triggered, weight string
	if old != nil {
		before, triggered, weight = serviceOf(old), old.Annotations[corev1.EndpointsLastChangeTriggerTime], old.Annotations[AnnotationWeight]
	}
	var trigger time.Time
	if now != nil {
		after = serviceOf(now)
		if text := now.Annotations[corev1.EndpointsLastChangeTriggerTime]; text != triggered {
			// What changed before this agent started has waited for the agent, not for the network.
			if t, err := time.Parse(time.RFC3339Nano, text); err == nil && t.After(p.started) {
				trigger = t
			}
		}
		if _, err := weightOf(now); err != nil && (old == nil || now.Annotations[AnnotationWeight] != weight) {
			p.trouble.slice(now, err)
		}
	}
	if before != "" && before != after {
		p.changes.note(before, 0, 1, time.Time{})
		p.queue.Add(before)
	}
	if after != "" {
		p.changes.note(after, 0, 1, trigger)
		p.queue.Add(after)
	}
}

// nodeChanged follows the zone of our node, and whether it is to stay.
func (p *Proxy) nodeChanged(old, n *corev1.Node) {
	if n == nil {
		if old.Name == p.cfg.Node.Name {
			p.health.leaving.Store(true)
		}
		return
	}
	if n.Name != p.cfg.Node.Name {
		return
	}
	p.health.follow(n)
	p.mu.Lock()
	moved := p.node.Zone != n.Labels[corev1.LabelTopologyZone]
	p.node.Zone = n.Labels[corev1.LabelTopologyZone]
	p.mu.Unlock()
	if moved {
		p.all()
	}
}

// HealthHandler serves /healthz and /livez, as kube-proxy does on port 10256.
func (p *Proxy) HealthHandler() http.Handler { return p.health.handler() }

// SetAddrs says where NodePorts and health checks answer from now on.
func (p *Proxy) SetAddrs(addrs []netip.Addr) {
	p.mu.Lock()
	p.node.Addrs = addrs
	p.mu.Unlock()
	p.checks.move(addrs)
	p.all()
}

// all has the rows of every Service looked at again.
func (p *Proxy) all() {
	for _, key := range p.services.ListKeys() {
		p.queue.Add(key)
	}
}

// Run writes rows until ctx ends. What it has written stays.
func (p *Proxy) Run(ctx context.Context) error {
	defer p.queue.ShutDown()
	defer p.checks.close()
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
		keys := p.next()
		if len(keys) == 0 {
			return nil
		}
		p.sync(keys)
	}
}

// atOnce bounds how many Services are written together.
const atOnce = 1024

// next waits for Services to look at, and takes all that are there: one at a time costs more where many change.
func (p *Proxy) next() []string {
	var keys []string
	for len(keys) == 0 || p.queue.Len() > 0 && len(keys) < atOnce {
		key, quit := p.queue.Get()
		if quit {
			break
		}
		keys = append(keys, key)
	}
	return keys
}

// prune deletes the rows of Services that went while nobody watched. It runs before new rows are written, so that a
// frontend that moved from a deleted Service to a new one is free.
func (p *Proxy) prune() error {
	live := map[string]bool{}
	for _, obj := range p.services.List() {
		if s, ok := obj.(*corev1.Service); ok {
			live[string(s.UID)] = true
		}
	}
	changes, err := p.cfg.Table.Prune(func(owner string) bool { return live[owner] || strings.HasPrefix(owner, bpf.HostPortOwner) })
	p.count(changes)
	if err != nil {
		klog.ErrorS(err, "Rows of Services that are gone are in the kernel still, trying again")
	}
	return err
}

func (p *Proxy) count(c bpf.Changes) {
	for name, n := range map[string]int{"added": c.Added, "updated": c.Updated, "deleted": c.Deleted} {
		p.metrics.rows.WithLabelValues(name).Add(float64(n))
	}
}

// job is a Service whose rows are being written.
type job struct {
	key     string
	change  *change
	service *corev1.Service // nil: it is gone
	gone    []string        // UIDs
	slices  []*discoveryv1.EndpointSlice
	rows    []bpf.LoadBalancer
}

// sync brings the rows of some Services up to date.
func (p *Proxy) sync(keys []string) {
	start := time.Now()
	p.mu.Lock()
	node := p.node
	p.mu.Unlock()
	want := map[string][]bpf.LoadBalancer{}
	var jobs []*job
	for _, key := range keys {
		j := p.job(key, node)
		for _, uid := range j.gone {
			want[uid] = nil
		}
		if j.service != nil {
			want[string(j.service.UID)] = j.rows
		}
		jobs = append(jobs, j)
	}
	changes, errs := p.cfg.Table.ReplaceAll(want)
	p.count(changes)
	for _, j := range jobs {
		p.finish(j, errs, node)
		p.metrics.duration.Observe(time.Since(start).Seconds())
	}
	// What went may be what another Service was refused.
	if changes.Deleted+changes.Updated > 0 {
		for _, key := range p.trouble.refused() {
			p.queue.Add(key)
		}
	}
}

// job collects what a Service's rows follow from.
func (p *Proxy) job(key string, node Node) *job {
	j := &job{key: key, change: p.changes.take(key)}
	p.mu.Lock()
	j.gone = p.gone[key]
	p.mu.Unlock()
	obj, exists, err := p.services.GetByKey(key)
	if err != nil || !exists {
		return j // the index answers by key only, and that never fails
	}
	j.service, _ = obj.(*corev1.Service)
	list, _ := p.slices.ByIndex(byService, key) // fails for an index that is not there
	for _, o := range list {
		if s, ok := o.(*discoveryv1.EndpointSlice); ok {
			j.slices = append(j.slices, s)
		}
	}
	j.rows = Desired(j.service, j.slices, node)
	return j
}

// finish does what follows the rows of a Service, and has it tried again if something could not be written.
func (p *Proxy) finish(j *job, errs map[string]error, node Node) {
	defer p.queue.Done(j.key)
	var all []error
	left := j.gone[:0:0]
	for _, uid := range j.gone {
		if err := errs[uid]; err != nil {
			all, left = append(all, err), append(left, uid)
		}
	}
	p.forget(j.key, len(j.gone), left)
	name := types.NamespacedName{}
	name.Namespace, name.Name, _ = strings.Cut(j.key, "/")
	var port uint16
	var local int
	if j.service != nil {
		if err := errs[string(j.service.UID)]; err != nil {
			all = append(all, err)
		}
		if port = healthCheckPort(j.service); port != 0 {
			local = localEndpoints(j.slices, node)
		}
	}
	p.metrics.setNoLocal(j.key, noLocalOf(j.rows))
	check := p.checks.set(name, port, local)
	again := p.trouble.note(j, all, check)
	p.changes.settle(j.key, j.change, !again.broken)
	if !again.broken {
		p.health.done()
	}
	if again.retry {
		p.metrics.failures.Inc()
		p.queue.AddRateLimited(j.key)
	} else {
		p.queue.Forget(j.key)
	}
}

// forget leaves of the first n UIDs of a key those that are left; others may have come meanwhile.
func (p *Proxy) forget(key string, n int, left []string) {
	if n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone[key] = append(left, p.gone[key][n:]...); len(p.gone[key]) == 0 {
		delete(p.gone, key)
	}
}
