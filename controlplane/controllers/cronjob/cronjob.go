// Package cronjob starts Jobs at the times that CronJobs name.
package cronjob

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	batchlisters "k8s.io/client-go/listers/batch/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/strake-io/strake/controlplane/controllers/pods"
	"github.com/strake-io/strake/controlplane/controllers/queue"
)

var kind = batchv1.SchemeGroupVersion.WithKind("CronJob")

// ownerIndex finds Jobs by the UID of their CronJob.
const ownerIndex = "cronjob-uid"

// scheduledAnnotation tells for what time a Job was made.
const scheduledAnnotation = batchv1.CronJobScheduledTimestampAnnotation

type controller struct {
	client   kubernetes.Interface
	crons    batchlisters.CronJobLister
	jobs     cache.Indexer
	recorder record.EventRecorder
	queue    *queue.Queue
	written  pods.Written
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	crons, jobs := f.Batch().V1().CronJobs(), f.Batch().V1().Jobs()
	err := jobs.Informer().AddIndexers(cache.Indexers{ownerIndex: func(obj any) ([]string, error) {
		if j, ok := obj.(*batchv1.Job); ok {
			if ref := metav1.GetControllerOfNoCopy(j); ref != nil {
				return []string{string(ref.UID)}, nil
			}
		}
		return nil, nil
	}})
	if err != nil {
		return nil, fmt.Errorf("cronjob controller: %w", err)
	}
	c := &controller{client: client, crons: crons.Lister(), jobs: jobs.Informer().GetIndexer(), recorder: recorder, queue: queue.New("cronjob")}
	if _, err := crons.Informer().AddEventHandler(c.queue.Handlers()); err != nil {
		return nil, fmt.Errorf("cronjob controller: %w", err)
	}
	changed := func(obj any) {
		if j, ok := queue.Object[*batchv1.Job](obj); ok {
			if ref := metav1.GetControllerOfNoCopy(j); ref != nil && ref.Kind == kind.Kind {
				c.queue.Add(j.Namespace + "/" + ref.Name)
			}
		}
	}
	if _, err := jobs.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: changed, UpdateFunc: func(_, obj any) { changed(obj) }, DeleteFunc: changed}); err != nil {
		return nil, fmt.Errorf("cronjob controller: %w", err)
	}
	return func(ctx context.Context) {
		c.queue.Run(ctx, 2, c.reconcile, crons.Informer().HasSynced, jobs.Informer().HasSynced)
	}, nil
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	key := namespace + "/" + name
	cron, err := c.crons.CronJobs(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		c.written.Forget(key)
		return nil
	}
	if err != nil || cron.DeletionTimestamp != nil || c.written.Stale(key, cron) {
		return err
	}
	objs, err := c.jobs.ByIndex(ownerIndex, string(cron.UID))
	if err != nil {
		return err
	}
	children := make([]*batchv1.Job, 0, len(objs))
	for _, o := range objs {
		children = append(children, o.(*batchv1.Job))
	}
	status, err := c.tally(ctx, cron, children)
	if err != nil {
		return err
	}
	actErr := c.start(ctx, key, cron, &status)
	if err := c.writeStatus(ctx, key, cron, status); err != nil {
		return errors.Join(actErr, err)
	}
	return errors.Join(actErr, c.trim(ctx, cron, children))
}

func finished(j *batchv1.Job) (bool, batchv1.JobConditionType) {
	for _, cond := range j.Status.Conditions {
		if (cond.Type == batchv1.JobComplete || cond.Type == batchv1.JobFailed) && cond.Status == corev1.ConditionTrue {
			return true, cond.Type
		}
	}
	return false, ""
}

// tally brings the list of running Jobs up to date.
func (c *controller) tally(ctx context.Context, cron *batchv1.CronJob, children []*batchv1.Job) (batchv1.CronJobStatus, error) {
	status := *cron.Status.DeepCopy()
	known := map[string]*batchv1.Job{}
	for _, j := range children {
		known[string(j.UID)] = j
		listed := slices.ContainsFunc(status.Active, func(r corev1.ObjectReference) bool { return r.UID == j.UID })
		switch done, how := finished(j); {
		case !done && !listed:
			status.Active = append(status.Active, reference(j))
		case done && listed:
			status.Active = slices.DeleteFunc(status.Active, func(r corev1.ObjectReference) bool { return r.UID == j.UID })
			c.recorder.Eventf(cron, corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", j.Name, how)
			fallthrough
		case done:
			if t := j.Status.CompletionTime; how == batchv1.JobComplete && t != nil && (status.LastSuccessfulTime == nil || status.LastSuccessfulTime.Before(t)) {
				status.LastSuccessfulTime = t
			}
		}
	}
	for _, r := range slices.Clone(status.Active) {
		if known[string(r.UID)] != nil {
			continue
		}
		// Made by us a moment ago, or gone: the API server knows.
		j, err := c.client.BatchV1().Jobs(cron.Namespace).Get(ctx, r.Name, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return status, err
		}
		if err != nil || j.UID != r.UID {
			c.recorder.Eventf(cron, corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", r.Name)
			status.Active = slices.DeleteFunc(status.Active, func(x corev1.ObjectReference) bool { return x.UID == r.UID })
		}
	}
	return status, nil
}

func reference(j *batchv1.Job) corev1.ObjectReference {
	return corev1.ObjectReference{Kind: "Job", APIVersion: batchv1.SchemeGroupVersion.String(), Namespace: j.Namespace, Name: j.Name, UID: j.UID, ResourceVersion: j.ResourceVersion}
}

// start makes the Job that is due, and queues the CronJob for the next time.
func (c *controller) start(ctx context.Context, key string, cron *batchv1.CronJob, status *batchv1.CronJobStatus) error {
	if cron.Spec.Suspend != nil && *cron.Spec.Suspend {
		return nil
	}
	now := time.Now()
	schedule, err := scheduleOf(cron)
	if err != nil {
		c.recorder.Eventf(cron, corev1.EventTypeWarning, "UnparseableSchedule", "%v", err)
		return nil // until somebody changes it
	}
	if next := schedule.Next(now); !next.IsZero() {
		// A little later, so that the clock has reached it.
		c.queue.AddAfter(key, next.Sub(now)+100*time.Millisecond)
	}
	t, missed := due(schedule, since(cron, now), now)
	if t.IsZero() {
		return nil
	}
	if missed > maxMissed {
		c.recorder.Eventf(cron, corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	name := fmt.Sprintf("%s-%d", cron.Name, t.Unix()/60)
	if slices.ContainsFunc(status.Active, func(r corev1.ObjectReference) bool { return r.Name == name }) {
		return nil
	}
	switch {
	case cron.Spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && len(status.Active) > 0:
		c.recorder.Eventf(cron, corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
		return nil
	case cron.Spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent:
		for _, r := range status.Active {
			if err := c.delete(ctx, cron, r.Name); err != nil {
				return err
			}
		}
		status.Active = nil
	}
	job, err := c.client.BatchV1().Jobs(cron.Namespace).Create(ctx, jobOf(cron, name, t), metav1.CreateOptions{})
	switch {
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	case apierrors.IsAlreadyExists(err):
		// Ours, made before a restart: it is counted when the cache shows it.
		have, err := c.client.BatchV1().Jobs(cron.Namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !metav1.IsControlledBy(have, cron) {
			return fmt.Errorf("Job %s of CronJob %s: the name is taken by another", name, cron.Name)
		}
		if done, _ := finished(have); !done {
			status.Active = append(status.Active, reference(have))
		}
	case err != nil:
		c.recorder.Eventf(cron, corev1.EventTypeWarning, "FailedCreate", "Error creating job: %v", err)
		return err
	default:
		c.recorder.Eventf(cron, corev1.EventTypeNormal, "SuccessfulCreate", "Created job %v", name)
		status.Active = append(status.Active, reference(job))
	}
	status.LastScheduleTime = &metav1.Time{Time: t}
	return nil
}

func jobOf(cron *batchv1.CronJob, name string, t time.Time) *batchv1.Job {
	template := cron.Spec.JobTemplate.DeepCopy()
	annotations := map[string]string{}
	maps.Copy(annotations, template.Annotations)
	zone := time.UTC
	if z := cron.Spec.TimeZone; z != nil {
		if l, err := time.LoadLocation(*z); err == nil {
			zone = l
		}
	}
	annotations[scheduledAnnotation] = t.In(zone).Format(time.RFC3339)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: cron.Namespace, Labels: template.Labels, Annotations: annotations, CreationTimestamp: metav1.Time{Time: t},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cron, kind)},
		},
		Spec: template.Spec,
	}
}

func (c *controller) delete(ctx context.Context, cron *batchv1.CronJob, name string) error {
	background := metav1.DeletePropagationBackground
	err := c.client.BatchV1().Jobs(cron.Namespace).Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &background})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		c.recorder.Eventf(cron, corev1.EventTypeWarning, "FailedDelete", "Deleted job: %v", err)
		return err
	}
	c.recorder.Eventf(cron, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job %v", name)
	return nil
}

// trim removes the oldest finished Jobs that are more than the history's limits.
func (c *controller) trim(ctx context.Context, cron *batchv1.CronJob, children []*batchv1.Job) error {
	ends := map[batchv1.JobConditionType][]*batchv1.Job{}
	for _, j := range children {
		if done, how := finished(j); done && j.DeletionTimestamp == nil {
			ends[how] = append(ends[how], j)
		}
	}
	for how, limit := range map[batchv1.JobConditionType]*int32{batchv1.JobComplete: cron.Spec.SuccessfulJobsHistoryLimit, batchv1.JobFailed: cron.Spec.FailedJobsHistoryLimit} {
		if limit == nil {
			continue
		}
		list := ends[how]
		slices.SortFunc(list, func(a, b *batchv1.Job) int {
			return cmp.Or(a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
		})
		for _, j := range list[:max(0, len(list)-int(*limit))] {
			if err := c.delete(ctx, cron, j.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *controller) writeStatus(ctx context.Context, key string, cron *batchv1.CronJob, status batchv1.CronJobStatus) error {
	if apiequality.Semantic.DeepEqual(cron.Status, status) {
		return nil
	}
	cron = cron.DeepCopy()
	cron.Status = status
	done, err := c.client.BatchV1().CronJobs(cron.Namespace).UpdateStatus(ctx, cron, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err == nil {
		c.written.Note(key, done)
	}
	return err
}
