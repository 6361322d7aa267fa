package job

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/strake-io/strake/controlplane/controllers/pods"
)

// decision is what to do next for a Job.
type decision struct {
	status batchv1.JobStatus
	create int
	// indexes of the pods to create (Indexed mode), as many as create.
	indexes []int
	delete  []*corev1.Pod
	again   time.Duration // look again then; zero: at the next event
	// events that become true when the status is written.
	events []event
}

type event struct{ kind, reason, message string }

// outcome is how a Job ends.
type outcome struct {
	target, final   batchv1.JobConditionType
	reason, message string
}

// decide is the Job's logic; it has no effects.
func decide(job *batchv1.Job, t tally, now time.Time) decision {
	d := decision{status: *job.Status.DeepCopy(), delete: slices.Clone(t.surplus)}
	s := &d.status
	uncounted := len(t.uncounted.Succeeded) + len(t.uncounted.Failed)
	s.Active, s.Terminating, s.Ready = int32(len(t.active)), &t.terminating, &t.ready
	s.UncountedTerminatedPods = t.uncounted
	// What stands in uncounted is not in the sums yet.
	s.Succeeded, s.Failed = t.succeeded-int32(len(t.uncounted.Succeeded)), t.failed-int32(len(t.uncounted.Failed))
	if indexed(job) {
		s.CompletedIndexes = formatIndexes(t.indexes)
		if job.Spec.BackoffLimitPerIndex != nil {
			failed := formatIndexes(t.failedIndexes)
			s.FailedIndexes = &failed
		}
	}
	suspended := job.Spec.Suspend != nil && *job.Spec.Suspend
	end := ending(job, t, now)
	switch {
	case end != nil:
		d.delete = append(d.delete, t.active...)
		if setCondition(s, end.target, corev1.ConditionTrue, end.reason, end.message, now) && end.final == batchv1.JobFailed {
			d.events = append(d.events, event{corev1.EventTypeWarning, end.reason, end.message})
		}
		// The last word is said when no pod is left that could still change the sums (KEP-3939).
		if len(t.active)+len(t.surplus)+uncounted == 0 && t.terminating == 0 {
			setCondition(s, end.final, corev1.ConditionTrue, end.reason, end.message, now)
			if end.final == batchv1.JobComplete {
				stamp := metav1.NewTime(now)
				s.CompletionTime = &stamp
				d.events = append(d.events, event{corev1.EventTypeNormal, "Completed", "Job completed"})
			}
		}
	case suspended:
		d.delete = append(d.delete, t.active...)
		if setCondition(s, batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended", now) {
			d.events = append(d.events, event{corev1.EventTypeNormal, "Suspended", "Job suspended"})
		}
		s.StartTime = nil
	default:
		if conditionIs(s, batchv1.JobSuspended, corev1.ConditionTrue) {
			setCondition(s, batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed", now)
			d.events = append(d.events, event{corev1.EventTypeNormal, "Resumed", "Job resumed"})
		}
		if s.StartTime == nil {
			stamp := metav1.NewTime(now)
			s.StartTime = &stamp
		}
		d.scale(job, t, now)
		if limit := job.Spec.ActiveDeadlineSeconds; limit != nil {
			d.lookIn(s.StartTime.Add(time.Duration(*limit) * time.Second).Sub(now))
		}
	}
	return d
}

func (d *decision) lookIn(wait time.Duration) {
	if d.again == 0 || wait < d.again {
		d.again = max(wait, time.Millisecond)
	}
}

// scale decides how many pods are missing or too many.
func (d *decision) scale(job *batchv1.Job, t tally, now time.Time) {
	want := wanted(job, t)
	waitForEnd := replaceFailedOnly(job)
	running := len(t.active)
	if waitForEnd {
		running += int(t.terminating)
	}
	if extra := len(t.active) - want; extra > 0 {
		d.delete = append(d.delete, leastUseful(t.active)[:extra]...)
		return
	}
	missing := min(want-running, burst)
	if missing <= 0 {
		return
	}
	if wait := backoff(t, now); wait > 0 {
		d.lookIn(wait)
		return
	}
	d.create = missing
	if indexed(job) {
		d.indexes = freeIndexes(int(*job.Spec.Completions), missing, func(i int) bool {
			return t.indexes[i] || t.failedIndexes[i] || t.activeIndexes[i] || waitForEnd && t.terminatingIndexes[i]
		})
		d.create = len(d.indexes)
	}
}

// replaceFailedOnly tells whether a pod is replaced only when it has ended, not when it begins to (KEP-3939).
func replaceFailedOnly(job *batchv1.Job) bool {
	if p := job.Spec.PodReplacementPolicy; p != nil {
		return *p == batchv1.Failed
	}
	return job.Spec.PodFailurePolicy != nil
}

// ending tells how the Job ends, if it does; what was once said is not taken back.
func ending(job *batchv1.Job, t tally, now time.Time) *outcome {
	for _, c := range job.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobFailureTarget:
			return &outcome{c.Type, batchv1.JobFailed, c.Reason, c.Message}
		case batchv1.JobSuccessCriteriaMet:
			return &outcome{c.Type, batchv1.JobComplete, c.Reason, c.Message}
		}
	}
	failed := func(reason, message string) *outcome {
		return &outcome{batchv1.JobFailureTarget, batchv1.JobFailed, reason, message}
	}
	if t.fatal != "" {
		return failed(batchv1.JobReasonPodFailurePolicy, t.fatal)
	}
	limit := int32(6) // the API's default
	if job.Spec.BackoffLimit != nil {
		limit = *job.Spec.BackoffLimit
	}
	if t.failed > limit || restartsExceed(job, t, limit) {
		return failed(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
	}
	suspended := job.Spec.Suspend != nil && *job.Spec.Suspend
	if deadline, began := job.Spec.ActiveDeadlineSeconds, job.Status.StartTime; deadline != nil && began != nil && !suspended && now.Sub(began.Time) >= time.Duration(*deadline)*time.Second {
		return failed(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
	}
	if m := job.Spec.MaxFailedIndexes; indexed(job) && m != nil && len(t.failedIndexes) > int(*m) {
		return failed(batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
	}
	if rule := successRule(job, t); rule != "" {
		return &outcome{batchv1.JobSuccessCriteriaMet, batchv1.JobComplete, batchv1.JobReasonSuccessPolicy, rule}
	}
	if indexed(job) && len(t.failedIndexes) > 0 && len(t.indexes)+len(t.failedIndexes) >= int(*job.Spec.Completions) {
		return failed(batchv1.JobReasonFailedIndexes, "Job has failed indexes")
	}
	if done(job, t) {
		return &outcome{batchv1.JobSuccessCriteriaMet, batchv1.JobComplete, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods"}
	}
	return nil
}

// restartsExceed counts restarts in place against the limit: with OnFailure no pod ever fails.
func restartsExceed(job *batchv1.Job, t tally, limit int32) bool {
	if job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure || job.Spec.BackoffLimitPerIndex != nil {
		return false
	}
	if limit == 0 {
		return t.restarts > 0
	}
	return t.restarts >= limit
}

// done tells whether enough pods have succeeded. Without completions, any success ends the Job once all pods have ended.
func done(job *batchv1.Job, t tally) bool {
	if job.Spec.Completions == nil {
		return t.succeeded > 0 && len(t.active) == 0
	}
	return t.succeeded >= *job.Spec.Completions
}

// successRule tells which rule of spec.successPolicy the Job fulfils (KEP-3998); empty: none.
func successRule(job *batchv1.Job, t tally) string {
	if job.Spec.SuccessPolicy == nil || !indexed(job) {
		return ""
	}
	for n, r := range job.Spec.SuccessPolicy.Rules {
		among := t.indexes
		if r.SucceededIndexes != nil {
			listed := parseIndexes(*r.SucceededIndexes)
			among = map[int]bool{}
			for i := range t.indexes {
				if listed[i] {
					among[i] = true
				}
			}
			if r.SucceededCount == nil && len(among) < len(listed) {
				continue
			}
		}
		if r.SucceededCount != nil && len(among) < int(*r.SucceededCount) {
			continue
		}
		return fmt.Sprintf("Matched rules at index %d", n)
	}
	return ""
}

// wanted is how many pods shall run now.
func wanted(job *batchv1.Job, t tally) int {
	n := 1
	if job.Spec.Parallelism != nil {
		n = int(*job.Spec.Parallelism)
	}
	if job.Spec.Completions == nil {
		if t.succeeded > 0 {
			return min(n, len(t.active)) // a work queue that is running dry
		}
		return n
	}
	left := int(*job.Spec.Completions - t.succeeded)
	if indexed(job) {
		left = int(*job.Spec.Completions) - len(t.indexes) - len(t.failedIndexes)
	}
	return max(0, min(n, left))
}

// backoff is how long to wait before the next pod, after failures in a row.
func backoff(t tally, now time.Time) time.Duration {
	if t.failures == 0 {
		return 0
	}
	wait := backoffBase
	for i := int32(1); i < t.failures && wait < backoffMax; i++ {
		wait *= 2
	}
	return max(0, t.lastFailure.Add(min(wait, backoffMax)).Sub(now))
}

// freeIndexes are the n lowest indexes that are not taken.
func freeIndexes(completions, n int, taken func(int) bool) []int {
	var out []int
	for i := 0; i < completions && len(out) < n; i++ {
		if !taken(i) {
			out = append(out, i)
		}
	}
	return out
}

// leastUseful sorts pods by what is lost with them, the cheapest first: not bound, not ready, young.
func leastUseful(active []*corev1.Pod) []*corev1.Pod {
	rank := func(p *corev1.Pod) int {
		ready, _ := pods.Ready(p)
		switch {
		case p.Spec.NodeName == "":
			return 0
		case !ready:
			return 1
		}
		return 2
	}
	sorted := slices.Clone(active)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), b.CreationTimestamp.Time.Compare(a.CreationTimestamp.Time))
	})
	return sorted
}

func conditionIs(s *batchv1.JobStatus, t batchv1.JobConditionType, status corev1.ConditionStatus) bool {
	return slices.ContainsFunc(s.Conditions, func(c batchv1.JobCondition) bool { return c.Type == t && c.Status == status })
}

// setCondition writes a condition and tells whether its status changed.
func setCondition(s *batchv1.JobStatus, t batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) bool {
	stamp := metav1.NewTime(now)
	for i := range s.Conditions {
		if c := &s.Conditions[i]; c.Type == t {
			if c.Status == status {
				return false
			}
			c.Status, c.Reason, c.Message, c.LastTransitionTime, c.LastProbeTime = status, reason, message, stamp, stamp
			return true
		}
	}
	s.Conditions = append(s.Conditions, batchv1.JobCondition{Type: t, Status: status, Reason: reason, Message: message, LastTransitionTime: stamp, LastProbeTime: stamp})
	return true
}
