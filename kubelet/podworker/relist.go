package podworker

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/kubelet/changes"
)

// How often the runtime is asked for changes: of one that announces them, to be sure; of one that does not, to know.
const (
	relistHeard   = 15 * time.Second
	relistUnheard = time.Second
	// The runtime's list follows the end of a process by some milliseconds; it is asked until it did.
	settleFirst = 5 * time.Millisecond
	settleLast  = time.Second
)

// seenState is what a relist saw.
type seenState struct {
	containers map[string]runtimeapi.ContainerState
	sandboxes  map[string]runtimeapi.PodSandboxState
}

// watchRuntime wakes the workers of pods whose containers changed behind our back.
func (k *Pods) watchRuntime(ctx context.Context) {
	heard := make(chan string, 256)
	var live atomic.Bool
	k.wg.Go(func() {
		err := changes.Listen(ctx, k.Runtime, k.Endpoint, changes.Listener{
			Live: func(on bool) {
				if live.Swap(on) != on {
					select {
					case heard <- "": // what happened meanwhile went unheard
					default:
					}
				}
			},
			Ended: func(id string) {
				select {
				case heard <- id:
				case <-ctx.Done():
				}
			},
		})
		if err != nil {
			klog.ErrorS(err, "Events of the container runtime")
		}
	})
	var seen seenState
	unsettled := map[string]time.Duration{} // id → how long it has been waited for
	timer := time.NewTimer(relistUnheard)
	defer timer.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-heard:
			for more := true; more; {
				if id != "" {
					unsettled[id] = 0
				}
				select {
				case id = <-heard:
				default:
					more = false
				}
			}
		case <-timer.C:
			k.mu.Lock()
			idle := len(k.workers) == 0
			k.mu.Unlock()
			if idle && len(unsettled) == 0 {
				timer.Reset(relistUnheard)
				continue
			}
			if len(unsettled) == 0 && live.Load() && time.Since(last) < relistHeard {
				timer.Reset(relistUnheard)
				continue
			}
		}
		next, pods, err := k.relist(ctx)
		last = time.Now()
		k.answered(last, err)
		if err != nil {
			klog.V(2).InfoS("List of containers failed, trying again", "err", err)
			timer.Reset(relistUnheard)
			continue
		}
		k.Wake(seen.changed(next, pods)...)
		wait := relistUnheard
		for id, waited := range unsettled {
			if next.ended(id) || waited >= settleLast {
				delete(unsettled, id)
				continue
			}
			pause := max(waited, settleFirst)
			unsettled[id] = waited + pause
			wait = min(wait, pause)
		}
		seen = next
		timer.Reset(wait)
	}
}

// silence is how long the runtime may fail to answer before this kubelet is called ill.
const silence = 3 * time.Minute

// answered notes whether the runtime answered.
func (k *Pods) answered(at time.Time, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case err == nil:
		k.unanswered = time.Time{}
	case k.unanswered.IsZero():
		k.unanswered = at
	}
}

// Healthy tells whether the runtime answers.
func (k *Pods) Healthy() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.unanswered.IsZero() && time.Since(k.unanswered) > silence {
		return fmt.Errorf("the container runtime at %s has not answered since %s", k.Endpoint, k.unanswered.UTC().Format(time.RFC3339))
	}
	return nil
}

// relist asks the runtime for the states of all that it has, and whose they are.
func (k *Pods) relist(ctx context.Context) (seenState, map[string]types.UID, error) {
	containers, err := k.Runtime.ListContainers(ctx, nil)
	if err != nil {
		return seenState{}, nil, err
	}
	boxes, err := k.Runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return seenState{}, nil, err
	}
	s := seenState{make(map[string]runtimeapi.ContainerState, len(containers)), make(map[string]runtimeapi.PodSandboxState, len(boxes))}
	pods := make(map[string]types.UID, len(containers)+len(boxes))
	for _, c := range containers {
		s.containers[c.Id] = c.State
		pods[c.Id] = types.UID(c.Labels[labelPodUID])
	}
	for _, b := range boxes {
		s.sandboxes[b.Id] = b.State
		pods[b.Id] = types.UID(b.Labels[labelPodUID])
	}
	return s, pods, nil
}

// changed lists the pods of which something is in another state than before.
func (s seenState) changed(next seenState, pods map[string]types.UID) []types.UID {
	seen := map[types.UID]bool{}
	var out []types.UID
	add := func(id string) {
		if uid := pods[id]; uid != "" && !seen[uid] {
			seen[uid] = true
			out = append(out, uid)
		}
	}
	for id, state := range next.containers {
		if old, ok := s.containers[id]; !ok || old != state {
			add(id)
		}
	}
	for id, state := range next.sandboxes {
		if old, ok := s.sandboxes[id]; !ok || old != state {
			add(id)
		}
	}
	return out
}

// ended tells whether what has this id is known to run no more.
func (s seenState) ended(id string) bool {
	if b, ok := s.sandboxes[id]; ok {
		return b != runtimeapi.PodSandboxState_SANDBOX_READY
	}
	c, ok := s.containers[id]
	return !ok || c == runtimeapi.ContainerState_CONTAINER_EXITED
}
