// Package objects holds the ConfigMaps and Secrets that the node's pods name,
// and only those: a watch for each single object, for as long as a pod uses it.
// A node may not list Secrets, and memory follows what runs here.
package objects

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const (
	// requestTimeout bounds the wait for the first answer about an object.
	requestTimeout = 5 * time.Second
	// permitWait is the longest pause between tries of a request that is forbidden; twice as long is waited in all.
	permitWait = 320 * time.Millisecond
)

// Key names an object.
type Key struct{ Resource, Namespace, Name string }

// Cache is the set of watched objects.
type Cache struct {
	client  kubernetes.Interface
	changed func(pods []types.UID)

	mu      sync.Mutex
	watches map[Key]*watched
}

type watched struct {
	inf    cache.SharedIndexInformer
	cancel context.CancelFunc
	pods   map[types.UID]bool
}

// New returns an empty cache. changed is called with the pods that use an object whenever it comes, changes or goes.
func New(client kubernetes.Interface, changed func(pods []types.UID)) *Cache {
	return &Cache{client: client, changed: changed, watches: map[Key]*watched{}}
}

// ConfigMap returns a ConfigMap for a pod, and keeps it watched until Release.
func (c *Cache) ConfigMap(ctx context.Context, pod types.UID, namespace, name string) (*corev1.ConfigMap, error) {
	obj, err := c.get(ctx, pod, Key{"configmaps", namespace, name})
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.ConfigMap), nil
}

// Secret returns a Secret for a pod, and keeps it watched until Release.
func (c *Cache) Secret(ctx context.Context, pod types.UID, namespace, name string) (*corev1.Secret, error) {
	obj, err := c.get(ctx, pod, Key{"secrets", namespace, name})
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.Secret), nil
}

// Release ends the watches that only this pod used.
func (c *Cache) Release(pod types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, w := range c.watches {
		delete(w.pods, pod)
		if len(w.pods) == 0 {
			w.cancel()
			delete(c.watches, key)
		}
	}
}

func (c *Cache) get(ctx context.Context, pod types.UID, key Key) (runtime.Object, error) {
	if w := c.use(pod, key); w != nil && w.inf.HasSynced() {
		obj, found, err := w.inf.GetStore().GetByKey(key.Namespace + "/" + key.Name)
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, apierrors.NewNotFound(corev1.Resource(key.Resource), key.Name)
		}
		return obj.(runtime.Object), nil
	}
	// The first time a plain request answers: it tells why not, and a watch that was refused would be tried again
	// only after a second.
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var obj runtime.Object
	err := Permitted(ctx, func() (err error) {
		obj, err = c.fetch(ctx, key)
		return err
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	version := ""
	if err == nil {
		version = obj.(metav1.Object).GetResourceVersion()
	}
	c.watch(pod, key, version)
	return obj, err
}

// Permitted calls request again while it is forbidden, for a moment: the API server's authorizer of nodes learns that
// a pod was bound here by a watch, as we do, and may be a little later than we are.
func Permitted(ctx context.Context, request func() error) error {
	for pause := 5 * time.Millisecond; ; pause *= 2 {
		err := request()
		if !apierrors.IsForbidden(err) || pause > permitWait {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

func (c *Cache) fetch(ctx context.Context, key Key) (runtime.Object, error) {
	if key.Resource == "secrets" {
		return c.client.CoreV1().Secrets(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	}
	return c.client.CoreV1().ConfigMaps(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
}

// use notes that a pod uses an object, if that is watched.
func (c *Cache) use(pod types.UID, key Key) *watched {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.watches[key]
	if w != nil {
		w.pods[pod] = true
	}
	return w
}

// watch begins to watch an object of which this version is known already.
func (c *Cache) watch(pod types.UID, key Key, version string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.watches[key]
	if w == nil {
		w = &watched{pods: map[types.UID]bool{}}
		selector := fields.OneTermEqualSelector("metadata.name", key.Name).String()
		lw := &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				o.FieldSelector = selector
				if key.Resource == "secrets" {
					return c.client.CoreV1().Secrets(key.Namespace).List(ctx, o)
				}
				return c.client.CoreV1().ConfigMaps(key.Namespace).List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				o.FieldSelector = selector
				if key.Resource == "secrets" {
					return c.client.CoreV1().Secrets(key.Namespace).Watch(ctx, o)
				}
				return c.client.CoreV1().ConfigMaps(key.Namespace).Watch(ctx, o)
			},
		}
		var example runtime.Object = &corev1.ConfigMap{}
		if key.Resource == "secrets" {
			example = &corev1.Secret{}
		}
		w.inf = cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(lw, c.client), example, 0, nil)
		notify := func() { c.changed(c.users(key)) }
		// A handler can't be refused before the informer has run.
		_, _ = w.inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(obj any) {
				if obj.(metav1.Object).GetResourceVersion() != version {
					notify()
				}
			},
			UpdateFunc: func(any, any) { notify() }, DeleteFunc: func(any) { notify() },
		})
		var ctx context.Context
		ctx, w.cancel = context.WithCancel(context.Background())
		go w.inf.RunWithContext(ctx)
		c.watches[key] = w
	}
	w.pods[pod] = true
}

func (c *Cache) users(key Key) []types.UID {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []types.UID
	if w := c.watches[key]; w != nil {
		for uid := range w.pods {
			out = append(out, uid)
		}
	}
	return out
}
