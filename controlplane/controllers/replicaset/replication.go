package replicaset

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
)

// SetupReplicationControllers does for ReplicationControllers, which are older and say the same in other words, what
// Setup does for ReplicaSets.
func SetupReplicationControllers(client kubernetes.Interface, f informers.SharedInformerFactory, recorder record.EventRecorder) (func(context.Context), error) {
	rcs := f.Core().V1().ReplicationControllers()
	return setup(client, f, recorder, source{
		kind: corev1.SchemeGroupVersion.WithKind("ReplicationController"), inf: rcs.Informer(),
		get: func(namespace, name string) (*appsv1.ReplicaSet, error) {
			rc, err := rcs.Lister().ReplicationControllers(namespace).Get(name)
			if err != nil {
				return nil, err
			}
			return asSet(rc), nil
		},
		list: func(namespace string) ([]*appsv1.ReplicaSet, error) {
			list, err := rcs.Lister().ReplicationControllers(namespace).List(labels.Everything())
			out := make([]*appsv1.ReplicaSet, len(list))
			for i, rc := range list {
				out[i] = asSet(rc)
			}
			return out, err
		},
		live: func(ctx context.Context, namespace, name string) (metav1.Object, error) {
			return client.CoreV1().ReplicationControllers(namespace).Get(ctx, name, metav1.GetOptions{})
		},
		update: func(ctx context.Context, rs *appsv1.ReplicaSet) error {
			rc, err := rcs.Lister().ReplicationControllers(rs.Namespace).Get(rs.Name)
			if err != nil {
				return err
			}
			rc = rc.DeepCopy()
			rc.ResourceVersion = rs.ResourceVersion // of what the status is about
			rc.Status = corev1.ReplicationControllerStatus{
				Replicas: rs.Status.Replicas, FullyLabeledReplicas: rs.Status.FullyLabeledReplicas, ReadyReplicas: rs.Status.ReadyReplicas,
				AvailableReplicas: rs.Status.AvailableReplicas, ObservedGeneration: rs.Status.ObservedGeneration,
			}
			for _, c := range rs.Status.Conditions {
				rc.Status.Conditions = append(rc.Status.Conditions, corev1.ReplicationControllerCondition{
					Type: corev1.ReplicationControllerConditionType(c.Type), Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
				})
			}
			_, err = client.CoreV1().ReplicationControllers(rs.Namespace).UpdateStatus(ctx, rc, metav1.UpdateOptions{})
			return err
		},
	})
}

func asSet(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	template := corev1.PodTemplateSpec{}
	if rc.Spec.Template != nil {
		template = *rc.Spec.Template
	}
	rs := &appsv1.ReplicaSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ReplicationController"}, // what Events are about
		ObjectMeta: rc.ObjectMeta,
		Spec: appsv1.ReplicaSetSpec{
			Replicas: rc.Spec.Replicas, MinReadySeconds: rc.Spec.MinReadySeconds, Selector: &metav1.LabelSelector{MatchLabels: rc.Spec.Selector}, Template: template,
		},
		Status: appsv1.ReplicaSetStatus{
			Replicas: rc.Status.Replicas, FullyLabeledReplicas: rc.Status.FullyLabeledReplicas, ReadyReplicas: rc.Status.ReadyReplicas,
			AvailableReplicas: rc.Status.AvailableReplicas, ObservedGeneration: rc.Status.ObservedGeneration,
		},
	}
	for _, c := range rc.Status.Conditions {
		rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
	return rs
}
