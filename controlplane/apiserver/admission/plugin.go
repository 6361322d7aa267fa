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
	new  func() (admission.Interface, error)
}{
	{"TaintNodesByCondition", newTaintNodes},
	{"ServiceAccount", newServiceAccount},
	{"AlwaysPullImages", newAlwaysPull},
	{"LimitRanger", newLimitRanger},
	{"Priority", newPriority},
	{"DefaultTolerationSeconds", newDefaultTolerations},
	{"RuntimeClass", newRuntimeClass},
	{"DefaultStorageClass", newDefaultStorageClass},
	{"DefaultIngressClass", newDefaultIngressClass},
	{"StorageObjectInUseProtection", newInUse},
	{"PersistentVolumeClaimResize", newResize},
	{"OwnerReferencesPermissionEnforcement", newOwnerReferences},
	{"PodSecurity", newPodSecurity},
	{"NodeRestriction", newNodeRestriction},
	{"CertificateApproval", newCertificateApproval},
	{"CertificateSigning", newCertificateSigning},
	{"ClusterTrustBundleAttest", newBundleAttest},
	{"CertificateSubjectRestriction", newSubjectRestriction},
}

// Optional are the plugins that run only where they are asked for.
var Optional = []string{"AlwaysPullImages", "OwnerReferencesPermissionEnforcement"}

// Register adds the plugins of this package and returns their names, in the order in which they run.
func Register(p *admission.Plugins) []string {
	var names []string
	for _, plugin := range plugins {
		p.Register(plugin.name, func(io.Reader) (admission.Interface, error) { return plugin.new() })
		names = append(names, plugin.name)
	}
	return names
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
