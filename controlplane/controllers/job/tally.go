package job

import (
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/controlplane/controllers/pods"
)

// tally is what a Job's pods amount to.
type tally struct {
	active            []*corev1.Pod
	surplus           []*corev1.Pod // active, but of an index that another pod has or that the Job lacks
	ended             []*corev1.Pod // to be released once they are written down
	terminating       int32
	succeeded, failed int32 // counted before and newly
	ready             int32
	restarts          int32     // of the containers of active pods
	failures          int32     // in a row, since the last success
	lastFailure       time.Time // zero: none
	uncounted         *batchv1.UncountedTerminatedPods
	fatal             string // why the pod failure policy fails the Job; empty: it does not

	// Indexed mode.
	indexes            map[int]bool // succeeded
	failedIndexes      map[int]bool // given up
	activeIndexes      map[int]bool
	terminatingIndexes map[int]bool
	indexFailures      map[int]int32
}

// count sums up the pods; released tells of pods whose finalizer we took off already, whatever the cache says.
func count(job *batchv1.Job, owned []*corev1.Pod, released map[types.UID]bool) tally {
	t := tally{
		succeeded: job.Status.Succeeded, failed: job.Status.Failed, uncounted: &batchv1.UncountedTerminatedPods{},
		indexes: parseIndexes(job.Status.CompletedIndexes), failedIndexes: map[int]bool{},
		activeIndexes: map[int]bool{}, terminatingIndexes: map[int]bool{}, indexFailures: map[int]int32{},
	}
	if job.Status.FailedIndexes != nil {
		t.failedIndexes = parseIndexes(*job.Status.FailedIndexes)
	}
	var knownSucceeded, knownFailed []types.UID
	if u := job.Status.UncountedTerminatedPods; u != nil {
		knownSucceeded, knownFailed = u.Succeeded, u.Failed
		t.succeeded += int32(len(u.Succeeded))
		t.failed += int32(len(u.Failed))
	}
	var lastSuccess time.Time
	var failures []time.Time
	for _, p := range byAge(owned) {
		index, hasIndex := indexOf(p)
		tracked := slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) && !released[p.UID]
		success := p.Status.Phase == corev1.PodSucceeded
		failure := p.Status.Phase == corev1.PodFailed
		switch {
		case success || failure:
		case p.DeletionTimestamp == nil:
			if indexed(job) && (!hasIndex || t.activeIndexes[index] || index >= int(*job.Spec.Completions)) {
				t.surplus = append(t.surplus, p)
				continue
			}
			t.active = append(t.active, p)
			t.activeIndexes[index] = true
			if ok, _ := pods.Ready(p); ok {
				t.ready++
			}
			for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
				t.restarts += s.RestartCount
			}
			continue
		case p.Spec.NodeName == "" && tracked:
			failure = true // deleted before it ever ran: no kubelet will tell its end
		default:
			if tracked {
				t.terminating++
				t.terminatingIndexes[index] = true
			}
			continue
		}
		action, why := batchv1.PodFailurePolicyActionCount, ""
		if success {
			if at := endOf(p); at.After(lastSuccess) {
				lastSuccess = at
			}
		} else {
			action, why = failurePolicy(job, p)
			if action != batchv1.PodFailurePolicyActionIgnore {
				failures = append(failures, endOf(p))
				if hasIndex {
					t.indexFailures[index] = max(t.indexFailures[index], indexFailuresOf(p)+1)
				}
			}
		}
		if !tracked {
			continue
		}
		t.ended = append(t.ended, p)
		switch {
		case slices.Contains(knownSucceeded, p.UID):
			// In the sum above already; it stays uncounted until its finalizer is gone.
			t.uncounted.Succeeded = append(t.uncounted.Succeeded, p.UID)
		case slices.Contains(knownFailed, p.UID):
			t.uncounted.Failed = append(t.uncounted.Failed, p.UID)
		case success:
			if indexed(job) {
				if !hasIndex || t.indexes[index] || index >= int(*job.Spec.Completions) {
					continue // an index counts once
				}
				t.indexes[index] = true
			}
			t.succeeded++
			t.uncounted.Succeeded = append(t.uncounted.Succeeded, p.UID)
		case action == batchv1.PodFailurePolicyActionIgnore:
		default:
			switch action {
			case batchv1.PodFailurePolicyActionFailJob:
				t.fatal = why
			case batchv1.PodFailurePolicyActionFailIndex:
				t.failedIndexes[index] = true
			}
			t.failed++
			t.uncounted.Failed = append(t.uncounted.Failed, p.UID)
		}
	}
	for _, at := range failures {
		if at.After(lastSuccess) {
			t.failures++
		}
		if at.After(t.lastFailure) {
			t.lastFailure = at
		}
	}
	if limit := job.Spec.BackoffLimitPerIndex; limit != nil {
		for i, n := range t.indexFailures {
			if n > *limit && !t.indexes[i] {
				t.failedIndexes[i] = true
			}
		}
	}
	return t
}

// byAge orders pods so that the older of two of the same index counts.
func byAge(owned []*corev1.Pod) []*corev1.Pod {
	sorted := slices.Clone(owned)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time) })
	return sorted
}

func indexed(job *batchv1.Job) bool {
	return job.Spec.CompletionMode != nil && *job.Spec.CompletionMode == batchv1.IndexedCompletion && job.Spec.Completions != nil
}

// indexOf reads the completion index of a pod.
func indexOf(p *corev1.Pod) (int, bool) {
	n, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	return max(n, 0), err == nil && n >= 0
}

// indexFailuresOf is how often the pod's index had failed before it.
func indexFailuresOf(p *corev1.Pod) int32 {
	n, err := strconv.ParseInt(p.Annotations[batchv1.JobIndexFailureCountAnnotation], 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return int32(n)
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
