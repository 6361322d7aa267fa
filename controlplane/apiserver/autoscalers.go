package apiserver

import (
	"encoding/json"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Annotations in which autoscaling/v1 carries what its fields have no room for.
const (
	metricsAnnotation    = "autoscaling.alpha.kubernetes.io/metrics"
	statusesAnnotation   = "autoscaling.alpha.kubernetes.io/current-metrics"
	conditionsAnnotation = "autoscaling.alpha.kubernetes.io/conditions"
	behaviorAnnotation   = "autoscaling.alpha.kubernetes.io/behavior"
)

// addAutoscalers teaches the scheme that a HorizontalPodAutoscaler of autoscaling/v1 is another spelling of one of v2,
// as which both are stored.
func addAutoscalers(s *runtime.Scheme) error {
	internal := schema.GroupVersion{Group: autoscalingv1.GroupName, Version: runtime.APIVersionInternal}
	s.AddKnownTypes(internal, &autoscalingv2.HorizontalPodAutoscaler{}, &autoscalingv2.HorizontalPodAutoscalerList{})
	s.AddTypeDefaultingFunc(&autoscalingv1.HorizontalPodAutoscaler{}, func(o any) {
		if h := o.(*autoscalingv1.HorizontalPodAutoscaler); h.Spec.MinReplicas == nil {
			one := int32(1)
			h.Spec.MinReplicas = &one
		}
	})
	for _, add := range []func() error{
		converts(s, toAutoscalerV2), converts(s, toAutoscalerV1),
		converts(s, func(in *autoscalingv1.HorizontalPodAutoscalerList, out *autoscalingv2.HorizontalPodAutoscalerList) {
			out.ListMeta, out.Items = in.ListMeta, make([]autoscalingv2.HorizontalPodAutoscaler, len(in.Items))
			for i := range in.Items {
				toAutoscalerV2(&in.Items[i], &out.Items[i])
			}
		}),
		converts(s, func(in *autoscalingv2.HorizontalPodAutoscalerList, out *autoscalingv1.HorizontalPodAutoscalerList) {
			out.ListMeta, out.Items = in.ListMeta, make([]autoscalingv1.HorizontalPodAutoscaler, len(in.Items))
			for i := range in.Items {
				toAutoscalerV1(&in.Items[i], &out.Items[i])
			}
		}),
	} {
		if err := add(); err != nil {
			return err
		}
	}
	return nil
}

func toAutoscalerV2(in *autoscalingv1.HorizontalPodAutoscaler, out *autoscalingv2.HorizontalPodAutoscaler) {
	*out = autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: *in.ObjectMeta.DeepCopy(),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference(in.Spec.ScaleTargetRef), MinReplicas: in.Spec.MinReplicas, MaxReplicas: in.Spec.MaxReplicas,
		},
		Status: autoscalingv2.HorizontalPodAutoscalerStatus{
			ObservedGeneration: in.Status.ObservedGeneration, LastScaleTime: in.Status.LastScaleTime, CurrentReplicas: in.Status.CurrentReplicas, DesiredReplicas: in.Status.DesiredReplicas,
		},
	}
	if n := in.Spec.TargetCPUUtilizationPercentage; n != nil {
		out.Spec.Metrics = []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: n},
		}}}
	}
	if n := in.Status.CurrentCPUUtilizationPercentage; n != nil {
		out.Status.CurrentMetrics = []autoscalingv2.MetricStatus{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricStatus{
			Name: corev1.ResourceCPU, Current: autoscalingv2.MetricValueStatus{AverageUtilization: n},
		}}}
	}
	// What can't be read was written by somebody for somebody else, and stays an annotation.
	out.Spec.Metrics = append(out.Spec.Metrics, takeAnnotation[[]autoscalingv2.MetricSpec](out.Annotations, metricsAnnotation)...)
	out.Status.CurrentMetrics = append(out.Status.CurrentMetrics, takeAnnotation[[]autoscalingv2.MetricStatus](out.Annotations, statusesAnnotation)...)
	out.Status.Conditions = takeAnnotation[[]autoscalingv2.HorizontalPodAutoscalerCondition](out.Annotations, conditionsAnnotation)
	out.Spec.Behavior = takeAnnotation[*autoscalingv2.HorizontalPodAutoscalerBehavior](out.Annotations, behaviorAnnotation)
	if len(out.Annotations) == 0 {
		out.Annotations = nil
	}
}

func toAutoscalerV1(in *autoscalingv2.HorizontalPodAutoscaler, out *autoscalingv1.HorizontalPodAutoscaler) {
	*out = autoscalingv1.HorizontalPodAutoscaler{
		ObjectMeta: *in.ObjectMeta.DeepCopy(),
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv1.CrossVersionObjectReference(in.Spec.ScaleTargetRef), MinReplicas: in.Spec.MinReplicas, MaxReplicas: in.Spec.MaxReplicas,
		},
		Status: autoscalingv1.HorizontalPodAutoscalerStatus{
			ObservedGeneration: in.Status.ObservedGeneration, LastScaleTime: in.Status.LastScaleTime, CurrentReplicas: in.Status.CurrentReplicas, DesiredReplicas: in.Status.DesiredReplicas,
		},
	}
	var metrics []autoscalingv2.MetricSpec
	for _, m := range in.Spec.Metrics {
		r := m.Resource
		if out.Spec.TargetCPUUtilizationPercentage == nil && m.Type == autoscalingv2.ResourceMetricSourceType && r != nil && r.Name == corev1.ResourceCPU && r.Target.AverageUtilization != nil {
			out.Spec.TargetCPUUtilizationPercentage = r.Target.AverageUtilization
			continue
		}
		metrics = append(metrics, m)
	}
	var statuses []autoscalingv2.MetricStatus
	for _, m := range in.Status.CurrentMetrics {
		r := m.Resource
		if out.Status.CurrentCPUUtilizationPercentage == nil && m.Type == autoscalingv2.ResourceMetricSourceType && r != nil && r.Name == corev1.ResourceCPU && r.Current.AverageUtilization != nil {
			out.Status.CurrentCPUUtilizationPercentage = r.Current.AverageUtilization
			continue
		}
		statuses = append(statuses, m)
	}
	putAnnotation(&out.Annotations, metricsAnnotation, metrics, len(metrics) > 0)
	putAnnotation(&out.Annotations, statusesAnnotation, statuses, len(statuses) > 0)
	putAnnotation(&out.Annotations, conditionsAnnotation, in.Status.Conditions, len(in.Status.Conditions) > 0)
	putAnnotation(&out.Annotations, behaviorAnnotation, in.Spec.Behavior, in.Spec.Behavior != nil)
}

// takeAnnotation reads an annotation and removes it where it could be read.
func takeAnnotation[V any](annotations map[string]string, name string) V {
	var v V
	text, ok := annotations[name]
	if !ok {
		return v
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		var zero V
		return zero
	}
	delete(annotations, name)
	return v
}

func putAnnotation(annotations *map[string]string, name string, v any, set bool) {
	if !set {
		return
	}
	text, err := json.Marshal(v)
	if err != nil {
		return
	}
	if *annotations == nil {
		*annotations = map[string]string{}
	}
	(*annotations)[name] = string(text)
}
