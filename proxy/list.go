package proxy

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// pageSize is how many objects of a list are asked for at once. Of each page only the packed form stays in memory.
const pageSize = 2000

// lister lists and watches a kind for a reflector. It lists in pages, and packs one while the server makes the next: a server takes several
// times as long to stream objects one by one, and a list in one piece takes several times as much memory here.
type lister[T any, P packable[T]] struct {
	held *held[T, P]
	page func(context.Context, metav1.ListOptions) ([]T, metav1.ListMeta, error)
	cache.ListWatch
}

// page is a part of a list.
type page[T any] struct {
	items []T
	meta  metav1.ListMeta
	err   error
}

// newLister lists by page and watches by watch.
func newLister[T any, P packable[T]](h *held[T, P], page func(context.Context, metav1.ListOptions) ([]T, metav1.ListMeta, error), watch func(context.Context, metav1.ListOptions) (watch.Interface, error)) *lister[T, P] {
	l := &lister[T, P]{held: h, page: page}
	l.ListWithContextFunc, l.WatchFuncWithContext = l.list, watch
	return l
}

// IsWatchListSemanticsUnSupported has the reflector list, and not stream.
func (l *lister[T, P]) IsWatchListSemanticsUnSupported() bool { return true }

// list returns all objects as of one resourceVersion, the newest. A reflector's own wish for a limit and a version is for lists of one request.
func (l *lister[T, P]) list(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
	get := func(next string) page[T] {
		items, meta, err := l.page(ctx, metav1.ListOptions{Limit: pageSize, Continue: next})
		return page[T]{items, meta, err}
	}
	all := &packedList{}
	for p := get(""); ; {
		if p.err != nil {
			return nil, p.err
		}
		coming, next := make(chan page[T], 1), p.meta.Continue
		if next != "" {
			go func() { coming <- get(next) }()
		}
		for i := range p.items {
			obj := P(&p.items[i])
			l.held.listed(obj)
			one, err := l.held.pack(obj)
			if err != nil {
				return nil, fmt.Errorf("%s/%s: %w", obj.GetNamespace(), obj.GetName(), err)
			}
			all.Items = append(all.Items, &one)
		}
		if next == "" {
			all.ResourceVersion = p.meta.ResourceVersion
			return all, nil
		}
		p = <-coming
	}
}

// packed is an object on its way from a list into a held. To a reflector it is an object like others.
type packed struct{ key, service, data string }

// GetObjectKind implements runtime.Object.
func (p *packed) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object.
func (p *packed) DeepCopyObject() runtime.Object {
	o := *p
	return &o
}

// packedList is a list of them.
type packedList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []*packed
}

// DeepCopyObject implements runtime.Object.
func (l *packedList) DeepCopyObject() runtime.Object {
	o := *l
	o.Items = append([]*packed(nil), l.Items...) // they don't change
	return &o
}

// reflectors follow the API's Services and EndpointSlices.
func reflectors(client kubernetes.Interface, services *held[corev1.Service, *corev1.Service], endpoints *held[discoveryv1.EndpointSlice, *discoveryv1.EndpointSlice]) []*cache.Reflector {
	svc, sl := client.CoreV1().Services(""), client.DiscoveryV1().EndpointSlices("")
	return []*cache.Reflector{
		cache.NewReflectorWithOptions(newLister(services, func(ctx context.Context, o metav1.ListOptions) ([]corev1.Service, metav1.ListMeta, error) {
			l, err := svc.List(ctx, o)
			if err != nil {
				return nil, metav1.ListMeta{}, err
			}
			return l.Items, l.ListMeta, nil
		}, svc.Watch), &corev1.Service{}, services, cache.ReflectorOptions{}),
		cache.NewReflectorWithOptions(newLister(endpoints, func(ctx context.Context, o metav1.ListOptions) ([]discoveryv1.EndpointSlice, metav1.ListMeta, error) {
			l, err := sl.List(ctx, o)
			if err != nil {
				return nil, metav1.ListMeta{}, err
			}
			return l.Items, l.ListMeta, nil
		}, sl.Watch), &discoveryv1.EndpointSlice{}, endpoints, cache.ReflectorOptions{}),
	}
}
