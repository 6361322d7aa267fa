// Package volumeprotection lets claims and volumes that are being deleted go when nobody uses them any more.
package volumeprotection

import (
	"context"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

// Finalizers that admission puts on claims and volumes.
const (
	claimFinalizer  = "kubernetes.io/pvc-protection"
	volumeFinalizer = "kubernetes.io/pv-protection"
)

// claimIndex finds pods by the claims that they name.
const claimIndex = "claims"

type controller struct {
	forClaims, forVolumes kubernetes.Interface // identities apart: either may write the one only
	claims                corelisters.PersistentVolumeClaimLister
	volumes               corelisters.PersistentVolumeLister
	pods                  cache.Indexer
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(forClaims, forVolumes kubernetes.Interface, f informers.SharedInformerFactory) (func(context.Context), error) {
	claims, volumes, podInf := f.Core().V1().PersistentVolumeClaims(), f.Core().V1().PersistentVolumes(), f.Core().V1().Pods()
	if err := podInf.Informer().AddIndexers(cache.Indexers{claimIndex: func(obj any) ([]string, error) {
		p, ok := obj.(*corev1.Pod)
		if !ok {
			return nil, nil
		}
		return claimsOf(p), nil
	}}); err != nil {
		return nil, fmt.Errorf("volume protection: %w", err)
	}
	c := &controller{forClaims: forClaims, forVolumes: forVolumes, claims: claims.Lister(), volumes: volumes.Lister(), pods: podInf.Informer().GetIndexer()}
	ofClaims, ofVolumes := queue.New("claim-protection"), queue.New("volume-protection")
	changed := func(obj any) {
		if p, ok := queue.Object[*corev1.Pod](obj); ok {
			for _, key := range claimsOf(p) {
				ofClaims.Add(key)
			}
		}
	}
	for _, register := range []func() error{
		func() error { _, err := claims.Informer().AddEventHandler(ofClaims.Handlers()); return err },
		func() error { _, err := volumes.Informer().AddEventHandler(ofVolumes.Handlers()); return err },
		func() error {
			_, err := podInf.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: changed, UpdateFunc: func(_, obj any) {
				if p := obj.(*corev1.Pod); ended(p) {
					changed(p)
				}
			}})
			return err
		},
	} {
		if err := register(); err != nil {
			return nil, fmt.Errorf("volume protection: %w", err)
		}
	}
	return func(ctx context.Context) {
		var wg sync.WaitGroup
		wg.Go(func() { ofVolumes.Run(ctx, 1, c.volume, volumes.Informer().HasSynced) })
		ofClaims.Run(ctx, 1, c.claim, claims.Informer().HasSynced, podInf.Informer().HasSynced)
		wg.Wait()
	}, nil
}

// claimsOf returns the keys of the claims that a pod names, or that are made for it.
func claimsOf(p *corev1.Pod) []string {
	var keys []string
	for _, v := range p.Spec.Volumes {
		switch {
		case v.PersistentVolumeClaim != nil:
			keys = append(keys, p.Namespace+"/"+v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			keys = append(keys, p.Namespace+"/"+p.Name+"-"+v.Name)
		}
	}
	return keys
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func (c *controller) claim(ctx context.Context, namespace, name string) error {
	claim, err := c.claims.PersistentVolumeClaims(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || claim.DeletionTimestamp == nil || !slices.Contains(claim.Finalizers, claimFinalizer) {
		return err
	}
	used := func(pods []*corev1.Pod) bool {
		// A pod that is on no node waits for a claim that is going, and never gets it.
		return slices.ContainsFunc(pods, func(p *corev1.Pod) bool {
			return p.Spec.NodeName != "" && !ended(p) && slices.Contains(claimsOf(p), namespace+"/"+name)
		})
	}
	objs, err := c.pods.ByIndex(claimIndex, namespace+"/"+name)
	if err != nil {
		return err
	}
	var cached []*corev1.Pod
	for _, o := range objs {
		cached = append(cached, o.(*corev1.Pod))
	}
	if used(cached) {
		return nil // its end is an event
	}
	// The cache may lag behind a pod that was just bound: the API server knows.
	live, err := c.forClaims.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var now []*corev1.Pod
	for i := range live.Items {
		now = append(now, &live.Items[i])
	}
	if used(now) {
		return fmt.Errorf("claim %s/%s: a pod uses it that the cache does not show yet", namespace, name)
	}
	claim = claim.DeepCopy()
	claim.Finalizers = slices.DeleteFunc(claim.Finalizers, func(f string) bool { return f == claimFinalizer })
	_, err = c.forClaims.CoreV1().PersistentVolumeClaims(namespace).Update(ctx, claim, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *controller) volume(ctx context.Context, _, name string) error {
	v, err := c.volumes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || v.DeletionTimestamp == nil || !slices.Contains(v.Finalizers, volumeFinalizer) || v.Status.Phase == corev1.VolumeBound {
		return err
	}
	v = v.DeepCopy()
	v.Finalizers = slices.DeleteFunc(v.Finalizers, func(f string) bool { return f == volumeFinalizer })
	_, err = c.forVolumes.CoreV1().PersistentVolumes().Update(ctx, v, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
