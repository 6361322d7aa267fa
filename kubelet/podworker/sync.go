package podworker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

func ended(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

// sync brings the pod one step nearer to what it should be. It returns when to look again.
func (w *worker) sync(ctx context.Context, p *corev1.Pod) (time.Duration, error) {
	if ended(p.Status.Phase) || w.written != nil && ended(w.written.Status.Phase) {
		return 0, w.release(ctx, p)
	}
	o, err := w.k.observe(ctx, p.UID)
	if err != nil {
		return 0, err
	}
	p = w.allocate(p)
	again, acted, syncErr := w.step(ctx, p, &o)
	if acted { // what was just done shows at once
		o, err = w.k.observe(ctx, p.UID)
	}
	if err == nil && ctx.Err() == nil {
		w.followProbes(p, o)
		var over bool
		if over, err = w.writeStatus(ctx, p, o, false); over {
			again = retryMin
		}
	}
	return again, errors.Join(syncErr, err)
}

// step does what decide says. It tells whether it asked anything of the runtime that changes the pod.
func (w *worker) step(ctx context.Context, p *corev1.Pod, o *observed) (again time.Duration, acted bool, err error) {
	sooner := func(d time.Duration) {
		if d > 0 && (again == 0 || d < again) {
			again = d
		}
	}
	if limit := p.Spec.ActiveDeadlineSeconds; limit != nil && p.Status.StartTime != nil {
		left := time.Until(p.Status.StartTime.Add(time.Duration(*limit) * time.Second))
		if left <= 0 && w.failure() == nil {
			w.k.Recorder.Event(p, corev1.EventTypeNormal, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
			w.failNow(failure{reason: "DeadlineExceeded", message: "Pod was active on the node longer than the specified deadline", grace: -1})
		}
		sooner(left)
	}
	if o.attempts == 0 && w.k.Admit != nil {
		if message, ok := w.k.Admit(p); !ok && w.failure() == nil {
			w.k.Recorder.Event(p, corev1.EventTypeWarning, "Evicted", message)
			w.failNow(evicted(message))
		}
	}
	if f := w.failure(); f != nil {
		grace := f.grace
		if grace < 0 {
			grace = gracePeriod(p)
		}
		return 0, true, w.killAll(ctx, p, *o, grace)
	}
	unhealthy := w.marks()
	started := func(name, id string) bool { ok, _ := w.k.prober.State(p.UID, name, id); return ok }
	o.remade = w.allocation.remade
	a := decide(p, *o, unhealthy, started)
	if a.finished {
		return again, true, w.killAll(ctx, p, *o, gracePeriod(p)) // sidecars
	}
	// Volumes are made while the sandbox is. They are looked at for containers that run, too: the objects that volumes
	// show may have changed.
	volumes := make(chan volumeSet, 1)
	go func() {
		var v volumeSet
		v.paths, v.refresh, v.err = w.k.Volumes.Setup(ctx, p)
		volumes <- v
	}()
	if a.createSandbox {
		acted = true
		if err := w.createSandbox(ctx, p, o); err != nil {
			<-volumes
			return again, acted, err
		}
		a = decide(p, *o, unhealthy, started)
	}
	v := <-volumes
	a.kill = append(a.kill, w.resize(ctx, p, *o)...)
	if w.allocation.pendingReason != "" || w.allocation.trouble != "" {
		sooner(retryResize) // others may have gone
	}
	for _, victim := range a.kill {
		acted = true
		w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Killing", "%s", victim.reason)
		w.k.prober.Stop(p.UID, victim.name)
		if err := w.stopContainer(ctx, p, victim.name, victim.id, w.killGrace(p, victim)); err != nil {
			return again, acted, err
		}
		sooner(retryMin)
	}
	if v.err != nil {
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "FailedMount", "%v", v.err)
		return again, acted, v.err
	}
	if !v.refresh.IsZero() {
		sooner(max(time.Until(v.refresh), retryMin))
	}
	var errs []error
	for _, c := range a.start {
		did, wait, err := w.startContainer(ctx, p, c, *o, v.paths)
		if err != nil {
			errs = append(errs, fmt.Errorf("container %s: %w", c.Name, err))
		}
		acted = acted || did
		sooner(wait)
	}
	// The startup of a sidecar or the end of an init container opens the way for the next.
	if len(a.start) > 0 && len(p.Spec.InitContainers) > 0 {
		sooner(retryMin)
	}
	return again, acted, errors.Join(errs...)
}

type volumeSet struct {
	paths   map[string]string
	refresh time.Time
	err     error
}

func (w *worker) createSandbox(ctx context.Context, p *corev1.Pod, o *observed) error {
	if o.sandbox != nil {
		if err := w.k.Runtime.StopPodSandbox(ctx, o.sandbox.Id); err != nil {
			return fmt.Errorf("stop old sandbox: %w", err)
		}
		w.k.Recorder.Event(p, corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
	}
	// The newest of the dead ones stays, for the logs of its containers.
	for _, id := range o.older {
		if err := w.k.Runtime.RemovePodSandbox(ctx, id); err != nil {
			return fmt.Errorf("remove old sandbox %s: %w", id, err)
		}
	}
	_, err := w.k.Cgroups.EnsurePod(p)
	var cfg *runtimeapi.PodSandboxConfig
	if err == nil {
		cfg, err = w.sandboxConfig(p, o.attempts)
	}
	if err == nil {
		_, err = w.k.Runtime.RunPodSandbox(ctx, cfg, "")
	}
	if err != nil {
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v", err)
		return fmt.Errorf("create sandbox: %w", err)
	}
	*o, err = w.k.observe(ctx, p.UID)
	o.remade = w.allocation.remade
	return err
}

// restartCount numbers the next incarnation of a container.
func restartCount(p *corev1.Pod, name string, last *runtimeapi.ContainerStatus) uint32 {
	if last != nil {
		if n, err := strconv.ParseUint(last.Annotations[annotationRestarts], 10, 32); err == nil {
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

// startContainer makes and starts a container, if its pause is over. It tells whether it did, and how long to wait
// otherwise.
func (w *worker) startContainer(ctx context.Context, p *corev1.Pod, c *corev1.Container, o observed, volumes map[string]string) (bool, time.Duration, error) {
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
		return false, wait, nil
	}
	image, wait, trouble := w.ensureImage(ctx, p, c, o)
	if image == nil {
		w.waiting[c.Name] = trouble
		return false, wait, nil
	}
	fail := func(reason string, err error) (bool, time.Duration, error) {
		w.waiting[c.Name] = waiting{reason, err.Error()}
		w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "Failed", "Error: %v", err)
		return true, 0, err
	}
	if last == nil {
		last = o.former[c.Name]
	}
	cfg, err := w.containerConfig(ctx, p, c, image, o, restartCount(p, c.Name, last), volumes)
	if err != nil {
		return fail("CreateContainerConfigError", err)
	}
	box, err := w.sandboxConfig(p, o.sandbox.Metadata.Attempt)
	if err != nil {
		return fail("CreateContainerConfigError", err)
	}
	if err := w.clear(ctx, o.current(c.Name)); err != nil {
		return fail("CreateContainerError", err)
	}
	w.removeOld(ctx, o.containers[c.Name])
	id, err := w.k.Runtime.CreateContainer(ctx, o.sandbox.Id, cfg, box)
	if err != nil {
		return fail("CreateContainerError", err)
	}
	w.allocation.applied[id] = c.Resources
	w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Created", "Created container: %s", c.Name)
	if err := w.k.Runtime.StartContainer(ctx, id); err != nil {
		return fail("RunContainerError", err)
	}
	w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Started", "Started container %s", c.Name)
	delete(w.waiting, c.Name)
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		if err := w.hook(ctx, p, c, id, c.Lifecycle.PostStart, podIPs(p, o, w.k.HostIPs)); err != nil {
			w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: %v", err)
			w.markUnhealthy(id, "FailedPostStartHook")
			w.waiting[c.Name] = waiting{"PostStartHookError", fmt.Sprintf("PostStartHook failed: %v", err)}
			return true, retryMin, nil
		}
	}
	return true, 0, nil
}

// clear removes an incarnation that never ran, or of which the runtime lost track.
func (w *worker) clear(ctx context.Context, s *runtimeapi.ContainerStatus) error {
	if s == nil || s.State != runtimeapi.ContainerState_CONTAINER_CREATED && s.State != runtimeapi.ContainerState_CONTAINER_UNKNOWN {
		return nil
	}
	if s.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN {
		if err := w.k.Runtime.StopContainer(ctx, s.Id, 0); err != nil {
			return err
		}
	}
	return w.k.Runtime.RemoveContainer(ctx, s.Id)
}

// removeOld keeps one dead incarnation, for `kubectl logs --previous`.
func (w *worker) removeOld(ctx context.Context, older []*runtimeapi.ContainerStatus) {
	for i, s := range older {
		if i > 0 && exited(s) {
			if err := w.k.Runtime.RemoveContainer(ctx, s.Id); err != nil {
				klog.V(2).InfoS("Dead container stays", "container", s.Id, "err", err)
			}
		}
	}
}

// followProbes starts and ends probes with their containers.
func (w *worker) followProbes(p *corev1.Pod, o observed) {
	ip := ""
	if ips := podIPs(p, o, w.k.HostIPs); len(ips) > 0 {
		ip = ips[0]
	}
	for _, c := range all(p) {
		if s := o.current(c.Name); s != nil && s.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			w.k.prober.Start(p, c, s.Id, ip, w.k.lastSeen(p, c.Name, s.Id))
		} else {
			w.k.prober.Stop(p.UID, c.Name)
		}
	}
}
