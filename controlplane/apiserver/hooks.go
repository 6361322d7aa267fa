package apiserver

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
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
			if err != nil && hook.Err() == nil {
				klog.ErrorS(err, "Aggregated ClusterRoles are not up to date, trying again with the next change")
			}
		}
	}()
	return nil
}

// systemObjectsHook makes what every cluster has: its namespaces, the system's priority classes, and the
// kubernetes Service with the endpoint that this server is.
func (b *builder) systemObjectsHook(hook genericapiserver.PostStartHookContext) error {
	go func() {
		<-hook.Done()
		for _, destroy := range b.destroy {
			destroy()
		}
	}()
	go b.services.Run(hook, b.storedServices)
	return until(hook, func() error {
		if err := b.services.Repair(hook, b.storedServices); err != nil {
			return fmt.Errorf("addresses of Services: %w", err)
		}
		var errs []error
		for _, ns := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease} {
			_, err := b.client.CoreV1().Namespaces().Create(hook, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
			errs = append(errs, unlessExists(err))
		}
		for name, value := range map[string]int32{"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000} {
			_, err := b.client.SchedulingV1().PriorityClasses().Create(hook, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}, metav1.CreateOptions{})
			errs = append(errs, unlessExists(err))
		}
		errs = append(errs, b.kubernetesService(hook))
		return errors.Join(errs...)
	})
}

func unlessExists(err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// kubernetesService is how pods find the API server.
func (b *builder) kubernetesService(ctx context.Context) error {
	const name, portName = "kubernetes", "https"
	meta := metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault, Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"}}
	ip := b.cfg.ServiceCIDR.Masked().Addr().Next()
	_, err := b.client.CoreV1().Services(meta.Namespace).Create(ctx, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: ip.String(), ClusterIPs: []string{ip.String()},
		Ports: []corev1.ServicePort{{Name: portName, Port: 443, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(int32(b.cfg.Port))}},
	}}, metav1.CreateOptions{})
	if err := unlessExists(err); err != nil {
		return fmt.Errorf("Service %s: %w", name, err)
	}
	meta.Labels = map[string]string{discoveryv1.LabelServiceName: name}
	ready, port, tcp := true, int32(b.cfg.Port), corev1.ProtocolTCP
	want := &discoveryv1.EndpointSlice{
		ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{b.cfg.BindAddress.String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:     []discoveryv1.EndpointPort{{Name: new(string), Port: &port, Protocol: &tcp}},
	}
	*want.Ports[0].Name = portName
	slices := b.client.DiscoveryV1().EndpointSlices(meta.Namespace)
	have, err := slices.Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = slices.Create(ctx, want, metav1.CreateOptions{})
	case err == nil && (!apiequality.Semantic.DeepEqual(have.Endpoints, want.Endpoints) || !apiequality.Semantic.DeepEqual(have.Ports, want.Ports)):
		have = have.DeepCopy()
		have.Endpoints, have.Ports = want.Endpoints, want.Ports
		_, err = slices.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("EndpointSlice %s: %w", name, err)
	}
	return nil
}
