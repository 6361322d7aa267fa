package autoscaler

import (
	"context"
	"fmt"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	metricsv1beta1 "k8s.io/metrics/pkg/client/clientset/versioned/typed/metrics/v1beta1"
	"k8s.io/metrics/pkg/client/custom_metrics"
	"k8s.io/metrics/pkg/client/external_metrics"
)

// sample is what one pod uses: thousandths of the metric's unit, the mean of a window that ended at a time.
type sample struct {
	value  int64
	at     time.Time
	window time.Duration
}

// samples are by the pods' names.
type samples map[string]sample

// metrics is where values come from. Values are thousandths.
type metrics interface {
	// Resource is what pods, or a container of each, use of a resource.
	Resource(ctx context.Context, namespace string, selector labels.Selector, resource corev1.ResourceName, container string) (samples, error)
	// Pods is a metric of each pod.
	Pods(namespace string, selector labels.Selector, id autoscalingv2.MetricIdentifier) (samples, error)
	Object(namespace string, ref autoscalingv2.CrossVersionObjectReference, id autoscalingv2.MetricIdentifier) (int64, error)
	// External is the sum of the metric's series.
	External(namespace string, id autoscalingv2.MetricIdentifier) (int64, error)
}

// served reads the metrics APIs: metrics.k8s.io, custom.metrics.k8s.io and external.metrics.k8s.io, whoever serves them.
type served struct {
	resource metricsv1beta1.MetricsV1beta1Interface
	custom   custom_metrics.CustomMetricsClient
	external external_metrics.ExternalMetricsClient
	mapper   meta.RESTMapper
	versions custom_metrics.AvailableAPIsGetter
}

func newServed(cfg *rest.Config, d discovery.DiscoveryInterface, mapper meta.RESTMapper) (*served, error) {
	resource, err := metricsv1beta1.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	external, err := external_metrics.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	versions := custom_metrics.NewAvailableAPIsGetter(d)
	return &served{resource, custom_metrics.NewForConfig(cfg, mapper, versions), external, mapper, versions}, nil
}

func (s *served) Resource(ctx context.Context, namespace string, selector labels.Selector, resource corev1.ResourceName, container string) (samples, error) {
	list, err := s.resource.PodMetricses(namespace).List(ctx, metav1.ListOptions{LabelSelector: selector.String()})
	if err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from resource metrics API: %w", err)
	}
	if len(list.Items) == 0 {
		return nil, fmt.Errorf("no metrics returned from resource metrics API")
	}
	out := samples{}
	for _, p := range list.Items {
		sum, complete, found := int64(0), true, container == ""
		for _, c := range p.Containers {
			if container != "" && c.Name != container {
				continue
			}
			found = true
			q, ok := c.Usage[resource]
			complete = complete && ok
			sum += q.MilliValue()
		}
		if container != "" && !found {
			return nil, fmt.Errorf("container %s not present in metrics for pod %s/%s", container, namespace, p.Name)
		}
		if complete {
			out[p.Name] = sample{sum, p.Timestamp.Time, p.Window.Duration}
		}
	}
	return out, nil
}

func (s *served) Pods(namespace string, selector labels.Selector, id autoscalingv2.MetricIdentifier) (samples, error) {
	series, err := metav1.LabelSelectorAsSelector(id.Selector)
	if err != nil {
		return nil, err
	}
	list, err := s.custom.NamespacedMetrics(namespace).GetForObjects(schema.GroupKind{Kind: "Pod"}, selector, id.Name, orEverything(id.Selector, series))
	if err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from custom metrics API: %w", err)
	}
	if len(list.Items) == 0 {
		return nil, fmt.Errorf("no metrics returned from custom metrics API")
	}
	out := samples{}
	for _, m := range list.Items {
		window := time.Minute
		if m.WindowSeconds != nil {
			window = time.Duration(*m.WindowSeconds) * time.Second
		}
		out[m.DescribedObject.Name] = sample{m.Value.MilliValue(), m.Timestamp.Time, window}
	}
	return out, nil
}

// orEverything is a selector of series: none that is said means all, where one of labels would mean nothing.
func orEverything(said *metav1.LabelSelector, s labels.Selector) labels.Selector {
	if said == nil {
		return labels.Everything()
	}
	return s
}

func (s *served) Object(namespace string, ref autoscalingv2.CrossVersionObjectReference, id autoscalingv2.MetricIdentifier) (int64, error) {
	series, err := metav1.LabelSelectorAsSelector(id.Selector)
	if err != nil {
		return 0, err
	}
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return 0, err
	}
	kind := schema.GroupKind{Group: gv.Group, Kind: ref.Kind}
	mapping, err := s.mapper.RESTMapping(kind, gv.Version)
	if err != nil {
		return 0, fmt.Errorf("kind %s: %w", kind, err)
	}
	of := s.custom.RootScopedMetrics()
	// A metric of a Namespace is asked for as one of the cluster's.
	if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
		of = s.custom.NamespacedMetrics(namespace)
	}
	v, err := of.GetForObject(kind, ref.Name, id.Name, orEverything(id.Selector, series))
	if err != nil {
		return 0, fmt.Errorf("unable to fetch metrics from custom metrics API: %w", err)
	}
	return v.Value.MilliValue(), nil
}

func (s *served) External(namespace string, id autoscalingv2.MetricIdentifier) (int64, error) {
	series, err := metav1.LabelSelectorAsSelector(id.Selector)
	if err != nil {
		return 0, err
	}
	list, err := s.external.NamespacedMetrics(namespace).List(id.Name, orEverything(id.Selector, series))
	if err != nil {
		return 0, fmt.Errorf("unable to fetch metrics from external metrics API: %w", err)
	}
	if len(list.Items) == 0 {
		return 0, fmt.Errorf("no metrics returned from external metrics API")
	}
	sum := int64(0)
	for _, m := range list.Items {
		sum += m.Value.MilliValue()
	}
	return sum, nil
}
