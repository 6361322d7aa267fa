package autoscaler

import (
	"context"
	"errors"
	"fmt"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
)

// reading is what all metrics of a round are read for.
type reading struct {
	namespace string
	selector  labels.Selector
	pods      []*corev1.Pod
	target    *autoscalingv1.Scale
	tolerances
	now time.Time
}

var errTarget = errors.New("neither a value nor an average of the metric is given as its target")

func thousandths(n int64) *resource.Quantity { return resource.NewMilliQuantity(n, resource.DecimalSI) }

// propose is how many pods one metric asks for, what the metric is called, what is told of it, and why it could not be had.
func (c *controller) propose(ctx context.Context, r reading, m *autoscalingv2.MetricSpec) (replicas int32, name string, status autoscalingv2.MetricStatus, reason string, err error) {
	status.Type = m.Type
	current := r.target.Spec.Replicas
	var p proposal
	switch m.Type {
	case autoscalingv2.ResourceMetricSourceType:
		s := m.Resource
		p, name, err = c.ofResource(ctx, r, s.Name, "", s.Target)
		value := autoscalingv2.MetricValueStatus{AverageValue: thousandths(p.average)}
		if s.Target.AverageUtilization != nil {
			value.AverageUtilization = &p.utilization
		}
		status.Resource = &autoscalingv2.ResourceMetricStatus{Name: s.Name, Current: value}
		if reason = "FailedGetResourceMetric"; err != nil {
			err = fmt.Errorf("failed to get %s utilization: %w", s.Name, err)
		}
	case autoscalingv2.ContainerResourceMetricSourceType:
		s := m.ContainerResource
		p, name, err = c.ofResource(ctx, r, s.Name, s.Container, s.Target)
		value := autoscalingv2.MetricValueStatus{AverageValue: thousandths(p.average)}
		if s.Target.AverageUtilization != nil {
			value.AverageUtilization = &p.utilization
		}
		status.ContainerResource = &autoscalingv2.ContainerResourceMetricStatus{Name: s.Name, Container: s.Container, Current: value}
		if reason = "FailedGetContainerResourceMetric"; err != nil {
			err = fmt.Errorf("failed to get %s utilization of container %s: %w", s.Name, s.Container, err)
		}
	case autoscalingv2.PodsMetricSourceType:
		s := m.Pods
		reason, name = "FailedGetPodsMetric", "pods metric "+s.Metric.Name
		if s.Target.AverageValue == nil {
			err = errTarget
			break
		}
		var values samples
		if values, err = c.metrics.Pods(r.namespace, r.selector, s.Metric); err == nil {
			p, err = r.byAverage(current, s.Target.AverageValue.MilliValue(), values, r.pods, "", r.now)
		}
		status.Pods = &autoscalingv2.PodsMetricStatus{Metric: s.Metric, Current: autoscalingv2.MetricValueStatus{AverageValue: thousandths(p.average)}}
	case autoscalingv2.ObjectMetricSourceType:
		s := m.Object
		reason, name = "FailedGetObjectMetric", fmt.Sprintf("%s metric %s", s.DescribedObject.Kind, s.Metric.Name)
		var value int64
		value, err = c.metrics.Object(r.namespace, s.DescribedObject, s.Metric)
		status.Object = &autoscalingv2.ObjectMetricStatus{DescribedObject: s.DescribedObject, Metric: s.Metric}
		p, status.Object.Current, err = r.ofOne(s.Target, value, err)
	case autoscalingv2.ExternalMetricSourceType:
		s := m.External
		reason, name = "FailedGetExternalMetric", "external metric "+s.Metric.Name
		var value int64
		value, err = c.metrics.External(r.namespace, s.Metric)
		status.External = &autoscalingv2.ExternalMetricStatus{Metric: s.Metric}
		p, status.External.Current, err = r.ofOne(s.Target, value, err)
	default:
		reason, err = "InvalidMetricSourceType", fmt.Errorf("unknown metric source type %q", m.Type)
	}
	return p.replicas, name, status, reason, err
}

// ofResource is of what pods use, against what they request or against an amount.
func (c *controller) ofResource(ctx context.Context, r reading, name corev1.ResourceName, container string, target autoscalingv2.MetricTarget) (proposal, string, error) {
	what := fmt.Sprintf("%s resource", name)
	if container != "" {
		what = fmt.Sprintf("%s container resource of container %s", name, container)
	}
	if target.AverageValue == nil && target.AverageUtilization == nil {
		return proposal{}, what, errTarget
	}
	values, err := c.metrics.Resource(ctx, r.namespace, r.selector, name, container)
	if err != nil {
		return proposal{}, what, err
	}
	if len(r.pods) == 0 {
		return proposal{}, what, errors.New("no pods returned by selector while calculating replica count")
	}
	if target.AverageValue != nil {
		p, err := r.byAverage(r.target.Spec.Replicas, target.AverageValue.MilliValue(), values, r.pods, name, r.now)
		return p, what, err
	}
	p, err := r.byUtilization(r.target.Spec.Replicas, *target.AverageUtilization, values, r.pods, name, container, r.now)
	return p, what + " utilization (percentage of request)", err
}

// ofOne is of one value, of all pods or of each one's share.
func (r reading) ofOne(target autoscalingv2.MetricTarget, value int64, err error) (proposal, autoscalingv2.MetricValueStatus, error) {
	switch {
	case err != nil:
	case target.Type == autoscalingv2.ValueMetricType && target.Value != nil:
		p := r.byValue(r.target.Spec.Replicas, target.Value.MilliValue(), value, readyOf(r.pods))
		return p, autoscalingv2.MetricValueStatus{Value: thousandths(p.average)}, nil
	case target.Type == autoscalingv2.AverageValueMetricType && target.AverageValue != nil:
		p := r.byShare(r.target.Status.Replicas, target.AverageValue.MilliValue(), value)
		return p, autoscalingv2.MetricValueStatus{AverageValue: thousandths(p.average)}, nil
	default:
		err = errTarget
	}
	return proposal{}, autoscalingv2.MetricValueStatus{}, err
}
