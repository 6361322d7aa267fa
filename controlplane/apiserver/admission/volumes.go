package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/informers"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/component-helpers/storage/volume"
)

// Finalizers that keep volumes and claims while somebody uses them. The controller that knows when nobody does takes
// them off.
const (
	claimProtection  = "kubernetes.io/pvc-protection"
	volumeProtection = "kubernetes.io/pv-protection"
)

// inUse keeps volumes and claims from going while pods use them.
type inUse struct{ *admission.Handler }

func newInUse() (admission.Interface, error) {
	return inUse{admission.NewHandler(admission.Create)}, nil
}

func (inUse) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetSubresource() != "" {
		return nil
	}
	add := func(list *[]string, name string) {
		if !slices.Contains(*list, name) {
			*list = append(*list, name)
		}
	}
	switch o := a.GetObject().(type) {
	case *corev1.PersistentVolumeClaim:
		add(&o.Finalizers, claimProtection)
	case *corev1.PersistentVolume:
		add(&o.Finalizers, volumeProtection)
	}
	return nil
}

// resize lets claims grow only where their class says that its volumes can.
type resize struct {
	*admission.Handler
	lister storagelisters.StorageClassLister
}

var _ admission.ValidationInterface = (*resize)(nil)

func newResize() (admission.Interface, error) {
	return &resize{Handler: admission.NewHandler(admission.Update)}, nil
}

func (r *resize) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	inf := f.Storage().V1().StorageClasses()
	r.lister = inf.Lister()
	r.SetReadyFunc(inf.Informer().HasSynced)
}

func (r *resize) ValidateInitialization() error {
	if r.lister == nil {
		return errors.New("PersistentVolumeClaimResize admission: no informers")
	}
	return nil
}

func (r *resize) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	claim, ok := a.GetObject().(*corev1.PersistentVolumeClaim)
	old, was := a.GetOldObject().(*corev1.PersistentVolumeClaim)
	if !ok || !was || a.GetSubresource() != "" {
		return nil
	}
	before, now := old.Spec.Resources.Requests[corev1.ResourceStorage], claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if now.Cmp(before) <= 0 {
		return nil
	}
	if old.Status.Phase != corev1.ClaimBound {
		return admission.NewForbidden(a, errors.New("only bound persistent volume claims can be expanded"))
	}
	if err := ready(r.Handler, a); err != nil {
		return err
	}
	name := volume.GetPersistentVolumeClaimClass(claim)
	class, err := r.lister.Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("StorageClass %s: %w", name, err)
	}
	if name == "" || name != volume.GetPersistentVolumeClaimClass(old) || err != nil || class.AllowVolumeExpansion == nil || !*class.AllowVolumeExpansion {
		return admission.NewForbidden(a, errors.New("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"))
	}
	return nil
}

// defaultIngressClass names the cluster's default class in Ingresses that name none.
type defaultIngressClass struct {
	*admission.Handler
	lister networkinglisters.IngressClassLister
}

func newDefaultIngressClass() (admission.Interface, error) {
	return &defaultIngressClass{Handler: admission.NewHandler(admission.Create)}, nil
}

func (d *defaultIngressClass) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	inf := f.Networking().V1().IngressClasses()
	d.lister = inf.Lister()
	d.SetReadyFunc(inf.Informer().HasSynced)
}

func (d *defaultIngressClass) ValidateInitialization() error {
	if d.lister == nil {
		return errors.New("DefaultIngressClass admission: no informers")
	}
	return nil
}

func (d *defaultIngressClass) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	in, ok := a.GetObject().(*networkingv1.Ingress)
	if !ok || a.GetSubresource() != "" || in.Spec.IngressClassName != nil {
		return nil
	}
	// The old annotation is a wish too, even an empty one.
	if _, old := in.Annotations["kubernetes.io/ingress.class"]; old {
		return nil
	}
	if err := ready(d.Handler, a); err != nil {
		return err
	}
	all, err := d.lister.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("IngressClasses: %w", err)
	}
	var best *networkingv1.IngressClass
	for _, c := range all {
		if c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] != "true" {
			continue
		}
		if best == nil || best.CreationTimestamp.Before(&c.CreationTimestamp) || best.CreationTimestamp.Equal(&c.CreationTimestamp) && c.Name < best.Name {
			best = c
		}
	}
	if best != nil {
		name := best.Name
		in.Spec.IngressClassName = &name
	}
	return nil
}
