package persistentvolume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/reference"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

// The names that this controller and the kubelet share. A node says by its annotation where its local volumes are; the kubelet makes the folder
// of a volume when a pod first mounts it, and removes it when this controller asks it to.
const (
	localProvisioner = "strake.io/local"
	localFolder      = "strake.io/local-volumes" // annotation of nodes
	localNode        = "strake.io/node"          // annotation of volumes: the node that has the data
	className        = "local"
)

// localClass makes the class by which charts get volumes without further ado: the default one, unless there is another. Who changes it means it;
// who deletes it gets it again with the next start.
func (c *controller) localClass(ctx context.Context) error {
	api := c.local.StorageV1().StorageClasses()
	if _, err := api.Get(ctx, className, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	class := &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: className}, Provisioner: localProvisioner,
		ReclaimPolicy: ptr.To(corev1.PersistentVolumeReclaimDelete), VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}
	if c.defaultClass() == "" {
		class.Annotations = map[string]string{defaultClass: "true"}
	}
	_, err := api.Create(ctx, class, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// provision has a volume made for a claim: by its class' provisioner, which is told by an annotation, or here.
func (c *controller) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim, name string) error {
	class, err := c.classes.Get(name)
	if apierrors.IsNotFound(err) {
		c.recorder.Eventf(claim, corev1.EventTypeWarning, "ProvisioningFailed", "storageclass.storage.k8s.io %q not found", name)
		return nil
	}
	if err != nil {
		return err
	}
	if class.Provisioner == volume.NotSupportedProvisioner {
		c.recorder.Eventf(claim, corev1.EventTypeNormal, "FailedBinding", "no persistent volumes available for this claim, and storage class %q makes none", name)
		return nil
	}
	if claim.Annotations[volume.AnnStorageProvisioner] != class.Provisioner || claim.Annotations[volume.AnnBetaStorageProvisioner] != class.Provisioner {
		told := claim.DeepCopy()
		metav1.SetMetaDataAnnotation(&told.ObjectMeta, volume.AnnStorageProvisioner, class.Provisioner)
		metav1.SetMetaDataAnnotation(&told.ObjectMeta, volume.AnnBetaStorageProvisioner, class.Provisioner)
		_, err := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, told, metav1.UpdateOptions{})
		return err
	}
	if class.Provisioner != localProvisioner {
		c.recorder.Eventf(claim, corev1.EventTypeNormal, "ExternalProvisioning",
			"Waiting for a volume to be created either by the external provisioner '%s' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.", class.Provisioner)
		return nil
	}
	v, err := c.localVolume(claim, class)
	if err != nil {
		c.recorder.Eventf(claim, corev1.EventTypeWarning, "ProvisioningFailed", "failed to provision volume with StorageClass %q: %v", name, err)
		if !volume.IsDelayBindingProvisioning(claim) {
			return nil
		}
		// The scheduler is to look for another node.
		again := claim.DeepCopy()
		delete(again.Annotations, volume.AnnSelectedNode)
		_, err := c.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Update(ctx, again, metav1.UpdateOptions{})
		return err
	}
	_, err = c.client.CoreV1().PersistentVolumes().Create(ctx, v, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil // it is on its way into the cache
	}
	if err == nil {
		c.recorder.Eventf(claim, corev1.EventTypeNormal, "ProvisioningSucceeded", "Successfully provisioned volume %s", v.Name)
	}
	return err
}

// localVolume is a folder of the node that the scheduler chose.
func (c *controller) localVolume(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (*corev1.PersistentVolume, error) {
	switch {
	case claim.Annotations[volume.AnnSelectedNode] == "":
		return nil, errors.New("a local volume is made on the node of its first pod: the class needs volumeBindingMode WaitForFirstConsumer")
	case ptr.Deref(claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) != corev1.PersistentVolumeFilesystem:
		return nil, errors.New("local volumes are folders: volumeMode Block is not supported")
	case claim.Spec.Selector != nil:
		return nil, errors.New("claim.spec.selector is not supported")
	case claim.Spec.DataSource != nil || claim.Spec.DataSourceRef != nil:
		return nil, errors.New("claim.spec.dataSource is not supported")
	case len(class.MountOptions) > 0:
		return nil, errors.New("local volumes are folders: mountOptions are not supported")
	case slices.ContainsFunc(claim.Spec.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool {
		return m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod
	}):
		return nil, errors.New("local volumes are of one node: only ReadWriteOnce and ReadWriteOncePod are supported")
	}
	node, err := c.nodes.Get(claim.Annotations[volume.AnnSelectedNode])
	if err != nil {
		return nil, fmt.Errorf("the selected node: %w", err)
	}
	folder, host := node.Annotations[localFolder], node.Labels[corev1.LabelHostname]
	if folder == "" || host == "" {
		return nil, fmt.Errorf("node %s has no local volumes (annotation %s, label %s)", node.Name, localFolder, corev1.LabelHostname)
	}
	ref, err := reference.GetReference(scheme.Scheme, claim)
	if err != nil {
		return nil, err
	}
	name := "pvc-" + string(claim.UID)
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{
			volume.AnnDynamicallyProvisioned: localProvisioner, volume.AnnBoundByController: "yes", localNode: node.Name,
		}},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: filepath.Join(folder, name)}},
			Capacity:               corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:            claim.Spec.AccessModes, ClaimRef: ref, StorageClassName: class.Name,
			PersistentVolumeReclaimPolicy: ptr.Deref(class.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete),
			VolumeMode:                    ptr.To(corev1.PersistentVolumeFilesystem),
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host}}},
			}}}},
		},
	}
	if v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		v.Finalizers = []string{volume.PVDeletionInTreeProtectionFinalizer}
	}
	return v, nil
}

// removalTimeout is how long a node is waited for. One that needs longer goes on, and is asked again.
const removalTimeout = 30 * time.Second

// removeLocal has the node remove the volume's data, and then the volume. The data of a node that is gone is gone with it.
func (c *controller) removeLocal(ctx context.Context, v *corev1.PersistentVolume) error {
	node := v.Annotations[localNode]
	_, err := c.local.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err == nil {
		ask, cancel := context.WithTimeout(ctx, removalTimeout)
		err = c.local.CoreV1().RESTClient().Delete().Resource("nodes").Name(node).SubResource("proxy").Suffix("localVolumes", v.Name).Do(ask).Error()
		cancel()
		if err != nil {
			return fmt.Errorf("remove the data of volume %s on node %s: %w", v.Name, node, err)
		}
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("node of volume %s: %w", v.Name, err)
	}
	api := c.client.CoreV1().PersistentVolumes()
	v = v.DeepCopy()
	v.Finalizers = slices.DeleteFunc(v.Finalizers, func(f string) bool { return f == volume.PVDeletionInTreeProtectionFinalizer })
	if v.DeletionTimestamp == nil {
		if err := api.Delete(ctx, v.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(v.UID))}); err != nil {
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		}
		if v, err = api.Get(ctx, v.Name, metav1.GetOptions{}); err != nil {
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		}
		v.Finalizers = slices.DeleteFunc(v.Finalizers, func(f string) bool { return f == volume.PVDeletionInTreeProtectionFinalizer })
	}
	_, err = api.Update(ctx, v, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
