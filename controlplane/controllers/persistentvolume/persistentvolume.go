// Package persistentvolume binds PersistentVolumeClaims to PersistentVolumes, has volumes made for claims, and sees to what becomes of
// volumes whose claims have gone.
//
// A claim and a volume each name the other. They are written one after the other, the volume first, so an end at any point leaves a state from
// which the next look goes on. What a volume's claim is, is settled by spec.claimRef with the claim's UID alone.
package persistentvolume

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"

	"github.com/strake-io/strake/controlplane/controllers/queue"
)

// Indexes by which what belongs together is found.
const (
	volumesByClass = "persistentvolume: volumes by class"
	volumesByClaim = "persistentvolume: volumes by the claim that they name"
	claimsByClass  = "persistentvolume: pending claims by class"
)

type controller struct {
	client                  kubernetes.Interface
	local                   kubernetes.Interface // for what local volumes need beyond what binding volumes does
	claims                  corelisters.PersistentVolumeClaimLister
	volumes                 corelisters.PersistentVolumeLister
	nodes                   corelisters.NodeLister
	classes                 storagelisters.StorageClassLister
	claimIndex, volumeIndex cache.Indexer
	recorder                record.EventRecorder
	ofClaims, ofVolumes     *queue.Queue
	removals                *queue.Queue // of volumes whose data a node is to remove
}

// Setup registers the controller with the informers and returns what runs it.
func Setup(client, local kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	claims, volumes, nodes, classes := f.Core().V1().PersistentVolumeClaims(), f.Core().V1().PersistentVolumes(), f.Core().V1().Nodes(), f.Storage().V1().StorageClasses()
	c := &controller{
		client: client, local: local, claims: claims.Lister(), volumes: volumes.Lister(), nodes: nodes.Lister(), classes: classes.Lister(),
		claimIndex: claims.Informer().GetIndexer(), volumeIndex: volumes.Informer().GetIndexer(), recorder: recorder,
		ofClaims: queue.New("persistentvolumeclaim"), ofVolumes: queue.New("persistentvolume"), removals: queue.New("persistentvolume removal"),
	}
	for _, register := range []func() error{
		func() error { return claims.Informer().AddIndexers(cache.Indexers{claimsByClass: pendingClass}) },
		func() error {
			return volumes.Informer().AddIndexers(cache.Indexers{volumesByClass: classOfVolume, volumesByClaim: claimOfVolume})
		},
		func() error {
			_, err := claims.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: c.claimChanged, UpdateFunc: func(_, obj any) { c.claimChanged(obj) }, DeleteFunc: c.claimChanged})
			return err
		},
		func() error {
			_, err := volumes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: c.volumeChanged, UpdateFunc: func(_, obj any) { c.volumeChanged(obj) }, DeleteFunc: c.volumeChanged})
			return err
		},
		func() error {
			_, err := classes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: c.classChanged, UpdateFunc: func(_, obj any) { c.classChanged(obj) }})
			return err
		},
	} {
		if err := register(); err != nil {
			return nil, fmt.Errorf("persistentvolume controller: %w", err)
		}
	}
	synced := []cache.InformerSynced{claims.Informer().HasSynced, volumes.Informer().HasSynced, nodes.Informer().HasSynced, classes.Informer().HasSynced}
	return func(ctx context.Context) {
		if !cache.WaitForCacheSync(ctx.Done(), synced...) {
			return
		}
		for err := c.localClass(ctx); err != nil && ctx.Err() == nil; err = c.localClass(ctx) {
			klog.ErrorS(err, "The StorageClass of local volumes is not in place, trying again")
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
		var wg sync.WaitGroup
		// One at a time, so that no two claims are given one volume; a conflict of versions would tell, but only after the fact.
		wg.Go(func() { c.ofClaims.Run(ctx, 1, c.claim) })
		wg.Go(func() { c.ofVolumes.Run(ctx, 4, c.volume) })
		// Nodes may be slow, or dead: they hold up other removals at most, and none for long.
		c.removals.Run(ctx, 8, c.removal)
		wg.Wait()
	}, nil
}

func pendingClass(obj any) ([]string, error) {
	claim, ok := obj.(*corev1.PersistentVolumeClaim)
	if !ok || claim.Status.Phase == corev1.ClaimBound {
		return nil, nil
	}
	return []string{volume.GetPersistentVolumeClaimClass(claim)}, nil
}

func classOfVolume(obj any) ([]string, error) {
	v, ok := obj.(*corev1.PersistentVolume)
	if !ok {
		return nil, nil
	}
	return []string{volume.GetPersistentVolumeClass(v)}, nil
}

func claimOfVolume(obj any) ([]string, error) {
	v, ok := obj.(*corev1.PersistentVolume)
	if !ok || v.Spec.ClaimRef == nil {
		return nil, nil
	}
	return []string{claimKey(v)}, nil
}

// claimKey is the key of the claim that a volume names.
func claimKey(v *corev1.PersistentVolume) string {
	return v.Spec.ClaimRef.Namespace + "/" + v.Spec.ClaimRef.Name
}

// claimChanged looks at the claim, and at the volumes that it is, or was, bound to.
func (c *controller) claimChanged(obj any) {
	c.ofClaims.AddObject(obj)
	if claim, ok := queue.Object[*corev1.PersistentVolumeClaim](obj); ok {
		if claim.Spec.VolumeName != "" {
			c.ofVolumes.Add(claim.Spec.VolumeName)
		}
		for _, v := range c.indexed(volumesByClaim, claim.Namespace+"/"+claim.Name) {
			c.ofVolumes.Add(v.Name)
		}
	}
}

// volumeChanged looks at the volume, at the claim that it names, and, if it is free, at the claims that may want it.
func (c *controller) volumeChanged(obj any) {
	c.ofVolumes.AddObject(obj)
	v, ok := queue.Object[*corev1.PersistentVolume](obj)
	if !ok {
		return
	}
	if v.Spec.ClaimRef != nil {
		c.ofClaims.Add(claimKey(v))
	} else if v.Status.Phase == corev1.VolumeAvailable {
		c.wake(volume.GetPersistentVolumeClass(v))
	}
}

func (c *controller) classChanged(obj any) {
	if class, ok := obj.(*storagev1.StorageClass); ok {
		c.wake(class.Name)
		if class.Annotations[defaultClass] == "true" {
			c.wake("") // claims without a class get it
		}
	}
}

// wake looks again at the pending claims of a class.
func (c *controller) wake(class string) {
	keys, err := c.claimIndex.IndexKeys(claimsByClass, class)
	if err != nil {
		klog.ErrorS(err, "Pending claims", "class", class)
	}
	for _, key := range keys {
		c.ofClaims.Add(key)
	}
}

// indexed are the volumes that an index has under a value, in the order of their names.
func (c *controller) indexed(index, value string) []*corev1.PersistentVolume {
	objs, err := c.volumeIndex.ByIndex(index, value)
	if err != nil {
		klog.ErrorS(err, "PersistentVolumes", "index", index)
	}
	out := make([]*corev1.PersistentVolume, 0, len(objs))
	for _, o := range objs {
		out = append(out, o.(*corev1.PersistentVolume))
	}
	slices.SortFunc(out, func(a, b *corev1.PersistentVolume) int { return strings.Compare(a.Name, b.Name) })
	return out
}
