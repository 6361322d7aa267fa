package mirror

import (
	"context"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/pager"
)

// pageSize is how many objects of a mirror's lists are asked for at once. For each page the server goes through all objects that are left.
const pageSize = 5000

// Source lists and watches a kind, as typed clients do.
type Source[L runtime.Object] interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// Held is what is kept of an object of a list. To a reflector it is an object like others.
type Held[T any] struct{ Of T }

// GetObjectKind implements runtime.Object.
func (*Held[T]) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object. What is held does not change.
func (h *Held[T]) DeepCopyObject() runtime.Object { return &Held[T]{h.Of} }

// heldList is a list of them.
type heldList[T any] struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []*Held[T]
}

// DeepCopyObject implements runtime.Object.
func (l *heldList[T]) DeepCopyObject() runtime.Object {
	o := *l
	o.Items = slices.Clone(l.Items)
	return &o
}

// lister lists for a store in pages, and watches.
type lister[L runtime.Object, T any] struct {
	from Source[L]
	page int64
	hold func(runtime.Object) (T, error)
	note func(error)
	listed
}

// listed lists and watches for a reflector that is not to have lists streamed as events of a watch.
type listed struct{ cache.ListWatch }

// IsWatchListSemanticsUnSupported has the reflector list.
func (*listed) IsWatchListSemanticsUnSupported() bool { return true }

// Reflector has a store follow a kind, what being an object of it. A list comes in pages of so many objects, of which one is held while the server makes the next: a server takes several times
// as long to stream objects one by one, and a list in one piece takes several times as much memory here. hold says what is kept of each object of a page; the
// store's Replace gets that, each in a *Held[T]. note, if there is one, is told how each list ended as a whole and how each watch began; nil is well.
func Reflector[L runtime.Object, T any](what runtime.Object, store cache.ReflectorStore, from Source[L], page int64, hold func(runtime.Object) (T, error), note func(error)) *cache.Reflector {
	if note == nil {
		note = func(error) {}
	}
	l := &lister[L, T]{from: from, page: page, hold: hold, note: note}
	l.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		all, err := l.list(ctx, o)
		l.note(err)
		return all, err
	}
	l.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		w, err := l.from.Watch(ctx, o)
		l.note(err)
		return w, err
	}
	return cache.NewReflectorWithOptions(l, what, store, cache.ReflectorOptions{})
}

// list returns all objects as of one resourceVersion, the newest. A reflector's own wish for a limit and a version is for lists of one request.
func (l *lister[L, T]) list(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
	all := &heldList[T]{}
	pages := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		page, err := l.from.List(ctx, o)
		if err != nil {
			return nil, err
		}
		m, err := meta.ListAccessor(page)
		if err == nil {
			all.ResourceVersion = m.GetResourceVersion()
		}
		return page, err
	})
	pages.PageSize, pages.PageBufferSize = l.page, 0 // the next is on its way while one is held
	err := pages.EachListItem(ctx, metav1.ListOptions{}, func(o runtime.Object) error {
		h, err := l.hold(o)
		if err == nil {
			all.Items = append(all.Items, &Held[T]{h})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}
