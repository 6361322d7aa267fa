package dns

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// Names of the indexes that records are found by. They are the informers' own, kept with each event.
const (
	byService = "dns-service" // EndpointSlices, by namespace/service
	byAddress = "dns-address" // Services, EndpointSlices and Pods, by IP address
)

// addIndex adds an index to an informer that may have it already.
func addIndex(informer cache.SharedIndexInformer, name string, f cache.IndexFunc) error {
	if _, ok := informer.GetIndexer().GetIndexers()[name]; ok {
		return nil
	}
	if err := informer.AddIndexers(cache.Indexers{name: f}); err != nil {
		return fmt.Errorf("dns: index %s: %w", name, err)
	}
	return nil
}

func sliceService(obj any) ([]string, error) {
	if s, ok := obj.(*discoveryv1.EndpointSlice); ok && s.Labels[discoveryv1.LabelServiceName] != "" {
		return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}, nil
	}
	return nil, nil
}

func sliceAddresses(obj any) ([]string, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, nil
	}
	var out []string
	for _, e := range s.Endpoints {
		for _, t := range e.Addresses {
			if a, err := netip.ParseAddr(t); err == nil {
				out = append(out, a.String())
			}
		}
	}
	return out, nil
}

func serviceAddresses(obj any) ([]string, error) {
	s, ok := obj.(*corev1.Service)
	if !ok {
		return nil, nil
	}
	var out []string
	for _, a := range clusterIPs(s) {
		out = append(out, a.String())
	}
	return out, nil
}

// podAddresses are those of a pod that runs and has a network of its own.
func podAddresses(obj any) ([]string, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok || p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil, nil
	}
	var out []string
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a.String())
		}
	}
	return out, nil
}

// slicesOf returns the EndpointSlices of a Service.
func slicesOf(indexer cache.Indexer, key string) []*discoveryv1.EndpointSlice {
	objs, err := indexer.ByIndex(byService, key)
	if err != nil {
		return nil // no such index: never, as the constructors add it
	}
	var out []*discoveryv1.EndpointSlice
	for _, o := range objs {
		if s, ok := o.(*discoveryv1.EndpointSlice); ok {
			out = append(out, s)
		}
	}
	return out
}
