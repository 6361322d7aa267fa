// Package informer has what the agents' informers share: they keep no bookkeeping of the API's, and of Nodes, where one is enough, only their own.
package informer

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// DropManagedFields is a transform of informers: nobody here asks who has set which field.
func DropManagedFields(obj any) (any, error) {
	if m, ok := obj.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

// OwnNode gives informers of Nodes that have this one alone: of the others nothing is asked, and their heartbeats are many. Other kinds
// are not to be asked of it.
func OwnNode(c kubernetes.Interface, name string) informers.SharedInformerFactory {
	return informers.NewSharedInformerFactoryWithOptions(c, 0, informers.WithTransform(DropManagedFields), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", name).String()
	}))
}

// FollowNode calls use whenever the Node object is seen, until ctx ends or use fails.
func FollowNode(ctx context.Context, c kubernetes.Interface, name string, use func(*corev1.Node) error) error {
	f := OwnNode(c, name)
	ctx, cancel := context.WithCancel(ctx)
	failed := make(chan error, 1)
	seen := func(obj any) {
		n, ok := obj.(*corev1.Node)
		if !ok {
			return
		}
		if err := use(n); err != nil {
			select {
			case failed <- fmt.Errorf("node %s: %w", name, err):
			default:
			}
		}
	}
	if _, err := f.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: seen, UpdateFunc: func(_, obj any) { seen(obj) }}); err != nil {
		cancel()
		return err
	}
	f.Start(ctx.Done())
	defer f.Shutdown()
	defer cancel() // before Shutdown, which waits for it: whoever is told of the error ends ctx only then
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}
