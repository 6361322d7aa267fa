package enforce

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/compiler"
)

// A ClusterNetworkPolicy's status has a condition that tells whether all that it says is understood. It follows from the policy alone, so that every agent would
// write the same: each waits for a time by lot, and the first one writes. So it needs no leader, and no server of ours.
const (
	conditionAccepted = "Accepted"
	reasonEnforced    = "Enforced"
	reasonShadow      = "InShadow"
	reasonNotRead     = "Invalid"
)

// The lot is between 0 and lotOfNode for each node, and lotMost.
const (
	lotOfNode = 20 * time.Millisecond
	lotMost   = 10 * time.Second
)

// maxMessage bounds the message of a condition; the API has 32768 bytes at most.
const maxMessage = 4096

// writeStatus gives ClusterNetworkPolicies their conditions until ctx ends.
func (e *Enforcer) writeStatus(ctx context.Context) {
	backoff := newBackoff()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.unsaid:
		}
		lot := rand.N(min(lotMost, max(1, time.Duration(e.nodes.count())*lotOfNode)))
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(lot):
			}
			err := e.accept(ctx)
			if err == nil {
				backoff, said = newBackoff(), ""
				break
			}
			if ctx.Err() == nil && err.Error() != said {
				said = err.Error()
				klog.ErrorS(err, "ClusterNetworkPolicies are enforced, but their status does not tell")
			}
			lot = backoff.Step()
		}
	}
}

// accept writes the conditions that are not of the policies' present generations.
func (e *Enforcer) accept(ctx context.Context) error {
	list, err := e.definedClusterPolicies(ctx)
	if err != nil {
		return fmt.Errorf("list ClusterNetworkPolicies: %w", err)
	}
	var errs []error
	for i := range list {
		o := &list[i]
		changed, err := setAccepted(o)
		if err == nil && changed {
			_, err = e.cfg.Dynamic.Resource(customPolicies).UpdateStatus(ctx, o, metav1.UpdateOptions{})
			if apierrors.IsConflict(err) || apierrors.IsNotFound(err) { // another agent was faster, or it has changed again
				err = nil
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("status of ClusterNetworkPolicy %s: %w", o.GetName(), err))
		}
	}
	return errors.Join(errs...)
}

// setAccepted gives an object its condition, and tells whether it had not.
func setAccepted(o *unstructured.Unstructured) (bool, error) {
	var has struct {
		Conditions []metav1.Condition `json:"conditions"`
	}
	status, _, _ := unstructured.NestedMap(o.Object, "status") // what is no status is written anew
	if runtime.DefaultUnstructuredConverter.FromUnstructured(status, &has) != nil {
		has.Conditions = nil
	}
	want := accepted(o)
	if had := meta.FindStatusCondition(has.Conditions, conditionAccepted); had != nil && had.ObservedGeneration == want.ObservedGeneration &&
		(had.Reason == reasonShadow) == (want.Reason == reasonShadow) { // the annotation changes without a generation
		return false, nil
	}
	meta.SetStatusCondition(&has.Conditions, want)
	value, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&has)
	if err != nil {
		return false, err
	}
	return true, unstructured.SetNestedMap(o.Object, value, "status")
}

// accepted is the condition of a policy as it is.
func accepted(o *unstructured.Unstructured) metav1.Condition {
	p, err := netpol.ReadClusterNetworkPolicy(o)
	c := metav1.Condition{Type: conditionAccepted, Status: metav1.ConditionTrue, ObservedGeneration: o.GetGeneration(), Reason: reasonEnforced, Message: "All that it says is enforced."}
	var wrong []string
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	for _, problem := range compiler.ClusterNetworkPolicyProblems(p) {
		wrong = append(wrong, strings.TrimPrefix(problem.Field+": "+problem.Reason, ": "))
	}
	if netpol.InShadow(p) {
		c.Reason, c.Message = reasonShadow, "It is judged beside what is enforced, and not enforced: its annotation "+netpol.ModeAnnotation+" says so."
	}
	if len(wrong) > 0 {
		c.Status = metav1.ConditionFalse
		if c.Reason != reasonShadow {
			c.Reason = reasonNotRead
		}
		c.Message = "What is invalid closes: " + strings.Join(wrong, "; ")
		c.Message = c.Message[:min(len(c.Message), maxMessage)]
	}
	return c
}
