package controllers_test

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// testEndpoints: Endpoints follow Services with a selector, come back when somebody removes them, and go with their Service; those of users
// and locks stay.
func testEndpoints(t *testing.T, c *cluster) {
	ns := c.namespace(t, "endpoints")
	api := c.client.CoreV1().Endpoints(ns)
	for name, annotations := range map[string]map[string]string{"users": nil, "lock": {resourcelock.LeaderElectionRecordAnnotationKey: "{}"}} {
		if _, err := api.Create(t.Context(), &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	shows := func(what, want string) {
		t.Helper()
		c.eventually(what, func() error {
			e, err := api.Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				return err
			}
			got := ""
			for _, s := range e.Subsets {
				got += fmt.Sprint(len(s.Addresses), " ready, ", len(s.NotReadyAddresses), " not, port ", s.Ports[0].Port, ";")
			}
			if got += e.Labels["tier"]; got != want {
				return fmt.Errorf("%q, want %q", got, want)
			}
			return nil
		})
	}
	c.podOn(ns, "web-1", nodeName, func(p *corev1.Pod) { p.Labels = map[string]string{"app": "web"} })
	c.service(ns, func(s *corev1.Service) { s.Labels = map[string]string{"tier": "front"} })
	shows("a pod", "1 ready, 0 not, port 80;front")
	c.podOn(ns, "web-2", nodeName, func(p *corev1.Pod) { p.Labels = map[string]string{"app": "web", unready: "true"} })
	shows("a pod that is not ready", "1 ready, 1 not, port 80;front")
	if err := api.Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	shows("Endpoints that were removed", "1 ready, 1 not, port 80;front")
	if err := c.client.CoreV1().Pods(ns).Delete(t.Context(), "web-1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	shows("a pod that went", "0 ready, 1 not, port 80;front")
	c.patchService(ns, `{"metadata":{"labels":{"tier":"back"}}}`)
	shows("the Service's label", "0 ready, 1 not, port 80;back")
	if err := c.client.CoreV1().Services(ns).Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("Endpoints of a Service that is gone", func() error {
		if _, err := api.Get(t.Context(), "web", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("still there, %v", err)
		}
		return nil
	})
	for _, name := range []string{"users", "lock"} {
		if _, err := api.Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	}
}
