package proof

import (
	"net"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/strake-io/strake/cni"
	"github.com/strake-io/strake/netpol"
)

func pod(name, uid, node, addr string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(uid), Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 80}}}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: addr}}},
	}
}

// Probes go from this node's pods to all others, and expect what the evaluator says.
func TestQuestions(t *testing.T) {
	s := netpol.State{
		Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}},
		Pods:       []*corev1.Pod{pod("a", "1", "here", "10.0.0.9"), pod("b", "2", "there", "10.0.1.1"), pod("c", "3", "here", "fd00::1")},
		NetworkPolicies: []*networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "deny"}, Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "b"}}, PolicyTypes: []networkingv1.PolicyType{"Ingress"},
		}}},
	}
	attached := []cni.Allocation{{Pod: "ns/a", UID: "1", Netns: "/a", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}, {Pod: "ns/a", UID: "0", Netns: "/old", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.3")}}}
	others := Place(&s, "here", attached)
	if len(others) != 1 || others[0] != netip.MustParseAddr("10.0.0.3") || len(s.Pods) != 2 || s.Pods[0].Status.PodIPs[0].IP != "10.0.0.1" {
		t.Errorf("others %v, pods %+v", others, s.Pods)
	}
	got, err := questions(s, attached, "here")
	if err != nil || len(got) != 2 || got[0].netns != "/a" || got[0].allow || got[1].to != netip.MustParseAddrPort("10.0.1.1:80") || got[1].Expected != Silent {
		t.Errorf("error %v, questions %+v", err, got)
	}
}

// Of both kinds as many are taken, as far as there are.
func TestChoose(t *testing.T) {
	for _, c := range []struct{ denied, allowed, most, wantDenied, want int }{{50, 50, 20, 10, 20}, {2, 50, 20, 2, 20}, {50, 3, 20, 17, 20}, {3, 4, 20, 3, 7}, {3, 4, 0, 3, 7}} {
		var list []question
		for i := range c.denied + c.allowed {
			list = append(list, question{allow: i >= c.denied})
		}
		got := choose(list, c.most)
		denied := 0
		for _, q := range got {
			if !q.allow {
				denied++
			}
		}
		if len(got) != c.want || denied != c.wantDenied {
			t.Errorf("%+v: %d, %d of them denied", c, len(got), denied)
		}
	}
}

// Who listens and who refuses has got the packet.
func TestConnect(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	const here = "/proc/self/ns/net"
	if got := connect(t.Context(), here, at); got != Passes {
		t.Errorf("listening: %s", got)
	}
	l.Close()
	if got := connect(t.Context(), here, at); got != Passes {
		t.Errorf("refused: %s", got)
	}
	if got := connect(t.Context(), "/nowhere", at); got == Passes || got == Silent {
		t.Errorf("no such namespace: %s", got)
	}
}
