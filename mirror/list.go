package mirror

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// pageSize is how many objects of a list are asked for at once. Of each page only the packed form stays in memory. For each page the server goes through
// all objects that are left.
const pageSize = 5000

// lister lists and watches a kind for a reflector. It lists in pages, and packs one while the server makes the next: a server takes several
// times as long to stream objects one by one, and a list in one piece takes several times as much memory here.
type lister[T any, P object[T]] struct {
	set  *Set[T, P]
	page pages[T]
	cache.ListWatch
}

// pages asks for a part of a list.
type pages[T any] func(context.Context, metav1.ListOptions) ([]T, metav1.ListMeta, error)

// pagesOf asks by a typed client.
func pagesOf[T, L any](list func(context.Context, metav1.ListOptions) (*L, error), parts func(*L) ([]T, metav1.ListMeta)) pages[T] {
	return func(ctx context.Context, o metav1.ListOptions) ([]T, metav1.ListMeta, error) {
		l, err := list(ctx, o)
		if err != nil {
			return nil, metav1.ListMeta{}, err
		}
		items, meta := parts(l)
		return items, meta, nil
	}
}

// follow makes a mirror follow a kind.
func follow[T any, P object[T]](m *Mirror, s *Set[T, P], page pages[T], watch func(context.Context, metav1.ListOptions) (watch.Interface, error)) {
	l := &lister[T, P]{set: s, page: page}
	l.ListWithContextFunc, l.WatchFuncWithContext = l.list, watch
	m.all = append(m.all, s)
	m.reflectors = append(m.reflectors, cache.NewReflectorWithOptions(l, P(new(T)), s, cache.ReflectorOptions{}))
}

// IsWatchListSemanticsUnSupported has the reflector list, and not stream.
func (l *lister[T, P]) IsWatchListSemanticsUnSupported() bool { return true }

// list returns all objects as of one resourceVersion, the newest. A reflector's own wish for a limit and a version is for lists of one request.
func (l *lister[T, P]) list(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
	type part struct {
		items []T
		meta  metav1.ListMeta
		err   error
	}
	get := func(next string) part {
		items, meta, err := l.page(ctx, metav1.ListOptions{Limit: pageSize, Continue: next})
		return part{items, meta, err}
	}
	all := &packedList{}
	for p := get(""); ; {
		if p.err != nil {
			return nil, p.err
		}
		coming, next := make(chan part, 1), p.meta.Continue
		if next != "" {
			go func() { coming <- get(next) }()
		}
		for i := range p.items {
			obj := P(&p.items[i])
			for _, f := range l.set.followers {
				if f.Listed != nil {
					f.Listed(obj)
				}
			}
			one, err := l.set.pack(obj)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", KeyOf(obj), err)
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
