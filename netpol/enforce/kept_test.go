package enforce

import (
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
	"github.com/strake-io/strake/netpol/compiler"
)

// From what is kept of objects, packed and unpacked, follow the same rows as from the objects.
func TestWhatIsKeptIsEnough(t *testing.T) {
	stays := corev1.ContainerRestartPolicyAlways
	named := func(name string, number int32, protocol corev1.Protocol) []corev1.ContainerPort {
		return []corev1.ContainerPort{{Name: name, ContainerPort: number, Protocol: protocol}, {ContainerPort: 1}}
	}
	web := pod("ns", "web", "u1", self, "10.244.0.2", "fd00::2")
	web.Spec.Containers[0].Ports = named("http", 8080, "")
	web.Spec.InitContainers = []corev1.Container{{Name: "once", Ports: named("http", 7, "")}, {Name: "mesh", RestartPolicy: &stays, Ports: named("mesh", 15001, corev1.ProtocolTCP)}}
	web.Annotations = map[string]string{netpol.FlowsAnnotation: netpol.FlowsKeep, "other": "x"}
	host := pod("ns", "host", "u2", self, "198.18.0.2")
	host.Spec.HostNetwork = true
	ended := pod("ns", "ended", "u3", self, "10.244.0.3")
	ended.Status.Phase = corev1.PodSucceeded
	single := pod("other", "single", "u4", "node-2")
	single.Status.PodIP = "10.244.1.4"
	rule := networkingv1.NetworkPolicyPort{Port: &intstr.IntOrString{Type: intstr.String, StrVal: "mesh"}}
	state := netpol.State{
		Pods: []*corev1.Pod{web, host, ended, single},
		Namespaces: []*corev1.Namespace{
			{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{"team": "a"}, Annotations: map[string]string{netpol.FlowsAnnotation: netpol.FlowsJudge}}},
			{ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{"team": "b"}}},
		},
		Nodes: []*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: self, Labels: map[string]string{"zone": "z"}}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Address: "198.18.0.2"}}}}},
		NetworkPolicies: []*networkingv1.NetworkPolicy{
			deny("real"), deny("shadow"),
			{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "named"}, Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"},
				Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{rule}, From: []networkingv1.NetworkPolicyPeer{{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "b"}}}}}}}},
		},
	}
	state.NetworkPolicies[1].Annotations = map[string]string{netpol.ModeAnnotation: netpol.ModeShadow}
	kept := netpol.State{}
	through := func(c codec, o metav1.Object) metav1.Object {
		k, err := c.keep(o)
		if err != nil {
			t.Fatal(err)
		}
		data, err := c.pack(k)
		if err != nil {
			t.Fatal(err)
		}
		if k, err = c.unpack(string(data)); err != nil {
			t.Fatal(err)
		}
		return k
	}
	for _, p := range state.Pods {
		kept.Pods = append(kept.Pods, through(keeping(keptPod), p).(*corev1.Pod))
	}
	for _, n := range state.Namespaces {
		kept.Namespaces = append(kept.Namespaces, through(keeping(keptNamespace), n).(*corev1.Namespace))
	}
	for _, n := range state.Nodes {
		kept.Nodes = append(kept.Nodes, through(keeping(keptNode), n).(*corev1.Node))
	}
	for _, p := range state.NetworkPolicies {
		kept.NetworkPolicies = append(kept.NetworkPolicies, through(keeping(keptNetworkPolicy), p).(*networkingv1.NetworkPolicy))
	}
	rows := func(s netpol.State) bpf.PolicyRows {
		c := compiler.New(compiler.Options{NodeName: self})
		c.SetState(s)
		c.Flush()
		return c.Rows()
	}
	want, got := rows(state), rows(kept)
	if len(want.Subjects) != 2 || len(want.Names) != 3 || !reflect.DeepEqual(want, got) {
		t.Errorf("from all:\n%+v\nfrom what is kept:\n%+v", want, got)
	}
}
