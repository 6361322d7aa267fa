package enforce

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/compiler"
)

// A ClusterNetworkPolicy's status has a condition that tells whether all that it says is understood. It follows from the policy alone, so that every agent would
// write the same: each waits for a time by lot, and the first one writes. So it needs no leader, and no server of ours. Which policies lack it the watch tells, so that
// who was slower asks for nothing.
const (
	conditionAccepted = "Accepted"
	reasonEnforced    = "Enforced"
	reasonShadow      = "InShadow"
	reasonNotRead     = "Invalid"
)

// The lot is between 0 and lotOfNode for each node, and lotMost.
const (
	lotOfNode = 20 * time.Millisecond
	lotMost   = time.Minute
)

// maxMessage bounds the message of a condition; the API has 32768 bytes at most.
const maxMessage = 4096

// lack is what a policy lacks of its condition.
type lack int

const (
	lacksNothing lack = iota
	lacksTruth        // there is one of its generation, which says something else than we do
	lacksAll
)

// lacking compares the condition that a policy has with the one that it is to have.
func lacking(had *metav1.Condition, want metav1.Condition) lack {
	switch {
	case had == nil || had.ObservedGeneration != want.ObservedGeneration:
		return lacksAll
	case (had.Reason == reasonShadow) != (want.Reason == reasonShadow): // the annotation changes without a generation
		return lacksAll
	case had.Status != want.Status || had.Reason != want.Reason:
		return lacksTruth
	}
	return lacksNothing
}

// conditions is what the policies lack, by their names, as the watch has it.
type conditions struct {
	mu    sync.Mutex
	lack  map[string]lack
	wrong chan struct{} // something may be lacking
}

func newConditions() *conditions {
	return &conditions{lack: map[string]lack{}, wrong: make(chan struct{}, 1)}
}

// look is told of every version of a policy, and with nil that it is gone. What another agent says of the same generation is put right if it was there
// when this one saw the policy for the first time: agents of two releases, which may not understand the same, would go on for ever.
func (c *conditions) look(name string, now metav1.Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := now.(*policyv1alpha2.ClusterNetworkPolicy)
	if !ok {
		delete(c.lack, name)
		return
	}
	was, seen := c.lack[name]
	is := lacking(meta.FindStatusCondition(p.Status.Conditions, conditionAccepted), accepted(p, nil))
	if is == lacksTruth && seen && was != lacksTruth {
		is = lacksNothing
	}
	c.lack[name] = is
	if is == lacksNothing {
		return
	}
	select {
	case c.wrong <- struct{}{}:
	default:
	}
}

// names are those of the policies that lack something.
func (c *conditions) names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for name, l := range c.lack {
		if l != lacksNothing {
			out = append(out, name)
		}
	}
	return out
}

func (c *conditions) of(name string) lack {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lack[name]
}

// writeStatus gives ClusterNetworkPolicies their conditions until ctx ends.
func (e *Enforcer) writeStatus(ctx context.Context) {
	select { // the lot follows from the number of nodes
	case <-ctx.Done():
		return
	case <-e.nodes.synced:
	}
	backoff := newBackoff()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.conditions.wrong:
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

// accept writes the conditions that policies still lack.
func (e *Enforcer) accept(ctx context.Context) error {
	var errs []error
	for _, name := range e.conditions.names() {
		l := e.conditions.of(name)
		if l == lacksNothing { // another agent was faster
			continue
		}
		if err := e.acceptOne(ctx, name, l); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) { // these the watch will tell of
			errs = append(errs, fmt.Errorf("status of ClusterNetworkPolicy %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (e *Enforcer) acceptOne(ctx context.Context, name string, l lack) error {
	policies := e.cfg.Dynamic.Resource(customPolicies)
	o, err := policies.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	changed, err := setAccepted(o, l)
	if err != nil || !changed {
		return err
	}
	_, err = policies.UpdateStatus(ctx, o, metav1.UpdateOptions{})
	return err
}

// setAccepted gives an object its condition if it lacks as much as l, or more, and tells whether it did.
func setAccepted(o *unstructured.Unstructured, l lack) (bool, error) {
	var has struct {
		Conditions []metav1.Condition `json:"conditions"`
	}
	status, _, _ := unstructured.NestedMap(o.Object, "status") // what is no status is written anew
	if runtime.DefaultUnstructuredConverter.FromUnstructured(status, &has) != nil {
		has.Conditions = nil
	}
	want := accepted(netpol.ReadClusterNetworkPolicy(o))
	if lacking(meta.FindStatusCondition(has.Conditions, conditionAccepted), want) < l {
		return false, nil
	}
	meta.SetStatusCondition(&has.Conditions, want)
	value, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&has)
	if err != nil {
		return false, err
	}
	return true, unstructured.SetNestedMap(o.Object, value, "status")
}

// accepted is the condition of a policy, with the error of reading it.
func accepted(p *policyv1alpha2.ClusterNetworkPolicy, err error) metav1.Condition {
	c := metav1.Condition{Type: conditionAccepted, Status: metav1.ConditionTrue, ObservedGeneration: p.Generation, Reason: reasonEnforced, Message: "All that it says is enforced."}
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
