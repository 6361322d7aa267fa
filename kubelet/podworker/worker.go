package podworker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/kubelet/status"
)

// worker looks after one pod.
type worker struct {
	k    *Pods
	uid  types.UID
	wake chan struct{}

	mu        sync.Mutex
	current   *corev1.Pod
	deleted   bool // the object is gone
	unhealthy map[string]string

	// Of the goroutine alone:
	backoffs map[string]*backoff
	waiting  map[string]waiting // why a container does not run
	failures int                // of syncs, in a row
	failed   *failure
	written  *corev1.PodStatus
}

type waiting struct{ reason, message string }

// failure ends a pod for good.
type failure struct{ reason, message string }

func (w *worker) set(p *corev1.Pod) {
	w.mu.Lock()
	w.current = p
	w.mu.Unlock()
	w.poke()
}

func (w *worker) gone() {
	w.mu.Lock()
	w.deleted = true
	w.mu.Unlock()
	w.poke()
}

func (w *worker) pod() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current
}

func (w *worker) markUnhealthy(id, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unhealthy[id] = why
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

const (
	retryMin = 200 * time.Millisecond
	retryMax = 30 * time.Second
)

// run works until the pod is gone altogether, or ctx ends.
func (w *worker) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			w.k.prober.StopPod(w.uid)
			return
		case <-w.wake:
		case <-timer.C:
		}
		w.mu.Lock()
		p, deleted := w.current, w.deleted
		w.mu.Unlock()
		var again time.Duration
		var err error
		if deleted || p.DeletionTimestamp != nil {
			var done bool
			done, err = w.terminate(ctx, p, deleted)
			if done {
				return
			}
		} else {
			again, err = w.sync(ctx, p)
		}
		if ctx.Err() != nil {
			continue
		}
		if err != nil {
			again = min(retryMin<<min(w.failures, 10), retryMax)
			w.failures++
			klog.V(2).InfoS("Pod is not as it should be yet, trying again", "pod", klog.KObj(p), "in", again, "err", err)
		} else {
			w.failures = 0
		}
		if again > 0 {
			timer.Reset(again)
		}
	}
}

// observe asks the runtime for all that belongs to a pod.
func (k *Pods) observe(ctx context.Context, uid types.UID) (observed, error) {
	o := observed{containers: map[string][]*runtimeapi.ContainerStatus{}}
	selector := map[string]string{labelPodUID: string(uid)}
	boxes, err := k.Runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: selector})
	if err != nil {
		return o, fmt.Errorf("list sandboxes: %w", err)
	}
	slices.SortFunc(boxes, func(a, b *runtimeapi.PodSandbox) int { return int(b.Metadata.Attempt) - int(a.Metadata.Attempt) })
	if len(boxes) > 0 {
		o.attempts = boxes[0].Metadata.Attempt + 1
		resp, err := k.Runtime.PodSandboxStatus(ctx, boxes[0].Id, false)
		if err != nil {
			return o, fmt.Errorf("sandbox %s: %w", boxes[0].Id, err)
		}
		o.sandbox = resp.Status
	}
	list, err := k.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{LabelSelector: selector})
	if err != nil {
		return o, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range list {
		if o.sandboxReady() && c.PodSandboxId != o.sandbox.Id {
			// Of an older sandbox: ended with it. It stays for its log, but counts as no incarnation of this one.
			continue
		}
		resp, err := k.Runtime.ContainerStatus(ctx, c.Id, false)
		if err != nil {
			continue // removed meanwhile
		}
		name := c.Labels[labelContainerName]
		o.containers[name] = append(o.containers[name], resp.Status)
	}
	for _, l := range o.containers {
		slices.SortFunc(l, func(a, b *runtimeapi.ContainerStatus) int { return int(b.CreatedAt/1000 - a.CreatedAt/1000) })
	}
	return o, nil
}

// sync brings the pod one step nearer to what it should be. It returns when to look again.
func (w *worker) sync(ctx context.Context, p *corev1.Pod) (time.Duration, error) {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return 0, w.release(ctx, p)
	}
	o, err := w.k.observe(ctx, p.UID)
	if err != nil {
		return 0, err
	}
	again, syncErr := w.step(ctx, p, &o)
	// What was just done shows at once.
	if o, err = w.k.observe(ctx, p.UID); err == nil {
		w.followProbes(p, o)
		var ended bool
		if ended, err = w.writeStatus(ctx, p, o); ended {
			again = retryMin
		}
	}
	return again, errors.Join(syncErr, err)
}

// step does what decide says.
func (w *worker) step(ctx context.Context, p *corev1.Pod, o *observed) (time.Duration, error) {
	var again time.Duration
	sooner := func(d time.Duration) {
		if d > 0 && (again == 0 || d < again) {
			again = d
		}
	}
	if limit := p.Spec.ActiveDeadlineSeconds; limit != nil && p.Status.StartTime != nil {
		left := time.Until(p.Status.StartTime.Add(time.Duration(*limit) * time.Second))
		if left <= 0 {
			w.failed = &failure{"DeadlineExceeded", "Pod was active on the node longer than the specified deadline"}
			return 0, w.killAll(ctx, p, *o, gracePeriod(p))
		}
		sooner(left)
	}
	w.mu.Lock()
	unhealthy := make(map[string]string, len(w.unhealthy))
	for id, why := range w.unhealthy {
		unhealthy[id] = why
	}
	w.mu.Unlock()
	started := func(name, id string) bool { ok, _ := w.k.prober.State(p.UID, name, id); return ok }
	a := decide(p, *o, unhealthy, started)
	if a.createSandbox {
		// Restart counts go on from what the old incarnations had.
		if err := w.createSandbox(ctx, p, o); err != nil {
			return again, err
		}
		a = decide(p, *o, unhealthy, started)
	}
	for _, victim := range a.kill {
		w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Killing", "%s", victim.reason)
		w.k.prober.Stop(p.UID, victim.name)
		if err := w.stopContainer(ctx, p, victim.name, victim.id, gracePeriod(p)); err != nil {
			return again, err
		}
		sooner(retryMin)
	}
	if a.finished || !o.sandboxReady() {
		return again, nil
	}
	// Also for containers that run: the objects that volumes show may have changed.
	volumes, refresh, err := w.k.Volumes.Setup(ctx, p)
	if err != nil {
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "FailedMount", "%v", err)
		return again, err
	}
	if !refresh.IsZero() {
		sooner(max(time.Until(refresh), retryMin))
	}
	var errs []error
	for _, c := range a.start {
		wait, err := w.startContainer(ctx, p, c, *o, volumes)
		if err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", c.Name, err))
		}
		sooner(wait)
	}
	// The startup of a sidecar or the end of an init container opens the way for the next.
	if len(a.start) > 0 && len(p.Spec.InitContainers) > 0 {
		sooner(retryMin)
	}
	return again, errors.Join(errs...)
}

func (w *worker) createSandbox(ctx context.Context, p *corev1.Pod, o *observed) error {
	if o.sandbox != nil {
		if err := w.k.Runtime.StopPodSandbox(ctx, o.sandbox.Id); err != nil {
			return fmt.Errorf("stop old sandbox: %w", err)
		}
		w.k.Recorder.Event(p, corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	}
	cfg, err := w.sandboxConfig(p, o.attempts)
	if err == nil {
		_, err = w.k.Runtime.RunPodSandbox(ctx, cfg, "")
	}
	if err != nil {
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v", err)
		return fmt.Errorf("create sandbox: %w", err)
	}
	*o, err = w.k.observe(ctx, p.UID)
	return err
}

func (w *worker) restartCount(p *corev1.Pod, name string, s *runtimeapi.ContainerStatus) uint32 {
	if s != nil {
		if n, err := strconv.ParseUint(s.Annotations[annotationRestarts], 10, 32); err == nil {
			return uint32(n) + 1
		}
	}
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for _, c := range list {
			if c.Name == name && c.ContainerID != "" {
				return uint32(c.RestartCount) + 1 // its containers went with the machine
			}
		}
	}
	return 0
}

// startContainer makes and starts a container, if its pause is over. It returns how long to wait otherwise.
func (w *worker) startContainer(ctx context.Context, p *corev1.Pod, c *corev1.Container, o observed, volumes map[string]string) (time.Duration, error) {
	last := o.current(c.Name)
	b := w.backoffs[c.Name]
	if b == nil {
		b = &backoff{}
		w.backoffs[c.Name] = b
	}
	if wait := b.wait(last, time.Now()); wait > 0 {
		message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", b.delay, c.Name, p.Name, p.Namespace, p.UID)
		if w.waiting[c.Name].reason != "CrashLoopBackOff" {
			w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)", c.Name, p.Name, p.Namespace, p.UID)
		}
		w.waiting[c.Name] = waiting{"CrashLoopBackOff", message}
		return wait, nil
	}
	image, reason, err := w.ensureImage(ctx, p, c)
	if err != nil {
		w.waiting[c.Name] = waiting{reason, err.Error()}
		return 0, err
	}
	fail := func(reason string, err error) (time.Duration, error) {
		w.waiting[c.Name] = waiting{reason, err.Error()}
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "Failed", "Error: %v", err)
		return 0, err
	}
	cfg, err := w.containerConfig(ctx, p, c, image, w.restartCount(p, c.Name, last), volumes, podIPs(p, o, w.k.HostIP))
	if err != nil {
		return fail("CreateContainerConfigError", err)
	}
	box, err := w.sandboxConfig(p, o.sandbox.Metadata.Attempt)
	if err != nil {
		return fail("CreateContainerConfigError", err)
	}
	if last != nil && last.State == runtimeapi.ContainerState_CONTAINER_CREATED {
		if err := w.k.Runtime.RemoveContainer(ctx, last.Id); err != nil {
			return fail("CreateContainerError", err)
		}
	}
	id, err := w.k.Runtime.CreateContainer(ctx, o.sandbox.Id, cfg, box)
	if err != nil {
		return fail("CreateContainerError", err)
	}
	w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Created", "Created container: %s", c.Name)
	if err := w.k.Runtime.StartContainer(ctx, id); err != nil {
		return fail("RunContainerError", err)
	}
	w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Started", "Started container %s", c.Name)
	delete(w.waiting, c.Name)
	w.removeOld(ctx, o.containers[c.Name])
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		if err := w.hook(ctx, p, c, id, c.Lifecycle.PostStart, podIPs(p, o, w.k.HostIP)); err != nil {
			w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: %v", err)
			w.markUnhealthy(id, "FailedPostStartHook")
			return retryMin, nil
		}
	}
	return 0, nil
}

// removeOld keeps one dead incarnation, for `kubectl logs --previous`.
func (w *worker) removeOld(ctx context.Context, older []*runtimeapi.ContainerStatus) {
	for i, s := range older {
		if i > 0 && s.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			if err := w.k.Runtime.RemoveContainer(ctx, s.Id); err != nil {
				klog.V(2).InfoS("Dead container stays", "container", s.Id, "err", err)
			}
		}
	}
}

// podIPs are the pod's addresses: its sandbox's, or the node's for a pod of the host's network.
func podIPs(p *corev1.Pod, o observed, hostIP string) []string {
	if p.Spec.HostNetwork {
		return []string{hostIP}
	}
	if !o.sandboxReady() || o.sandbox.Network == nil || o.sandbox.Network.Ip == "" {
		return nil
	}
	ips := []string{o.sandbox.Network.Ip}
	for _, a := range o.sandbox.Network.AdditionalIps {
		ips = append(ips, a.Ip)
	}
	return ips
}

// followProbes starts and ends probes with their containers.
func (w *worker) followProbes(p *corev1.Pod, o observed) {
	ips := podIPs(p, o, w.k.HostIP)
	ip := ""
	if len(ips) > 0 {
		ip = ips[0]
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			c := &list[i]
			if s := o.current(c.Name); s != nil && s.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
				w.k.prober.Start(p, c, s.Id, ip)
			} else {
				w.k.prober.Stop(p.UID, c.Name)
			}
		}
	}
}

// writeStatus tells the API what is, if that changed. It tells whether the pod has ended.
func (w *worker) writeStatus(ctx context.Context, p *corev1.Pod, o observed) (bool, error) {
	in := status.Input{Pod: p, Containers: map[string]status.Container{}, PodIPs: podIPs(p, o, w.k.HostIP), HostIP: w.k.HostIP, Sandbox: o.sandboxReady(), Now: time.Now()}
	if w.failed != nil {
		in.FailedReason, in.FailedMessage = w.failed.reason, w.failed.message
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			in.Containers[list[i].Name] = w.containerState(p, &list[i], o)
		}
	}
	want := status.Make(in)
	ended := want.Phase == corev1.PodSucceeded || want.Phase == corev1.PodFailed
	// What we wrote last may not have come back yet.
	base := p.Status
	if w.written != nil {
		base = *w.written
		in.Pod = p.DeepCopy()
		in.Pod.Status = base
		want = status.Make(in)
	}
	if apiequality.Semantic.DeepEqual(base, want) {
		return ended, nil
	}
	update := p.DeepCopy()
	update.Status = want
	update.ResourceVersion = "" // the status is ours: the newest word counts
	got, err := w.k.Client.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, update, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return ended, nil
	}
	if err != nil {
		return ended, fmt.Errorf("write status: %w", err)
	}
	w.written = &got.Status
	return ended, nil
}

func (w *worker) containerState(p *corev1.Pod, c *corev1.Container, o observed) status.Container {
	l := o.containers[c.Name]
	s := status.Container{Reason: w.waiting[c.Name].reason, Message: w.waiting[c.Name].message}
	if len(l) > 0 {
		s.Current = w.withMessage(p, c, l[0])
		s.Started, s.Ready = w.k.prober.State(p.UID, c.Name, l[0].Id)
		if n, err := strconv.Atoi(l[0].Annotations[annotationRestarts]); err == nil {
			s.Restarts = int32(n)
		}
		if s.Current.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			s.Started, s.Ready = false, s.Current.ExitCode == 0 && !sidecar(c) && isInit(p, c.Name)
		}
	}
	if len(l) > 1 {
		s.Last = w.withMessage(p, c, l[1])
	}
	return s
}

func isInit(p *corev1.Pod, name string) bool {
	return slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name })
}

// maxMessage bounds a termination message (API: 4096 bytes).
const maxMessage = 4096

// withMessage adds what the container left in its termination message file.
func (w *worker) withMessage(p *corev1.Pod, c *corev1.Container, s *runtimeapi.ContainerStatus) *runtimeapi.ContainerStatus {
	if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.Message != "" {
		return s
	}
	n, err := strconv.ParseUint(s.Annotations[annotationRestarts], 10, 32)
	if err != nil {
		return s
	}
	data, err := os.ReadFile(w.terminationLog(p, c.Name, uint32(n)))
	if err != nil {
		return s
	}
	s.Message = string(data[:min(len(data), maxMessage)])
	return s
}
