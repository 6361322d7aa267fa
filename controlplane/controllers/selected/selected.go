// Package selected finds the pods that a Service selects and the Services that a pod may belong to, by indexes of the shared informers.
package selected

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/sets"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	sliceutil "k8s.io/endpointslice/util"
)

// Indexes by which what belongs together is found: to look at all that a namespace has for each Service and each pod of it costs its square.
const (
	podsByLabel       = "pods by label"
	servicesByLabel   = "Services by a label that they select"
	selectsEverything = ""
)

func labelled(namespace, key, value string) string { return namespace + "/" + key + "=" + value }

// firstLabel is one label that a selector wants, always the same. Pods without it are not selected.
func firstLabel(selector map[string]string) (key string) {
	for k := range selector {
		if key == "" || k < key {
			key = k
		}
	}
	return key
}

func podLabels(obj any) ([]string, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, nil
	}
	out := make([]string, 0, len(p.Labels))
	for k, v := range p.Labels {
		out = append(out, labelled(p.Namespace, k, v))
	}
	return out, nil
}

func selectedLabel(obj any) ([]string, error) {
	s, ok := obj.(*corev1.Service)
	if !ok || s.Spec.Selector == nil {
		return nil, nil
	}
	if len(s.Spec.Selector) == 0 {
		return []string{labelled(s.Namespace, selectsEverything, "")}, nil
	}
	key := firstLabel(s.Spec.Selector)
	return []string{labelled(s.Namespace, key, s.Spec.Selector[key])}, nil
}

// AddIndexes has both informers keep the indexes; who comes second finds them there.
func AddIndexes(pods, services cache.SharedIndexInformer) error {
	for _, i := range []struct {
		in    cache.SharedIndexInformer
		name  string
		index cache.IndexFunc
	}{{pods, podsByLabel, podLabels}, {services, servicesByLabel, selectedLabel}} {
		if i.in.GetIndexer().GetIndexers()[i.name] != nil {
			continue
		}
		if err := i.in.AddIndexers(cache.Indexers{i.name: i.index}); err != nil {
			return fmt.Errorf("index %q: %w", i.name, err)
		}
	}
	return nil
}

// Under returns what an index has under a value.
func Under[T any](in cache.Indexer, index, value string) ([]T, error) {
	list, err := in.ByIndex(index, value)
	if err != nil {
		return nil, fmt.Errorf("index %q: %w", index, err)
	}
	out := make([]T, 0, len(list))
	for _, obj := range list {
		if o, ok := obj.(T); ok {
			out = append(out, o)
		}
	}
	return out, nil
}

// Pods are the pods of a namespace that a selector wants.
func Pods(pods cache.Indexer, lister corelisters.PodLister, namespace string, selector map[string]string) ([]*corev1.Pod, error) {
	if len(selector) == 0 {
		return lister.Pods(namespace).List(labels.Everything())
	}
	// Of the labels that it wants the one that the fewest pods have.
	var fewest []string
	var by string
	for k, v := range selector {
		keys, err := pods.IndexKeys(podsByLabel, labelled(namespace, k, v))
		if err != nil {
			return nil, fmt.Errorf("index %q: %w", podsByLabel, err)
		}
		if by == "" || len(keys) < len(fewest) {
			fewest, by = keys, labelled(namespace, k, v)
		}
	}
	list, err := Under[*corev1.Pod](pods, podsByLabel, by)
	wants := labels.SelectorFromSet(selector)
	return slices.DeleteFunc(list, func(p *corev1.Pod) bool { return !wants.Matches(labels.Set(p.Labels)) }), err
}

// candidates are the Services that a pod may belong to, as a lister for who looks at all of a namespace.
type candidates struct {
	corelisters.ServiceLister
	corelisters.ServiceNamespaceLister
	list []*corev1.Service
}

func (c candidates) Services(string) corelisters.ServiceNamespaceLister { return c }

func (c candidates) List(labels.Selector) ([]*corev1.Service, error) { return c.list, nil }

// Services are the keys of the Services whose endpoints a change of a pod may change; either may be nil.
func Services(services cache.Indexer, old, obj any) (sets.Set[string], error) {
	key := sliceutil.GetPodUpdateProjectionKey(old, obj)
	if key == nil {
		return nil, nil
	}
	few, err := candidatesFor(services, key)
	if err != nil {
		return nil, err
	}
	return sliceutil.GetServicesToUpdate(few, key)
}

// candidatesFor are those of a pod that changed.
func candidatesFor(services cache.Indexer, key *sliceutil.PodProjectionKey) (candidates, error) {
	all := map[string]*corev1.Service{}
	add := func(k, v string) error {
		list, err := Under[*corev1.Service](services, servicesByLabel, labelled(key.Namespace, k, v))
		for _, s := range list {
			all[s.Name] = s
		}
		return err
	}
	if err := add(selectsEverything, ""); err != nil {
		return candidates{}, err
	}
	for _, set := range []labels.Set{key.Labels, key.OldLabels} {
		for k, v := range set {
			if err := add(k, v); err != nil {
				return candidates{}, err
			}
		}
	}
	return candidates{list: slices.Collect(maps.Values(all))}, nil
}
