package proxy

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A list is of all pages, in their order and as of the version of the last; one that fails in its middle is none.
func TestPages(t *testing.T) {
	const pages, each = 3, 4
	_, h := newTold()
	listed := 0
	h.listed = func(*discoveryv1.EndpointSlice) { listed++ }
	broken := -1
	l := newLister(h, func(_ context.Context, o metav1.ListOptions) ([]discoveryv1.EndpointSlice, metav1.ListMeta, error) {
		n, _ := strconv.Atoi(o.Continue) // the first page has none
		if n == broken {
			return nil, metav1.ListMeta{}, errors.New("away")
		}
		if o.Limit != pageSize || o.ResourceVersion != "" {
			t.Errorf("asked for %d of version %q", o.Limit, o.ResourceVersion)
		}
		var items []discoveryv1.EndpointSlice
		for i := range each {
			items = append(items, *slice(func(s *discoveryv1.EndpointSlice) { s.Name = fmt.Sprint(n, "-", i) }))
		}
		m := metav1.ListMeta{ResourceVersion: "7"}
		if n < pages-1 {
			m.Continue = fmt.Sprint(n + 1)
		}
		return items, m, nil
	}, nil)
	all, err := l.ListWithContext(t.Context(), metav1.ListOptions{Limit: 500, ResourceVersion: "0"})
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
		if all, err := l.ListWithContext(t.Context(), metav1.ListOptions{}); err == nil {
			t.Errorf("page %d fails, and there is a list: %v", broken, all)
		}
	}
}
