package apiserver

import (
	"context"
	_ "embed"
	"fmt"

	apiextensionsclient "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/klog/v2"
)

// clusterNetworkPolicies defines the policies of a cluster's administrators, which the node network enforces.
//
//go:embed crds/clusternetworkpolicies.yaml
var clusterNetworkPolicies []byte

const clusterNetworkPoliciesName = "clusternetworkpolicies.policy.networking.k8s.io"

// crdHook installs the definitions that every cluster has, once, at the start.
func (b *builder) crdHook(hook genericapiserver.PostStartHookContext) error {
	client, err := apiextensionsclient.NewForConfig(hook.LoopbackClientConfig)
	if err != nil {
		return err
	}
	go func() {
		if err := until(hook, func() error { return installDefinitions(hook, client) }); err != nil && hook.Err() == nil {
			klog.ErrorS(err, "There will be no ClusterNetworkPolicies")
		}
	}()
	return nil
}

// installDefinitions applies without force: who has installed another version of a definition keeps that.
func installDefinitions(ctx context.Context, client apiextensionsclient.Interface) error {
	_, err := client.ApiextensionsV1().CustomResourceDefinitions().Patch(ctx, clusterNetworkPoliciesName, types.ApplyYAMLPatchType, clusterNetworkPolicies, metav1.PatchOptions{FieldManager: "strake"})
	if apierrors.IsConflict(err) {
		klog.InfoS("Another version of a definition is installed, and stays", "crd", clusterNetworkPoliciesName, "differs", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("CRD %s: %w", clusterNetworkPoliciesName, err)
	}
	return nil
}
