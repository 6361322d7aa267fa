package resources

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestValidateResize(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
	always := corev1.ContainerRestartPolicyAlways
	old := &corev1.Pod{Spec: corev1.PodSpec{
		Containers:     []corev1.Container{{Name: "a", Image: "i", Resources: corev1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("2", "2Gi")}}, {Name: "free"}},
		InitContainers: []corev1.Container{{Name: "init"}, {Name: "side", RestartPolicy: &always, Resources: corev1.ResourceRequirements{Requests: list("1", "1Gi")}}},
	}}
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		want   string // the field of the only error
	}{
		"nothing":               {func(*corev1.Pod) {}, ""},
		"more":                  {func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Limits = list("4", "4Gi") }, ""},
		"less":                  {func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = list("100m", "1Mi") }, ""},
		"a sidecar":             {func(p *corev1.Pod) { p.Spec.InitContainers[1].Resources.Requests = list("3", "1Gi") }, ""},
		"requests above limits": {func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = list("3", "1Gi") }, "spec.containers[0].resources.requests"},
		"a limit taken back":    {func(p *corev1.Pod) { delete(p.Spec.Containers[0].Resources.Limits, corev1.ResourceCPU) }, "spec.containers[0].resources.limits"},
		"a request taken back":  {func(p *corev1.Pod) { delete(p.Spec.Containers[0].Resources.Requests, corev1.ResourceCPU) }, "spec.containers[0].resources.requests"},
		"another resource": {func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Limits[corev1.ResourceEphemeralStorage] = resource.MustParse("1Gi")
		}, "spec.containers[0].resources.limits[ephemeral-storage]"},
		"another class": {func(p *corev1.Pod) {
			for i := range p.Spec.Containers {
				p.Spec.Containers[i].Resources = corev1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("1", "1Gi")}
			}
			p.Spec.InitContainers[1].Resources = p.Spec.Containers[0].Resources
			p.Spec.InitContainers = p.Spec.InitContainers[1:]
		}, "spec"},
		// What is no resource, or an init container's that runs once, is not even looked at.
		"an image":          {func(p *corev1.Pod) { p.Spec.Containers[0].Image = "other" }, ""},
		"an init container": {func(p *corev1.Pod) { p.Spec.InitContainers[0].Resources.Requests = list("1", "1Gi") }, ""},
		"a container less":  {func(p *corev1.Pod) { p.Spec.Containers = p.Spec.Containers[1:] }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			was, now := old.DeepCopy(), old.DeepCopy()
			if name == "another class" {
				was.Spec.InitContainers = was.Spec.InitContainers[1:]
			}
			c.change(now)
			TakeResize(now, was)
			if now.Spec.Containers[0].Image != "i" || len(now.Spec.Containers) != 2 {
				t.Errorf("more than resources changed: %+v", now.Spec)
			}
			got := ""
			for _, err := range ValidateResize(now, was) {
				got += err.Field
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	ended := old.DeepCopy()
	ended.Status.Phase = corev1.PodFailed
	if len(ValidateResize(old.DeepCopy(), ended)) == 0 {
		t.Error("a pod that has ended may be resized")
	}
}
