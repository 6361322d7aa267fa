package admission

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/informers"
	storagelisters "k8s.io/client-go/listers/storage/v1"
)

const defaultClassAnnotation = "storageclass.kubernetes.io/is-default-class"

// defaultStorageClass names the cluster's default class in claims that name none.
type defaultStorageClass struct {
	*admission.Handler
	lister storagelisters.StorageClassLister
}

func newDefaultStorageClass() (admission.Interface, error) {
	return &defaultStorageClass{Handler: admission.NewHandler(admission.Create)}, nil
}

func (d *defaultStorageClass) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	inf := f.Storage().V1().StorageClasses()
	d.lister = inf.Lister()
	d.SetReadyFunc(inf.Informer().HasSynced)
}

func (d *defaultStorageClass) ValidateInitialization() error {
	if d.lister == nil {
		return errors.New("DefaultStorageClass admission: no informers")
	}
	return nil
}

func (d *defaultStorageClass) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	claim, ok := a.GetObject().(*corev1.PersistentVolumeClaim)
	if !ok || a.GetSubresource() != "" {
		return nil
	}
	// The empty name is a wish too: no class, so no dynamic volume.
	if _, old := claim.Annotations[corev1.BetaStorageClassAnnotation]; old || claim.Spec.StorageClassName != nil {
		return nil
	}
	if err := ready(d.Handler, a); err != nil {
		return err
	}
	all, err := d.lister.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("StorageClasses: %w", err)
	}
	if c := newestDefault(all); c != nil {
		claim.Spec.StorageClassName = &c.Name
	}
	return nil
}

// newestDefault returns the default class; of several the one made last, so that a new default can be put in place before
// the old one goes (KEP-3333).
func newestDefault(all []*storagev1.StorageClass) *storagev1.StorageClass {
	var best *storagev1.StorageClass
	for _, c := range all {
		if c.Annotations[defaultClassAnnotation] != "true" {
			continue
		}
		if best == nil || best.CreationTimestamp.Before(&c.CreationTimestamp) || best.CreationTimestamp.Equal(&c.CreationTimestamp) && c.Name < best.Name {
			best = c
		}
	}
	if best == nil {
		return nil
	}
	return best.DeepCopy()
}
