package podworker

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// worker looks after one pod.
type worker struct {
	k    *Pods
	uid  types.UID
	wake chan struct{}

	mu        sync.Mutex
	current   *corev1.Pod
	deleted   bool              // the object is gone
	unhealthy map[string]string // by container id: why it is to be killed
	failed    *failure
	interrupt context.CancelFunc                     // of the round that is going on
	sent      []corev1.PodStatus                     // what we told the API last; it comes back
	granted   map[string]corev1.ResourceRequirements // by container, as in allocation.given: for other pods' workers. It is never written to

	// Of the goroutine alone:
	backoffs map[string]*backoff
	pulls    map[string]*pullBackoff // by image
	waiting  map[string]waiting      // why a container does not run
	failures int                     // of rounds, in a row
	written  *corev1.Pod

	allocation allocation
}

type waiting struct{ reason, message string }

// failure ends a pod for good.
type failure struct {
	reason, message string
	grace           time.Duration // negative: the pod's own
	condition       *corev1.PodCondition
}

// set tells of a new version of the object. What the worker is waiting for (the end of a container, a pull) is
// interrupted if the pod has to end, or has to end sooner.
func (w *worker) set(p *corev1.Pod) {
	w.mu.Lock()
	old := w.current
	w.current = p
	if old != nil && p.DeletionTimestamp != nil && (old.DeletionTimestamp == nil || gracePeriod(p) < gracePeriod(old)) && w.interrupt != nil {
		w.interrupt()
	}
	echo := old != nil && onlyStatus(old, p) && slices.ContainsFunc(w.sent, func(s corev1.PodStatus) bool { return apiequality.Semantic.DeepEqual(p.Status, s) })
	w.mu.Unlock()
	if !echo {
		w.poke()
	}
}

// onlyStatus tells whether two versions of a pod differ in nothing but their status.
func onlyStatus(a, b *corev1.Pod) bool {
	return apiequality.Semantic.DeepEqual(a.Spec, b.Spec) && a.DeletionTimestamp.Equal(b.DeletionTimestamp) && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations)
}

func (w *worker) gone() {
	w.mu.Lock()
	w.deleted = true
	if w.interrupt != nil && (w.current.DeletionTimestamp == nil || gracePeriod(w.current) > minGrace) {
		w.interrupt()
	}
	w.mu.Unlock()
	w.poke()
}

// fail ends the pod for good, in the next round.
func (w *worker) fail(f failure) {
	w.mu.Lock()
	if w.failed == nil {
		w.failed = &f
	}
	if w.interrupt != nil {
		w.interrupt()
	}
	w.mu.Unlock()
	w.poke()
}

// failNow ends the pod for good, in the round that is going on.
func (w *worker) failNow(f failure) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed == nil {
		w.failed = &f
	}
}

func (w *worker) failure() *failure {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

func (w *worker) pod() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current
}

func (w *worker) grant(given map[string]corev1.ResourceRequirements) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.granted = given
}

func (w *worker) markUnhealthy(id, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unhealthy[id] = why
}

func (w *worker) marks() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.unhealthy)
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// echoes is how many of our writes may be under way back to us.
const echoes = 4

func (w *worker) noteSent(s corev1.PodStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sent = append(w.sent, s); len(w.sent) > echoes {
		w.sent = w.sent[1:]
	}
}

const (
	retryMin = 200 * time.Millisecond
	retryMax = 30 * time.Second
)

// run works until the pod is gone altogether, or ctx ends.
func (w *worker) run(ctx context.Context) {
	timer := time.NewTimer(retryMax)
	timer.Stop() // the first round comes with the first version of the object
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			w.k.prober.StopPod(w.uid)
			return
		case <-w.wake:
		case <-timer.C:
		}
		round, cancel := context.WithCancel(ctx)
		w.mu.Lock()
		p, deleted := w.current, w.deleted
		w.interrupt = cancel
		w.mu.Unlock()
		done, again, err := w.round(round, p, deleted)
		interrupted := round.Err() != nil
		cancel()
		if done {
			return
		}
		switch {
		case interrupted: // whoever did that has poked, too
			continue
		case err != nil:
			again = min(retryMin<<min(w.failures, 10), retryMax)
			w.failures++
			klog.V(2).InfoS("Pod is not as it should be yet, trying again", "pod", klog.KObj(p), "in", again, "err", err)
		default:
			w.failures = 0
		}
		if again > 0 {
			timer.Reset(again)
		}
	}
}

// round brings the pod nearer to what it should be; done: there is nothing left of it. A defect met on the way is this
// pod's trouble, not that of the others.
func (w *worker) round(ctx context.Context, p *corev1.Pod, deleted bool) (done bool, again time.Duration, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("defect in the kubelet: %v", r)
			klog.ErrorS(err, "Pod worker", "pod", klog.KObj(p))
		}
	}()
	if deleted || p.DeletionTimestamp != nil {
		done, err = w.terminate(ctx, p, deleted)
		return done, 0, err
	}
	again, err = w.sync(ctx, p)
	return false, again, err
}

// observe asks the runtime for all that belongs to a pod.
func (k *Pods) observe(ctx context.Context, uid types.UID) (observed, error) {
	o := observed{containers: map[string][]*runtimeapi.ContainerStatus{}, former: map[string]*runtimeapi.ContainerStatus{}}
	selector := map[string]string{labelPodUID: string(uid)}
	boxes, err := k.Runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: selector})
	if err != nil {
		return o, fmt.Errorf("list sandboxes: %w", err)
	}
	slices.SortFunc(boxes, func(a, b *runtimeapi.PodSandbox) int { return int(b.Metadata.Attempt) - int(a.Metadata.Attempt) })
	for i, b := range boxes {
		if i > 0 {
			o.older = append(o.older, b.Id)
			continue
		}
		o.attempts = b.Metadata.Attempt + 1
		resp, err := k.Runtime.PodSandboxStatus(ctx, b.Id, false)
		if err != nil {
			return o, fmt.Errorf("sandbox %s: %w", b.Id, err)
		}
		o.sandbox = resp.Status
	}
	list, err := k.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{LabelSelector: selector})
	if err != nil {
		return o, fmt.Errorf("list containers: %w", err)
	}
	slices.SortFunc(list, func(a, b *runtimeapi.Container) int {
		switch {
		case a.CreatedAt > b.CreatedAt:
			return -1
		case a.CreatedAt < b.CreatedAt:
			return 1
		}
		return 0
	})
	for _, c := range list {
		name := c.Labels[labelContainerName]
		// Of an older sandbox: ended with it, and counts as no incarnation of this one.
		before := o.sandboxReady() && c.PodSandboxId != o.sandbox.Id
		if before && o.former[name] != nil {
			continue
		}
		resp, err := k.Runtime.ContainerStatus(ctx, c.Id, false)
		if err != nil {
			continue // removed meanwhile
		}
		if before {
			o.former[name] = resp.Status
		} else {
			o.containers[name] = append(o.containers[name], resp.Status)
		}
	}
	return o, nil
}

// podIPs are the pod's addresses: its sandbox's, or the node's for a pod of the host's network. Of each family there is one
// at most, that of the node's primary family first (KEP-563); runtimes list what they find on the interface.
func podIPs(p *corev1.Pod, o observed, hostIPs []string) []string {
	if p.Spec.HostNetwork {
		return hostIPs
	}
	if !o.sandboxReady() || o.sandbox.Network == nil {
		return nil
	}
	all := []string{o.sandbox.Network.Ip}
	for _, a := range o.sandbox.Network.AdditionalIps {
		all = append(all, a.Ip)
	}
	var first [2]string // of IPv4 and IPv6
	for _, ip := range all {
		if a, err := netip.ParseAddr(ip); err == nil && first[family(a)] == "" {
			first[family(a)] = a.Unmap().String()
		}
	}
	primary := 0
	if len(hostIPs) > 0 {
		if a, err := netip.ParseAddr(hostIPs[0]); err == nil {
			primary = family(a)
		}
	}
	var ips []string
	for _, ip := range []string{first[primary], first[1-primary]} {
		if ip != "" {
			ips = append(ips, ip)
		}
	}
	return ips
}

func family(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 0
	}
	return 1
}
