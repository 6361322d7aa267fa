package node

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// key names a node's access to an object. No part can contain a slash.
func key(node, resource, namespace, name string) string {
	return strings.Join([]string{node, resource, namespace, name}, "/")
}

// References calls f for each object of a pod's namespace that its kubelet must read, or get tokens of, to run it. It
// may call more than once for the same object.
func References(p *corev1.Pod, f func(resource, name string)) {
	add := func(resource, name string) {
		if name != "" {
			f(resource, name)
		}
	}
	secret := func(r *corev1.LocalObjectReference) {
		if r != nil {
			add("secrets", r.Name)
		}
	}
	add("serviceaccounts", p.Spec.ServiceAccountName)
	for i := range p.Spec.ImagePullSecrets {
		secret(&p.Spec.ImagePullSecrets[i])
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		switch {
		case v.Secret != nil:
			add("secrets", v.Secret.SecretName)
		case v.ConfigMap != nil:
			add("configmaps", v.ConfigMap.Name)
		case v.PersistentVolumeClaim != nil:
			add("persistentvolumeclaims", v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			// The claim of a generic ephemeral volume has the pod's and the volume's name (KEP-1698).
			add("persistentvolumeclaims", p.Name+"-"+v.Name)
		case v.CSI != nil:
			secret(v.CSI.NodePublishSecretRef)
		case v.ISCSI != nil:
			secret(v.ISCSI.SecretRef)
		case v.CephFS != nil:
			secret(v.CephFS.SecretRef)
		case v.RBD != nil:
			secret(v.RBD.SecretRef)
		case v.FlexVolume != nil:
			secret(v.FlexVolume.SecretRef)
		case v.ScaleIO != nil:
			secret(v.ScaleIO.SecretRef)
		case v.StorageOS != nil:
			secret(v.StorageOS.SecretRef)
		case v.AzureFile != nil:
			add("secrets", v.AzureFile.SecretName)
		case v.Projected != nil:
			for _, src := range v.Projected.Sources {
				if src.Secret != nil {
					add("secrets", src.Secret.Name)
				}
				if src.ConfigMap != nil {
					add("configmaps", src.ConfigMap.Name)
				}
			}
		}
	}
	container := func(envFrom []corev1.EnvFromSource, env []corev1.EnvVar) {
		for _, e := range envFrom {
			if e.SecretRef != nil {
				add("secrets", e.SecretRef.Name)
			}
			if e.ConfigMapRef != nil {
				add("configmaps", e.ConfigMapRef.Name)
			}
		}
		for _, e := range env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				add("secrets", e.ValueFrom.SecretKeyRef.Name)
			}
			if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil {
				add("configmaps", e.ValueFrom.ConfigMapKeyRef.Name)
			}
		}
	}
	for _, c := range p.Spec.InitContainers {
		container(c.EnvFrom, c.Env)
	}
	for _, c := range p.Spec.Containers {
		container(c.EnvFrom, c.Env)
	}
	for _, c := range p.Spec.EphemeralContainers {
		container(c.EnvFrom, c.Env)
	}
}
