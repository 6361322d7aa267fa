package controllers_test

import (
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// testPolicyTypes: the status of a policy tells what its expressions get wrong of the types, anew for each change.
func testPolicyTypes(t *testing.T, c *cluster) {
	api, name := c.client.AdmissionregistrationV1().ValidatingAdmissionPolicies(), c.namespace(t, "policies")
	p := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
			Operations: []admissionv1.OperationType{admissionv1.Create}, Rule: admissionv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}},
		}}}},
		Validations: []admissionv1.Validation{{Expression: "object.spec.replicas < 5"}, {Expression: "object.spec.replicants < 5"}},
	}}
	if _, err := api.Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Delete(c.Context(), name, metav1.DeleteOptions{})
	})
	tells := func(what string, generation int64, fields ...string) {
		t.Helper()
		c.eventually(what, func() error {
			got, err := api.Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			s := got.Status
			if s.ObservedGeneration != generation || s.TypeChecking == nil || len(s.TypeChecking.ExpressionWarnings) != len(fields) {
				return fmt.Errorf("status %+v", s)
			}
			for i, f := range fields {
				if w := s.TypeChecking.ExpressionWarnings[i]; w.FieldRef != f || !strings.Contains(w.Warning, "undefined field 'replicants'") {
					return fmt.Errorf("warning %+v", w)
				}
			}
			return nil
		})
	}
	tells("a field that there is not", 1, "spec.validations[1].expression")
	if _, err := api.Patch(t.Context(), name, types.JSONPatchType, []byte(`[{"op":"remove","path":"/spec/validations/1"}]`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	tells("mended", 2)
}
