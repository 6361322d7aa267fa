package enforce

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/strake-io/strake/mirror"
)

// pageSize is how many objects of a list are asked for at once: policies are large.
const pageSize = 1000

// reflector has a followed follow a kind. Of each page of a list only what is held stays in memory. How requests end is noted, for who asks why
// nothing is known.
func reflector[L runtime.Object](what runtime.Object, store *followed, from mirror.Source[L]) *cache.Reflector {
	return mirror.Reflector(what, store, from, pageSize, store.listed, func(err error) { _ = store.api.note(err) })
}

// listed holds an object of a list, as bytes alone.
func (f *followed) listed(o runtime.Object) (*held, error) {
	h, err := f.hold(o)
	if err != nil {
		return nil, err
	}
	h.obj = nil
	return h, nil
}
