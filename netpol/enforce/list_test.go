package enforce

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// paged lists pods in pages as a server does, and watches what it is told.
type paged struct {
	pods    int
	limits  []int64
	watched *watch.FakeWatcher
	from    chan string
}

func (p *paged) List(_ context.Context, o metav1.ListOptions) (*corev1.PodList, error) {
	p.limits = append(p.limits, o.Limit)
	first, _ := strconv.Atoi(o.Continue) // 0 without one
	list := &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "70"}}
	last := min(p.pods, first+int(o.Limit))
	if last < p.pods {
		list.Continue = strconv.Itoa(last)
	}
	for i := first; i < last; i++ {
		one := pod("ns", fmt.Sprint("p", i), fmt.Sprint("u", i), self, "10.244.0.2")
		one.ResourceVersion = strconv.Itoa(i + 1)
		list.Items = append(list.Items, *one)
	}
	return list, nil
}

func (p *paged) Watch(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
	p.from <- o.ResourceVersion
	return p.watched, nil
}

// Lists come in pages; of each object the bytes stay, and what is passed on is whole: the watch goes on from the list's version.
func TestListsComeInPages(t *testing.T) {
	s := &paged{pods: 2*pageSize + 1, watched: watch.NewFake(), from: make(chan string, 1)}
	passed := make(chan metav1.Object, s.pods+2)
	f := newFollowed(kindPod, uidOf, keeping(keptPod), func(_, _ string, o metav1.Object) { passed <- o })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	r := reflector(&corev1.Pod{}, f, s)
	go func() { defer close(ended); r.RunWithContext(ctx) }()
	defer func() { cancel(); <-ended }()
	if from := <-s.from; from != "70" {
		t.Errorf("watched from %s", from)
	}
	<-f.synced
	if !slices.Equal(s.limits, []int64{pageSize, pageSize, pageSize}) {
		t.Errorf("limits %d", s.limits)
	}
	for i := range s.pods {
		p := (<-passed).(*corev1.Pod)
		if p.Name != fmt.Sprint("p", i) || p.ResourceVersion != strconv.Itoa(i+1) || p.Status.PodIPs[0].IP != "10.244.0.2" || p.Labels["app"] != p.Name {
			t.Fatalf("pod %d: %+v", i, p)
		}
	}
	if !f.await(ctx, "ns/p7", "8") {
		t.Error("the version of a listed pod is not known")
	}
	next := pod("ns", "p7", "u7", self, "10.244.0.9")
	next.ResourceVersion = "71"
	s.watched.Modify(next)
	if p := (<-passed).(*corev1.Pod); p.Status.PodIPs[0].IP != "10.244.0.9" || !f.await(ctx, "ns/p7", "71") {
		t.Errorf("passed on %+v", p)
	}
}

// A list that ends with an error is none, and the error is kept for who asks why nothing is known.
func TestListsThatEnd(t *testing.T) {
	f := newFollowed(kindPod, uidOf, keeping(keptPod), func(string, string, metav1.Object) { t.Error("passed on") })
	err := reflector(&corev1.Pod{}, f, &broken{paged: paged{pods: 2*pageSize + 1}}).ListAndWatchWithContext(t.Context())
	if err == nil || f.api.get() == nil || f.count() > 0 {
		t.Errorf("%v, %v, %d", err, f.api.get(), f.count())
	}
}

// broken lists one page.
type broken struct{ paged }

func (b *broken) List(ctx context.Context, o metav1.ListOptions) (*corev1.PodList, error) {
	if o.Continue != "" {
		return nil, fmt.Errorf("page %s: gone", o.Continue)
	}
	return b.paged.List(ctx, o)
}
