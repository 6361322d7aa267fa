// Package pods is what the owners of pods have in common: finding their pods,
// adopting strays, making and deleting them in growing batches, and knowing
// which of their own writes the cache has not shown yet.
package pods

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
)

// OwnerIndex finds pods by the UID of their controller, and strays by namespace.
const OwnerIndex = "controller-uid"

// AddIndex must run before the informer starts.
func AddIndex(inf cache.SharedIndexInformer) error {
	if _, ok := inf.GetIndexer().GetIndexers()[OwnerIndex]; ok {
		return nil
	}
	return inf.AddIndexers(cache.Indexers{OwnerIndex: func(obj any) ([]string, error) {
		p, ok := obj.(*corev1.Pod)
		if !ok {
			return nil, nil
		}
		if ref := metav1.GetControllerOfNoCopy(p); ref != nil {
			return []string{string(ref.UID)}, nil
		}
		return []string{"stray/" + p.Namespace}, nil
	}})
}

// Control lists and changes the pods of owners of one kind.
type Control struct {
	Client   kubernetes.Interface
	Indexer  cache.Indexer
	Recorder record.EventRecorder
	// Fits tells whether an owner may adopt a stray that its selector matches; nil: always.
	Fits func(owner metav1.Object, p *corev1.Pod) bool
}

// Owned returns the owner's pods, after adopting strays that the selector matches and letting go of pods that
// it matches no longer. Before the first adoption it asks by live whether the owner still stands: a cache that
// lags behind the owner's deletion must not take back the pods that it has just orphaned.
func (c *Control) Owned(ctx context.Context, owner metav1.Object, ref metav1.OwnerReference, sel labels.Selector, live func(context.Context) (metav1.Object, error)) ([]*corev1.Pod, error) {
	var out []*corev1.Pod
	if sel.Empty() {
		return nil, nil // would match everything; validation keeps such owners out
	}
	mine, err := c.Indexer.ByIndex(OwnerIndex, string(owner.GetUID()))
	if err != nil {
		return nil, err
	}
	for _, o := range mine {
		p := o.(*corev1.Pod)
		if sel.Matches(labels.Set(p.Labels)) {
			out = append(out, p)
			continue
		}
		if err := c.patchOwner(ctx, p, fmt.Sprintf(`{"metadata":{"uid":%q,"ownerReferences":[{"$patch":"delete","uid":%q}]}}`, p.UID, owner.GetUID())); err != nil {
			return nil, fmt.Errorf("release pod %s: %w", p.Name, err)
		}
	}
	if owner.GetDeletionTimestamp() != nil {
		return out, nil
	}
	checked := false
	strays, err := c.Indexer.ByIndex(OwnerIndex, "stray/"+owner.GetNamespace())
	if err != nil {
		return nil, err
	}
	for _, o := range strays {
		p := o.(*corev1.Pod)
		if p.DeletionTimestamp != nil || !sel.Matches(labels.Set(p.Labels)) || c.Fits != nil && !c.Fits(owner, p) {
			continue
		}
		if !checked {
			if err := Standing(ctx, owner, live); err != nil {
				return nil, err
			}
			checked = true
		}
		patch := fmt.Sprintf(`{"metadata":{"uid":%q,"ownerReferences":[{"apiVersion":%q,"kind":%q,"name":%q,"uid":%q,"controller":true,"blockOwnerDeletion":true}]}}`, p.UID, ref.APIVersion, ref.Kind, ref.Name, ref.UID)
		if err := c.patchOwner(ctx, p, patch); err != nil {
			return nil, fmt.Errorf("adopt pod %s: %w", p.Name, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// Standing returns an error unless the API server itself says that the owner is there and not being deleted.
func Standing(ctx context.Context, owner metav1.Object, live func(context.Context) (metav1.Object, error)) error {
	now, err := live(ctx)
	if err != nil {
		return fmt.Errorf("adopt for %s: %w", owner.GetName(), err)
	}
	if now.GetUID() != owner.GetUID() || now.GetDeletionTimestamp() != nil {
		return fmt.Errorf("adopt for %s: it is being deleted", owner.GetName())
	}
	return nil
}

func (c *Control) patchOwner(ctx context.Context, p *corev1.Pod, patch string) error {
	_, err := c.Client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// Create makes a pod of a template.
func (c *Control) Create(ctx context.Context, owner runtime.Object, namespace, prefix string, t *corev1.PodTemplateSpec, ref metav1.OwnerReference, change func(*corev1.Pod)) (*corev1.Pod, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, GenerateName: prefix + "-", Labels: t.Labels, Annotations: t.Annotations, Finalizers: t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{ref},
		},
		Spec: *t.Spec.DeepCopy(),
	}
	pod = pod.DeepCopy()
	if change != nil {
		change(pod)
	}
	made, err := c.Client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		// A pod with a name of its own may be there already, though the cache doesn't show it yet.
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) && !apierrors.IsAlreadyExists(err) {
			c.Recorder.Eventf(owner, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
		}
		return nil, err
	}
	c.Recorder.Eventf(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %v", made.Name)
	return made, nil
}

// Delete removes a pod; one that is gone already is no error.
func (c *Control) Delete(ctx context.Context, owner runtime.Object, p *corev1.Pod) error {
	err := c.Client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	if err != nil {
		c.Recorder.Eventf(owner, corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", err)
		return err
	}
	c.Recorder.Eventf(owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %v", p.Name)
	return nil
}

// SlowStart calls f n times, in batches of 1, 2, 4 …, and stops after a batch with an error: a template that
// the API refuses costs one request, not a thousand.
func SlowStart(n int, f func() error) (succeeded int, err error) {
	for batch := 1; succeeded < n; batch *= 2 {
		size := min(batch, n-succeeded)
		errs := make(chan error, size)
		var wg sync.WaitGroup
		for range size {
			wg.Go(func() { errs <- f() })
		}
		wg.Wait()
		close(errs)
		for e := range errs {
			if e != nil {
				err = e
			} else {
				succeeded++
			}
		}
		if err != nil {
			return succeeded, err
		}
	}
	return succeeded, nil
}

// Expectations remember an owner's own writes until the cache shows them, so that a lagging cache is not
// taken for missing pods. They run out after five minutes, in case an event never comes.
type Expectations struct {
	mu sync.Mutex
	m  map[string]*expectation
}

type expectation struct {
	created int
	deleted map[types.UID]bool
	since   time.Time
}

const expectationTimeout = 5 * time.Minute

// Satisfied tells whether the cache has caught up with the owner's writes.
func (e *Expectations) Satisfied(key string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.m[key]
	return x == nil || x.created <= 0 && len(x.deleted) == 0 || time.Since(x.since) > expectationTimeout
}

func (e *Expectations) get(key string) *expectation {
	if e.m == nil {
		e.m = map[string]*expectation{}
	}
	if e.m[key] == nil {
		e.m[key] = &expectation{deleted: map[types.UID]bool{}}
	}
	return e.m[key]
}

// Expect starts a new round of writes.
func (e *Expectations) Expect(key string, created int, deleted ...types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.get(key)
	x.created, x.since = created, time.Now()
	clear(x.deleted)
	for _, uid := range deleted {
		x.deleted[uid] = true
	}
}

// Created notes a pod that was seen, or one that will not come.
func (e *Expectations) Created(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.m[key]; x != nil {
		x.created--
	}
}

// Deleted notes a pod that was seen to go, or one that will not.
func (e *Expectations) Deleted(key string, uid types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.m[key]; x != nil {
		delete(x.deleted, uid)
	}
}

// Forget drops what is known of an owner that is gone.
func (e *Expectations) Forget(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.m, key)
}

// Active tells whether a pod counts as a replica: not finished and not being deleted.
func Active(p *corev1.Pod) bool {
	return p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && p.DeletionTimestamp == nil
}

// Ready tells whether the pod's Ready condition is true, and since when.
func Ready(p *corev1.Pod) (bool, metav1.Time) {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue, c.LastTransitionTime
		}
	}
	return false, metav1.Time{}
}

// Available tells whether the pod has been ready for so long, or else how long it still takes.
func Available(p *corev1.Pod, minReady time.Duration, now time.Time) (bool, time.Duration) {
	ready, since := Ready(p)
	if !ready {
		return false, 0
	}
	left := minReady - now.Sub(since.Time)
	return minReady == 0 || left <= 0, max(left, 0)
}
