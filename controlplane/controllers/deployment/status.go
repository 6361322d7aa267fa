package deployment

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// statusCounts adds up what the sets say.
func statusCounts(d *appsv1.Deployment, next *appsv1.ReplicaSet, old []*appsv1.ReplicaSet) appsv1.DeploymentStatus {
	s := appsv1.DeploymentStatus{ObservedGeneration: d.Generation, CollisionCount: d.Status.CollisionCount}
	sets := old
	if next != nil {
		sets = append(slices.Clone(old), next)
		s.UpdatedReplicas = next.Status.Replicas
	}
	var terminating int32
	for _, rs := range sets {
		s.Replicas += rs.Status.Replicas
		s.ReadyReplicas += rs.Status.ReadyReplicas
		s.AvailableReplicas += rs.Status.AvailableReplicas
		if rs.Status.TerminatingReplicas != nil {
			terminating += *rs.Status.TerminatingReplicas
		}
	}
	s.TerminatingReplicas = &terminating
	s.UnavailableReplicas = max(0, *d.Spec.Replicas-s.AvailableReplicas)
	return s
}

// complete tells whether all wanted pods are of the current template and available, and no others are left.
func complete(d *appsv1.Deployment, s appsv1.DeploymentStatus) bool {
	return s.UpdatedReplicas == *d.Spec.Replicas && s.Replicas == *d.Spec.Replicas && s.AvailableReplicas == *d.Spec.Replicas
}

// statusOf computes the status with its conditions; `kubectl rollout status` reads their reasons.
func statusOf(d *appsv1.Deployment, before appsv1.DeploymentStatus, next *appsv1.ReplicaSet, old []*appsv1.ReplicaSet, now time.Time) appsv1.DeploymentStatus {
	s := statusCounts(d, next, old)
	s.Conditions = slices.Clone(before.Conditions)
	_, unavailable := limits(d)
	if s.AvailableReplicas >= *d.Spec.Replicas-unavailable {
		setCondition(&s, appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.", now, false)
	} else {
		setCondition(&s, appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.", now, false)
	}
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == appsv1.DeploymentReplicaFailure })
	if next != nil {
		for _, c := range next.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				setCondition(&s, appsv1.DeploymentReplicaFailure, c.Status, c.Reason, c.Message, now, false)
			}
		}
	}
	progressOf(d, before, &s, next, now)
	return s
}

// progressOf writes the Progressing condition. Its message names the ReplicaSet that it speaks of: by that a new
// rollout is told from the last one.
func progressOf(d *appsv1.Deployment, before appsv1.DeploymentStatus, s *appsv1.DeploymentStatus, next *appsv1.ReplicaSet, now time.Time) {
	if d.Spec.ProgressDeadlineSeconds == nil || *d.Spec.ProgressDeadlineSeconds == math.MaxInt32 {
		s.Conditions = slices.DeleteFunc(s.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == appsv1.DeploymentProgressing })
		return
	}
	progress := condition(before, appsv1.DeploymentProgressing)
	reason := ""
	if progress != nil {
		reason = progress.Reason
	}
	set := func(status corev1.ConditionStatus, reason, message string) {
		setCondition(s, appsv1.DeploymentProgressing, status, reason, message, now, true)
	}
	if d.Spec.Paused {
		if reason != "DeploymentPaused" {
			set(corev1.ConditionUnknown, "DeploymentPaused", "Deployment is paused")
		}
		return
	}
	if reason == "DeploymentPaused" {
		set(corev1.ConditionUnknown, "DeploymentResumed", "Deployment is resumed")
		return
	}
	if next == nil {
		return
	}
	name := strconv.Quote(next.Name)
	began := progress == nil || reason != "DeploymentResumed" && !strings.Contains(progress.Message, name)
	moved := s.UpdatedReplicas > before.UpdatedReplicas || s.ReadyReplicas > before.ReadyReplicas || s.AvailableReplicas > before.AvailableReplicas ||
		s.Replicas-s.UpdatedReplicas < before.Replicas-before.UpdatedReplicas
	switch {
	case !began && reason == "NewReplicaSetAvailable" && s.Replicas == s.UpdatedReplicas:
		// The rollout is over: scaling and pods that die later are no part of it.
	case complete(d, *s):
		set(corev1.ConditionTrue, "NewReplicaSetAvailable", "ReplicaSet "+name+" has successfully progressed.")
	case began:
		set(corev1.ConditionTrue, "NewReplicaSetCreated", "Created new replica set "+name)
	case moved:
		set(corev1.ConditionTrue, "ReplicaSetUpdated", "ReplicaSet "+name+" is progressing.")
	case reason != "NewReplicaSetAvailable" && reason != "ProgressDeadlineExceeded" && now.Sub(progress.LastUpdateTime.Time) >= time.Duration(*d.Spec.ProgressDeadlineSeconds)*time.Second:
		set(corev1.ConditionFalse, "ProgressDeadlineExceeded", "ReplicaSet "+name+" has timed out progressing.")
	}
}

// deadlineIn is how long from now the progress deadline runs out, zero if it is not running.
func deadlineIn(d *appsv1.Deployment, s appsv1.DeploymentStatus, now time.Time) time.Duration {
	c := condition(s, appsv1.DeploymentProgressing)
	if c == nil || d.Spec.ProgressDeadlineSeconds == nil || !slices.Contains([]string{"NewReplicaSetCreated", "ReplicaSetUpdated", "DeploymentResumed"}, c.Reason) {
		return 0
	}
	return max(c.LastUpdateTime.Add(time.Duration(*d.Spec.ProgressDeadlineSeconds)*time.Second).Sub(now)+time.Second, time.Second)
}

func condition(s appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// setCondition writes a condition; its update time moves when it changes, or if touch says so.
func setCondition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string, now time.Time, touch bool) {
	stamp := metav1.NewTime(now.Truncate(time.Second))
	c := condition(*s, t)
	if c == nil {
		s.Conditions = append(s.Conditions, appsv1.DeploymentCondition{Type: t, Status: status, Reason: reason, Message: message, LastUpdateTime: stamp, LastTransitionTime: stamp})
		return
	}
	if c.Status == status && c.Reason == reason && c.Message == message && !touch {
		return
	}
	if c.Status != status {
		c.LastTransitionTime = stamp
	}
	c.Status, c.Reason, c.Message, c.LastUpdateTime = status, reason, message, stamp
}
