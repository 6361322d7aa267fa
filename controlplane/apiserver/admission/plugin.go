package admission

import (
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
)

// plugins are this package's, in the order in which they run.
var plugins = []struct {
	name string
	new  admission.Factory // from the plugin's configuration, nil if there is none
}{
	{"TaintNodesByCondition", plain(newTaintNodes)},
	{"ServiceAccount", plain(newServiceAccount)},
	{"AlwaysPullImages", plain(newAlwaysPull)},
	{"LimitRanger", plain(newLimitRanger)},
	{"Priority", plain(newPriority)},
	{"DefaultTolerationSeconds", plain(newDefaultTolerations)},
	{"RuntimeClass", plain(newRuntimeClass)},
	{"DefaultStorageClass", plain(newDefaultStorageClass)},
	{"DefaultIngressClass", plain(newDefaultIngressClass)},
	{"StorageObjectInUseProtection", plain(newInUse)},
	{"PersistentVolumeClaimResize", plain(newResize)},
	{"OwnerReferencesPermissionEnforcement", plain(newOwnerReferences)},
	{"PodSecurity", newPodSecurity},
	{"NodeRestriction", plain(newNodeRestriction)},
	{"CertificateApproval", plain(newCertificateApproval)},
	{"CertificateSigning", plain(newCertificateSigning)},
	{"ClusterTrustBundleAttest", plain(newBundleAttest)},
	{"CertificateSubjectRestriction", plain(newSubjectRestriction)},
}

// Optional are the plugins that run only where they are asked for.
var Optional = []string{"AlwaysPullImages", "OwnerReferencesPermissionEnforcement"}

// Register adds the plugins of this package and returns their names, in the order in which they run.
func Register(p *admission.Plugins) []string {
	var names []string
	for _, plugin := range plugins {
		p.Register(plugin.name, plugin.new)
		names = append(names, plugin.name)
	}
	return names
}

// plain makes plugins that have nothing to configure.
func plain(f func() (admission.Interface, error)) admission.Factory {
	return func(io.Reader) (admission.Interface, error) { return f() }
}

// podOf returns the pod of a request for pods themselves, not of their subresources.
func podOf(a admission.Attributes) (*corev1.Pod, bool) {
	if a.GetResource().GroupResource() != corev1.Resource("pods") || a.GetSubresource() != "" {
		return nil, false
	}
	p, ok := a.GetObject().(*corev1.Pod)
	return p, ok
}

// ready waits until a plugin's caches are filled, as long as a request may reasonably wait.
func ready(h *admission.Handler, a admission.Attributes) error {
	if !h.WaitForReady() {
		return admission.NewForbidden(a, fmt.Errorf("not yet ready to handle request"))
	}
	return nil
}
