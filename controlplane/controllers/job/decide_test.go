package job

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var epoch = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

func newJob(change ...func(*batchv1.Job)) *batchv1.Job {
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "j", UID: "job"}, Spec: batchv1.JobSpec{Parallelism: ptr[int32](2), Completions: ptr[int32](4), BackoffLimit: ptr[int32](3)}}
	j.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	for _, f := range change {
		f(j)
	}
	return j
}

func indexedMode(j *batchv1.Job) { j.Spec.CompletionMode = ptr(batchv1.IndexedCompletion) }

func pod(uid string, phase corev1.PodPhase, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), Name: uid, Namespace: "ns", Finalizers: []string{batchv1.JobTrackingFinalizer}, CreationTimestamp: metav1.NewTime(epoch)}, Spec: corev1.PodSpec{NodeName: "n"}, Status: corev1.PodStatus{Phase: phase}}
	for _, f := range change {
		f(p)
	}
	return p
}

func index(i int) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Annotations = map[string]string{batchv1.JobCompletionIndexAnnotation: fmt.Sprint(i)}
	}
}
func exit(code int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}}}
	}
}
func untracked(p *corev1.Pod) { p.Finalizers = nil }
func deleted(p *corev1.Pod)   { p.DeletionTimestamp = ptr(metav1.NewTime(epoch)) }
func unbound(p *corev1.Pod)   { p.Spec.NodeName = "" }

func TestDecide(t *testing.T) {
	running, ok, bad := corev1.PodRunning, corev1.PodSucceeded, corev1.PodFailed
	uncounted := func(succeeded, failed []types.UID) func(*batchv1.Job) {
		return func(j *batchv1.Job) {
			j.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{Succeeded: succeeded, Failed: failed}
		}
	}
	for name, c := range map[string]struct {
		job  *batchv1.Job
		pods []*corev1.Pod
		now  time.Duration // after the epoch

		create, delete    int
		indexes           []int
		succeeded, failed int32
		uncounted         int
		conditions        []batchv1.JobConditionType
		reason            string
		again             time.Duration
	}{
		"a new Job starts as many pods as it may run at a time": {job: newJob(), create: 2},
		"fewer are started when fewer are left": {
			job: newJob(func(j *batchv1.Job) { j.Status.Succeeded = 3 }), create: 1, succeeded: 3,
		},
		"a success is written down before it counts": {
			job: newJob(), pods: []*corev1.Pod{pod("a", ok), pod("b", running)}, create: 1, uncounted: 1,
		},
		"what is written down stays uncounted while the finalizer is there": {
			job: newJob(uncounted([]types.UID{"a"}, nil)), pods: []*corev1.Pod{pod("a", ok), pod("b", running)}, create: 1, uncounted: 1,
		},
		"and counts once when the finalizer is gone": {
			job: newJob(uncounted([]types.UID{"a"}, nil)), pods: []*corev1.Pod{pod("a", ok, untracked), pod("b", running)}, create: 1, succeeded: 1,
		},
		"and when the pod is gone": {
			job: newJob(uncounted([]types.UID{"a"}, []types.UID{"x"})), pods: []*corev1.Pod{pod("b", running)}, create: 1, succeeded: 1, failed: 1,
		},
		"a pod that was counted long ago is not counted again": {
			job: newJob(func(j *batchv1.Job) { j.Status.Succeeded = 1 }), pods: []*corev1.Pod{pod("a", ok, untracked)}, create: 2, succeeded: 1,
		},
		"enough successes end the Job, but not before they are counted": {
			job: newJob(func(j *batchv1.Job) { j.Status.Succeeded = 3 }), pods: []*corev1.Pod{pod("a", ok)}, succeeded: 3, uncounted: 1,
			conditions: []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet}, reason: batchv1.JobReasonCompletionsReached,
		},
		"the end comes when all is counted": {
			job: newJob(func(j *batchv1.Job) { j.Status.Succeeded = 4 }), succeeded: 4,
			conditions: []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobComplete}, reason: batchv1.JobReasonCompletionsReached,
		},
		"pods that still end delay the end": {
			job: newJob(func(j *batchv1.Job) { j.Status.Succeeded = 4 }), pods: []*corev1.Pod{pod("a", running, deleted)}, succeeded: 4,
			conditions: []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet}, reason: batchv1.JobReasonCompletionsReached,
		},
		"zero completions are reached at once": {
			job:        newJob(func(j *batchv1.Job) { *j.Spec.Completions = 0 }),
			conditions: []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobComplete}, reason: batchv1.JobReasonCompletionsReached,
		},
		"a failure delays the next pod": {
			job: newJob(), pods: []*corev1.Pod{pod("a", bad)}, now: 4 * time.Second, uncounted: 1, again: 6 * time.Second,
		},
		"twice in a row twice as long": {
			job: newJob(), pods: []*corev1.Pod{pod("a", bad), pod("b", bad)}, now: 4 * time.Second, uncounted: 2, again: 16 * time.Second,
		},
		"after the pause it goes on": {
			job: newJob(), pods: []*corev1.Pod{pod("a", bad)}, now: 11 * time.Second, create: 2, uncounted: 1,
		},
		"more failures than the limit end the Job and its other pods": {
			job: newJob(func(j *batchv1.Job) { j.Status.Failed = 3 }), pods: []*corev1.Pod{pod("a", bad), pod("b", running)}, delete: 1, failed: 3, uncounted: 1,
			conditions: []batchv1.JobConditionType{batchv1.JobFailureTarget}, reason: batchv1.JobReasonBackoffLimitExceeded,
		},
		"restarts in place count against the limit": {
			job: newJob(func(j *batchv1.Job) { j.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyOnFailure }),
			pods: []*corev1.Pod{pod("a", running, func(p *corev1.Pod) {
				p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3}}
			})},
			delete: 1, conditions: []batchv1.JobConditionType{batchv1.JobFailureTarget}, reason: batchv1.JobReasonBackoffLimitExceeded,
		},
		"the deadline ends the Job": {
			job: newJob(func(j *batchv1.Job) {
				j.Spec.ActiveDeadlineSeconds = ptr[int64](60)
				j.Status.StartTime = ptr(metav1.NewTime(epoch))
			}),
			pods: []*corev1.Pod{pod("a", running)}, now: time.Minute, delete: 1,
			conditions: []batchv1.JobConditionType{batchv1.JobFailureTarget}, reason: batchv1.JobReasonDeadlineExceeded,
		},
		"before the deadline it is waited for": {
			job: newJob(func(j *batchv1.Job) {
				j.Spec.ActiveDeadlineSeconds = ptr[int64](60)
				j.Status.StartTime = ptr(metav1.NewTime(epoch))
			}),
			pods: []*corev1.Pod{pod("a", running), pod("b", running)}, now: 50 * time.Second, again: 10 * time.Second,
		},
		"suspending deletes the pods": {
			job: newJob(func(j *batchv1.Job) { j.Spec.Suspend = ptr(true) }), pods: []*corev1.Pod{pod("a", running), pod("b", running)}, delete: 2,
			conditions: []batchv1.JobConditionType{batchv1.JobSuspended}, reason: "JobSuspended",
		},
		"lower parallelism deletes the surplus": {
			job: newJob(func(j *batchv1.Job) { *j.Spec.Parallelism = 1 }), pods: []*corev1.Pod{pod("a", running), pod("b", running)}, delete: 1,
		},
		"a work queue ends with its last pod": {
			job: newJob(func(j *batchv1.Job) { j.Spec.Completions = nil; j.Status.Succeeded = 2 }), succeeded: 2,
			conditions: []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobComplete}, reason: batchv1.JobReasonCompletionsReached,
		},
		"a work queue with a success starts no more pods": {
			job: newJob(func(j *batchv1.Job) { j.Spec.Completions = nil; j.Status.Succeeded = 1 }), pods: []*corev1.Pod{pod("a", running)}, succeeded: 1,
		},
		"a deleted pod is replaced while it ends": {
			job: newJob(), pods: []*corev1.Pod{pod("a", running, deleted), pod("b", running)}, create: 1,
		},
		"unless only failed pods are replaced": {
			job: newJob(func(j *batchv1.Job) { j.Spec.PodReplacementPolicy = ptr(batchv1.Failed) }), pods: []*corev1.Pod{pod("a", running, deleted), pod("b", running)},
		},
		"one deleted before it ran has failed": {
			job: newJob(), pods: []*corev1.Pod{pod("a", corev1.PodPending, deleted, unbound)}, now: time.Hour, create: 2, uncounted: 1,
		},
		"indexes are given from the lowest": {job: newJob(indexedMode), create: 2, indexes: []int{0, 1}},
		"those that run or are done are left out": {
			job:  newJob(indexedMode, func(j *batchv1.Job) { j.Status.Succeeded = 1; j.Status.CompletedIndexes = "0"; *j.Spec.Parallelism = 3 }),
			pods: []*corev1.Pod{pod("a", running, index(2))}, create: 2, indexes: []int{1, 3}, succeeded: 1,
		},
		"two pods of an index are one too many": {
			job: newJob(indexedMode), pods: []*corev1.Pod{pod("a", running, index(0)), pod("b", running, index(0))}, create: 1, delete: 1, indexes: []int{1},
		},
		"an index that failed too often is given up, the others go on": {
			job: newJob(indexedMode, func(j *batchv1.Job) {
				j.Spec.BackoffLimitPerIndex, *j.Spec.BackoffLimit = ptr[int32](0), 1000
			}),
			pods: []*corev1.Pod{pod("a", bad, index(0))}, now: time.Hour, create: 2, indexes: []int{1, 2}, uncounted: 1,
		},
		"a Job with given-up indexes fails when the rest is done": {
			job: newJob(indexedMode, func(j *batchv1.Job) {
				j.Spec.BackoffLimitPerIndex, *j.Spec.BackoffLimit = ptr[int32](0), 1000
				j.Status.CompletedIndexes, j.Status.FailedIndexes, j.Status.Succeeded, j.Status.Failed = "1-3", ptr("0"), 3, 1
			}),
			succeeded: 3, failed: 1, conditions: []batchv1.JobConditionType{batchv1.JobFailureTarget, batchv1.JobFailed}, reason: batchv1.JobReasonFailedIndexes,
		},
		"a success policy ends the Job early": {
			job: newJob(indexedMode, func(j *batchv1.Job) {
				j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr("0,2-3"), SucceededCount: ptr[int32](1)}}}
				j.Status.CompletedIndexes, j.Status.Succeeded = "2", 1
			}),
			pods: []*corev1.Pod{pod("a", running, index(1))}, delete: 1, succeeded: 1,
			conditions: []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet}, reason: batchv1.JobReasonSuccessPolicy,
		},
		"a failure that the policy ignores is replaced at once": {
			job: newJob(policy(batchv1.PodFailurePolicyActionIgnore, batchv1.PodFailurePolicyOnExitCodesOpIn, 42)), pods: []*corev1.Pod{pod("a", bad, exit(42))}, create: 2,
		},
		"a failure that the policy finds fatal ends the Job": {
			job: newJob(policy(batchv1.PodFailurePolicyActionFailJob, batchv1.PodFailurePolicyOnExitCodesOpNotIn, 42)), pods: []*corev1.Pod{pod("a", bad, exit(1)), pod("b", running)}, delete: 1, uncounted: 1,
			conditions: []batchv1.JobConditionType{batchv1.JobFailureTarget}, reason: batchv1.JobReasonPodFailurePolicy,
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := decide(c.job, count(c.job, c.pods, nil), epoch.Add(c.now))
			if d.create != c.create || len(d.delete) != c.delete || d.again != c.again {
				t.Errorf("create %d, delete %d, again %s; want %d, %d, %s", d.create, len(d.delete), d.again, c.create, c.delete, c.again)
			}
			if len(d.indexes)+len(c.indexes) > 0 && !reflect.DeepEqual(d.indexes, c.indexes) {
				t.Errorf("indexes %v, want %v", d.indexes, c.indexes)
			}
			s := d.status
			if n := len(s.UncountedTerminatedPods.Succeeded) + len(s.UncountedTerminatedPods.Failed); s.Succeeded != c.succeeded || s.Failed != c.failed || n != c.uncounted {
				t.Errorf("succeeded %d, failed %d, uncounted %d; want %d, %d, %d", s.Succeeded, s.Failed, n, c.succeeded, c.failed, c.uncounted)
			}
			var got []batchv1.JobConditionType
			for _, cond := range s.Conditions {
				got = append(got, cond.Type)
				if cond.Reason != c.reason {
					t.Errorf("reason %q, want %q", cond.Reason, c.reason)
				}
			}
			if !reflect.DeepEqual(got, c.conditions) {
				t.Errorf("conditions %v, want %v", got, c.conditions)
			}
		})
	}
}

func policy(action batchv1.PodFailurePolicyAction, op batchv1.PodFailurePolicyOnExitCodesOperator, codes ...int32) func(*batchv1.Job) {
	return func(j *batchv1.Job) {
		j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{Action: action, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: op, Values: codes}}}}
	}
}

// TestReleasedIsNotCountedTwice: the cache may show the finalizer longer than it is there.
func TestReleasedIsNotCountedTwice(t *testing.T) {
	j := newJob(func(j *batchv1.Job) { j.Status.Succeeded = 1 })
	lagging := []*corev1.Pod{pod("a", corev1.PodSucceeded)}
	d := decide(j, count(j, lagging, map[types.UID]bool{"a": true}), epoch)
	if d.status.Succeeded != 1 || len(d.status.UncountedTerminatedPods.Succeeded) != 0 {
		t.Errorf("status %+v", d.status)
	}
}

func TestIndexes(t *testing.T) {
	for _, s := range []string{"", "0", "0,1", "0-2", "1,3-5,7", "0,2,4-9"} {
		if got := formatIndexes(parseIndexes(s)); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
	for _, s := range []string{"x", "1-", "-1", "3-1", "1-99999999999", ","} {
		parseIndexes(s) // must neither panic nor eat all memory
	}
}

func FuzzIndexes(f *testing.F) {
	f.Add("1,3-5,7")
	f.Fuzz(func(t *testing.T, s string) {
		m := parseIndexes(s)
		if again := parseIndexes(formatIndexes(m)); !reflect.DeepEqual(m, again) {
			t.Errorf("%q: %v, then %v", s, m, again)
		}
	})
}
