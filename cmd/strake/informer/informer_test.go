package informer

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// A node is followed from what it is at first, until it is what can't be used.
func TestFollowNode(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "somebody"}}}}
	client := fake.NewClientset(node)
	useless := errors.New("of no use")
	var seen []string
	err := FollowNode(t.Context(), client, "one", func(n *corev1.Node) error {
		if len(n.ManagedFields) > 0 {
			t.Errorf("managed fields are kept: %v", n.ManagedFields)
		}
		seen = append(seen, n.Spec.PodCIDR)
		if n.Spec.PodCIDR != "" {
			return useless
		}
		changed := node.DeepCopy()
		changed.Spec.PodCIDR = "10.0.0.0/24"
		_, err := client.CoreV1().Nodes().Update(t.Context(), changed, metav1.UpdateOptions{})
		return err
	})
	if !errors.Is(err, useless) || !strings.Contains(err.Error(), "node one") || strings.Join(seen, " ") != " 10.0.0.0/24" {
		t.Errorf("seen %q, %v", seen, err)
	}
	over, end := context.WithCancel(t.Context())
	end()
	if err := FollowNode(over, client, "one", func(*corev1.Node) error { return nil }); err != nil {
		t.Errorf("at the end: %v", err)
	}
}
