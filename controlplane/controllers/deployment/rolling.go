package deployment

import (
	"cmp"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// resize is a wish for the size of one ReplicaSet.
type resize struct {
	set *appsv1.ReplicaSet
	to  int32
}

// limits returns how many pods more than wanted there may be, and how many fewer available, in a rolling
// update. Surge rounds up, unavailable down; both zero would stand still, so one may be unavailable.
func limits(d *appsv1.Deployment) (surge, unavailable int32) {
	r := d.Spec.Strategy.RollingUpdate
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || r == nil {
		return 0, 0
	}
	n := int(*d.Spec.Replicas)
	s, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(r.MaxSurge, intstr.FromInt32(0)), n, true)
	u, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(r.MaxUnavailable, intstr.FromInt32(0)), n, false)
	if s == 0 && u == 0 {
		u = 1
	}
	return int32(s), int32(min(u, n))
}

// rollingStep decides the next sizes of a rolling update: the new set grows as far as the surge allows, the
// old ones shrink as far as availability allows, their unavailable pods first. It returns nothing when
// there is nothing to do until pods change.
func rollingStep(d *appsv1.Deployment, next *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) []resize {
	want := *d.Spec.Replicas
	surge, maxUnavailable := limits(d)
	total := *next.Spec.Replicas
	available := next.Status.AvailableReplicas
	for _, rs := range old {
		total += *rs.Spec.Replicas
		available += rs.Status.AvailableReplicas
	}
	switch size := *next.Spec.Replicas; {
	case size > want:
		return []resize{{next, want}}
	case size < want:
		if room := want + surge - total; room > 0 {
			return []resize{{next, min(want, size+room)}}
		}
	}
	// Pods of the new set that are not available yet count as unavailable already.
	newUnavailable := *next.Spec.Replicas - next.Status.AvailableReplicas
	canGo := total - (want - maxUnavailable) - newUnavailable
	if canGo <= 0 {
		return nil
	}
	var steps []resize
	sizes := map[*appsv1.ReplicaSet]int32{}
	sorted := slices.Clone(old)
	slices.SortFunc(sorted, func(a, b *appsv1.ReplicaSet) int { return a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time) })
	// Broken pods of old sets go first: they serve nobody.
	for _, rs := range sorted {
		sizes[rs] = *rs.Spec.Replicas
		broken := min(*rs.Spec.Replicas-rs.Status.AvailableReplicas, canGo)
		if broken > 0 {
			sizes[rs] -= broken
			canGo -= broken
		}
	}
	canSpare := available - (want - maxUnavailable)
	for _, rs := range sorted {
		n := min(sizes[rs], canGo, canSpare)
		if n > 0 {
			sizes[rs] -= n
			canGo -= n
			canSpare -= n
		}
		if sizes[rs] != *rs.Spec.Replicas {
			steps = append(steps, resize{rs, sizes[rs]})
		}
	}
	return steps
}

// proportional spreads a change of spec.replicas in the middle of a rollout over all sets by their share
// (largest first, leftovers to the largest), so that neither revision swallows it. Sets that keep their size
// are in the answer too: they are to be noted as sized.
func proportional(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) []resize {
	surge, _ := limits(d)
	allowed := int32(0)
	if *d.Spec.Replicas > 0 {
		allowed = *d.Spec.Replicas + surge
	}
	var total int32
	for _, rs := range sets {
		total += *rs.Spec.Replicas
	}
	left := allowed - total
	sorted := slices.Clone(sets)
	slices.SortFunc(sorted, func(a, b *appsv1.ReplicaSet) int {
		age := a.CreationTimestamp.Time.Compare(b.CreationTimestamp.Time) // the old shrink first,
		if left > 0 {
			age = -age // the new grow first
		}
		return cmp.Or(cmp.Compare(*b.Spec.Replicas, *a.Spec.Replicas), age)
	})
	steps := make([]resize, len(sorted))
	for i, rs := range sorted {
		share := int32(0)
		if total > 0 {
			share = int32(int64(*rs.Spec.Replicas) * int64(allowed-total) / int64(total))
		}
		share = max(min(share, max(left, 0)), min(left, 0))
		steps[i] = resize{rs, max(0, *rs.Spec.Replicas+share)}
		left -= steps[i].to - *rs.Spec.Replicas
	}
	for i := range steps { // what rounding left over
		if left == 0 {
			break
		}
		to := max(0, steps[i].to+left)
		left -= to - steps[i].to
		steps[i].to = to
	}
	return steps
}
