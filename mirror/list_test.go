package mirror

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// A list is of all pages, in their order and as of the version of the last; one that fails in its middle is none.
func TestPages(t *testing.T) {
	const pages, each = 3, 4
	_, s := newTold()
	listed := 0
	s.Follow(Follower[*discoveryv1.EndpointSlice]{Listed: func(*discoveryv1.EndpointSlice) { listed++ }})
	broken := -1
	l := &lister[discoveryv1.EndpointSlice, *discoveryv1.EndpointSlice]{set: s, page: func(_ context.Context, o metav1.ListOptions) ([]discoveryv1.EndpointSlice, metav1.ListMeta, error) {
		n, _ := strconv.Atoi(o.Continue) // the first page has none
		if n == broken {
			return nil, metav1.ListMeta{}, errors.New("away")
		}
		if o.Limit != pageSize || o.ResourceVersion != "" {
			t.Errorf("asked for %d of version %q", o.Limit, o.ResourceVersion)
		}
		var items []discoveryv1.EndpointSlice
		for i := range each {
			items = append(items, *slice(fmt.Sprint(n, "-", i), "web", "1"))
		}
		m := metav1.ListMeta{ResourceVersion: "7"}
		if n < pages-1 {
			m.Continue = fmt.Sprint(n + 1)
		}
		return items, m, nil
	}}
	all, err := l.list(t.Context(), metav1.ListOptions{Limit: 500, ResourceVersion: "0"})
	must(t, err)
	items, err := meta.ExtractListWithAlloc(all) // as the reflector does
	must(t, err)
	if len(items) != pages*each || listed != pages*each {
		t.Fatalf("%d items, %d told of", len(items), listed)
	}
	for i, o := range items {
		if want := fmt.Sprintf("ns/%d-%d", i/each, i%each); o.(*packed).key != want {
			t.Errorf("item %d is %s, not %s", i, o.(*packed).key, want)
		}
	}
	if m, err := meta.ListAccessor(all); err != nil || m.GetResourceVersion() != "7" || m.GetContinue() != "" {
		t.Errorf("%v, %v", m, err)
	}
	for broken = range pages {
		if all, err := l.list(t.Context(), metav1.ListOptions{}); err == nil {
			t.Errorf("page %d fails, and there is a list: %v", broken, all)
		}
	}
}

// Whoever asks for a kind gets the same set, and each kind is listed and watched once.
func TestOneWatchOfEachKind(t *testing.T) {
	client := fake.NewClientset(
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}}, slice("a", "web", "1"),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}})
	m := New(client, "")
	for range 2 {
		m.Services()
		m.Slices()
		m.Namespaces()
		m.Pods()
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { m.Run(ctx) })
	if !m.Wait(ctx) {
		t.Fatal("not seen")
	}
	if m.Services().Get("ns/web") == nil || len(m.Slices().OfService("ns/web")) != 1 || !m.Namespaces().Has("ns") || !m.Pods().Has("ns/p") {
		t.Error("something is not held")
	}
	cancel()
	running.Wait()
	asked := map[string]int{}
	for _, a := range client.Actions() {
		asked[a.GetVerb()+" "+a.GetResource().Resource]++
	}
	for _, kind := range []string{"services", "endpointslices", "namespaces", "pods"} {
		if asked["list "+kind] != 1 || asked["watch "+kind] > 1 {
			t.Errorf("%s: %v", kind, asked)
		}
	}
	if Wait(ctx, New(client, "").Services()) { // its end is all that it can see
		t.Error("seen by nobody")
	}
}
