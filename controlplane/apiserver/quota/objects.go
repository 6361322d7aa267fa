package quota

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
)

const countServices = corev1.ResourceName("count/services")

var serviceNames = []corev1.ResourceName{countServices, corev1.ResourceServices, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers}

func serviceUsage(o runtime.Object) (corev1.ResourceList, error) {
	s, ok := o.(*corev1.Service)
	if !ok {
		return nil, fmt.Errorf("expected a Service, got %T", o)
	}
	used := corev1.ResourceList{countServices: one(), corev1.ResourceServices: one(), corev1.ResourceServicesNodePorts: {Format: resource.DecimalSI}, corev1.ResourceServicesLoadBalancers: {Format: resource.DecimalSI}}
	ports := int64(len(s.Spec.Ports))
	switch s.Spec.Type {
	case corev1.ServiceTypeLoadBalancer:
		used[corev1.ResourceServicesLoadBalancers] = one()
		if s.Spec.AllocateLoadBalancerNodePorts != nil && !*s.Spec.AllocateLoadBalancerNodePorts {
			ports = 0
			for _, p := range s.Spec.Ports {
				if p.NodePort != 0 {
					ports++
				}
			}
		}
	case corev1.ServiceTypeNodePort:
	default:
		ports = 0
	}
	used[corev1.ResourceServicesNodePorts] = *resource.NewQuantity(ports, resource.DecimalSI)
	return used, nil
}

const (
	countClaims = corev1.ResourceName("count/persistentvolumeclaims")
	// perClass ends the names of what a quota says of one StorageClass.
	perClass = ".storageclass.storage.k8s.io/"
)

func claimNames(name corev1.ResourceName) bool {
	if name == countClaims || name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage {
		return true
	}
	_, what, ok := strings.Cut(string(name), perClass)
	return ok && (what == string(corev1.ResourceRequestsStorage) || what == string(corev1.ResourcePersistentVolumeClaims))
}

func claimUsage(o runtime.Object) (corev1.ResourceList, error) {
	c, ok := o.(*corev1.PersistentVolumeClaim)
	if !ok {
		return nil, fmt.Errorf("expected a PersistentVolumeClaim, got %T", o)
	}
	used := corev1.ResourceList{countClaims: one(), corev1.ResourcePersistentVolumeClaims: one()}
	class := c.Annotations[corev1.BetaStorageClassAnnotation]
	if class == "" && c.Spec.StorageClassName != nil {
		class = *c.Spec.StorageClassName
	}
	if class != "" {
		used[corev1.ResourceName(class+perClass)+corev1.ResourcePersistentVolumeClaims] = one()
	}
	size, ok := c.Spec.Resources.Requests[corev1.ResourceStorage]
	// A volume that is larger than the claim asks for takes what it has.
	if given, has := c.Status.AllocatedResources[corev1.ResourceStorage]; has && given.Cmp(size) > 0 {
		size = given
	}
	if ok {
		used[corev1.ResourceRequestsStorage] = size
		if class != "" {
			used[corev1.ResourceName(class+perClass)+corev1.ResourceRequestsStorage] = size
		}
	}
	return used, nil
}

func claimScope(s corev1.ScopedResourceSelectorRequirement, o runtime.Object) (bool, error) {
	c, ok := o.(*corev1.PersistentVolumeClaim)
	if !ok {
		return false, fmt.Errorf("expected a PersistentVolumeClaim, got %T", o)
	}
	if s.ScopeName != corev1.ResourceQuotaScopeVolumeAttributesClass {
		return false, nil
	}
	name := ""
	if c.Spec.VolumeAttributesClassName != nil {
		name = *c.Spec.VolumeAttributesClassName
	}
	return selects(s, name)
}
