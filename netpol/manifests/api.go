package manifests

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/pager"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/strake-io/strake/netpol"
)

var clusterNetworkPolicies = schema.GroupVersionResource{Group: policyv1alpha2.GroupName, Version: policyv1alpha2.GroupVersion.Version, Resource: "clusternetworkpolicies"}

// FromAPI reads a cluster's State. A cluster without ClusterNetworkPolicies (their CRD is not there) has none. The lists are read one
// after the other: a State of a cluster that changes meanwhile may be of no single moment. Problems are ClusterNetworkPolicies that can't be read as a whole: what
// can't closes, as it does on nodes.
func FromAPI(ctx context.Context, kube kubernetes.Interface, custom dynamic.Interface) (netpol.State, []Problem, error) {
	var s netpol.State
	var problems []Problem
	core, all := kube.CoreV1(), metav1.NamespaceAll
	for _, read := range []struct {
		what string
		list func(context.Context, metav1.ListOptions) (runtime.Object, error)
		add  func(runtime.Object)
	}{
		{"namespaces", func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return core.Namespaces().List(ctx, o)
		},
			func(o runtime.Object) { s.Namespaces = append(s.Namespaces, o.(*corev1.Namespace)) }},
		{"pods", func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return core.Pods(all).List(ctx, o)
		},
			func(o runtime.Object) { s.Pods = append(s.Pods, o.(*corev1.Pod)) }},
		{"nodes", func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return core.Nodes().List(ctx, o)
		},
			func(o runtime.Object) { s.Nodes = append(s.Nodes, o.(*corev1.Node)) }},
		{"services", func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return core.Services(all).List(ctx, o)
		},
			func(o runtime.Object) { s.Services = append(s.Services, o.(*corev1.Service)) }},
		{"networkpolicies", func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return kube.NetworkingV1().NetworkPolicies(all).List(ctx, o)
		}, func(o runtime.Object) { s.NetworkPolicies = append(s.NetworkPolicies, o.(*networkingv1.NetworkPolicy)) }},
		{"clusternetworkpolicies", func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := custom.Resource(clusterNetworkPolicies).List(ctx, o)
			if apierrors.IsNotFound(err) {
				return &unstructured.UnstructuredList{}, nil
			}
			return list, err
		}, func(o runtime.Object) {
			p, err := netpol.ReadClusterNetworkPolicy(o.(*unstructured.Unstructured))
			if err != nil {
				problems = append(problems, Problem{File: "the cluster", Object: "ClusterNetworkPolicy " + p.Name, Reason: fmt.Sprintf("what can't be read of it denies: %v", err)})
			}
			s.ClusterNetworkPolicies = append(s.ClusterNetworkPolicies, p)
		}},
	} {
		err := pager.New(read.list).EachListItem(ctx, metav1.ListOptions{}, func(o runtime.Object) error { read.add(o); return nil })
		if err != nil {
			return netpol.State{}, nil, fmt.Errorf("read the cluster's %s: %w", read.what, err)
		}
	}
	s.DNSAddrs = dnsAddrs(s)
	order(&s)
	return s, problems, nil
}
