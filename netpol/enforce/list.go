package enforce

import (
	"context"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/pager"
)

// pageSize is how many objects of a list are asked for at once. Of each page only what is held stays in memory, while the server makes the next.
const pageSize = 1000

// source lists and watches by a typed client.
type source[L runtime.Object] interface {
	List(ctx context.Context, o metav1.ListOptions) (L, error)
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// lister lists for a followed in pages, and watches.
type lister[L runtime.Object] struct {
	store *followed
	from  source[L]
	cache.ListWatch
}

func reflector[L runtime.Object](what runtime.Object, store *followed, from source[L]) *cache.Reflector {
	l := &lister[L]{store: store, from: from}
	l.ListWithContextFunc, l.WatchFuncWithContext = l.list, l.watch
	return cache.NewReflectorWithOptions(l, what, store, cache.ReflectorOptions{})
}

// IsWatchListSemanticsUnSupported has the reflector list, and not stream: a server takes several times as long to send objects one by one.
func (l *lister[L]) IsWatchListSemanticsUnSupported() bool { return true }

func (l *lister[L]) watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := l.from.Watch(ctx, o)
	return w, l.store.api.note(err)
}

// list returns all objects as of one resourceVersion, the newest, as they are held. A reflector's own wish for a limit and a version is for lists of one
// request.
func (l *lister[L]) list(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
	all := &heldList{}
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
	pages.PageSize, pages.PageBufferSize = pageSize, 0 // the next is on its way while one is packed
	err := pages.EachListItem(ctx, metav1.ListOptions{}, func(o runtime.Object) error {
		h, err := l.store.hold(o)
		if err != nil {
			return err
		}
		h.obj = nil
		all.Items = append(all.Items, h)
		return nil
	})
	if l.store.api.note(err) != nil {
		return nil, err
	}
	return all, nil
}

// heldList is a list to a reflector.
type heldList struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []*held
}

// DeepCopyObject implements runtime.Object.
func (l *heldList) DeepCopyObject() runtime.Object {
	o := *l
	o.Items = append([]*held(nil), l.Items...) // they don't change
	return &o
}

// GetObjectKind implements runtime.Object.
func (h *held) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object.
func (h *held) DeepCopyObject() runtime.Object {
	o := *h
	return &o
}
