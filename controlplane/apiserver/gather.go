package apiserver

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
)

const (
	// fanOutCost is what an event may cost a CPU for each of its watchers. The server's send and the watcher's receipt take 20 to 30 µs: with what there is to
	// do for each event anyhow they leave a part of the CPUs to others.
	fanOutCost = 120 * time.Microsecond
	// heldFrom: with fewer watchers than make this much of it, nothing is held.
	heldFrom = 5 * time.Millisecond
	// heldLongest bounds how much later a watcher or a list from the cache sees a change for it.
	heldLongest = 100 * time.Millisecond
	// heldAtMost is how many events are held: half of what the library has room for, for each watcher, before it counts as slow and is ended.
	heldAtMost = 5
	// restPart of a hold is what it takes to wake all watchers, of what it takes to send to them.
	restPart = 8
)

// crowds are the watchers of each stored resource.
type crowds struct {
	cpus int      // which share what sending an event costs
	of   sync.Map // *crowd by schema.GroupResource
}

// crowd counts the watchers of a resource that get all of its events, or all of a namespace.
type crowd struct {
	mu  sync.Mutex
	all int
	in  map[string]int // by namespace, as long as it has some
}

// crowd is nil for what hold was not asked for: who watches may name any resource, and names must not pile up here.
func (c *crowds) crowd(r schema.GroupResource) *crowd {
	n, ok := c.of.Load(r)
	if !ok {
		return nil
	}
	return n.(*crowd)
}

// joins counts a watcher of a namespace, or of all if it names none, until it leaves.
func (c *crowd) joins(namespace string) (leaves func()) {
	add := func(n int) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if namespace == "" {
			c.all += n
			return
		}
		if c.in[namespace] += n; c.in[namespace] == 0 {
			delete(c.in, namespace)
		}
	}
	add(1)
	return func() { add(-1) }
}

// of is how many get an event of a namespace.
func (c *crowd) of(namespace string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all + c.in[namespace]
}

// hold is how long an event of a resource in a namespace takes to reach all watchers, 0 if that is too short to wait for it. From now on they are counted.
func (c *crowds) hold(r schema.GroupResource) func(namespace string) time.Duration {
	c.of.LoadOrStore(r, &crowd{in: map[string]int{}})
	all := c.crowd(r)
	return func(namespace string) time.Duration {
		if d := time.Duration(all.of(namespace)) * fanOutCost / time.Duration(c.cpus); d >= heldFrom {
			return min(d, heldLongest)
		}
		return 0
	}
}

// gathering is a storage whose watches bring events together when a resource has many watchers and many events: each event wakes every watcher, and one
// that is woken once for five events has a fifth of the work. What else the server does waits behind a thousand watchers in the same queue of the
// scheduler, some dozens of times for each write.
//
// The first event goes on at once. Those behind it wait until it can have reached all watchers, and where more come than may be held, until all can
// have been woken: a burst of a dozen would otherwise fill each watcher's room before it has run, and the library ends such watches.
type gathering struct {
	storage.Interface
	hold func(namespace string) time.Duration
}

// Watch implements storage.Interface.
func (g gathering) Watch(ctx context.Context, key string, o storage.ListOptions) (watch.Interface, error) {
	w, err := g.Interface.Watch(ctx, key, o)
	if err != nil {
		return nil, err
	}
	return gather(w, g.hold), nil
}

// gatherer is a watch whose events come together.
type gatherer struct {
	from    watch.Interface
	hold    func(namespace string) time.Duration
	out     chan watch.Event
	stopped chan struct{}
	stop    func()
}

func gather(from watch.Interface, hold func(namespace string) time.Duration) *gatherer {
	g := &gatherer{from: from, hold: hold, out: make(chan watch.Event, heldAtMost), stopped: make(chan struct{})}
	g.stop = sync.OnceFunc(func() { close(g.stopped) })
	go g.run()
	return g
}

// ResultChan implements watch.Interface.
func (g *gatherer) ResultChan() <-chan watch.Event { return g.out }

// Stop implements watch.Interface.
func (g *gatherer) Stop() {
	g.stop()
	g.from.Stop()
}

func (g *gatherer) run() {
	defer close(g.out)
	held := make([]watch.Event, 0, heldAtMost)
	var released time.Time
	timer := time.NewTimer(0)
	timer.Stop()
	release := func() (goesOn bool) {
		timer.Stop()
		for i, e := range held {
			select {
			case g.out <- e:
			case <-g.stopped:
				return false
			}
			held[i] = watch.Event{} // the object is its reader's alone
		}
		held, released = held[:0], time.Now()
		return true
	}
	for {
		events := g.from.ResultChan()
		if len(held) == heldAtMost {
			events = nil
		}
		select {
		case e, ok := <-events:
			if !ok {
				release()
				return
			}
			held = append(held, e)
			changes := e.Type == watch.Added || e.Type == watch.Modified || e.Type == watch.Deleted // a bookmark is what somebody waits for
			namespace := ""
			if m, err := meta.Accessor(e.Object); err == nil { // else it is an error's Status, which has none
				namespace = m.GetNamespace()
			}
			hold, since := g.hold(namespace), time.Since(released)
			switch {
			case !changes, since >= hold:
				if !release() {
					return
				}
			case len(held) == heldAtMost:
				timer.Reset(max(0, hold/restPart-since))
			case len(held) == 1:
				timer.Reset(hold - since)
			}
		case <-timer.C:
			if !release() {
				return
			}
		case <-g.stopped:
			return
		}
	}
}
