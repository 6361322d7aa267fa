package compiler

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestRowsGrowWithWhatIsDistinct: a pod takes one row, however many peers it has. What judges it, and what it is to others, is shared by all that policies do not tell apart,
// whatever other labels they have.
func TestRowsGrowWithWhatIsDistinct(t *testing.T) {
	count := func(pods, apps int) (subjects, peers, answers, ports, identities int) {
		c := New(Options{NodeName: "here"})
		c.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "alpha"}})
		for i := range apps {
			number := intstr.FromInt(80 + i)
			c.SetNetworkPolicy(&networkingv1.NetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Namespace: "alpha", Name: fmt.Sprint("app-", i), UID: types.UID(fmt.Sprint(i))},
				Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint(i)}}, Ingress: []networkingv1.NetworkPolicyIngressRule{{
					From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint((i + 1) % apps)}}}},
					Ports: []networkingv1.NetworkPolicyPort{{Port: &number}},
				}}},
			})
		}
		for i := range pods {
			p := plainPod(fmt.Sprint("pod-", i), fmt.Sprintf("10.0.%d.%d", i/250, 1+i%250), map[string]string{"app": fmt.Sprint(i % apps), "pod": fmt.Sprint(i)})
			if p.Spec.NodeName = "here"; i/apps%2 == 1 {
				p.Spec.NodeName = "there"
			}
			c.SetPod(p)
		}
		c.Flush()
		rows, seen := c.Rows(), map[uint32]bool{}
		for _, s := range rows.Subjects {
			seen[s.Identity] = true
		}
		for _, p := range rows.Peers {
			seen[p.Identity] = true
		}
		return len(rows.Subjects), len(rows.Peers), len(rows.Answers), len(rows.Ports), len(seen)
	}
	_, _, answers, ports, identities := count(200, 10)
	subjects, peers, more, morePorts, moreIdentities := count(2000, 10)
	if subjects != 1000 || peers != 1000 || more != answers || morePorts != ports || moreIdentities != identities || identities != 10 {
		t.Errorf("of 200 pods: %d answers, %d ports, %d identities; of 2000: %d subjects, %d peers, %d answers, %d ports, %d identities", answers, ports, identities, subjects, peers, more, morePorts, moreIdentities)
	}
	_, _, doubled, doubledPorts, doubledIdentities := count(2000, 20)
	if doubled != 2*answers || doubledPorts != 2*ports || doubledIdentities != 20 {
		t.Errorf("of twice as many policies and labels: %d answers, %d ports, %d identities, of half of them %d, %d and %d", doubled, doubledPorts, doubledIdentities, answers, ports, identities)
	}
}
