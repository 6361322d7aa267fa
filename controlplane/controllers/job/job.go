package job

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
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
	corelisters "k8s.io/client-go/listers/core/v1"
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
	// burst bounds the pods that one pass makes.
	burst = 500
)

type controller struct {
	client       kubernetes.Interface
	expirer      kubernetes.Interface // of finished Jobs
	jobs         batchlisters.JobLister
	podLister    corelisters.PodLister
	pods         *pods.Control
	recorder     record.EventRecorder
	queue        *queue.Queue // of Jobs
	orphans      *queue.Queue // of pods with our finalizer that may have lost their Job
	expectations pods.Expectations
	written      pods.Written
	// released holds the UIDs of pods that we took the finalizer off, until the cache shows it.
	released sync.Map
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client, expirer kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	jobs, podInf := f.Batch().V1().Jobs(), f.Core().V1().Pods()
	if err := pods.AddIndex(podInf.Informer()); err != nil {
		return nil, fmt.Errorf("job controller: %w", err)
	}
	c := &controller{
		client: client, expirer: expirer, jobs: jobs.Lister(), podLister: podInf.Lister(), recorder: recorder, queue: queue.New("job"), orphans: queue.New("job-orphans"),
		pods: &pods.Control{Client: client, Indexer: podInf.Informer().GetIndexer(), Recorder: recorder},
	}
	_, err := jobs.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: c.queue.AddObject, UpdateFunc: func(_, obj any) { c.queue.AddObject(obj) },
		DeleteFunc: func(obj any) {
			c.queue.AddObject(obj)
			if j, ok := queue.Object[*batchv1.Job](obj); ok {
				owned, err := c.pods.Indexer.ByIndex(pods.OwnerIndex, string(j.UID))
				if err != nil {
					return
				}
				for _, p := range owned {
					c.orphans.AddObject(p)
				}
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("job controller: %w", err)
	}
	_, err = podInf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			c.podChanged(obj.(*corev1.Pod), func(key string, p *corev1.Pod) { c.expectations.Created(key) })
		},
		UpdateFunc: func(_, obj any) {
			c.podChanged(obj.(*corev1.Pod), func(key string, p *corev1.Pod) {
				if p.DeletionTimestamp != nil {
					c.expectations.Deleted(key, p.UID)
				}
			})
		},
		DeleteFunc: func(obj any) {
			if p, ok := queue.Object[*corev1.Pod](obj); ok {
				c.released.Delete(p.UID)
				c.podChanged(p, func(key string, p *corev1.Pod) { c.expectations.Deleted(key, p.UID) })
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("job controller: %w", err)
	}
	return func(ctx context.Context) {
		var wg sync.WaitGroup
		wg.Go(func() {
			c.orphans.Run(ctx, 1, c.reconcileOrphan, jobs.Informer().HasSynced, podInf.Informer().HasSynced)
		})
		c.queue.Run(ctx, 4, c.reconcile, jobs.Informer().HasSynced, podInf.Informer().HasSynced)
		wg.Wait()
	}, nil
}

func (c *controller) podChanged(p *corev1.Pod, seen func(key string, p *corev1.Pod)) {
	tracked := slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer)
	if !tracked {
		c.released.Delete(p.UID)
	}
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil || ref.Kind != kind.Kind {
		if tracked {
			c.orphans.AddObject(p)
		}
		return
	}
	key := p.Namespace + "/" + ref.Name
	seen(key, p)
	c.queue.Add(key)
	if tracked {
		if _, err := c.jobs.Jobs(p.Namespace).Get(ref.Name); apierrors.IsNotFound(err) {
			c.orphans.AddObject(p)
		}
	}
}

// reconcileOrphan takes the finalizer off a pod whose Job is gone: nobody is left to count it.
func (c *controller) reconcileOrphan(ctx context.Context, namespace, name string) error {
	p, err := c.podLister.Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if ref := metav1.GetControllerOfNoCopy(p); ref != nil && ref.Kind == kind.Kind {
		// The cache of Jobs may be behind that of pods.
		job, err := c.client.BatchV1().Jobs(namespace).Get(ctx, ref.Name, metav1.GetOptions{})
		if err == nil && job.UID == ref.UID {
			return nil
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return c.release(ctx, p)
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	key := namespace + "/" + name
	job, err := c.jobs.Jobs(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.expectations.Forget(key)
		c.written.Forget(key)
		return nil
	}
	if err != nil || c.written.Stale(key, job) || job.Spec.ManagedBy != nil && *job.Spec.ManagedBy != batchv1.JobControllerName {
		return err
	}
	job = job.DeepCopy()
	if done := finishedAt(job); done != nil {
		if err := c.releaseAll(ctx, job); err != nil {
			return err
		}
		return c.expire(ctx, key, job, *done)
	}
	if job.DeletionTimestamp != nil {
		return c.releaseAll(ctx, job)
	}
	sel, err := metav1.LabelSelectorAsSelector(job.Spec.Selector)
	if err != nil {
		return nil // validation keeps such objects out
	}
	live := func(ctx context.Context) (metav1.Object, error) {
		return c.client.BatchV1().Jobs(namespace).Get(ctx, name, metav1.GetOptions{})
	}
	// The first pass writes down the pods that have ended and releases them, the next one moves them into the
	// sums, and may find the Job finished by that.
	for more := true; more; {
		// What was released is asked before the pods are listed: an entry goes only after the cache shows the pod
		// without the finalizer, so a pod is seen as released in one of the two.
		released := map[types.UID]bool{}
		c.released.Range(func(uid, _ any) bool {
			released[uid.(types.UID)] = true
			return true
		})
		owned, err := c.pods.Owned(ctx, job, *metav1.NewControllerRef(job, kind), sel, live)
		if err != nil {
			return err
		}
		if job, more, err = c.pass(ctx, key, job, owned, released); err != nil {
			return err
		}
	}
	return nil
}

// pass counts, decides and acts once. It tells whether pods were released, so that another pass has something to do.
func (c *controller) pass(ctx context.Context, key string, job *batchv1.Job, owned []*corev1.Pod, released map[types.UID]bool) (*batchv1.Job, bool, error) {
	t := count(job, owned, released)
	d := decide(job, t, time.Now())
	if c.expectations.Satisfied(key) {
		if err := c.act(ctx, key, job, &d); err != nil {
			return job, false, err
		}
	}
	if d.again > 0 {
		c.queue.AddAfter(key, d.again)
	}
	// First the end of each pod goes into the status, only then its finalizer goes.
	job, err := c.writeStatus(ctx, key, job, d)
	if err != nil || job == nil {
		return job, false, err
	}
	for _, p := range t.ended {
		if err := c.release(ctx, p); err != nil {
			return job, false, err
		}
	}
	return job, len(t.ended) > 0 && finishedAt(job) == nil, nil
}

// act makes and deletes pods.
func (c *controller) act(ctx context.Context, key string, job *batchv1.Job, d *decision) error {
	if len(d.delete) > 0 {
		uids := make([]types.UID, len(d.delete))
		for i, p := range d.delete {
			uids[i] = p.UID
		}
		c.expectations.Expect(key, 0, uids...)
		var first error
		for _, p := range d.delete {
			if err := c.pods.Delete(ctx, job, p); err != nil {
				c.expectations.Deleted(key, p.UID)
				first = err
			}
		}
		return first
	}
	if d.create == 0 {
		return nil
	}
	c.expectations.Expect(key, d.create)
	indexes := make(chan int, len(d.indexes))
	for _, i := range d.indexes {
		indexes <- i
	}
	made, err := pods.SlowStart(d.create, func() error { return c.createPod(ctx, job, indexes) })
	for range d.create - made {
		c.expectations.Created(key)
	}
	d.status.Active += int32(made)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return err
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
			setIndex(job, p, index, c.indexFailures(job, index))
		}
	})
	return err
}

// indexFailures is how often the index has failed so far.
func (c *controller) indexFailures(job *batchv1.Job, index int) int32 {
	owned, err := c.pods.Indexer.ByIndex(pods.OwnerIndex, string(job.UID))
	if err != nil {
		return 0
	}
	var n int32
	for _, o := range owned {
		p := o.(*corev1.Pod)
		if i, ok := indexOf(p); ok && i == index && p.Status.Phase == corev1.PodFailed {
			n = max(n, indexFailuresOf(p)+1)
		}
	}
	return n
}

// setIndex tells a pod of Indexed mode which index it works on.
func setIndex(job *batchv1.Job, p *corev1.Pod, index int, failures int32) {
	n := strconv.Itoa(index)
	p.GenerateName = fmt.Sprintf("%s-%d-", job.Name, index)
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Annotations[batchv1.JobCompletionIndexAnnotation] = n
	p.Labels[batchv1.JobCompletionIndexAnnotation] = n
	if job.Spec.BackoffLimitPerIndex != nil {
		p.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(int(failures))
	}
	p.Spec.Hostname = fmt.Sprintf("%s-%d", job.Name, index)
	const env = "JOB_COMPLETION_INDEX"
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if !slices.ContainsFunc(list[i].Env, func(e corev1.EnvVar) bool { return e.Name == env }) {
				list[i].Env = append(list[i].Env, corev1.EnvVar{Name: env, Value: n})
			}
		}
	}
}

// writeStatus returns the Job as it was written, nil if it is gone.
func (c *controller) writeStatus(ctx context.Context, key string, job *batchv1.Job, d decision) (*batchv1.Job, error) {
	if apiequality.Semantic.DeepEqual(job.Status, d.status) {
		return job, nil
	}
	job.Status = d.status
	updated, err := c.client.BatchV1().Jobs(job.Namespace).UpdateStatus(ctx, job, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c.written.Note(key, updated)
	for _, e := range d.events {
		c.recorder.Event(job, e.kind, e.reason, e.message)
	}
	return updated, nil
}

// release takes our finalizer off a pod.
func (c *controller) release(ctx context.Context, p *corev1.Pod) error {
	if _, done := c.released.Load(p.UID); done || !slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) {
		return nil
	}
	patch := fmt.Sprintf(`{"metadata":{"uid":%q,"$deleteFromPrimitiveList/finalizers":[%q]}}`, p.UID, batchv1.JobTrackingFinalizer)
	_, err := c.client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("pod %s/%s: remove finalizer: %w", p.Namespace, p.Name, err)
	}
	c.released.Store(p.UID, true)
	// The cache may have shown it meanwhile.
	if now, err := c.podLister.Pods(p.Namespace).Get(p.Name); err != nil || now.UID != p.UID || !slices.Contains(now.Finalizers, batchv1.JobTrackingFinalizer) {
		c.released.Delete(p.UID)
	}
	return nil
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
	err := c.expirer.BatchV1().Jobs(job.Namespace).Delete(ctx, job.Name, metav1.DeleteOptions{
		PropagationPolicy: &foreground,
		Preconditions:     &metav1.Preconditions{UID: &job.UID, ResourceVersion: &job.ResourceVersion}, // its ttl may just have been raised
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
