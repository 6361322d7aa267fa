package agent

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/strake-io/strake/cni"
)

// localPods are what the node network needs to know of the node's pods: whether their sockets are left alone.
type localPods struct {
	factory informers.SharedInformerFactory
	store   cache.Store
}

func newLocalPods(c kubernetes.Interface, node string) localPods {
	f := informers.NewSharedInformerFactoryWithOptions(c, 0, informers.WithTransform(namesAlone), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", node).String()
	}))
	return localPods{f, f.Core().V1().Pods().Informer().GetStore()}
}

// namesAlone keeps of a pod what LeavesSockets reads.
func namesAlone(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion, Annotations: p.Annotations, Labels: p.Labels,
	}}, nil
}

// leavesSockets is for cni.Config.
func (l localPods) leavesSockets(pod string) (off, known bool) {
	obj, known, err := l.store.GetByKey(pod)
	if p, ok := obj.(*corev1.Pod); ok && err == nil {
		return cni.LeavesSockets(p), known
	}
	return false, false
}

// run tells seen of pods that came, or are switched, until ctx ends.
func (l localPods) run(ctx context.Context, seen func(pod string)) error {
	tell := func(obj any) {
		if key, err := cache.MetaNamespaceKeyFunc(obj); err == nil {
			seen(key)
		}
	}
	if _, err := l.factory.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: tell, UpdateFunc: func(old, obj any) {
		was, ok := old.(*corev1.Pod)
		now, also := obj.(*corev1.Pod)
		if ok && also && was.UID == now.UID && cni.LeavesSockets(was) == cni.LeavesSockets(now) {
			return
		}
		tell(obj)
	}}); err != nil {
		return err
	}
	l.factory.Start(ctx.Done())
	defer l.factory.Shutdown()
	<-ctx.Done()
	return nil
}
