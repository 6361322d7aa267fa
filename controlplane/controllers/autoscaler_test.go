package controllers_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// cpuOf is what the pods of a namespace use, each as much, by metrics.k8s.io as serveMetrics serves it.
var cpuOf sync.Map // namespace → func() []metricsv1beta1.PodMetrics

// serveMetrics serves metrics.k8s.io in the place of metrics-server.
func serveMetrics(t *testing.T) *rest.Config {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ns, ok := strings.CutPrefix(r.URL.Path, "/apis/metrics.k8s.io/v1beta1/namespaces/")
		pods, known := cpuOf.Load(strings.TrimSuffix(ns, "/pods"))
		if !ok || !known || r.URL.Query().Get("labelSelector") == "" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		list := metricsv1beta1.PodMetricsList{TypeMeta: metav1.TypeMeta{APIVersion: "metrics.k8s.io/v1beta1", Kind: "PodMetricsList"}, Items: pods.(func() []metricsv1beta1.PodMetrics)()}
		if err := json.NewEncoder(w).Encode(list); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return &rest.Config{Host: s.URL}
}

// testAutoscaler: a Deployment grows with what its pods use, to no more than it may, and the status says why.
func testAutoscaler(t *testing.T, c *cluster) {
	ns := c.namespace(t, "autoscaler")
	d := deployment(ns, "web", 2)
	d.Spec.Template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}
	if _, err := c.client.AppsV1().Deployments(ns).Create(t.Context(), d, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("two ready pods", func() error {
		now, err := c.client.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{})
		if err == nil && now.Status.ReadyReplicas != 2 {
			err = fmt.Errorf("%d", now.Status.ReadyReplicas)
		}
		return err
	})
	cpuOf.Store(ns, func() []metricsv1beta1.PodMetrics {
		pods, err := c.client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return nil
		}
		var out []metricsv1beta1.PodMetrics
		for _, p := range pods.Items {
			out = append(out, metricsv1beta1.PodMetrics{
				ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: ns}, Timestamp: metav1.NewTime(time.Now().Add(time.Minute)), Window: metav1.Duration{Duration: 15 * time.Second},
				Containers: []metricsv1beta1.ContainerMetrics{{Name: "main", Usage: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("200m")}}},
			})
		}
		return out
	})
	h := &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web"}, MaxReplicas: 7,
		Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: new(int32(50))},
		}}},
	}}
	if _, err := c.client.AutoscalingV2().HorizontalPodAutoscalers(ns).Create(t.Context(), h, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	// 200 % of what is requested where 50 % is wanted: eight, of which four may come at once, and one may not.
	status := func(replicas int32, want string) {
		t.Helper()
		c.eventually(want, func() error {
			now, err := c.client.AutoscalingV2().HorizontalPodAutoscalers(ns).Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				return err
			}
			got := fmt.Sprint(now.Status.DesiredReplicas)
			for _, cond := range now.Status.Conditions {
				got += fmt.Sprintf(" %s=%s %s", cond.Type, cond.Status, cond.Reason)
			}
			if len(now.Status.CurrentMetrics) == 1 {
				got += fmt.Sprintf(" at %d%%", *now.Status.CurrentMetrics[0].Resource.Current.AverageUtilization)
			}
			if got != want {
				return fmt.Errorf("%q", got)
			}
			d, err := c.client.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{})
			if err == nil && *d.Spec.Replicas != replicas {
				err = fmt.Errorf("%d replicas", *d.Spec.Replicas)
			}
			return err
		})
	}
	status(6, "6 AbleToScale=True SucceededRescale ScalingActive=True ValidMetricFound ScalingLimited=True ScaleUpLimit at 200%")
	// A change of the autoscaler is looked at at once.
	h, err := c.client.AutoscalingV2().HorizontalPodAutoscalers(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h.Spec.MaxReplicas = 3
	if _, err := c.client.AutoscalingV2().HorizontalPodAutoscalers(ns).Update(t.Context(), h, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	status(3, "3 AbleToScale=True SucceededRescale ScalingActive=True ValidMetricFound ScalingLimited=True ScaleUpLimit at 200%")
}
