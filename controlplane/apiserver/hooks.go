package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/apiserver/auth/rbac"
)

// rbacHook puts the default roles in place and keeps sums of roles up to date.
func (b *builder) rbacHook(hook genericapiserver.PostStartHookContext) error {
	if err := until(hook, func() error { return rbac.Reconcile(hook, b.client.RbacV1()) }); err != nil {
		return fmt.Errorf("default RBAC objects: %w", err)
	}
	informer := b.informers.Rbac().V1().ClusterRoles()
	changed := make(chan struct{}, 1)
	notify := func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	_, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { notify() }, UpdateFunc: func(any, any) { notify() }, DeleteFunc: func(any) { notify() },
	})
	if err != nil {
		return err
	}
	go func() {
		for {
			select {
			case <-hook.Done():
				return
			case <-changed:
			}
			roles, err := informer.Lister().List(labels.Everything())
			if err == nil {
				err = rbac.ReconcileAggregates(hook, b.client.RbacV1(), roles)
			}
			if err == nil || hook.Err() != nil {
				continue
			}
			if !apierrors.IsConflict(err) { // the cache lags: its next event comes soon
				klog.ErrorS(err, "Aggregated ClusterRoles are not up to date, trying again")
			}
			time.AfterFunc(retryEvery, notify)
		}
	}()
	return nil
}

// keepEvery is the pause between looks at whether the system's objects are still there.
const keepEvery = 30 * time.Second

// systemObjectsHook makes what every cluster has, and goes on keeping it.
func (b *builder) systemObjectsHook(hook genericapiserver.PostStartHookContext) error {
	if !cache.WaitForCacheSync(hook.Done(), b.rangesKnown) {
		return hook.Err()
	}
	err := until(hook, func() error {
		if err := b.services.Repair(hook, b.storedServices); err != nil {
			return fmt.Errorf("addresses of Services: %w", err)
		}
		return b.keepSystemObjects(hook)
	})
	if err != nil {
		return err
	}
	go b.services.Run(hook, b.storedServices)
	go func() {
		if err := until(hook, func() error { return b.flowDefaults(hook) }); err != nil && hook.Err() == nil {
			klog.ErrorS(err, "Default objects of priority and fairness are not in place")
		}
		for {
			select {
			case <-hook.Done():
				return
			case <-time.After(keepEvery):
			}
			if err := b.keepSystemObjects(hook); err != nil && hook.Err() == nil {
				klog.ErrorS(err, "System objects are not in place, trying again")
			}
		}
	}()
	return nil
}

func (b *builder) keepSystemObjects(ctx context.Context) error {
	var errs []error
	for _, ns := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
		namespaces := b.client.CoreV1().Namespaces()
		errs = append(errs, ensure(ctx, ns, namespaces.Get, namespaces.Create, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}))
	}
	for _, c := range []schedulingv1.PriorityClass{
		{Value: 2_000_001_000, Description: "Used for system critical pods that must not be moved from their current node.", ObjectMeta: metav1.ObjectMeta{Name: "system-node-critical"}},
		{Value: 2_000_000_000, Description: "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.", ObjectMeta: metav1.ObjectMeta{Name: "system-cluster-critical"}},
	} {
		classes := b.client.SchedulingV1().PriorityClasses()
		errs = append(errs, ensure(ctx, c.Name, classes.Get, classes.Create, &c))
	}
	return errors.Join(append(errs, b.keepKubernetesService(ctx), b.keepServiceRanges(ctx), b.keepAuthenticationInfo(ctx))...)
}

// ensure makes an object unless there is one of its name.
func ensure[T any](ctx context.Context, name string, get func(context.Context, string, metav1.GetOptions) (T, error), create func(context.Context, T, metav1.CreateOptions) (T, error), want T) error {
	_, err := get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = create(ctx, want, metav1.CreateOptions{})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("%T %s: %w", want, name, err)
	}
	return nil
}

// keep makes an object, or changes it where it is not as wanted.
func keep[T any](ctx context.Context, name string, want T, change func(have T) bool, get func(context.Context, string, metav1.GetOptions) (T, error),
	create func(context.Context, T, metav1.CreateOptions) (T, error), update func(context.Context, T, metav1.UpdateOptions) (T, error)) error {
	have, err := get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = create(ctx, want, metav1.CreateOptions{})
	case err == nil && change(have):
		_, err = update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("%T %s: %w", want, name, err)
	}
	return nil
}

// flowDefaults makes the priority levels and flow schemas that the library suggests, so that no client starves the
// kubelets, the scheduler or the controllers. Who changes them means it.
func (b *builder) flowDefaults(ctx context.Context) error {
	api := b.client.FlowcontrolV1()
	var errs []error
	for _, level := range slices.Concat(bootstrap.MandatoryPriorityLevelConfigurations, bootstrap.SuggestedPriorityLevelConfigurations) {
		errs = append(errs, ensure(ctx, level.Name, api.PriorityLevelConfigurations().Get, api.PriorityLevelConfigurations().Create, level.DeepCopy()))
	}
	for _, flow := range slices.Concat(bootstrap.MandatoryFlowSchemas, bootstrap.SuggestedFlowSchemas) {
		errs = append(errs, ensure(ctx, flow.Name, api.FlowSchemas().Get, api.FlowSchemas().Create, flow.DeepCopy()))
	}
	return errors.Join(errs...)
}
