// Package job runs pods until as many of them as a Job asks for have succeeded.
//
// A pod carries a finalizer until its end has been counted in the Job's status,
// so that no success and no failure is lost or counted twice (KEP-2307).
package job

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	batchlisters "k8s.io/client-go/listers/batch/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/controlplane/controllers/pods"
	"github.com/strake-io/strake/controlplane/controllers/queue"
)

var kind = batchv1.SchemeGroupVersion.WithKind("Job")

const (
	// backoffBase is the pause after the first failed pod; it doubles up to backoffMax.
	backoffBase = 10 * time.Second
	backoffMax  = 10 * time.Minute
	burst       = 500
)

type controller struct {
	client       kubernetes.Interface
	jobs         batchlisters.JobLister
	pods         *pods.Control
	recorder     record.EventRecorder
	queue        *queue.Queue
	expectations pods.Expectations
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	jobs, podInf := f.Batch().V1().Jobs(), f.Core().V1().Pods()
	if err := pods.AddIndex(podInf.Informer()); err != nil {
		return nil, fmt.Errorf("job controller: %w", err)
	}
	c := &controller{
		client: client, jobs: jobs.Lister(), recorder: recorder, queue: queue.New("job"),
		pods: &pods.Control{Client: client, Indexer: podInf.Informer().GetIndexer(), Recorder: recorder},
	}
	if _, err := jobs.Informer().AddEventHandler(c.queue.Handlers()); err != nil {
		return nil, fmt.Errorf("job controller: %w", err)
	}
	changed := func(obj any, seen func(key string, p *corev1.Pod)) {
		p, ok := queue.Object[*corev1.Pod](obj)
		if !ok {
			return
		}
		if ref := metav1.GetControllerOfNoCopy(p); ref != nil && ref.Kind == kind.Kind {
			key := p.Namespace + "/" + ref.Name
			seen(key, p)
			c.queue.Add(key)
		}
	}
	_, err := podInf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { changed(obj, func(key string, _ *corev1.Pod) { c.expectations.Created(key) }) },
		UpdateFunc: func(_, obj any) {
			changed(obj, func(key string, p *corev1.Pod) {
				if p.DeletionTimestamp != nil {
					c.expectations.Deleted(key, p.UID)
				}
			})
		},
		DeleteFunc: func(obj any) { changed(obj, func(key string, p *corev1.Pod) { c.expectations.Deleted(key, p.UID) }) },
	})
	if err != nil {
		return nil, fmt.Errorf("job controller: %w", err)
	}
	return func(ctx context.Context) {
		c.queue.Run(ctx, 4, c.reconcile, jobs.Informer().HasSynced, podInf.Informer().HasSynced)
	}, nil
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	key := namespace + "/" + name
	job, err := c.jobs.Jobs(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.expectations.Forget(key)
		return nil
	}
	if err != nil {
		return err
	}
	job = job.DeepCopy()
	if done := finishedAt(job); done != nil {
		if err := c.releaseAll(ctx, job); err != nil {
			return err
		}
		if err := c.forgetUncounted(ctx, job); err != nil {
			return err
		}
		return c.expire(ctx, key, job, *done)
	}
	sel, err := metav1.LabelSelectorAsSelector(job.Spec.Selector)
	if err != nil {
		return nil // validation keeps such objects out
	}
	owned, err := c.pods.Owned(ctx, job, *metav1.NewControllerRef(job, kind), sel)
	if err != nil {
		return err
	}
	if job.DeletionTimestamp != nil {
		return c.releaseAll(ctx, job)
	}
	satisfied := c.expectations.Satisfied(key)
	now := time.Now()
	counts := count(job, owned)
	d := decide(job, counts, now)
	if err := c.act(ctx, key, job, counts, &d, satisfied); err != nil {
		return err
	}
	if d.again > 0 {
		c.queue.AddAfter(key, d.again)
	}
	// First the end of each pod goes into the status, only then its finalizer goes.
	if err := c.writeStatus(ctx, job, d.status); err != nil {
		return err
	}
	for _, p := range counts.ended {
		if err := c.release(ctx, p); err != nil {
			return err
		}
	}
	return c.forgetUncounted(ctx, job)
}

// tally is what a Job's pods amount to.
type tally struct {
	active            []*corev1.Pod
	ended             []*corev1.Pod // finished, and not yet released
	succeeded, failed int32         // counted before and newly
	ready             int32
	lastFailure       time.Time
	uncounted         *batchv1.UncountedTerminatedPods
	indexes           map[int]bool // completed indexes (Indexed mode)
	activeIndexes     map[int]bool
}

func count(job *batchv1.Job, owned []*corev1.Pod) tally {
	t := tally{succeeded: job.Status.Succeeded, failed: job.Status.Failed, uncounted: &batchv1.UncountedTerminatedPods{}, indexes: parseIndexes(job.Status.CompletedIndexes), activeIndexes: map[int]bool{}}
	var known []types.UID
	if u := job.Status.UncountedTerminatedPods; u != nil {
		known = append(slices.Clone(u.Succeeded), u.Failed...)
		t.succeeded += int32(len(u.Succeeded))
		t.failed += int32(len(u.Failed))
	}
	for _, p := range owned {
		index, _ := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation]) // absent outside of Indexed mode
		tracked := slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer)
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		if !ended {
			if p.DeletionTimestamp == nil {
				t.active = append(t.active, p)
				t.activeIndexes[index] = true
				if ok, _ := pods.Ready(p); ok {
					t.ready++
				}
			} else if tracked && p.Spec.NodeName == "" {
				// Deleted before it ever ran: it failed.
				ended = true
			}
		}
		if !ended {
			continue
		}
		if at := endOf(p); p.Status.Phase != corev1.PodSucceeded && at.After(t.lastFailure) {
			t.lastFailure = at
		}
		if !tracked {
			continue
		}
		t.ended = append(t.ended, p)
		if slices.Contains(known, p.UID) {
			// In the sums above already; it stays uncounted until its finalizer is seen to be gone.
			if p.Status.Phase == corev1.PodSucceeded {
				t.uncounted.Succeeded = append(t.uncounted.Succeeded, p.UID)
			} else {
				t.uncounted.Failed = append(t.uncounted.Failed, p.UID)
			}
			continue
		}
		if p.Status.Phase == corev1.PodSucceeded {
			if indexed(job) {
				if t.indexes[index] {
					continue
				}
				t.indexes[index] = true
			}
			t.succeeded++
			t.uncounted.Succeeded = append(t.uncounted.Succeeded, p.UID)
		} else {
			t.failed++
			t.uncounted.Failed = append(t.uncounted.Failed, p.UID)
		}
	}
	return t
}

func indexed(job *batchv1.Job) bool {
	return job.Spec.CompletionMode != nil && *job.Spec.CompletionMode == batchv1.IndexedCompletion
}

func endOf(p *corev1.Pod) time.Time {
	at := p.CreationTimestamp.Time
	for _, s := range p.Status.ContainerStatuses {
		if t := s.State.Terminated; t != nil && t.FinishedAt.After(at) {
			at = t.FinishedAt.Time
		}
	}
	return at
}

// decision is what to do next for a Job.
type decision struct {
	status      batchv1.JobStatus
	create      int
	deleteAll   bool
	deleteSome  int
	finished    batchv1.JobConditionType
	reason, why string
	again       time.Duration
}

// decide is the Job's logic; it has no effects.
func decide(job *batchv1.Job, t tally, now time.Time) decision {
	d := decision{status: *job.Status.DeepCopy()}
	s := &d.status
	s.Active, s.Succeeded, s.Failed, s.Ready = int32(len(t.active)), t.succeeded, t.failed, &t.ready
	s.UncountedTerminatedPods = t.uncounted
	if indexed(job) {
		s.CompletedIndexes = formatIndexes(t.indexes)
	}
	suspended := job.Spec.Suspend != nil && *job.Spec.Suspend
	if s.StartTime == nil && !suspended {
		stamp := metav1.NewTime(now)
		s.StartTime = &stamp
	}
	switch limit := job.Spec.ActiveDeadlineSeconds; {
	case t.failed > *job.Spec.BackoffLimit:
		d.finished, d.reason, d.why = batchv1.JobFailed, batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit"
	case limit != nil && s.StartTime != nil && !suspended:
		left := s.StartTime.Add(time.Duration(*limit) * time.Second).Sub(now)
		if left <= 0 {
			d.finished, d.reason, d.why = batchv1.JobFailed, batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline"
		} else {
			d.again = left
		}
	}
	if d.finished == "" && done(job, t) {
		d.finished, d.reason, d.why = batchv1.JobComplete, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods"
	}
	switch {
	case d.finished != "":
		d.deleteAll = len(t.active) > 0
	case suspended:
		d.deleteAll = len(t.active) > 0
		setCondition(s, batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended", now)
		s.StartTime = nil
	default:
		if slices.ContainsFunc(s.Conditions, func(c batchv1.JobCondition) bool { return c.Type == batchv1.JobSuspended }) {
			setCondition(s, batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed", now)
		}
		want := wanted(job, t)
		switch missing := want - len(t.active); {
		case missing < 0:
			d.deleteSome = -missing
		case missing > 0:
			if wait := backoff(t, now); wait > 0 {
				if d.again == 0 || wait < d.again {
					d.again = wait
				}
			} else {
				d.create = min(missing, burst)
			}
		}
	}
	return d
}

// done tells whether enough pods have succeeded. Without completions, any success ends the Job once all pods have ended.
func done(job *batchv1.Job, t tally) bool {
	if job.Spec.Completions == nil {
		return t.succeeded > 0 && len(t.active) == 0
	}
	return t.succeeded >= *job.Spec.Completions && (len(t.active) == 0 || t.succeeded > 0 || *job.Spec.Completions == 0)
}

// wanted is how many pods shall run now.
func wanted(job *batchv1.Job, t tally) int {
	n := int(*job.Spec.Parallelism)
	if job.Spec.Completions == nil {
		if t.succeeded > 0 {
			return len(t.active) // a work queue that is running dry
		}
		return n
	}
	return max(0, min(n, int(*job.Spec.Completions-t.succeeded)))
}

// backoff is how long to wait before the next pod, after failures.
func backoff(t tally, now time.Time) time.Duration {
	if t.failed == 0 || t.lastFailure.IsZero() {
		return 0
	}
	wait := backoffBase
	for i := int32(1); i < t.failed && wait < backoffMax; i++ {
		wait *= 2
	}
	return max(0, t.lastFailure.Add(min(wait, backoffMax)).Sub(now))
}

// act makes and deletes pods, and writes the end into the status once no pod is left.
func (c *controller) act(ctx context.Context, key string, job *batchv1.Job, t tally, d *decision, satisfied bool) error {
	if d.deleteAll || d.deleteSome > 0 {
		victims := t.active
		if !d.deleteAll {
			victims = victims[:min(d.deleteSome, len(victims))]
		}
		if satisfied {
			uids := make([]types.UID, len(victims))
			for i, p := range victims {
				uids[i] = p.UID
			}
			c.expectations.Expect(key, 0, uids...)
			for _, p := range victims {
				if err := c.pods.Delete(ctx, job, p); err != nil {
					c.expectations.Deleted(key, p.UID)
					return err
				}
			}
		}
		d.status.Active -= int32(len(victims))
	}
	if d.create > 0 && satisfied {
		c.expectations.Expect(key, d.create)
		indexes := freeIndexes(job, t, d.create)
		next := make(chan int, len(indexes))
		for _, i := range indexes {
			next <- i
		}
		made, err := pods.SlowStart(d.create, func() error { return c.createPod(ctx, job, next) })
		for range d.create - made {
			c.expectations.Created(key)
		}
		d.status.Active += int32(made)
		if err != nil && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return err
		}
	}
	if d.finished != "" {
		now := time.Now()
		setCondition(&d.status, d.finished, corev1.ConditionTrue, d.reason, d.why, now)
		d.status.Active, d.status.Ready = 0, new(int32)
		if d.finished == batchv1.JobComplete {
			setCondition(&d.status, batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, d.reason, d.why, now)
			stamp := metav1.NewTime(now)
			d.status.CompletionTime = &stamp
			c.recorder.Event(job, corev1.EventTypeNormal, "Completed", "Job completed")
		} else {
			setCondition(&d.status, batchv1.JobFailureTarget, corev1.ConditionTrue, d.reason, d.why, now)
			c.recorder.Event(job, corev1.EventTypeWarning, d.reason, d.why)
		}
	}
	return nil
}

func (c *controller) createPod(ctx context.Context, job *batchv1.Job, indexes <-chan int) error {
	index := -1
	select {
	case index = <-indexes:
	default:
	}
	_, err := c.pods.Create(ctx, job, job.Namespace, job.Name, &job.Spec.Template, *metav1.NewControllerRef(job, kind), func(p *corev1.Pod) {
		p.Finalizers = append(p.Finalizers, batchv1.JobTrackingFinalizer)
		if index >= 0 {
			n := strconv.Itoa(index)
			p.GenerateName = fmt.Sprintf("%s-%d-", job.Name, index)
			if p.Annotations == nil {
				p.Annotations = map[string]string{}
			}
			p.Annotations[batchv1.JobCompletionIndexAnnotation] = n
			p.Labels[batchv1.JobCompletionIndexAnnotation] = n
			p.Spec.Hostname = fmt.Sprintf("%s-%d", job.Name, index)
			for i := range p.Spec.Containers {
				p.Spec.Containers[i].Env = append(p.Spec.Containers[i].Env, corev1.EnvVar{Name: "JOB_COMPLETION_INDEX", Value: n})
			}
		}
	})
	return err
}

// freeIndexes are the lowest indexes that neither run nor have succeeded (Indexed mode).
func freeIndexes(job *batchv1.Job, t tally, n int) []int {
	var out []int
	if !indexed(job) {
		return nil
	}
	for i := 0; i < int(*job.Spec.Completions) && len(out) < n; i++ {
		if !t.indexes[i] && !t.activeIndexes[i] {
			out = append(out, i)
		}
	}
	return out
}

func setCondition(s *batchv1.JobStatus, t batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) {
	stamp := metav1.NewTime(now)
	for i := range s.Conditions {
		if c := &s.Conditions[i]; c.Type == t {
			if c.Status != status {
				c.Status, c.Reason, c.Message, c.LastTransitionTime, c.LastProbeTime = status, reason, message, stamp, stamp
			}
			return
		}
	}
	s.Conditions = append(s.Conditions, batchv1.JobCondition{Type: t, Status: status, Reason: reason, Message: message, LastTransitionTime: stamp, LastProbeTime: stamp})
}

func (c *controller) writeStatus(ctx context.Context, job *batchv1.Job, s batchv1.JobStatus) error {
	if apiequality.Semantic.DeepEqual(job.Status, s) {
		return nil
	}
	// The counted and the uncounted are told together: what stands in uncounted is not in the sums yet.
	s.Succeeded -= int32(len(s.UncountedTerminatedPods.Succeeded))
	s.Failed -= int32(len(s.UncountedTerminatedPods.Failed))
	job.Status = s
	updated, err := c.client.BatchV1().Jobs(job.Namespace).UpdateStatus(ctx, job, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		*job = *updated
	}
	return err
}

// forgetUncounted moves what was uncounted into the sums, once the finalizers are off.
func (c *controller) forgetUncounted(ctx context.Context, job *batchv1.Job) error {
	u := job.Status.UncountedTerminatedPods
	if u == nil || len(u.Succeeded)+len(u.Failed) == 0 {
		return nil
	}
	job.Status.Succeeded += int32(len(u.Succeeded))
	job.Status.Failed += int32(len(u.Failed))
	job.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	_, err := c.client.BatchV1().Jobs(job.Namespace).UpdateStatus(ctx, job, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *controller) release(ctx context.Context, p *corev1.Pod) error {
	if !slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) {
		return nil
	}
	patch := fmt.Sprintf(`{"metadata":{"uid":%q,"$deleteFromPrimitiveList/finalizers":[%q]}}`, p.UID, batchv1.JobTrackingFinalizer)
	_, err := c.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// releaseAll takes the finalizer off all pods of a Job that has ended or goes.
func (c *controller) releaseAll(ctx context.Context, job *batchv1.Job) error {
	owned, err := c.pods.Indexer.ByIndex(pods.OwnerIndex, string(job.UID))
	if err != nil {
		return err
	}
	for _, o := range owned {
		if err := c.release(ctx, o.(*corev1.Pod)); err != nil {
			return err
		}
	}
	return nil
}

func finishedAt(job *batchv1.Job) *time.Time {
	for _, c := range job.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return &c.LastTransitionTime.Time
		}
	}
	return nil
}

// expire deletes a finished Job after its time to live.
func (c *controller) expire(ctx context.Context, key string, job *batchv1.Job, done time.Time) error {
	ttl := job.Spec.TTLSecondsAfterFinished
	if ttl == nil || job.DeletionTimestamp != nil {
		return nil
	}
	if left := time.Until(done.Add(time.Duration(*ttl) * time.Second)); left > 0 {
		c.queue.AddAfter(key, left)
		return nil
	}
	foreground := metav1.DeletePropagationForeground
	err := c.client.BatchV1().Jobs(job.Namespace).Delete(ctx, job.Name, metav1.DeleteOptions{PropagationPolicy: &foreground, Preconditions: metav1.NewUIDPreconditions(string(job.UID))})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
