package manifests

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	kubefake "k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

func TestFromAPI(t *testing.T) {
	meta := func(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }
	kube := kubefake.NewClientset(
		&corev1.Namespace{ObjectMeta: meta("", "a")}, &corev1.Node{ObjectMeta: meta("", "n")},
		&corev1.Pod{ObjectMeta: meta("b", "p")}, &corev1.Pod{ObjectMeta: meta("a", "q")},
		&corev1.Service{ObjectMeta: meta(metav1.NamespaceSystem, "kube-dns"), Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.10"}},
		&networkingv1.NetworkPolicy{ObjectMeta: meta("a", "np")},
	)
	cnp := func(name string, spec any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": policyv1alpha2.GroupVersion.String(), "kind": "ClusterNetworkPolicy", "metadata": map[string]any{"name": name, "generation": int64(2)}, "spec": spec,
		}}
	}
	rule := map[string]any{"action": "Accept", "from": []any{map[string]any{"namespaces": map[string]any{}}}}
	policies := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{clusterNetworkPolicies: "ClusterNetworkPolicyList"},
		cnp("cnp", map[string]any{"tier": "Admin", "ingress": []any{rule}}), cnp("odd", map[string]any{"tier": "Admin", "priority": int64(3), "ingress": []any{rule, "rubbish"}}))
	s, problems, err := FromAPI(context.Background(), kube, policies)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Namespaces) != 1 || len(s.Nodes) != 1 || len(s.Pods) != 2 || s.Pods[0].Name != "q" || len(s.Services) != 1 || len(s.NetworkPolicies) != 1 || len(s.ClusterNetworkPolicies) != 2 || len(s.DNSAddrs) != 1 {
		t.Errorf("%+v", s)
	}
	// One that can't be read does not hide the others, is told, and what of it can't be read admits nothing.
	odd := s.ClusterNetworkPolicies[1]
	if odd.Name != "odd" || odd.Generation != 2 || odd.Spec.Priority != 3 || len(odd.Spec.Ingress) != 2 || odd.Spec.Ingress[0].Action != "Accept" || odd.Spec.Ingress[1].Action != "" {
		t.Errorf("of what can't be read there is %+v", odd)
	}
	if len(problems) != 1 || problems[0].Object != "ClusterNetworkPolicy odd" {
		t.Errorf("problems %v", problems)
	}
	policies.PrependReactor("list", "clusternetworkpolicies", func(kubetesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "clusternetworkpolicies"}, "")
	})
	if s, _, err := FromAPI(context.Background(), kube, policies); err != nil || len(s.ClusterNetworkPolicies) != 0 {
		t.Errorf("without the CRD: %v, %v", s.ClusterNetworkPolicies, err)
	}
	kube.PrependReactor("list", "pods", func(kubetesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("no") })
	if _, _, err := FromAPI(context.Background(), kube, policies); err == nil || !strings.Contains(err.Error(), "pods") {
		t.Errorf("error %v", err)
	}
}
