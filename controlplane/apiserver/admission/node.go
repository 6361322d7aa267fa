package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"

	"github.com/strake-io/strake/controlplane/apiserver/auth/node"
)

// nodeRestriction holds a kubelet's writes to its own node and the pods bound to it; what it may name is
// the Node authorizer's business, what it may write is decided here, where the object is seen.
type nodeRestriction struct {
	*admission.Handler
	pods corelisters.PodLister
}

func (n *nodeRestriction) SetExternalKubeInformerFactory(f informers.SharedInformerFactory) {
	inf := f.Core().V1().Pods()
	n.pods = inf.Lister()
	n.SetReadyFunc(inf.Informer().HasSynced)
}

func (n *nodeRestriction) ValidateInitialization() error {
	if n.pods == nil {
		return fmt.Errorf("NodeRestriction admission: no informers")
	}
	return nil
}

func (n *nodeRestriction) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	name, ok := node.Name(a.GetUserInfo())
	if !ok {
		return nil
	}
	if name == "" {
		return admission.NewForbidden(a, fmt.Errorf("could not determine node from user %q", a.GetUserInfo().GetName()))
	}
	switch a.GetResource().GroupResource() {
	case corev1.Resource("nodes"):
		if a.GetName() != "" && a.GetName() != name {
			return admission.NewForbidden(a, fmt.Errorf("node %q is not allowed to modify node %q", name, a.GetName()))
		}
		if obj, ok := a.GetObject().(*corev1.Node); ok && obj.Name != name {
			return admission.NewForbidden(a, fmt.Errorf("node %q is not allowed to modify node %q", name, obj.Name))
		}
	case corev1.Resource("pods"):
		return n.validatePod(a, name)
	}
	return nil
}

func (n *nodeRestriction) validatePod(a admission.Attributes, name string) error {
	if a.GetOperation() == admission.Create && a.GetSubresource() == "" {
		pod, ok := a.GetObject().(*corev1.Pod)
		if !ok || pod.Annotations[corev1.MirrorPodAnnotationKey] == "" || pod.Spec.NodeName != name {
			return admission.NewForbidden(a, fmt.Errorf("node %q can only create mirror pods of itself", name))
		}
		return nil
	}
	if !n.WaitForReady() {
		return admission.NewForbidden(a, fmt.Errorf("not yet ready to handle request"))
	}
	old, ok := a.GetOldObject().(*corev1.Pod)
	if !ok {
		var err error
		if old, err = n.pods.Pods(a.GetNamespace()).Get(a.GetName()); err != nil {
			return admission.NewForbidden(a, err)
		}
	}
	if old.Spec.NodeName != name {
		return admission.NewForbidden(a, fmt.Errorf("node %q can only touch pods with spec.nodeName set to itself", name))
	}
	return nil
}
