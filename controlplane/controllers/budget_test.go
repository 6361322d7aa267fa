package controllers_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func testBudget(t *testing.T, c *cluster) {
	ns := c.namespace(t, "budget")
	if _, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), deployment(ns, "web", 3), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.deployed(ns, "web", "1")
	one := intstr.FromString("34%")
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: policyv1.PodDisruptionBudgetSpec{MaxUnavailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}}}
	api := c.client.PolicyV1().PodDisruptionBudgets(ns)
	if _, err := api.Create(t.Context(), budget, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	state := func(what string, check func(policyv1.PodDisruptionBudgetStatus) bool) {
		t.Helper()
		c.eventually(what, func() error {
			b, err := api.Get(t.Context(), "web", metav1.GetOptions{})
			if err == nil && (b.Status.ObservedGeneration < b.Generation || !check(b.Status)) {
				err = fmt.Errorf("status %+v", b.Status)
			}
			return err
		})
	}
	// 34 % of three are two, rounded up.
	state("two may go", func(s policyv1.PodDisruptionBudgetStatus) bool {
		return s.DisruptionsAllowed == 2 && s.ExpectedPods == 3 && s.DesiredHealthy == 1 && s.CurrentHealthy == 3
	})
	if _, err := api.Patch(t.Context(), "web", types.MergePatchType, []byte(`{"spec":{"maxUnavailable":null,"minAvailable":3}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	state("none may go", func(s policyv1.PodDisruptionBudgetStatus) bool {
		return s.DisruptionsAllowed == 0 && s.DesiredHealthy == 3
	})
	list, err := c.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	evict := func(name string) error {
		// The client would wait and try again, as the refusal asks it to.
		return c.client.CoreV1().RESTClient().Post().Namespace(ns).Resource("pods").Name(name).SubResource("eviction").MaxRetries(0).
			Body(&policyv1.Eviction{TypeMeta: metav1.TypeMeta{APIVersion: "policy/v1", Kind: "Eviction"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns}}).Do(t.Context()).Error()
	}
	if err := evict(list.Items[0].Name); !apierrors.IsTooManyRequests(err) {
		t.Errorf("evicted against the budget: %v", err)
	}
	if _, err := api.Patch(t.Context(), "web", types.MergePatchType, []byte(`{"spec":{"minAvailable":2}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	state("one may go", func(s policyv1.PodDisruptionBudgetStatus) bool { return s.DisruptionsAllowed == 1 })
	if err := evict(list.Items[0].Name); err != nil {
		t.Fatal(err)
	}
	// Its replacement makes room for the next.
	state("one may go again", func(s policyv1.PodDisruptionBudgetStatus) bool {
		return s.DisruptionsAllowed == 1 && len(s.DisruptedPods) == 0
	})
	// Of a pod without an owner nobody can tell how many there should be.
	if _, err := api.Patch(t.Context(), "web", types.MergePatchType, []byte(`{"spec":{"minAvailable":"50%","selector":{"matchLabels":{"app":"alone"}}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	alone := podTemplate(nil)
	if _, err := c.client.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "alone", Labels: map[string]string{"app": "alone"}}, Spec: alone.Spec}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	state("a condition that says why", func(s policyv1.PodDisruptionBudgetStatus) bool {
		return len(s.Conditions) == 1 && s.Conditions[0].Reason == policyv1.SyncFailedReason && s.DisruptionsAllowed == 0
	})
}

func testReplicationController(t *testing.T, c *cluster) {
	ns := c.namespace(t, "replicationcontroller")
	replicas := int32(2)
	template := podTemplate(map[string]string{"app": "old"})
	api := c.client.CoreV1().ReplicationControllers(ns)
	if _, err := api.Create(t.Context(), &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Name: "old"}, Spec: corev1.ReplicationControllerSpec{Replicas: &replicas, Template: &template}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	serves := func(n int32) {
		t.Helper()
		c.eventually(fmt.Sprintf("%d replicas", n), func() error {
			rc, err := api.Get(t.Context(), "old", metav1.GetOptions{})
			if err == nil && (rc.Status.ObservedGeneration < rc.Generation || rc.Status.AvailableReplicas != n || rc.Status.Replicas != n) {
				err = fmt.Errorf("status %+v", rc.Status)
			}
			return err
		})
	}
	serves(2)
	scale, err := api.GetScale(t.Context(), "old", metav1.GetOptions{})
	if err != nil || scale.Status.Selector != "app=old" {
		t.Fatalf("%+v, %v", scale, err)
	}
	scale.Spec.Replicas = 1
	if _, err := api.UpdateScale(t.Context(), "old", scale, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	serves(1)
	background := metav1.DeletePropagationBackground
	if err := api.Delete(t.Context(), "old", metav1.DeleteOptions{PropagationPolicy: &background}); err != nil {
		t.Fatal(err)
	}
	c.nothingLeft(ns)
}
