package enforce

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/strake-io/strake/mirror"
)

// pageSize is how many objects of a list are asked for at once: policies are large.
const pageSize = 1000

// source notes how its requests end, for who asks why nothing is known.
type source[L runtime.Object] struct {
	mirror.Source[L]
	note func(error) error
}

func (s source[L]) List(ctx context.Context, o metav1.ListOptions) (L, error) {
	l, err := s.Source.List(ctx, o)
	return l, s.note(err)
}

func (s source[L]) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := s.Source.Watch(ctx, o)
	return w, s.note(err)
}

// reflector has a followed follow a kind. Of each page of a list only what is held stays in memory.
func reflector[L runtime.Object](what runtime.Object, store *followed, from mirror.Source[L]) *cache.Reflector {
	return mirror.Reflector(what, store, source[L]{from, store.api.note}, pageSize, store.listed)
}

// listed holds an object of a list, as bytes alone.
func (f *followed) listed(o runtime.Object) (*held, error) {
	h, err := f.hold(o)
	if err != nil {
		return nil, f.api.note(err)
	}
	h.obj = nil
	return h, nil
}
