// Package ephemeralvolume makes the claims of pods' generic ephemeral volumes (KEP-1698). They go with their pod by their owner reference.
package ephemeralvolume

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-helpers/storage/ephemeral"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

type controller struct {
	client   kubernetes.Interface
	pods     corelisters.PodLister
	claims   corelisters.PersistentVolumeClaimLister
	recorder record.EventRecorder
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	pods, claims := f.Core().V1().Pods(), f.Core().V1().PersistentVolumeClaims()
	c := &controller{client: client, pods: pods.Lister(), claims: claims.Lister(), recorder: recorder}
	q := queue.New("ephemeralvolume")
	_, err := pods.Informer().AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			p, ok := queue.Object[*corev1.Pod](obj)
			return ok && wants(p)
		},
		Handler: cache.ResourceEventHandlerFuncs{AddFunc: q.AddObject},
	})
	if err == nil {
		// One of an older pod of that name that goes makes room.
		_, err = claims.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(obj any) {
			if claim, ok := queue.Object[*corev1.PersistentVolumeClaim](obj); ok {
				if owner := metav1.GetControllerOf(claim); owner != nil && owner.Kind == "Pod" {
					q.Add(claim.Namespace + "/" + owner.Name)
				}
			}
		}})
	}
	if err != nil {
		return nil, fmt.Errorf("ephemeral volumes: %w", err)
	}
	return func(ctx context.Context) {
		q.Run(ctx, 2, c.reconcile, pods.Informer().HasSynced, claims.Informer().HasSynced)
	}, nil
}

func wants(p *corev1.Pod) bool {
	for _, v := range p.Spec.Volumes {
		if v.Ephemeral != nil {
			return p.DeletionTimestamp == nil
		}
	}
	return false
}

func (c *controller) reconcile(ctx context.Context, namespace, name string) error {
	p, err := c.pods.Pods(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || !wants(p) {
		return err
	}
	var errs []error
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.Ephemeral == nil || v.Ephemeral.VolumeClaimTemplate == nil {
			continue
		}
		claimName := ephemeral.VolumeClaimName(p, v)
		have, err := c.claims.PersistentVolumeClaims(namespace).Get(claimName)
		if apierrors.IsNotFound(err) {
			template := v.Ephemeral.VolumeClaimTemplate
			_, err = c.client.CoreV1().PersistentVolumeClaims(namespace).Create(ctx, &corev1.PersistentVolumeClaim{
				ObjectMeta: metav1.ObjectMeta{
					Name: claimName, Labels: template.Labels, Annotations: template.Annotations,
					OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(p, corev1.SchemeGroupVersion.WithKind("Pod"))},
				},
				Spec: template.Spec,
			}, metav1.CreateOptions{})
		} else if err == nil {
			err = ephemeral.VolumeIsForPod(p, have)
		}
		if err != nil {
			c.recorder.Eventf(p, corev1.EventTypeWarning, "FailedBinding", "ephemeral volume %s: %v", v.Name, err)
			errs = append(errs, fmt.Errorf("claim %s: %w", claimName, err))
		}
	}
	return errors.Join(errs...)
}
