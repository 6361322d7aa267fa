package pods

import (
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// Written remembers the last version of each object that a controller wrote itself, so that it does not decide
// by an older one that the cache still shows.
type Written struct {
	mu sync.Mutex
	m  map[string]written
}

type written struct {
	uid     types.UID
	version string
}

// Note remembers what a write returned.
func (w *Written) Note(key string, o metav1.Object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.m == nil {
		w.m = map[string]written{}
	}
	w.m[key] = written{o.GetUID(), o.GetResourceVersion()}
}

// Stale tells whether the cache shows an object older than the last write. Its next event brings the news.
func (w *Written) Stale(key string, cached metav1.Object) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	x, ok := w.m[key]
	if !ok || x.uid != cached.GetUID() {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(cached.GetResourceVersion(), x.version)
	if err == nil && order < 0 {
		return true
	}
	delete(w.m, key)
	return false
}

// Forget drops what is known of an object that is gone.
func (w *Written) Forget(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.m, key)
}
