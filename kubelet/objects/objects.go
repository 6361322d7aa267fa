// Package objects holds the ConfigMaps and Secrets that the node's pods name,
// and only those: a watch for each single object, for as long as a pod uses it.
// A node may not list Secrets, and memory follows what runs here.
package objects

import (
	"context"
	"fmt"
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

// syncTimeout bounds the wait for the first answer about an object.
const syncTimeout = 5 * time.Second

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
	w := c.watch(pod, key)
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if !w.inf.HasSynced() && !cache.WaitForCacheSync(ctx.Done(), w.inf.HasSynced) {
		// The watch tells no reason; one plain request does.
		if _, err := c.fetch(ctx, key); err != nil && ctx.Err() == nil {
			return nil, err
		}
		return nil, fmt.Errorf("%s %s/%s: the API server did not answer in %s", key.Resource, key.Namespace, key.Name, syncTimeout)
	}
	obj, found, err := w.inf.GetStore().GetByKey(key.Namespace + "/" + key.Name)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, apierrors.NewNotFound(corev1.Resource(key.Resource), key.Name)
	}
	return obj.(runtime.Object), nil
}

func (c *Cache) fetch(ctx context.Context, key Key) (runtime.Object, error) {
	if key.Resource == "secrets" {
		return c.client.CoreV1().Secrets(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	}
	return c.client.CoreV1().ConfigMaps(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
}

func (c *Cache) watch(pod types.UID, key Key) *watched {
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
		w.inf = cache.NewSharedIndexInformer(lw, example, 0, nil)
		notify := func() { c.changed(c.users(key)) }
		// A handler can't be refused before the informer has run.
		_, _ = w.inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { notify() }, UpdateFunc: func(any, any) { notify() }, DeleteFunc: func(any) { notify() },
		})
		var ctx context.Context
		ctx, w.cancel = context.WithCancel(context.Background())
		go w.inf.RunWithContext(ctx)
		c.watches[key] = w
	}
	w.pods[pod] = true
	return w
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
