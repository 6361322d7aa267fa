// Package namespace empties namespaces that are being deleted, and then lets
// them go.
package namespace

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/metadata"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

// recheck is how soon a namespace that still holds objects (pods that end gracefully, finalizers) is looked at again.
const recheck = time.Second

type controller struct {
	client     kubernetes.Interface
	metadata   metadata.Interface
	namespaces corelisters.NamespaceLister
	queue      *queue.Queue
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, meta metadata.Interface, f informers.SharedInformerFactory) (func(context.Context), error) {
	nss := f.Core().V1().Namespaces()
	c := &controller{client: client, metadata: meta, namespaces: nss.Lister(), queue: queue.New("namespace")}
	if _, err := nss.Informer().AddEventHandler(c.queue.Handlers()); err != nil {
		return nil, fmt.Errorf("namespace controller: %w", err)
	}
	return func(ctx context.Context) { c.queue.Run(ctx, 4, c.reconcile, nss.Informer().HasSynced) }, nil
}

func (c *controller) reconcile(ctx context.Context, _, name string) error {
	ns, err := c.namespaces.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || ns.DeletionTimestamp == nil || !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return err
	}
	left, err := c.empty(ctx, name)
	if err != nil {
		return c.report(ctx, ns, nil, err)
	}
	if len(left) > 0 {
		c.queue.AddAfter(name, recheck)
		return c.report(ctx, ns, left, nil)
	}
	ns = ns.DeepCopy()
	ns.Spec.Finalizers = slices.DeleteFunc(ns.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	_, err = c.client.CoreV1().Namespaces().Finalize(ctx, ns, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// empty deletes all objects of the namespace and returns what is still there, by resource.
func (c *controller) empty(ctx context.Context, name string) (map[string]int, error) {
	lists, err := c.client.Discovery().ServerPreferredNamespacedResources()
	// A group whose server is away may hold objects: the namespace has to wait for it.
	if err != nil && !(discovery.IsGroupDiscoveryFailedError(err) && len(lists) > 0) {
		return nil, fmt.Errorf("namespace %s: %w", name, err)
	}
	discoveryErr := err
	left := map[string]int{}
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			return nil, fmt.Errorf("namespace %s: %w", name, err)
		}
		for _, r := range l.APIResources {
			if strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "delete") || !slices.Contains(r.Verbs, "list") {
				continue
			}
			n, err := c.emptyResource(ctx, gv.WithResource(r.Name), name, slices.Contains(r.Verbs, "deletecollection"))
			if err != nil {
				return nil, fmt.Errorf("namespace %s: delete its %s: %w", name, r.Name, err)
			}
			if n > 0 {
				left[schema.GroupResource{Group: gv.Group, Resource: r.Name}.String()] = n
			}
		}
	}
	return left, discoveryErr
}

func (c *controller) emptyResource(ctx context.Context, gvr schema.GroupVersionResource, namespace string, collection bool) (int, error) {
	client := c.metadata.Resource(gvr).Namespace(namespace)
	background := metav1.DeletePropagationBackground
	opts := metav1.DeleteOptions{PropagationPolicy: &background}
	items, err := client.List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
		return 0, nil
	}
	if err != nil || len(items.Items) == 0 {
		return 0, err
	}
	if collection {
		err = client.DeleteCollection(ctx, opts, metav1.ListOptions{})
	} else {
		for _, o := range items.Items {
			if derr := client.Delete(ctx, o.Name, opts); derr != nil && !apierrors.IsNotFound(derr) {
				err = derr
			}
		}
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return 0, err
	}
	items, err = client.List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0, err
	}
	return len(items.Items), nil
}

// report tells in the namespace's status what keeps it, and hands the error on.
func (c *controller) report(ctx context.Context, ns *corev1.Namespace, left map[string]int, cause error) error {
	want := ns.DeepCopy()
	set := func(t corev1.NamespaceConditionType, on bool, reason, message string) {
		status := corev1.ConditionFalse
		if on {
			status = corev1.ConditionTrue
		}
		for i := range want.Status.Conditions {
			if cond := &want.Status.Conditions[i]; cond.Type == t {
				if cond.Status != status {
					cond.LastTransitionTime = metav1.Now()
				}
				cond.Status, cond.Reason, cond.Message = status, reason, message
				return
			}
		}
		if on {
			want.Status.Conditions = append(want.Status.Conditions, corev1.NamespaceCondition{Type: t, Status: status, Reason: reason, Message: message, LastTransitionTime: metav1.Now()})
		}
	}
	var parts []string
	for r, n := range left {
		parts = append(parts, fmt.Sprintf("%s has %d resource instances", r, n))
	}
	sort.Strings(parts)
	set(corev1.NamespaceContentRemaining, len(left) > 0, "SomeResourcesRemain", "Some resources are remaining: "+strings.Join(parts, ", "))
	message := ""
	if cause != nil {
		message = cause.Error()
	}
	set(corev1.NamespaceDeletionContentFailure, cause != nil, "ContentDeletionFailed", message)
	if !apiequality.Semantic.DeepEqual(want.Status, ns.Status) {
		if _, err := c.client.CoreV1().Namespaces().UpdateStatus(ctx, want, metav1.UpdateOptions{}); err != nil && cause == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return cause
}
