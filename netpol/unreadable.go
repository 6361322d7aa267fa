package netpol

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// ReadClusterNetworkPolicy reads one as the API has it. Of one that can't be read as a whole, of which the error tells, there is what can be. The rest is left
// empty, which the witnesses tell of and close: a rule without an action denies all, a subject without anything is every pod, a tier that is none opens
// nothing.
func ReadClusterNetworkPolicy(o *unstructured.Unstructured) (*policyv1alpha2.ClusterNetworkPolicy, error) {
	whole := &policyv1alpha2.ClusterNetworkPolicy{}
	err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, whole)
	if err == nil {
		return whole, nil
	}
	p := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{
		Name: o.GetName(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(), Generation: o.GetGeneration(), CreationTimestamp: o.GetCreationTimestamp(),
		Labels: o.GetLabels(), Annotations: o.GetAnnotations(), ManagedFields: o.GetManagedFields(),
	}}
	p.Status, _ = read[policyv1alpha2.ClusterNetworkPolicyStatus](o.Object["status"])
	spec, _ := o.Object["spec"].(map[string]any)
	p.Spec.Tier, _ = read[policyv1alpha2.Tier](spec["tier"])
	p.Spec.Subject, _ = read[policyv1alpha2.ClusterNetworkPolicySubject](spec["subject"])
	var ok bool
	if p.Spec.Priority, ok = read[int32](spec["priority"]); !ok {
		p.Spec.Tier = "" // nobody knows what it goes before
	}
	p.Spec.Ingress = readRules[policyv1alpha2.ClusterNetworkPolicyIngressRule](spec, "ingress")
	p.Spec.Egress = readRules[policyv1alpha2.ClusterNetworkPolicyEgressRule](spec, "egress")
	return p, err
}

// readRules are a direction's; of one that can't be read there is an empty one, as of rules that are no list, or in a spec that is none.
func readRules[T any](spec map[string]any, direction string) []T {
	value, ok := spec[direction]
	if ok && value == nil || !ok && spec != nil {
		return nil
	}
	list, ok := value.([]any)
	if !ok {
		return make([]T, 1)
	}
	out := make([]T, len(list))
	for i, r := range list {
		out[i], _ = read[T](r)
	}
	return out
}

// read is a value of T, or an empty one if it is none.
func read[T any](value any) (T, bool) {
	var out, none T
	data, err := json.Marshal(value)
	if err != nil || json.Unmarshal(data, &out) != nil {
		return none, false
	}
	return out, true
}
