package persistentvolume

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/volume"
)

// volume brings one volume a step on. A removal of data is queued; one that failed is tried again in its own time.
func (c *controller) volume(ctx context.Context, _, name string) error {
	return c.step(ctx, name, func(context.Context, *corev1.PersistentVolume) error {
		if !c.removals.Failing(name) {
			c.removals.Add(name)
		}
		return nil
	})
}

// removal is volume with the removal of its data, if that is still its next step.
func (c *controller) removal(ctx context.Context, _, name string) error {
	return c.step(ctx, name, c.removeLocal)
}

// step brings one volume a step on; remove is for a local one whose data is to go.
func (c *controller) step(ctx context.Context, name string, remove func(context.Context, *corev1.PersistentVolume) error) error {
	v, err := c.volumes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil // its claim is looked at on its own
	}
	if err != nil {
		return err
	}
	if provisioner(v) == localProvisioner {
		if done, err := c.guard(ctx, v); !done {
			return err
		}
	}
	if v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID == "" {
		if v.DeletionTimestamp != nil && provisioner(v) == localProvisioner {
			return c.released(ctx, v, remove) // somebody deleted it, and nobody has it
		}
		return c.setPhase(ctx, v, corev1.VolumeAvailable, "") // kept for a claim of that name, if it names one
	}
	claim, err := c.claims.PersistentVolumeClaims(v.Spec.ClaimRef.Namespace).Get(v.Spec.ClaimRef.Name)
	if apierrors.IsNotFound(err) || err == nil && claim.UID != v.Spec.ClaimRef.UID {
		// Data may go with what comes next: the API server itself is to say that the claim is gone.
		claim, err = c.client.CoreV1().PersistentVolumeClaims(v.Spec.ClaimRef.Namespace).Get(ctx, v.Spec.ClaimRef.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && claim.UID != v.Spec.ClaimRef.UID {
			return c.released(ctx, v, remove)
		}
	}
	switch {
	case err != nil:
		return err
	case claim.Spec.VolumeName == "":
		if volume.CheckVolumeModeMismatches(&claim.Spec, &v.Spec) {
			const message = "Cannot bind PersistentVolume to requested PersistentVolumeClaim due to incompatible volumeMode."
			c.recorder.Event(v, corev1.EventTypeWarning, "VolumeMismatch", message)
			c.recorder.Event(claim, corev1.EventTypeWarning, "VolumeMismatch", message)
			return nil
		}
		c.ofClaims.Add(claimKey(v))
		return nil
	case claim.Spec.VolumeName == v.Name:
		return c.setPhase(ctx, v, corev1.VolumeBound, "")
	case provisioner(v) != "" && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete:
		return c.released(ctx, v, remove) // the claim took another one meanwhile
	}
	// Free again, or kept for that claim's name, if a user said so.
	v = v.DeepCopy()
	if metav1.HasAnnotation(v.ObjectMeta, volume.AnnBoundByController) {
		v.Spec.ClaimRef = nil
		delete(v.Annotations, volume.AnnBoundByController)
	} else {
		v.Spec.ClaimRef.UID = ""
	}
	if v, err = c.client.CoreV1().PersistentVolumes().Update(ctx, v, metav1.UpdateOptions{}); err != nil {
		return err
	}
	return c.setPhase(ctx, v, corev1.VolumeAvailable, "")
}

func provisioner(v *corev1.PersistentVolume) string {
	return v.Annotations[volume.AnnDynamicallyProvisioned]
}

// setPhase writes the phase, if it is another one.
func (c *controller) setPhase(ctx context.Context, v *corev1.PersistentVolume, phase corev1.PersistentVolumePhase, message string) error {
	if v.Status.Phase == phase && v.Status.Message == message {
		return nil
	}
	v = v.DeepCopy()
	if v.Status.Phase != phase {
		v.Status.LastPhaseTransitionTime = new(metav1.Now())
	}
	v.Status.Phase, v.Status.Message, v.Status.Reason = phase, message, ""
	_, err := c.client.CoreV1().PersistentVolumes().UpdateStatus(ctx, v, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("phase %s of volume %s: %w", phase, v.Name, err)
	}
	return nil
}

// released does with a volume whose claim is gone what its policy says.
func (c *controller) released(ctx context.Context, v *corev1.PersistentVolume, remove func(context.Context, *corev1.PersistentVolume) error) error {
	if v.Status.Phase != corev1.VolumeReleased && v.Status.Phase != corev1.VolumeFailed {
		return c.setPhase(ctx, v, corev1.VolumeReleased, "") // which brings it here again
	}
	var err error
	switch v.Spec.PersistentVolumeReclaimPolicy {
	case corev1.PersistentVolumeReclaimDelete:
		switch {
		case provisioner(v) == localProvisioner:
			if err = remove(ctx, v); err == nil {
				return nil
			}
		case provisioner(v) != "" || v.Spec.CSI != nil:
			return nil // its provisioner's
		default:
			err = fmt.Errorf("error getting deleter volume plugin for volume %q: no deletable volume plugin matched", v.Name)
		}
		c.recorder.Event(v, corev1.EventTypeWarning, "VolumeFailedDelete", err.Error())
	case corev1.PersistentVolumeReclaimRecycle:
		err = errors.New("no volume plugin recycles: use dynamic volumes")
		c.recorder.Event(v, corev1.EventTypeWarning, "VolumeFailedRecycle", err.Error())
	default:
		return nil
	}
	if phaseErr := c.setPhase(ctx, v, corev1.VolumeFailed, err.Error()); phaseErr != nil {
		return phaseErr
	}
	if provisioner(v) == localProvisioner {
		return err // the node may come back
	}
	return nil
}

// guard keeps the finalizer on local volumes whose data is to go with them, also if somebody deletes the object by hand. It tells false where
// it wrote, or the object is on its way out.
func (c *controller) guard(ctx context.Context, v *corev1.PersistentVolume) (bool, error) {
	const finalizer = volume.PVDeletionInTreeProtectionFinalizer
	wanted := v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
	has := slices.Contains(v.Finalizers, finalizer)
	if wanted == has || wanted && v.DeletionTimestamp != nil {
		return true, nil
	}
	v = v.DeepCopy()
	if wanted {
		v.Finalizers = append(v.Finalizers, finalizer)
	} else {
		v.Finalizers = slices.DeleteFunc(v.Finalizers, func(f string) bool { return f == finalizer })
	}
	_, err := c.client.CoreV1().PersistentVolumes().Update(ctx, v, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	return false, err
}
