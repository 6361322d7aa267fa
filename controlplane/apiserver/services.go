package apiserver

import (
	"context"
	"fmt"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"

	"github.com/strake-io/strake/controlplane/apiserver/allocator"
)

// buildAllocator makes what gives Services their addresses, on keys of its own in the store.
func (b *builder) buildAllocator() error {
	raw := func(gr schema.GroupResource, obj, list runtime.Object, prefix string) (storage.Interface, error) {
		cfg, err := b.storageFactory().NewConfig(gr, obj)
		if err != nil {
			return nil, fmt.Errorf("storage of %s: %w", prefix, err)
		}
		newFunc, newListFunc := func() runtime.Object { return obj.DeepCopyObject() }, func() runtime.Object { return list.DeepCopyObject() }
		open := generic.NewRawStorage
		if b.inside != nil {
			open = func(c *storagebackend.ConfigForResource, newFunc, newListFunc func() runtime.Object, prefix string) (storage.Interface, factory.DestroyFunc, error) {
				return b.inside.raw(c, prefix, newFunc, newListFunc)
			}
		}
		s, destroy, err := open(cfg, newFunc, newListFunc, prefix)
		if err != nil {
			return nil, fmt.Errorf("storage of %s: %w", prefix, err)
		}
		b.destroy = append(b.destroy, destroy)
		return s, nil
	}
	addresses, err := raw(networkingv1.Resource("ipaddresses"), &networkingv1.IPAddress{}, &networkingv1.IPAddressList{}, "/ipaddresses")
	if err != nil {
		return err
	}
	ports, err := raw(coordinationv1.Resource("leases"), &coordinationv1.Lease{}, &coordinationv1.LeaseList{}, "/ranges/servicenodeports")
	if err != nil {
		return err
	}
	further := b.informers.Networking().V1().ServiceCIDRs()
	b.rangesKnown = further.Informer().HasSynced
	b.services, err = allocator.New(allocator.Config{
		Further:  func() ([]*networkingv1.ServiceCIDR, error) { return further.Lister().List(labels.Everything()) },
		Prefixes: b.cfg.ServiceCIDRs, PortMin: b.cfg.NodePortMin, PortMax: b.cfg.NodePortMax,
		Addresses: addresses, Ports: ports, WriteTimeout: b.cfg.Settings.RequestTimeout,
	})
	return err
}

// storedServices reads all Services as they are now.
func (b *builder) storedServices(ctx context.Context) ([]corev1.Service, error) {
	list, err := b.client.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}
