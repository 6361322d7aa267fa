package podworker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/strake-io/strake/kubelet/prober"
)

// minGrace is what a container gets after its preStop hook has used up the pod's grace period.
const minGrace = 2 * time.Second

func gracePeriod(p *corev1.Pod) time.Duration {
	seconds := int64(corev1.DefaultTerminationGracePeriodSeconds)
	switch {
	case p.DeletionGracePeriodSeconds != nil:
		seconds = *p.DeletionGracePeriodSeconds
	case p.Spec.TerminationGracePeriodSeconds != nil:
		seconds = *p.Spec.TerminationGracePeriodSeconds
	}
	return time.Duration(seconds) * time.Second
}

// hook runs a lifecycle handler.
func (w *worker) hook(ctx context.Context, p *corev1.Pod, c *corev1.Container, id string, h *corev1.LifecycleHandler, ips []string) error {
	switch {
	case h.Exec != nil:
		_, errOut, err := w.k.Runtime.ExecSync(ctx, id, h.Exec.Command, 0)
		if err != nil {
			return fmt.Errorf("%w: %s", err, errOut)
		}
	case h.HTTPGet != nil:
		ip := ""
		if len(ips) > 0 {
			ip = ips[0]
		}
		_, err := prober.HTTPGet(ctx, ip, h.HTTPGet, c)
		return err
	case h.Sleep != nil:
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
		}
	}
	return nil
}

// killGrace is the time that a container gets which is killed for a probe: the probe's own, or the pod's.
func (w *worker) killGrace(p *corev1.Pod, k kill) time.Duration {
	if c := find(p, k.name); c != nil {
		for kind, probe := range map[string]*corev1.Probe{" liveness probe": c.LivenessProbe, " startup probe": c.StartupProbe} {
			if probe != nil && probe.TerminationGracePeriodSeconds != nil && strings.Contains(k.reason, kind) {
				return time.Duration(*probe.TerminationGracePeriodSeconds) * time.Second
			}
		}
	}
	return gracePeriod(p)
}

// stopContainer runs the preStop hook, asks the container to end, and kills it when its time is up.
func (w *worker) stopContainer(ctx context.Context, p *corev1.Pod, name, id string, grace time.Duration) error {
	began := time.Now()
	if c := find(p, name); c != nil && c.Lifecycle != nil && c.Lifecycle.PreStop != nil && grace > 0 {
		hctx, cancel := context.WithTimeout(ctx, grace)
		o, err := w.k.observe(ctx, p.UID)
		if err == nil {
			err = w.hook(hctx, p, c, id, c.Lifecycle.PreStop, podIPs(p, o, w.k.HostIPs))
		}
		cancel()
		if err != nil && ctx.Err() == nil {
			w.k.Recorder.Eventf(p, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: %v", err)
		}
		grace = max(grace-time.Since(began), minGrace)
	}
	if ctx.Err() != nil {
		return ctx.Err() // it is to end otherwise
	}
	if err := w.k.Runtime.StopContainer(ctx, id, int64((grace+time.Second-1)/time.Second)); err != nil {
		return fmt.Errorf("stop container %s: %w", name, err)
	}
	return nil
}

// killAll ends all running containers: those of the pod proper at once, then the sidecars, the last one first
// (API: sidecar containers end in the opposite order of their start).
func (w *worker) killAll(ctx context.Context, p *corev1.Pod, o observed, grace time.Duration) error {
	deadline := time.Now().Add(grace)
	var sidecars []string
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; sidecar(c) {
			sidecars = append(sidecars, c.Name)
		}
	}
	stop := func(names []string) error {
		var wg sync.WaitGroup
		errs := make([]error, len(names))
		for i, name := range names {
			s := o.current(name)
			if !running(s) {
				continue
			}
			w.k.prober.Stop(p.UID, name)
			wg.Go(func() {
				w.k.Recorder.Eventf(p, corev1.EventTypeNormal, "Killing", "Stopping container %s", name)
				errs[i] = w.stopContainer(ctx, p, name, s.Id, max(time.Until(deadline), 0))
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	}
	var others []string
	for name := range o.containers {
		if !slices.Contains(sidecars, name) {
			others = append(others, name)
		}
	}
	if err := stop(others); err != nil {
		return err
	}
	for _, name := range slices.Backward(sidecars) {
		if err := stop([]string{name}); err != nil {
			return err
		}
	}
	w.k.prober.StopPod(p.UID)
	return nil
}

// release frees what a finished pod no longer needs; its containers stay for their logs.
func (w *worker) release(ctx context.Context, p *corev1.Pod) error {
	o, err := w.k.observe(ctx, p.UID)
	if err != nil {
		return err
	}
	if err := w.killAll(ctx, p, o, gracePeriod(p)); err != nil {
		return err
	}
	if o.sandboxReady() {
		if err := w.k.Runtime.StopPodSandbox(ctx, o.sandbox.Id); err != nil {
			return fmt.Errorf("stop sandbox: %w", err)
		}
	}
	w.k.Objects.Release(p.UID)
	return nil
}

// terminate ends a pod that is being deleted (or whose object is gone), removes all that it had, and then the
// object. It tells whether that is done.
func (w *worker) terminate(ctx context.Context, p *corev1.Pod, gone bool) (bool, error) {
	o, err := w.k.observe(ctx, p.UID)
	if err != nil {
		return false, err
	}
	grace := gracePeriod(p)
	if gone {
		grace = min(grace, minGrace)
	}
	if err := w.killAll(ctx, p, o, grace); err != nil {
		return false, err
	}
	if !gone {
		if o, err = w.k.observe(ctx, p.UID); err != nil {
			return false, err
		}
		if _, err := w.writeStatus(ctx, p, o, true); err != nil {
			return false, err
		}
	}
	if err := w.k.cleanUp(ctx, p.UID); err != nil {
		return false, err
	}
	if err := os.RemoveAll(w.k.LogsOf(p)); err != nil {
		return false, fmt.Errorf("logs: %w", err)
	}
	if gone {
		return true, nil
	}
	zero := int64(0)
	err = w.k.Client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return false, fmt.Errorf("delete the object: %w", err)
	}
	return true, nil
}

// cleanUp removes a pod's sandboxes, volumes and cgroups. It may be called again.
func (k *Pods) cleanUp(ctx context.Context, uid types.UID) error {
	boxes, err := k.Runtime.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{labelPodUID: string(uid)}})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	for _, b := range boxes {
		if err := k.Runtime.StopPodSandbox(ctx, b.Id); err != nil {
			return fmt.Errorf("stop sandbox: %w", err)
		}
		if err := k.Runtime.RemovePodSandbox(ctx, b.Id); err != nil {
			return fmt.Errorf("remove sandbox: %w", err)
		}
	}
	k.Objects.Release(uid)
	return errors.Join(k.Volumes.Teardown(uid), k.Cgroups.RemovePod(uid))
}
