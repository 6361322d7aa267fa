package enforce

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

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
	if changed, err := setAccepted(written); changed || err != nil {
		t.Errorf("what has its condition is written again: %v", err)
	}
}
