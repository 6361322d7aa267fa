package enforce

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
)

func customPolicy(name string, generation int64, rules ...any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": customPolicies.GroupVersion().String(), "kind": kindClusterNetworkPolicy, "metadata": map[string]any{"name": name, "generation": generation},
		"spec": map[string]any{"tier": "Admin", "priority": int64(1), "subject": map[string]any{"namespaces": map[string]any{}}, "ingress": rules},
	}}
}

var (
	fineRule = map[string]any{"action": "Deny", "from": []any{map[string]any{"namespaces": map[string]any{}}}}
	oddRule  = map[string]any{"action": "Forbid", "from": []any{map[string]any{"namespaces": map[string]any{}}}}
)

// awaitCondition waits until a policy's condition says so of a generation.
func (l *lab) awaitCondition(name string, generation int64, status, reason, message string) *unstructured.Unstructured {
	l.tb.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		o, err := l.dynamic.Resource(customPolicies).Get(l.tb.Context(), name, metav1.GetOptions{})
		if err != nil {
			l.tb.Fatal(err)
		}
		conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		for _, c := range conditions {
			m := c.(map[string]any)
			if m["type"] == conditionAccepted && m["observedGeneration"] == generation && m["status"] == status && m["reason"] == reason && strings.Contains(m["message"].(string), message) {
				return o
			}
		}
		if time.Now().After(deadline) {
			l.tb.Fatalf("%s has the conditions %v", name, conditions)
		}
	}
}

// A ClusterNetworkPolicy's status tells whether all of it is understood, of its present generation, and what others write there stays.
func TestClusterNetworkPoliciesHaveConditions(t *testing.T) {
	l := newLab(t, newTables(), namespace("ns"))
	create := func(o *unstructured.Unstructured) {
		t.Helper()
		if _, err := l.dynamic.Resource(customPolicies).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.dynamic.Resource(definitions).Create(t.Context(), crd(version(customPolicies.Version, true)), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	fine := customPolicy("fine", 3, fineRule)
	other := map[string]any{"type": "Other", "status": "True", "reason": "Theirs", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
	if err := unstructured.SetNestedSlice(fine.Object, []any{other}, "status", "conditions"); err != nil {
		t.Fatal(err)
	}
	shadow := customPolicy("shadow", 1, fineRule)
	shadow.SetAnnotations(map[string]string{netpol.ModeAnnotation: netpol.ModeShadow})
	create(fine)
	create(shadow)
	create(customPolicy("odd", 1, fineRule, oddRule))
	create(customPolicy("rubbish", 1, "rubbish"))
	l.run()
	written := l.awaitCondition("fine", 3, "True", reasonEnforced, "All")
	if conditions, _, _ := unstructured.NestedSlice(written.Object, "status", "conditions"); len(conditions) != 2 {
		t.Errorf("what others wrote is gone: %v", conditions)
	}
	l.awaitCondition("shadow", 1, "True", reasonShadow, "not enforced")
	l.awaitCondition("odd", 1, "False", reasonNotRead, "ingress[1]")
	l.awaitCondition("rubbish", 1, "False", reasonNotRead, "What is invalid closes")
	better := customPolicy("odd", 2, fineRule)
	better.SetResourceVersion(written.GetResourceVersion())
	if _, err := l.dynamic.Resource(customPolicies).Update(t.Context(), better, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.awaitCondition("odd", 2, "True", reasonEnforced, "All")
	if changed, err := setAccepted(written, lacksTruth); changed || err != nil {
		t.Errorf("what has its condition is written again: %v", err)
	}
	lists := 0
	for _, a := range l.dynamic.Actions() {
		if a.Matches("list", customPolicies.Resource) {
			lists++
		}
	}
	if lists > 1 {
		t.Errorf("%d lists: what lacks its condition the watch tells", lists)
	}
}

// What was said of the same generation is put right when an agent starts, and not again: another release may not understand the same.
func TestConditionsThatAreWrong(t *testing.T) {
	saying := func(generation int64, status metav1.ConditionStatus, reason string) *policyv1alpha2.ClusterNetworkPolicy {
		o := customPolicy("p", 1, fineRule)
		if err := unstructured.SetNestedSlice(o.Object, []any{map[string]any{"type": conditionAccepted, "observedGeneration": generation, "status": string(status), "reason": reason}}, "status", "conditions"); err != nil {
			t.Fatal(err)
		}
		kept, err := keptCustom(o)
		if err != nil {
			t.Fatal(err)
		}
		return kept.(*policyv1alpha2.ClusterNetworkPolicy)
	}
	right, wrong, odd, shadow, old := saying(1, "True", reasonEnforced), saying(1, "False", reasonEnforced), saying(1, "True", "Odd"), saying(1, "True", reasonShadow), saying(0, "True", reasonEnforced)
	for what, c := range map[string]struct {
		seen []*policyv1alpha2.ClusterNetworkPolicy
		want lack
	}{
		"right":                         {[]*policyv1alpha2.ClusterNetworkPolicy{right}, lacksNothing},
		"another status":                {[]*policyv1alpha2.ClusterNetworkPolicy{wrong}, lacksTruth},
		"another reason, still":         {[]*policyv1alpha2.ClusterNetworkPolicy{odd, odd}, lacksTruth},
		"put right, and changed again":  {[]*policyv1alpha2.ClusterNetworkPolicy{wrong, right, wrong}, lacksNothing},
		"of an older generation":        {[]*policyv1alpha2.ClusterNetworkPolicy{right, old}, lacksAll},
		"in shadow no more":             {[]*policyv1alpha2.ClusterNetworkPolicy{right, shadow}, lacksAll},
		"another release was faster":    {[]*policyv1alpha2.ClusterNetworkPolicy{old, wrong}, lacksNothing},
		"gone, and another of its name": {[]*policyv1alpha2.ClusterNetworkPolicy{right, nil, wrong}, lacksTruth},
	} {
		all := newConditions()
		for _, p := range c.seen {
			if p == nil {
				all.look("p", nil)
			} else {
				all.look("p", p)
			}
		}
		if got := all.of("p"); got != c.want || (len(all.names()) > 0) != (c.want != lacksNothing) {
			t.Errorf("%s: it lacks %d, want %d", what, got, c.want)
		}
	}
}

// Another agent's condition at the start is put right in the API, and nothing that changes only the status is enforced anew.
func TestWrongConditionIsPutRight(t *testing.T) {
	l := newLab(t, newTables(), namespace("ns"))
	if _, err := l.dynamic.Resource(definitions).Create(t.Context(), crd(version(customPolicies.Version, true)), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	o := customPolicy("p", 1, oddRule)
	said := map[string]any{"type": conditionAccepted, "observedGeneration": int64(1), "status": "True", "reason": reasonEnforced, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
	if err := unstructured.SetNestedSlice(o.Object, []any{said}, "status", "conditions"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.dynamic.Resource(customPolicies).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	l.run()
	written := l.awaitCondition("p", 1, "False", reasonNotRead, "ingress[0]")
	passed := 0
	f := newFollowed(kindClusterNetworkPolicy, keyOf, customCodec, func(string, string, metav1.Object) { passed++ })
	for _, version := range []*unstructured.Unstructured{o, written} {
		if err := f.Add(version); err != nil {
			t.Fatal(err)
		}
	}
	if passed != 1 {
		t.Errorf("passed on %d times", passed)
	}
}
