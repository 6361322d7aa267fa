package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

func hasNoExecute(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Effect == corev1.TaintEffectNoExecute })
}

// evictIn tells whether a pod must leave a node with these taints, and in how long.
func evictIn(p *corev1.Pod, taints []corev1.Taint, now time.Time) (time.Duration, bool) {
	var soonest time.Duration
	must := false
	for _, t := range taints {
		if t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		left, stays := time.Duration(0), false
		for _, tol := range p.Spec.Tolerations {
			if !tolerates(tol, t) {
				continue
			}
			if tol.TolerationSeconds == nil {
				stays = true
				break
			}
			since := now
			if t.TimeAdded != nil {
				since = t.TimeAdded.Time
			}
			if l := since.Add(time.Duration(*tol.TolerationSeconds) * time.Second).Sub(now); left == 0 || l < left {
				left = l
			}
		}
		if stays {
			continue
		}
		if !must || left < soonest {
			soonest = left
		}
		must = true
	}
	return soonest, must
}

func tolerates(tol corev1.Toleration, t corev1.Taint) bool {
	if tol.Effect != "" && tol.Effect != t.Effect || tol.Key != "" && tol.Key != t.Key {
		return false
	}
	return tol.Operator == corev1.TolerationOpExists || tol.Value == t.Value
}

// dated are the node's NoExecute taints with the time since when tolerations count: that of the taint, or else the first
// time that we saw it.
func (c *controller) dated(n *corev1.Node, now time.Time) []corev1.Taint {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []corev1.Taint
	seen := map[corev1.Taint]time.Time{}
	for _, t := range n.Spec.Taints {
		if t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		if t.TimeAdded == nil {
			since, ok := c.tainted[n.Name][t]
			if !ok {
				since = now
			}
			seen[t] = since
			t.TimeAdded = &metav1.Time{Time: since}
		}
		out = append(out, t)
	}
	if len(seen) == 0 {
		delete(c.tainted, n.Name)
	} else {
		c.tainted[n.Name] = maps.Clone(seen)
	}
	return out
}

func (c *controller) evict(ctx context.Context, n *corev1.Node) error {
	now := time.Now()
	taints := c.dated(n, now)
	if len(taints) == 0 {
		return nil
	}
	pods, err := c.pods.ByIndex(nodeIndex, n.Name)
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range pods {
		p := o.(*corev1.Pod)
		left, must := evictIn(p, taints, now)
		switch {
		case !must || p.DeletionTimestamp != nil:
		case left > 0:
			c.queue.AddAfter(n.Name, left)
		default:
			c.recorder.Eventf(p, corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod %s/%s", p.Namespace, p.Name)
			err := disrupt(ctx, c.client, p, "", "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
			if err == nil {
				err = c.client.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
			}
			errs = append(errs, unlessGone(err))
		}
	}
	return errors.Join(errs...)
}

// deleteOrphans removes the pods of a node that no longer exists: nobody is left to end them. The cache may not know a node
// yet that has pods already, so the API is asked.
func (c *controller) deleteOrphans(ctx context.Context, node string) error {
	pods, err := c.pods.ByIndex(nodeIndex, node)
	if err != nil || len(pods) == 0 {
		return err
	}
	if _, err := c.collector.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	var errs []error
	zero := int64(0)
	for _, o := range pods {
		p := o.(*corev1.Pod)
		var phase corev1.PodPhase
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			phase = corev1.PodFailed
		}
		// Who counts pods, as a Job does, must see how this one ended.
		err := disrupt(ctx, c.collector, p, phase, "DeletionByPodGC", "PodGC: node no longer exists")
		if err == nil {
			err = c.collector.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(p.UID))})
		}
		errs = append(errs, unlessGone(err))
	}
	return errors.Join(errs...)
}

// unlessGone forgives that a pod is there no more, or is another by now.
func unlessGone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// disrupt writes into the pod why it is about to be deleted, and its phase unless that is empty.
func disrupt(ctx context.Context, client kubernetes.Interface, p *corev1.Pod, phase corev1.PodPhase, reason, message string) error {
	known := slices.ContainsFunc(p.Status.Conditions, func(have corev1.PodCondition) bool {
		return have.Type == corev1.DisruptionTarget && have.Status == corev1.ConditionTrue && have.Reason == reason
	})
	if known && (phase == "" || p.Status.Phase == phase) {
		return nil
	}
	status := map[string]any{"conditions": []corev1.PodCondition{{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, Message: message, LastTransitionTime: metav1.Now(), ObservedGeneration: p.Generation,
	}}}
	if phase != "" {
		status["phase"] = phase
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID}, "status": status})
	if err != nil {
		return fmt.Errorf("pod %s/%s: condition: %w", p.Namespace, p.Name, err)
	}
	_, err = client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}
