package plugins

import (
	"context"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kube-scheduler/framework"
)

// defaultBinder binds through the API server.
type defaultBinder struct{ handle framework.Handle }

// NewDefaultBinder makes the plugin that writes the binding.
func NewDefaultBinder(_ context.Context, _ runtime.Object, h framework.Handle) (framework.Plugin, error) {
	return defaultBinder{h}, nil
}

func (defaultBinder) Name() string { return "DefaultBinder" }
func (b defaultBinder) Bind(ctx context.Context, _ framework.CycleState, p *v1.Pod, node string) *framework.Status {
	return framework.AsStatus(b.handle.ClientSet().CoreV1().Pods(p.Namespace).Bind(ctx, &v1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		Target:     v1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{}))
}
