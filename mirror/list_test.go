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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
)

// slicePages are a server's answers, page by page.
type slicePages func(metav1.ListOptions) (*discoveryv1.EndpointSliceList, error)

func (p slicePages) List(_ context.Context, o metav1.ListOptions) (*discoveryv1.EndpointSliceList, error) {
	return p(o)
}

func (slicePages) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	return nil, errors.New("nobody watches")
}

// A list is of all pages, in their order and as of the version of the last; one that fails in its middle is none.
func TestPages(t *testing.T) {
	const pages, each = 3, 4
	_, s := newTold()
	listed := 0
	s.Follow(Follower[*discoveryv1.EndpointSlice]{Listed: func(*discoveryv1.EndpointSlice) { listed++ }, Having: discoveryv1.LabelServiceName})
	broken := -1
	l := &lister[*discoveryv1.EndpointSliceList, packed]{page: pageSize, hold: s.listed, from: slicePages(func(o metav1.ListOptions) (*discoveryv1.EndpointSliceList, error) {
		n, _ := strconv.Atoi(o.Continue) // the first page has none
		if n == broken {
			return nil, errors.New("away")
		}
		if o.Limit != pageSize || o.ResourceVersion != "" {
			t.Errorf("asked for %d of version %q", o.Limit, o.ResourceVersion)
		}
		list := &discoveryv1.EndpointSliceList{ListMeta: metav1.ListMeta{ResourceVersion: "7"}}
		for i := range each {
			list.Items = append(list.Items, *slice(fmt.Sprint(n, "-", i), "web", "1"))
		}
		if n < pages-1 {
			list.Continue = fmt.Sprint(n + 1)
		}
		return list, nil
	})}
	all, err := l.list(t.Context(), metav1.ListOptions{Limit: 500, ResourceVersion: "0"})
	must(t, err)
	items, err := meta.ExtractListWithAlloc(all) // as the reflector does
	must(t, err)
	if len(items) != pages*each || listed != pages*each {
		t.Fatalf("%d items, %d told of", len(items), listed)
	}
	for i, o := range items {
		if want := fmt.Sprintf("ns/%d-%d", i/each, i%each); o.(*Held[packed]).Of.key != want {
			t.Errorf("item %d is %s, not %s", i, o.(*Held[packed]).Of.key, want)
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

// How a list ends is told once: why an object was not held, not how its pages came.
func TestHowListsEnd(t *testing.T) {
	for strange, want := range map[string]error{"none": errors.New("nobody watches"), "1": errors.New("too strange")} {
		from := slicePages(func(o metav1.ListOptions) (*discoveryv1.EndpointSliceList, error) {
			n, _ := strconv.Atoi(o.Continue) // the first page has none
			list := &discoveryv1.EndpointSliceList{Items: []discoveryv1.EndpointSlice{*slice(strconv.Itoa(n), "web", "1")}}
			if n < 3 {
				list.Continue = strconv.Itoa(n + 1)
			}
			return list, nil
		})
		_, s := newTold()
		hold := func(o runtime.Object) (packed, error) {
			if o.(*discoveryv1.EndpointSlice).Name == strange {
				return packed{}, want
			}
			return s.listed(o)
		}
		var told []error
		err := Reflector(&discoveryv1.EndpointSlice{}, s, from, 1, hold, func(err error) { told = append(told, err) }).ListAndWatchWithContext(t.Context())
		if strange == "1" && (!errors.Is(err, want) || len(told) != 1 || !errors.Is(told[0], want)) {
			t.Errorf("a page with a strange object: %v, told %v", err, told)
		}
		if strange == "none" && (len(told) != 2 || told[0] != nil || told[1] == nil) {
			t.Errorf("a list that is whole, and no watch: told %v", told)
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
