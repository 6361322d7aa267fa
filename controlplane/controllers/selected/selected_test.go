package selected

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	sliceutil "k8s.io/endpointslice/util"
)

// What the indexes find is what looking at everything finds.
func TestIndexesFindWhatIsSelected(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	some := func() map[string]string {
		if rng.IntN(8) == 0 {
			return nil
		}
		m := map[string]string{}
		for range rng.IntN(4) {
			m[fmt.Sprint("k", rng.IntN(3))] = fmt.Sprint("v", rng.IntN(3))
		}
		return m
	}
	namespaced := cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}
	pods, services := cache.NewIndexer(cache.MetaNamespaceKeyFunc, namespaced), cache.NewIndexer(cache.MetaNamespaceKeyFunc, namespaced)
	for in, index := range map[cache.Indexer]cache.Indexers{pods: {podsByLabel: podLabels}, services: {servicesByLabel: selectedLabel}} {
		if err := in.AddIndexers(index); err != nil {
			t.Fatal(err)
		}
	}
	podLister, serviceLister := corelisters.NewPodLister(pods), corelisters.NewServiceLister(services)
	for i := range 200 {
		meta := metav1.ObjectMeta{Namespace: fmt.Sprint("ns", i%2), Name: fmt.Sprint("o", i)}
		p, s := &corev1.Pod{ObjectMeta: meta}, &corev1.Service{ObjectMeta: meta}
		p.Labels, s.Spec.Selector = some(), some()
		if err := pods.Add(p); err != nil {
			t.Fatal(err)
		}
		if err := services.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	for range 300 {
		namespace, set, old := fmt.Sprint("ns", rng.IntN(2)), some(), some()
		if set != nil {
			got, err := Pods(pods, podLister, namespace, set)
			if err != nil {
				t.Fatal(err)
			}
			want, err := podLister.Pods(namespace).List(labels.SelectorFromSet(set))
			if err != nil {
				t.Fatal(err)
			}
			name := func(l []*corev1.Pod) (out []string) {
				for _, p := range l {
					out = append(out, p.Name)
				}
				slices.Sort(out)
				return out
			}
			if !slices.Equal(name(got), name(want)) {
				t.Fatalf("%s, %v: %v, want %v", namespace, set, name(got), name(want))
			}
		}
		key := &sliceutil.PodProjectionKey{Namespace: namespace, Labels: set, OldLabels: old, PodChanged: rng.IntN(2) == 0}
		few, err := candidatesFor(services, key)
		if err != nil {
			t.Fatal(err)
		}
		got, err := sliceutil.GetServicesToUpdate(few, key)
		if err != nil {
			t.Fatal(err)
		}
		want, err := sliceutil.GetServicesToUpdate(serviceLister, key)
		if err != nil {
			t.Fatal(err)
		}
		if !got.Equal(want) {
			t.Fatalf("%+v: %v, want %v", key, got, want)
		}
	}
}
