package podworker

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/strake-io/strake/kubelet/prober"
	"github.com/strake-io/strake/kubelet/status"
)

// writeStatus tells the API what is, if that changed. It tells whether the pod has ended. Only what changed is sent:
// conditions that are others' are left to them.
func (w *worker) writeStatus(ctx context.Context, p *corev1.Pod, o observed, terminating bool) (bool, error) {
	base := w.newest(p)
	in := status.Input{
		Pod: base, Containers: map[string]status.Container{}, PodIPs: podIPs(p, o, w.k.HostIPs), HostIPs: w.k.HostIPs,
		Runtime: w.k.RuntimeName, Sandbox: o.sandboxReady(), Terminating: terminating, Now: time.Now(),
	}
	if f := w.failure(); f != nil {
		in.FailedReason, in.FailedMessage, in.FailedCondition = f.reason, f.message, f.condition
	}
	if terminating {
		clear(w.allocation.remade) // nothing is made anew any more
	}
	for _, c := range all(p) {
		in.Containers[c.Name] = w.containerState(p, c, o)
	}
	in.ResizePending, in.ResizeInProgress = w.resizing(o)
	want := status.Make(in)
	over := ended(want.Phase)
	if apiequality.Semantic.DeepEqual(base.Status, want) {
		return over, nil
	}
	patch, err := statusPatch(base, want)
	if err != nil {
		return over, fmt.Errorf("write status: %w", err)
	}
	w.noteSent(want)
	got, err := w.k.Client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return over, nil // it is gone, or another pod has its name by now
	}
	if err != nil {
		return over, fmt.Errorf("write status: %w", err)
	}
	w.written = got
	return over, nil
}

// newest is the pod with the newest status known: what we wrote last may not have come back yet.
func (w *worker) newest(p *corev1.Pod) *corev1.Pod {
	if w.written == nil {
		return p
	}
	if c, err := resourceversion.CompareResourceVersion(p.ResourceVersion, w.written.ResourceVersion); err != nil || c >= 0 {
		w.written = nil
		return p
	}
	return w.written
}

// statusPatch is what makes the status of a pod the wanted one; the UID in it has the API refuse it for another pod of
// the same name.
func statusPatch(base *corev1.Pod, want corev1.PodStatus) ([]byte, error) {
	old, err := json.Marshal(corev1.Pod{Status: base.Status})
	if err != nil {
		return nil, err
	}
	now, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: base.UID}, Status: want})
	if err != nil {
		return nil, err
	}
	return strategicpatch.CreateTwoWayMergePatch(old, now, corev1.Pod{})
}

func (w *worker) containerState(p *corev1.Pod, c *corev1.Container, o observed) status.Container {
	s := status.Container{Reason: w.waiting[c.Name].reason, Message: w.waiting[c.Name].message}
	now, last := o.current(c.Name), o.previous(c.Name)
	if exited(now) && w.allocation.remade[now.Id] { // the next one is about to come
		s.Last = w.withMessage(p, c, now)
		if n, err := strconv.Atoi(now.Annotations[annotationRestarts]); err == nil {
			s.Restarts = int32(n)
		}
		if s.Reason == "" {
			s.Reason = "ContainerCreating"
		}
		return s
	}
	if now == nil {
		now, last = last, nil
		if now != nil && s.Reason == "" {
			s.Reason = "ContainerCreating" // it ended with an older sandbox
		}
	}
	if now != nil {
		s.Current = w.withMessage(p, c, now)
		s.Started, s.Ready = w.k.prober.State(p.UID, c.Name, now.Id)
		if n, err := strconv.Atoi(now.Annotations[annotationRestarts]); err == nil {
			s.Restarts = int32(n)
		}
		if running(now) {
			w.resized(c, now.Id, &s)
		}
		if exited(now) {
			s.Started, s.Ready = false, now.ExitCode == 0 && !sidecar(c) && isInit(p, c.Name)
		}
	}
	if last != nil {
		s.Last = w.withMessage(p, c, last)
	}
	return s
}

func isInit(p *corev1.Pod, name string) bool {
	return slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == name })
}

// lastSeen is what the API says of a running container's probes, by which a kubelet that starts anew goes on; nil:
// nothing.
func (k *Pods) lastSeen(p *corev1.Pod, name, id string) *prober.Seen {
	full := k.RuntimeName + "://" + id
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for _, c := range list {
			if c.Name == name && c.ContainerID == full && c.State.Running != nil {
				return &prober.Seen{Started: c.Started != nil && *c.Started, Ready: c.Ready}
			}
		}
	}
	return nil
}

// Bounds of what a container may say about its end (API: terminationMessagePath, terminationMessagePolicy).
const (
	maxMessage      = 4096
	maxLogMessage   = 2048
	maxLogLines     = 80
	maxMessageInAll = 12288
)

// withMessage adds what the container left in its termination message file or, if its policy says so and it failed
// and left none, the end of its log.
func (w *worker) withMessage(p *corev1.Pod, c *corev1.Container, s *runtimeapi.ContainerStatus) *runtimeapi.ContainerStatus {
	if !exited(s) || s.Message != "" {
		return s
	}
	n, err := strconv.ParseUint(s.Annotations[annotationRestarts], 10, 32)
	if err != nil {
		return s
	}
	limit := int64(min(maxMessage, maxMessageInAll/max(len(all(p)), 1)))
	data, err := readHead(w.terminationLog(p, c.Name, uint32(n)), limit)
	if err == nil && len(data) > 0 {
		s.Message = strings.ToValidUTF8(string(data), "")
		return s
	}
	if c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError && s.ExitCode != 0 && s.LogPath != "" {
		s.Message = logTail(s.LogPath, min(limit, maxLogMessage), maxLogLines)
	}
	return s
}
