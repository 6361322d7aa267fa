package controllers_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func testQuota(t *testing.T, c *cluster) {
	ns := c.namespace(t, "quota")
	class := "low"
	hard := func(pairs ...string) corev1.ResourceList {
		l := corev1.ResourceList{}
		for i := 0; i < len(pairs); i += 2 {
			l[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
		}
		return l
	}
	for name, spec := range map[string]corev1.ResourceQuotaSpec{
		"all":       {Hard: hard("pods", "3", "requests.cpu", "1", "limits.memory", "1Gi", "count/deployments.apps", "1", "services.nodeports", "1", "configmaps", "3", "requests.storage", "5Gi")},
		"unlimited": {Hard: hard("pods", "1"), Scopes: []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeTerminating}},
		"classes": {Hard: hard("pods", "1"), ScopeSelector: &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
			{ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: corev1.ScopeSelectorOpIn, Values: []string{class}},
		}}},
	} {
		if _, err := c.client.CoreV1().ResourceQuotas(ns).Create(t.Context(), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	used := func(quota, name, want string) {
		t.Helper()
		c.eventually(quota+": "+name+" "+want, func() error {
			q, err := c.client.CoreV1().ResourceQuotas(ns).Get(t.Context(), quota, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if have, ok := q.Status.Used[corev1.ResourceName(name)]; !ok || have.Cmp(resource.MustParse(want)) != 0 {
				return fmt.Errorf("used %v of %v", q.Status.Used, q.Status.Hard)
			}
			return nil
		})
	}
	used("all", "pods", "0")
	used("all", "configmaps", "1") // the CA's
	used("unlimited", "pods", "0")
	used("classes", "pods", "0")
	if _, err := c.client.SchedulingV1().PriorityClasses().Create(t.Context(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Value: 1}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := func(name, cpu string, change ...func(*corev1.Pod)) error {
		template := podTemplate(nil)
		template.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: hard("cpu", cpu), Limits: hard("memory", "100Mi")}
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: template.Spec}
		for _, f := range change {
			f(p)
		}
		_, err := c.client.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
		return err
	}
	over := func(err error, text string) {
		t.Helper()
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want a refusal with %q", err, text)
		}
	}
	over(pod("silent", "100m", func(p *corev1.Pod) { p.Spec.Containers[0].Resources = corev1.ResourceRequirements{} }), "must specify limits.memory for: main; requests.cpu for: main")
	over(pod("greedy", "1100m"), "exceeded quota: all, requested: requests.cpu=1100m, used: requests.cpu=0, limited: requests.cpu=1")
	deadline := int64(100)
	ends := func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = &deadline }
	if err := pod("first", "100m", ends); err != nil {
		t.Fatal(err)
	}
	over(pod("second", "100m", ends), "exceeded quota: unlimited")
	low := func(p *corev1.Pod) { p.Spec.PriorityClassName = class }
	c.eventually("a pod of the class", func() error { return pod("low", "100m", low) })
	over(pod("lower", "100m", low), "exceeded quota: classes")
	// Many at once: no more than are left get through.
	errs := make(chan error, 8)
	for i := range 8 {
		go func() { errs <- pod(fmt.Sprintf("storm-%d", i), "100m") }()
	}
	made := 0
	for range 8 {
		if err := <-errs; err == nil {
			made++
		} else {
			over(err, "exceeded quota: all")
		}
	}
	if made != 1 {
		t.Errorf("%d pods got through, where one had room", made)
	}
	used("all", "pods", "3")
	used("all", "requests.cpu", "300m")
	if err := c.client.CoreV1().Pods(ns).Delete(t.Context(), "first", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	used("all", "pods", "2")
	used("unlimited", "pods", "0")
	// Objects that are only counted, Services by their ports, claims by their size.
	if _, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), deployment(ns, "one", 0), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), deployment(ns, "two", 0), metav1.CreateOptions{})
	over(err, "count/deployments.apps")
	_, err = c.client.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Name: "a", Port: 1}, {Name: "b", Port: 2}}}}, metav1.CreateOptions{})
	over(err, "services.nodeports=2")
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: corev1.PersistentVolumeClaimSpec{AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{Requests: hard("storage", "6Gi")}}}
	_, err = c.client.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), claim, metav1.CreateOptions{})
	over(err, "requests.storage=6Gi")
	if err := c.client.AppsV1().Deployments(ns).Delete(t.Context(), "one", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	used("all", "count/deployments.apps", "0")
}
