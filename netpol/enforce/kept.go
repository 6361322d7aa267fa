package enforce

import (
	"unique"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
)

// What is followed is held for as long as the API has it: of each object only what a verdict, or its reason, follows from. Strings that many
// objects share, such as labels, are there once.

func shared(s string) string { return unique.Make(s).Value() }

func sharedMap(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[shared(k)] = shared(v)
	}
	return out
}

// keptAnnotations are ours and those that tell who a static pod is.
func keptAnnotations(m map[string]string, keys ...string) map[string]string {
	var out map[string]string
	for _, k := range keys {
		if v, ok := m[k]; ok {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = shared(v)
		}
	}
	return out
}

// staticPodUID is the annotation of a pod that the kubelet runs without the API: the UID by which the runtime knows it.
const staticPodUID = corev1.MirrorPodAnnotationKey

func keptPod(p *corev1.Pod) *corev1.Pod {
	k := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: shared(p.Namespace), Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion, CreationTimestamp: p.CreationTimestamp, Labels: sharedMap(p.Labels),
			Annotations: keptAnnotations(p.Annotations, netpol.FlowsAnnotation, staticPodUID),
		},
		Spec: corev1.PodSpec{NodeName: shared(p.Spec.NodeName), HostNetwork: p.Spec.HostNetwork, Containers: keptContainers(p.Spec.Containers)},
		Status: corev1.PodStatus{
			Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs,
		},
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			for _, kept := range keptContainers([]corev1.Container{c}) {
				kept.RestartPolicy = c.RestartPolicy
				k.Spec.InitContainers = append(k.Spec.InitContainers, kept)
			}
		}
	}
	return k
}

// keptContainers are those with ports that have names.
func keptContainers(list []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for _, c := range list {
		var ports []corev1.ContainerPort
		for _, p := range c.Ports {
			if p.Name != "" {
				ports = append(ports, corev1.ContainerPort{Name: shared(p.Name), ContainerPort: p.ContainerPort, Protocol: p.Protocol})
			}
		}
		if ports != nil {
			out = append(out, corev1.Container{Ports: ports})
		}
	}
	return out
}

func keptNamespace(n *corev1.Namespace) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: sharedMap(n.Labels), Annotations: keptAnnotations(n.Annotations, netpol.FlowsAnnotation),
	}}
}

func keptNode(n *corev1.Node) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion, Labels: sharedMap(n.Labels)},
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
	}
}

func keptPolicyMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: shared(m.Namespace), Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion, Generation: m.Generation,
		Annotations: keptAnnotations(m.Annotations, netpol.ModeAnnotation),
	}
}

func keptNetworkPolicy(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: keptPolicyMeta(&p.ObjectMeta), Spec: p.Spec}
}

func keptClusterNetworkPolicy(p *policyv1alpha2.ClusterNetworkPolicy) *policyv1alpha2.ClusterNetworkPolicy {
	k := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: keptPolicyMeta(&p.ObjectMeta), Spec: p.Spec}
	if c := meta.FindStatusCondition(p.Status.Conditions, conditionAccepted); c != nil {
		k.Status.Conditions = []metav1.Condition{{Type: c.Type, ObservedGeneration: c.ObservedGeneration, Status: c.Status, Reason: c.Reason}}
	}
	return k
}
