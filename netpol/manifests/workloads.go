package manifests

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// MaxReplicas is how many pods stand for a workload: all of them are alike, and two are what it takes to talk to each other.
const MaxReplicas = 3

// onePerNode is how many pods a DaemonSet has.
const onePerNode = -1

// workload is something that makes pods.
type workload struct {
	gvk      schema.GroupVersionKind
	meta     metav1.Object
	template *corev1.PodTemplateSpec
	replicas int
}

func replicas(n *int32) int {
	if n == nil {
		return 1
	}
	return max(int(*n), 0)
}

func takeWorkload[T any, P interface {
	*T
	metav1.Object
}](l *loader, d document, gvk schema.GroupVersionKind, of func(P) (*corev1.PodTemplateSpec, int)) {
	obj, name, ok := decode[T, P](l, d, gvk, true)
	if !ok {
		return
	}
	template, n := of(obj)
	path := field.NewPath("spec", "template")
	if gvk.Kind == "CronJob" {
		path = field.NewPath("spec", "jobTemplate", "spec", "template")
	}
	if template == nil {
		l.problem(d, name, field.Required(path, "").Error())
		return
	}
	for _, e := range validateContainers(&template.Spec, path.Child("spec")) {
		l.problem(d, name, e.Error())
	}
	l.workloads = append(l.workloads, workload{gvk, obj, template, n})
}

type ownerKey struct{ kind, namespace, name string }

// grow makes pods of the workloads that have none in the files, and of which no other one is the owner.
func (l *loader) grow() {
	all := map[ownerKey]workload{}
	for _, w := range l.workloads {
		all[ownerKey{w.gvk.Kind, w.meta.GetNamespace(), w.meta.GetName()}] = w
	}
	owner := func(o metav1.Object) (ownerKey, bool) {
		c := metav1.GetControllerOfNoCopy(o)
		if c == nil {
			return ownerKey{}, false
		}
		k := ownerKey{c.Kind, o.GetNamespace(), c.Name}
		_, ok := all[k]
		return k, ok
	}
	grown := map[ownerKey]bool{}
	for _, p := range l.found.Pods {
		for k, ok := owner(p); ok && !grown[k]; k, ok = owner(all[k].meta) {
			grown[k] = true
		}
	}
	for _, w := range l.workloads {
		k := ownerKey{w.gvk.Kind, w.meta.GetNamespace(), w.meta.GetName()}
		if _, owned := owner(w.meta); owned || grown[k] {
			continue
		}
		n := w.replicas
		if n == onePerNode {
			n = max(len(l.found.Nodes), 1)
		}
		for i := range min(n, MaxReplicas) {
			if p := w.pod(i); l.seen[describe("Pod", p)].file == "" {
				l.found.Pods = append(l.found.Pods, p)
			}
		}
	}
}

func (w workload) pod(i int) *corev1.Pod {
	t := w.template.DeepCopy()
	controller := true
	p := &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
	suffix := fmt.Sprintf("-%d", i)
	name := w.meta.GetName()
	p.Name = name[:min(len(name), validation.DNS1123SubdomainMaxLength-len(suffix))] + suffix
	p.Namespace = w.meta.GetNamespace()
	p.GenerateName = ""
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: w.gvk.GroupVersion().String(), Kind: w.gvk.Kind, Name: name, UID: w.meta.GetUID(), Controller: &controller}}
	return p
}
