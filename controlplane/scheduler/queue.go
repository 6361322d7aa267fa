package scheduler

import (
	"container/heap"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1"
)

const (
	backoffMin = time.Second
	backoffMax = 10 * time.Second
)

// podQueue orders pods by priority, then by age. A pod that did not fit waits, with a growing pause, until
// something in the cluster changed.
type podQueue struct {
	mu       sync.Mutex
	ready    podHeap
	waiting  map[types.UID]*queued
	attempts map[types.UID]int
	wake     chan struct{}
}

type queued struct {
	pod       *v1.Pod
	notBefore time.Time
	index     int
}

func newPodQueue() *podQueue {
	return &podQueue{waiting: map[types.UID]*queued{}, attempts: map[types.UID]int{}, wake: make(chan struct{}, 1)}
}

// add queues a pod, or replaces what is queued of it.
func (q *podQueue) add(p *v1.Pod) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.waiting, p.UID)
	for _, e := range q.ready {
		if e.pod.UID == p.UID {
			e.pod = p
			heap.Fix(&q.ready, e.index)
			return
		}
	}
	heap.Push(&q.ready, &queued{pod: p})
	q.notify()
}

// park keeps a pod that did not fit.
func (q *podQueue) park(p *v1.Pod) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.attempts[p.UID]
	q.attempts[p.UID] = n + 1
	q.waiting[p.UID] = &queued{pod: p, notBefore: time.Now().Add(min(backoffMin<<min(n, 5), backoffMax))}
}

// forget drops a pod that is bound or gone.
func (q *podQueue) forget(uid types.UID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.waiting, uid)
	delete(q.attempts, uid)
	for _, e := range q.ready {
		if e.pod.UID == uid {
			heap.Remove(&q.ready, e.index)
			return
		}
	}
}

// activate moves the waiting pods back, those in their pause once it is over.
func (q *podQueue) activate() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	var next time.Duration
	for uid, e := range q.waiting {
		if left := e.notBefore.Sub(now); left > 0 {
			if next == 0 || left < next {
				next = left
			}
			continue
		}
		delete(q.waiting, uid)
		heap.Push(&q.ready, e)
	}
	if next > 0 {
		time.AfterFunc(next, q.activate)
	}
	q.notify()
}

func (q *podQueue) notify() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// pop takes the next pod, if there is one.
func (q *podQueue) pop() (*v1.Pod, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.ready) == 0 {
		return nil, false
	}
	return heap.Pop(&q.ready).(*queued).pod, true
}

// podHeap implements heap.Interface.
type podHeap []*queued

func (h podHeap) Len() int { return len(h) }
func (h podHeap) Less(i, j int) bool {
	a, b := h[i].pod, h[j].pod
	if pa, pb := corev1.PodPriority(a), corev1.PodPriority(b); pa != pb {
		return pa > pb
	}
	return a.CreationTimestamp.Before(&b.CreationTimestamp)
}
func (h podHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *podHeap) Push(x any) {
	e := x.(*queued)
	e.index = len(*h)
	*h = append(*h, e)
}
func (h *podHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

// isWaiting tells whether the pod waits for a change elsewhere and has not changed itself, but for its status.
func (q *podQueue) isWaiting(p *v1.Pod) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	e, ok := q.waiting[p.UID]
	if !ok || e.pod.Generation != p.Generation {
		return false
	}
	e.pod = p
	return true
}
