package statefulset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/controlplane/controllers/pods"
	"github.com/strake-io/strake/controlplane/controllers/revisions"
)

// plan is what one pass does.
type plan struct {
	create []int         // ordinals, in this order
	remove []*corev1.Pod // in this order
	again  time.Duration // when a pod that is ready becomes available; 0: nobody to wait for
}

// member is a place of the set, with its pod if there is one.
type member struct {
	ordinal int
	pod     *corev1.Pod
}

// places sorts pods into those that the set wants, by ordinal, and those that are too many, the highest first.
func places(s *appsv1.StatefulSet, owned []*corev1.Pod) (wanted, condemned []member) {
	low, n := first(s), int(*s.Spec.Replicas)
	wanted = make([]member, n)
	for i := range wanted {
		wanted[i].ordinal = low + i
	}
	for _, p := range owned {
		switch o := ordinalOf(s.Name, p.Name); {
		case o < 0:
		case o >= low && o < low+n:
			wanted[o-low].pod = p
		default:
			condemned = append(condemned, member{o, p})
		}
	}
	slices.SortFunc(condemned, func(a, b member) int { return cmp.Compare(b.ordinal, a.ordinal) })
	return wanted, condemned
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}

// health tells whether a pod serves, and if only time is missing, how much.
func health(p *corev1.Pod, minReady time.Duration, now time.Time) (bool, time.Duration) {
	if p == nil || p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning {
		return false, 0
	}
	return pods.Available(p, minReady, now)
}

// decide says what to do next. With the policy OrderedReady each step waits until all pods before it serve.
func decide(s *appsv1.StatefulSet, wanted, condemned []member, update string, now time.Time) plan {
	var p plan
	ordered := s.Spec.PodManagementPolicy != appsv1.ParallelPodManagement
	minReady := time.Duration(s.Spec.MinReadySeconds) * time.Second
	wait := func(d time.Duration) {
		if d > 0 && (p.again == 0 || d < p.again) {
			p.again = d
		}
	}
	if s.DeletionTimestamp != nil {
		return p
	}
	for _, m := range wanted {
		ok, left := health(m.pod, minReady, now)
		wait(left)
		switch {
		case m.pod == nil:
			p.create = append(p.create, m.ordinal)
		case m.pod.DeletionTimestamp == nil && ended(m.pod):
			p.remove = append(p.remove, m.pod)
		case ok:
			continue
		}
		if ordered {
			return p
		}
	}
	// Then those that are too many go, the highest first; one that doesn't serve anyway is not waited for.
	for _, m := range condemned {
		if m.pod.DeletionTimestamp == nil {
			p.remove = append(p.remove, m.pod)
		}
		if ordered {
			return p
		}
	}
	if len(p.create)+len(p.remove) > 0 {
		return p
	}
	p.remove = outdated(s, wanted, update, minReady, now)
	return p
}

// outdated are the pods of another revision that may go now: the highest first, no more than may be unavailable, down
// to the partition.
func outdated(s *appsv1.StatefulSet, wanted []member, update string, minReady time.Duration, now time.Time) []*corev1.Pod {
	if s.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
		return nil
	}
	low, most := 0, 1
	if r := s.Spec.UpdateStrategy.RollingUpdate; r != nil {
		if r.Partition != nil {
			low = int(*r.Partition)
		}
		if r.MaxUnavailable != nil {
			if n, err := intstr.GetScaledValueFromIntOrPercent(r.MaxUnavailable, len(wanted), true); err == nil {
				most = max(n, 1)
			}
		}
	}
	var out []*corev1.Pod
	down := 0
	for i := len(wanted) - 1; i >= 0 && wanted[i].ordinal >= low && down < most; i-- {
		pod := wanted[i].pod
		if ok, _ := health(pod, minReady, now); !ok {
			down++
		} else if pod.Labels[revisions.Label] != update {
			down++
		}
		if pod != nil && pod.DeletionTimestamp == nil && pod.Labels[revisions.Label] != update {
			out = append(out, pod)
		}
	}
	return out
}

// revisionFor is that of a pod to be made: below the partition the old one.
func revisionFor(s *appsv1.StatefulSet, ordinal int, current, update string) string {
	r := s.Spec.UpdateStrategy.RollingUpdate
	if s.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && r != nil && r.Partition != nil && ordinal < int(*r.Partition) {
		return current
	}
	return update
}

// statusOf counts.
func statusOf(s *appsv1.StatefulSet, owned []*corev1.Pod, current, update string, collisions int32, now time.Time) appsv1.StatefulSetStatus {
	st := *s.Status.DeepCopy()
	st.ObservedGeneration, st.CollisionCount = s.Generation, &collisions
	st.Replicas, st.ReadyReplicas, st.AvailableReplicas, st.CurrentReplicas, st.UpdatedReplicas = 0, 0, 0, 0, 0
	st.CurrentRevision, st.UpdateRevision = current, update
	for _, p := range owned {
		if ordinalOf(s.Name, p.Name) < 0 || ended(p) {
			continue
		}
		st.Replicas++
		if ready, _ := pods.Ready(p); ready && p.Status.Phase == corev1.PodRunning {
			st.ReadyReplicas++
			if ok, _ := pods.Available(p, time.Duration(s.Spec.MinReadySeconds)*time.Second, now); ok {
				st.AvailableReplicas++
			}
		}
		if p.DeletionTimestamp == nil {
			if p.Labels[revisions.Label] == current {
				st.CurrentReplicas++
			}
			if p.Labels[revisions.Label] == update {
				st.UpdatedReplicas++
			}
		}
	}
	// The rollout is over: what was new is now the state of things.
	if s.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && st.UpdatedReplicas == st.Replicas && st.ReadyReplicas == st.Replicas && st.Replicas == *s.Spec.Replicas {
		st.CurrentRevision, st.CurrentReplicas = update, st.UpdatedReplicas
	}
	return st
}
