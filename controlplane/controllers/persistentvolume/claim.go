package persistentvolume

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// defaultClass marks the StorageClass of claims that name none.
const defaultClass = "storageclass.kubernetes.io/is-default-class"

// claim brings one claim a step on. What it writes comes back as an event.
func (c *controller) claim(ctx context.Context, namespace, name string) error {
	claim, err := c.claims.PersistentVolumeClaims(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil // its volume is looked at on its own
	}
	if err != nil {
		return err
	}
	switch {
	case metav1.HasAnnotation(claim.ObjectMeta, volume.AnnBindCompleted):
		return c.boundClaim(ctx, claim)
	case claim.DeletionTimestamp != nil:
		return nil
	case claim.Spec.VolumeName != "":
		return c.wishfulClaim(ctx, claim)
	}
	return c.freeClaim(ctx, claim)
}

// freeClaim finds a volume for a claim that names none, or has one made.
func (c *controller) freeClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	delayed, err := volume.IsDelayBindingMode(claim, c.classes)
	if err != nil {
		return err
	}
	var candidates []*corev1.PersistentVolume
	seen := map[string]bool{}
	for _, list := range [][]*corev1.PersistentVolume{
		c.indexed(volumesByClaim, claim.Namespace+"/"+claim.Name), c.indexed(volumesByClass, volume.GetPersistentVolumeClaimClass(claim)),
	} {
		for _, v := range list {
			if !seen[v.Name] && volume.CheckAccessModes(claim, v) {
				candidates = append(candidates, v)
			}
			seen[v.Name] = true
		}
	}
	v, err := volume.FindMatchingVolume(claim, candidates, nil, nil, delayed, true)
	if err != nil {
		return fmt.Errorf("a volume for claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	if v != nil {
		return c.bind(ctx, v, claim)
	}
	switch class := volume.GetPersistentVolumeClaimClass(claim); {
	case !volume.PersistentVolumeClaimHasClass(claim) && c.defaultClass() != "":
		// The default came after the claim (KEP-3333).
		claim = claim.DeepCopy()
		claim.Spec.StorageClassName = ptr.To(c.defaultClass())
		_, err := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, claim, metav1.UpdateOptions{})
		return err
	case delayed && !volume.IsDelayBindingProvisioning(claim):
		c.recorder.Event(claim, corev1.EventTypeNormal, "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
	case class != "":
		return c.provision(ctx, claim, class)
	default:
		c.recorder.Event(claim, corev1.EventTypeNormal, "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
	}
	return nil
}

// defaultClass is the name of the default class, of several the one made last; empty: there is none.
func (c *controller) defaultClass() string {
	all, err := c.classes.List(labels.Everything())
	if err != nil {
		return "" // a lister of a cache never fails
	}
	var best *storagev1.StorageClass
	for _, s := range all {
		if s.Annotations[defaultClass] == "true" && (best == nil || best.CreationTimestamp.Before(&s.CreationTimestamp) || best.CreationTimestamp.Equal(&s.CreationTimestamp) && s.Name < best.Name) {
			best = s
		}
	}
	if best == nil {
		return ""
	}
	return best.Name
}

// wishfulClaim serves a claim that names its volume.
func (c *controller) wishfulClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	v, err := c.volumes.Get(claim.Spec.VolumeName)
	if apierrors.IsNotFound(err) {
		return nil // it may come
	}
	if err != nil {
		return err
	}
	switch {
	case v.Spec.ClaimRef == nil:
		if err := satisfies(v, claim); err != nil {
			c.recorder.Eventf(claim, corev1.EventTypeWarning, "VolumeMismatch", "Cannot bind to requested volume %q: %v", v.Name, err)
			return nil
		}
		return c.bind(ctx, v, claim)
	case volume.IsVolumeBoundToClaim(v, claim):
		return c.bind(ctx, v, claim)
	}
	c.recorder.Eventf(claim, corev1.EventTypeWarning, "FailedBinding", "volume %q already bound to a different claim.", v.Name)
	return nil
}

// satisfies tells what keeps a volume from being what a claim asks for.
func satisfies(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	want, have := claim.Spec.Resources.Requests[corev1.ResourceStorage], v.Spec.Capacity[corev1.ResourceStorage]
	switch {
	case v.DeletionTimestamp != nil:
		return errors.New("the volume is marked for deletion")
	case have.Cmp(want) < 0:
		return errors.New("requested PV is too small")
	case volume.GetPersistentVolumeClass(v) != volume.GetPersistentVolumeClaimClass(claim):
		return errors.New("storageClassName does not match")
	case volume.CheckVolumeModeMismatches(&claim.Spec, &v.Spec):
		return errors.New("incompatible volumeMode")
	case !volume.CheckAccessModes(claim, v):
		return errors.New("incompatible accessMode")
	case ptr.Deref(claim.Spec.VolumeAttributesClassName, "") != ptr.Deref(v.Spec.VolumeAttributesClassName, ""):
		return errors.New("volumeAttributesClassName does not match")
	}
	return nil
}

// boundClaim sees whether a claim that was bound still is.
func (c *controller) boundClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if claim.Spec.VolumeName == "" {
		return c.lost(ctx, claim, "ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
	}
	v, err := c.volumes.Get(claim.Spec.VolumeName)
	if apierrors.IsNotFound(err) {
		// Who bound them may have made the volume a moment ago.
		v, err = c.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	}
	switch {
	case apierrors.IsNotFound(err):
		return c.lost(ctx, claim, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	case err != nil:
		return err
	case v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID == claim.UID:
		return c.bind(ctx, v, claim)
	}
	return c.lost(ctx, claim, "ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
}

func (c *controller) lost(ctx context.Context, claim *corev1.PersistentVolumeClaim, reason, message string) error {
	if claim.Status.Phase == corev1.ClaimLost {
		return nil
	}
	claim = claim.DeepCopy()
	claim.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimLost}
	if _, err := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(ctx, claim, metav1.UpdateOptions{}); err != nil {
		return err
	}
	c.recorder.Event(claim, corev1.EventTypeWarning, reason, message)
	return nil
}

// bind writes what is not yet written of the two being each other's.
func (c *controller) bind(ctx context.Context, v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	v, changed, err := volume.GetBindVolumeToClaim(v, claim)
	if err == nil && changed {
		v, err = c.client.CoreV1().PersistentVolumes().Update(ctx, v, metav1.UpdateOptions{})
	}
	if err == nil {
		err = c.setPhase(ctx, v, corev1.VolumeBound, "")
	}
	if err != nil {
		return fmt.Errorf("bind volume %s to claim %s/%s: %w", v.GetName(), claim.Namespace, claim.Name, err)
	}
	api, was := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace), claim
	claim = claim.DeepCopy()
	if claim.Spec.VolumeName != v.Name {
		claim.Spec.VolumeName = v.Name
		metav1.SetMetaDataAnnotation(&claim.ObjectMeta, volume.AnnBoundByController, "yes")
	}
	metav1.SetMetaDataAnnotation(&claim.ObjectMeta, volume.AnnBindCompleted, "yes")
	if !apiequality.Semantic.DeepEqual(claim, was) {
		if claim, err = api.Update(ctx, claim, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("bind claim %s/%s to volume %s: %w", was.Namespace, was.Name, v.Name, err)
		}
	}
	if claim.Status.Phase == corev1.ClaimBound && apiequality.Semantic.DeepEqual(claim.Status.AccessModes, v.Spec.AccessModes) {
		return nil // its capacity may grow, which is the resizer's to tell
	}
	claim = claim.DeepCopy()
	if claim.Status.Phase != corev1.ClaimBound {
		claim.Status.Capacity, claim.Status.CurrentVolumeAttributesClassName = v.Spec.Capacity, claim.Spec.VolumeAttributesClassName
	}
	claim.Status.Phase, claim.Status.AccessModes = corev1.ClaimBound, v.Spec.AccessModes
	_, err = api.UpdateStatus(ctx, claim, metav1.UpdateOptions{})
	return err
}
