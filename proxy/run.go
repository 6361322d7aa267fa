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
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/component-base/metrics"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/mirror"
)

// Config says what to follow and where to write.
type Config struct {
	Objects   *mirror.Mirror                  // whose Services and EndpointSlices are followed
	Informers informers.SharedInformerFactory // of Nodes
	Table     bpf.LoadBalancerTable
	Node      Node // its zone is followed
	// Recorder tells of Services that can't be served as they ask; nil: only the log does.
	Recorder record.EventRecorder
	// Held tells which node ports of rows processes have already, see bpf.HeldPorts; nil: nobody looks.
	Held func([]bpf.LoadBalancer) ([]bpf.HeldPort, error)
	// Synced is called once, when all that there was at the start is written; nil: nobody is told.
	Synced func()
	// Registry gets the metrics; nil: nobody does.
	Registry metrics.KubeRegistry
}

// Proxy follows Services.
type Proxy struct {
	cfg      Config
	services *mirror.Services
	slices   *mirror.Slices
	queue    workqueue.TypedRateLimitingInterface[string]
	nodes    cache.InformerSynced
	started  time.Time

	changes *changes
	metrics *instruments
	health  *health
	checks  *healthChecks
	trouble *trouble
	looked  map[string]map[frontendKey]bool // by Service key: node ports whose holders were looked for; of Run alone

	mu   sync.Mutex
	node Node
	gone map[string][]string // by Service key: UIDs of Services that are no more, whose rows are to go
}

// New registers with the informers and the mirror; start them afterwards.
func New(cfg Config) (*Proxy, error) {
	if cfg.Recorder == nil {
		cfg.Recorder = &record.FakeRecorder{} // without a channel it says nothing
	}
	if cfg.Registry == nil {
		cfg.Registry = metrics.NewKubeRegistry()
	}
	m := newInstruments()
	m.register(cfg.Registry)
	p := &Proxy{
		cfg: cfg, started: time.Now(),
		changes: newChanges(m), metrics: m, trouble: newTrouble(cfg.Recorder, cfg.Node.Name), node: cfg.Node, gone: map[string][]string{}, looked: map[string]map[frontendKey]bool{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](10*time.Millisecond, 30*time.Second)),
	}
	p.health = newHealth(p.changes, m)
	p.checks = newHealthChecks(cfg.Node.Addrs, p.health.healthy)
	cfg.Objects.Keep(labelProxyName, corev1.IsHeadlessService, corev1.AnnotationLoadBalancerSourceRangesKey, corev1.EndpointsLastChangeTriggerTime, AnnotationWeight)
	p.services, p.slices = cfg.Objects.Services(), cfg.Objects.Slices()
	p.services.Follow(mirror.Follower[*corev1.Service]{Changed: p.serviceChanged, Added: func(key string) { p.note(key, 1, 0, time.Time{}) }})
	p.slices.Follow(mirror.Follower[*discoveryv1.EndpointSlice]{Listed: p.weigh, Having: AnnotationWeight, Changed: p.sliceChanged, Added: func(key string) { p.note(key, 0, 1, time.Time{}) }})
	nodes, err := cfg.Informers.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    p.nodeChanged,
		UpdateFunc: func(_, now any) { p.nodeChanged(now) },
		DeleteFunc: func(obj any) {
			if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil && key == cfg.Node.Name {
				p.health.leaving.Store(true)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	p.nodes = nodes.HasSynced
	return p, nil
}

// serviceChanged notes that a Service's rows are to be looked at. A Service that was deleted and made anew between two lists comes
// as one that changed its UID.
func (p *Proxy) serviceChanged(old, now *corev1.Service) {
	key := ""
	if now != nil {
		key = mirror.KeyOf(now)
	}
	if old != nil && (now == nil || old.UID != now.UID) {
		key = mirror.KeyOf(old)
		p.mu.Lock()
		p.gone[key] = append(p.gone[key], string(old.UID))
		p.mu.Unlock()
	}
	p.note(key, 1, 0, time.Time{})
}

// note has the rows of a Service looked at, if the key is of one.
func (p *Proxy) note(key string, services, endpoints int, trigger time.Time) {
	if key == "" {
		return
	}
	p.changes.note(key, services, endpoints, trigger)
	p.queue.Add(key)
}

func (p *Proxy) sliceChanged(old, now *discoveryv1.EndpointSlice) {
	var before, after, triggered, weight string
	if old != nil {
		before, triggered, weight = mirror.ServiceOf(old), old.Annotations[corev1.EndpointsLastChangeTriggerTime], old.Annotations[AnnotationWeight]
	}
	var trigger time.Time
	if now != nil {
		after = mirror.ServiceOf(now)
		if text := now.Annotations[corev1.EndpointsLastChangeTriggerTime]; text != triggered {
			// What changed before this agent started has waited for the agent, not for the network.
			if t, err := time.Parse(time.RFC3339Nano, text); err == nil && t.After(p.started) {
				trigger = t
			}
		}
		if old == nil || now.Annotations[AnnotationWeight] != weight {
			p.weigh(now)
		}
	}
	if before != after {
		p.note(before, 0, 1, time.Time{})
	}
	p.note(after, 0, 1, trigger)
}

// weigh tells of a slice whose weight can't be read.
func (p *Proxy) weigh(s *discoveryv1.EndpointSlice) {
	if _, err := weightOf(s); err != nil {
		p.trouble.slice(s, err)
	}
}

// nodeChanged follows the zone of our node, and whether it is to stay.
func (p *Proxy) nodeChanged(obj any) {
	n, ok := obj.(*corev1.Node)
	if !ok || n.Name != p.cfg.Node.Name {
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

// Settled tells whether all that the API has said of Services is in the kernel.
func (p *Proxy) Settled() bool {
	return mirror.Seen(p.services, p.slices) && p.queue.Len() == 0 && p.changes.oldest().IsZero() && p.trouble.fits()
}

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
	for _, key := range p.services.Keys() {
		p.queue.Add(key)
	}
}

// Run writes rows until ctx ends. What it has written stays.
func (p *Proxy) Run(ctx context.Context) error {
	defer p.queue.ShutDown()
	defer p.checks.close()
	if !mirror.Wait(ctx, p.services, p.slices) || !cache.WaitForCacheSync(ctx.Done(), p.nodes) {
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
	first := true
	for b := range p.batches() {
		p.write(b)
		if first && b.last {
			first = false
			if p.cfg.Synced != nil {
				p.cfg.Synced()
			}
		}
	}
	return nil
}

// prune deletes the rows of Services that went while nobody watched. It runs before new rows are written, so that a
// frontend that moved from a deleted Service to a new one is free.
func (p *Proxy) prune() error {
	live := sync.OnceValue(func() map[string]bool { // on a node that had nothing nobody asks
		uids := map[string]bool{}
		for s := range p.services.All() {
			uids[string(s.UID)] = true
		}
		return uids
	})
	changes, err := p.cfg.Table.Prune(func(owner string) bool { return live()[owner] || strings.HasPrefix(owner, bpf.HostPortOwner) })
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
