package scheduler

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kube-scheduler/framework"
)

// maxPermitWait bounds how long a Permit plugin can hold a pod.
const maxPermitWait = 15 * time.Minute

// permitted holds the pods that wait for Permit plugins.
type permitted struct {
	mu sync.Mutex
	m  map[types.UID]*waitingPod
}

func (s *permitted) get(uid types.UID) *waitingPod {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.m[uid]
}

func (s *permitted) each(f func(framework.WaitingPod)) {
	s.mu.Lock()
	var all []*waitingPod
	for _, w := range s.m {
		all = append(all, w)
	}
	s.mu.Unlock()
	for _, w := range all {
		f(w)
	}
}

// add registers a pod that waits; it must be registered before the cycle ends, so that other pods' plugins find it.
func (s *permitted) add(p *v1.Pod, waits map[string]time.Duration) *waitingPod {
	w := &waitingPod{pod: p, pending: map[string]*time.Timer{}, verdict: make(chan *framework.Status, 1)}
	w.mu.Lock()
	for plugin, d := range waits {
		w.pending[plugin] = time.AfterFunc(d, func() { w.Reject(plugin, "rejected due to timeout after waiting "+d.String()+" at plugin "+plugin) })
	}
	w.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[types.UID]*waitingPod{}
	}
	s.m[p.UID] = w
	return w
}

// wait returns the plugins' verdict.
func (s *permitted) wait(ctx context.Context, w *waitingPod) *framework.Status {
	defer func() {
		s.mu.Lock()
		delete(s.m, w.pod.UID)
		s.mu.Unlock()
		w.stop()
	}()
	select {
	case <-ctx.Done():
		return framework.AsStatus(context.Cause(ctx))
	case st := <-w.verdict:
		return st
	}
}

// waitingPod implements framework.WaitingPod.
type waitingPod struct {
	pod     *v1.Pod
	verdict chan *framework.Status

	mu      sync.Mutex
	pending map[string]*time.Timer
}

func (w *waitingPod) GetPod() *v1.Pod { return w.pod }

func (w *waitingPod) GetPendingPlugins() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for name := range w.pending {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (w *waitingPod) Allow(plugin string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.pending[plugin]; t != nil {
		t.Stop()
		delete(w.pending, plugin)
	}
	if len(w.pending) == 0 {
		w.decide(nil)
	}
}

func (w *waitingPod) Reject(plugin, message string) bool {
	return w.decide(framework.NewStatus(framework.Unschedulable, message).WithPlugin(plugin))
}

func (w *waitingPod) Preempt(plugin, message string) bool {
	return w.decide(framework.AsStatus(errors.New(message)).WithPlugin(plugin))
}

// decide takes the first verdict only.
func (w *waitingPod) decide(st *framework.Status) bool {
	select {
	case w.verdict <- st:
		return true
	default:
		return false
	}
}

func (w *waitingPod) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.pending {
		t.Stop()
	}
}

// preBinding implements framework.PodInPreBind.
type preBinding struct {
	mu             sync.Mutex
	cancel         context.CancelCauseFunc
	done, canceled bool
}

func (p *preBinding) CancelPod(reason string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return false
	}
	p.canceled = true
	p.cancel(errors.New(reason))
	return true
}

func (p *preBinding) MarkPrebound() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.canceled {
		return false
	}
	p.done = true
	return true
}
