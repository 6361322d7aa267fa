package server

import (
	"context"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

// publishEvery is how often the ConfigMap of the nodes' settings is looked at: somebody may have changed it.
const publishEvery = 30 * time.Second

// ControlPlaneLabel marks the node that has the control plane. A node may not give itself a label of a role.
const ControlPlaneLabel = "node-role.kubernetes.io/control-plane"

// publish keeps the ConfigMap as it is to be, and the node's label, until ctx ends.
func publish(ctx context.Context, cfg Config, client kubernetes.Interface) {
	for {
		wait := publishEvery
		if err := ensureConfigMap(ctx, client, cfg.NodeSettings); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "The settings of the nodes were not written")
			wait = time.Second
		}
		switch err := ensureLabel(ctx, client, cfg.NodeName); {
		case apierrors.IsNotFound(err): // its agent has not come yet, or never will
			wait = min(wait, 2*time.Second)
		case err != nil && ctx.Err() == nil:
			klog.ErrorS(err, "The node with the control plane was not marked", "node", cfg.NodeName)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func ensureConfigMap(ctx context.Context, client kubernetes.Interface, want *corev1.ConfigMap) error {
	configMaps := client.CoreV1().ConfigMaps(want.Namespace)
	have, err := configMaps.Get(ctx, want.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = configMaps.Create(ctx, want, metav1.CreateOptions{})
	case err == nil && !sameData(have, want):
		have.Data, have.BinaryData = want.Data, want.BinaryData
		_, err = configMaps.Update(ctx, have, metav1.UpdateOptions{})
	}
	return err
}

func sameData(a, b *corev1.ConfigMap) bool {
	return maps.Equal(a.Data, b.Data) && len(a.BinaryData) == len(b.BinaryData)
}

func ensureLabel(ctx context.Context, client kubernetes.Interface, node string) error {
	n, err := client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if _, ok := n.Labels[ControlPlaneLabel]; ok {
		return nil
	}
	_, err = client.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, []byte(`{"metadata":{"labels":{"`+ControlPlaneLabel+`":""}}}`), metav1.PatchOptions{})
	return err
}
