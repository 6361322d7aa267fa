package scheduler

import (
	"container/heap"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"
	"k8s.io/kube-scheduler/framework"
)

const (
	// backoffMin is the pause after the first failed attempt; it doubles up to backoffMax.
	backoffMin = time.Second
	backoffMax = 10 * time.Second
	// maxWait is how long a pod waits for an event at most, in case one was missed.
	maxWait = 5 * time.Minute
)

// where tells in which part of the queue an entry is.
type where int

const (
	active  where = iota // to be scheduled next
	backoff              // in its pause after a failed attempt
	waiting              // did not fit; for an event
	gated                // held back before it is ever tried
	flying               // being scheduled or bound
)

// entry is a pod in the queue. It implements framework.QueuedEntityInfo.
type entry struct {
	pod            *v1.Pod
	tried          *v1.Pod // the state that is being tried; only pop changes it
	where          where
	index          int // in its heap
	added, first   time.Time
	attempts       int
	failures       int // attempts in which it did not fit
	errors         int // attempts in a row that failed by an error
	until          time.Time
	plugins        sets.Set[string] // that rejected it
	gate           string
	missed         bool // an event that concerns it came while it was tried
	pendingEvents  []clusterEvent
	pendingPlugins sets.Set[string]
}

var _ framework.QueuedEntityInfo = (*entry)(nil)

func (e *entry) Type() framework.EntityKeyType                   { return framework.PodKeyType }
func (e *entry) GetPriority() int32                              { return corev1.PodPriority(e.pod) }
func (e *entry) GetTimestamp() time.Time                         { return e.added }
func (e *entry) GetAttempts() int                                { return e.attempts }
func (e *entry) GetBackoffExpiration() time.Time                 { return e.until }
func (e *entry) GetUnschedulableCount() int                      { return e.failures }
func (e *entry) GetConsecutiveErrorsCount() int                  { return e.errors }
func (e *entry) GetInitialAttemptTimestamp() *time.Time          { return &e.first }
func (e *entry) GetUnschedulablePlugins() sets.Set[string]       { return e.plugins }
func (e *entry) GetPendingPlugins() sets.Set[string]             { return e.pendingPlugins }
func (e *entry) GetGatingPlugin() string                         { return e.gate }
func (e *entry) GetGatingPluginEvents() []framework.ClusterEvent { return nil }

// clusterEvent is something that may let a pod fit.
type clusterEvent struct {
	resource framework.EventResource
	action   framework.ActionType
	old, now any
}

// podQueue holds the pods that have no node.
type podQueue struct {
	less  func(a, b framework.QueuedEntityInfo) bool
	hints map[string][]framework.ClusterEventWithHint // by plugin; a plugin without an entry is concerned by all events
	gate  func(*v1.Pod) string                        // name of the plugin that holds the pod back; empty: none
	clock func() time.Time

	mu      sync.Mutex
	entries map[types.UID]*entry
	ready   podHeap
	paused  podHeap
	wake    chan struct{}
}

func newPodQueue(less func(a, b framework.QueuedEntityInfo) bool, gate func(*v1.Pod) string, hints map[string][]framework.ClusterEventWithHint) *podQueue {
	return &podQueue{
		less: less, gate: gate, hints: hints, clock: time.Now, entries: map[types.UID]*entry{}, wake: make(chan struct{}, 1),
		ready:  podHeap{less: func(a, b *entry) bool { return less(a, b) }},
		paused: podHeap{less: func(a, b *entry) bool { return a.until.Before(b.until) }},
	}
}

// add queues a pod that is new.
func (q *podQueue) add(p *v1.Pod) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if e := q.entries[p.UID]; e != nil {
		q.update(e, p)
		return
	}
	now := q.clock()
	e := &entry{pod: p, added: now, first: now, where: flying}
	q.entries[p.UID] = e
	q.admit(e)
}

// admit puts an entry that may be tried at once where it belongs.
func (q *podQueue) admit(e *entry) {
	if e.gate = q.gate(e.pod); e.gate != "" {
		q.move(e, gated)
		return
	}
	q.move(e, active)
}

// update takes over a pod's new state. A pod that waits is tried again if the change may matter.
func (q *podQueue) update(e *entry, p *v1.Pod) {
	old := e.pod
	e.pod = p
	switch e.where {
	case active:
		heap.Fix(&q.ready, e.index)
	case gated:
		e.where = flying
		q.admit(e)
	case waiting:
		if podAction(old, p) != 0 {
			q.retry(e)
		}
	case flying:
		if podAction(old, p) != 0 {
			e.missed = true
		}
	}
}

// known tells whether the pod is in the queue, and takes over its new state if so.
func (q *podQueue) known(p *v1.Pod) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.entries[p.UID]
	if e != nil {
		q.update(e, p)
	}
	return e != nil
}

// forget drops a pod that is bound or gone. It tells whether the pod was there.
func (q *podQueue) forget(uid types.UID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.entries[uid]
	if e == nil {
		return false
	}
	q.move(e, flying)
	delete(q.entries, uid)
	return true
}

// pop takes the next pod, if there is one.
func (q *podQueue) pop() *entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flush()
	if len(q.ready.items) == 0 {
		return nil
	}
	e := q.ready.items[0]
	q.move(e, flying)
	e.attempts++
	e.tried, e.missed, e.pendingEvents = e.pod, false, nil
	return e
}

// failed puts back a pod that did not fit, with the plugins that rejected it; none: an error, tried again after a pause.
// It tells false if the pod is no longer wanted.
func (q *podQueue) failed(e *entry, plugins sets.Set[string]) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.entries[e.pod.UID] != e {
		return false
	}
	e.plugins, e.added = plugins, q.clock()
	n := 0
	if len(plugins) > 0 {
		e.failures++
		e.errors = 0
		n = e.failures
	} else {
		e.errors++
		n = e.errors
	}
	e.until = e.added.Add(min(backoffMin<<min(n-1, 10), backoffMax))
	again := len(plugins) == 0 || e.missed || slices.ContainsFunc(e.pendingEvents, func(ev clusterEvent) bool { return q.concerns(e, ev) })
	e.pendingEvents = nil
	if again {
		q.retry(e)
	} else {
		q.move(e, waiting)
	}
	return true
}

// retry tries an entry again when its pause is over.
func (q *podQueue) retry(e *entry) {
	if e.until.After(q.clock()) {
		q.move(e, backoff)
	} else {
		q.admit(e)
	}
}

// event tries those waiting pods again that it concerns.
func (q *podQueue) event(ev clusterEvent) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range q.entries {
		switch e.where {
		case waiting:
			if q.concerns(e, ev) {
				q.retry(e)
			}
		case flying:
			e.pendingEvents = append(e.pendingEvents, ev)
		}
	}
}

// concerns asks the plugins that rejected the pod whether an event may make it fit.
func (q *podQueue) concerns(e *entry, ev clusterEvent) bool {
	for plugin := range e.plugins {
		hints, ok := q.hints[plugin]
		if !ok {
			return true
		}
		for _, h := range hints {
			if !matches(h.Event, ev) {
				continue
			}
			if h.QueueingHintFn == nil {
				return true
			}
			hint, err := h.QueueingHintFn(klog.Background(), e.pod, ev.old, ev.now)
			if err != nil || hint == framework.Queue {
				return true
			}
		}
	}
	return false
}

func matches(want framework.ClusterEvent, ev clusterEvent) bool {
	same := want.Resource == ev.resource || want.Resource == framework.WildCard ||
		want.Resource == framework.Pod && (ev.resource == framework.AssignedPod || ev.resource == framework.UnscheduledPod) ||
		want.Resource == framework.TargetPod && ev.resource == framework.UnscheduledPod
	return same && want.ActionType&ev.action != 0
}

// activate tries pods again at once, whatever they wait for.
func (q *podQueue) activate(uid types.UID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch e := q.entries[uid]; {
	case e == nil:
	case e.where == waiting || e.where == backoff:
		q.admit(e)
	case e.where == flying:
		e.missed = true
	}
}

// flush brings back those whose pause is over, and those that have waited for too long.
func (q *podQueue) flush() {
	now := q.clock()
	for len(q.paused.items) > 0 && !q.paused.items[0].until.After(now) {
		q.admit(q.paused.items[0])
	}
	for _, e := range q.entries {
		if e.where == waiting && now.Sub(e.added) >= maxWait {
			q.admit(e)
		}
	}
}

// next is when pop has to be asked again though no event came; zero: not at all.
func (q *podQueue) next() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	var at time.Time
	if len(q.paused.items) > 0 {
		at = q.paused.items[0].until
	}
	for _, e := range q.entries {
		if e.where == waiting {
			if end := e.added.Add(maxWait); at.IsZero() || end.Before(at) {
				at = end
			}
		}
	}
	return at
}

func (q *podQueue) move(e *entry, to where) {
	switch e.where {
	case active:
		heap.Remove(&q.ready, e.index)
	case backoff:
		heap.Remove(&q.paused, e.index)
	}
	e.where = to
	switch to {
	case active:
		heap.Push(&q.ready, e)
	case backoff:
		heap.Push(&q.paused, e)
	default:
		return
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// podHeap implements heap.Interface.
type podHeap struct {
	items []*entry
	less  func(a, b *entry) bool
}

func (h *podHeap) Len() int           { return len(h.items) }
func (h *podHeap) Less(i, j int) bool { return h.less(h.items[i], h.items[j]) }
func (h *podHeap) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].index, h.items[j].index = i, j
}
func (h *podHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(h.items)
	h.items = append(h.items, e)
}
func (h *podHeap) Pop() any {
	e := h.items[len(h.items)-1]
	h.items = h.items[:len(h.items)-1]
	return e
}
