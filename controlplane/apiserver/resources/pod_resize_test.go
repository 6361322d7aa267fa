package resources

import (
	"cmp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
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

func TestValidateResizePolicy(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	policy := func(of string) (out []corev1.ContainerResizePolicy) {
		for _, s := range strings.Fields(of) {
			name, restart, _ := strings.Cut(s, "=")
			out = append(out, corev1.ContainerResizePolicy{ResourceName: corev1.ResourceName(name), RestartPolicy: corev1.ResourceResizeRestartPolicy(restart)})
		}
		return out
	}
	for name, c := range map[string]struct {
		restart          corev1.RestartPolicy
		main, init, side string
		want             string // the only error
	}{
		"each once":           {main: "cpu=NotRequired memory=RestartContainer", side: "memory=RestartContainer"},
		"never, not required": {restart: corev1.RestartPolicyNever, main: "cpu=NotRequired"},
		"on failure":          {restart: corev1.RestartPolicyOnFailure, main: "cpu=RestartContainer"},
		"one twice":           {main: "cpu=NotRequired cpu=RestartContainer", want: `spec.containers[0].resizePolicy[1]: Duplicate value: "cpu"`},
		"another resource":    {main: "pods=NotRequired", want: `spec.containers[0].resizePolicy: Unsupported value: "pods": supported values: "cpu", "memory"`},
		"another policy":      {main: "cpu=Perhaps", want: `spec.containers[0].resizePolicy: Unsupported value: "Perhaps": supported values: "NotRequired", "RestartContainer"`},
		"no policy":           {main: "cpu=", want: "spec.containers[0].resizePolicy: Required value"},
		"never":               {restart: corev1.RestartPolicyNever, main: "cpu=RestartContainer", want: "spec.containers[0].resizePolicy: Invalid value: \"RestartContainer\": must be 'NotRequired' when `restartPolicy` is 'Never'"},
		"of what runs once":   {init: "cpu=NotRequired", want: "must not be set for init containers"},
		"of a sidecar":        {side: "pods=NotRequired", want: `spec.initContainers[1].resizePolicy: Unsupported value: "pods": supported values: "cpu", "memory"`},
	} {
		t.Run(name, func(t *testing.T) {
			grace := int64(30)
			container := func(name, of string) corev1.Container {
				return corev1.Container{Name: name, Image: "i", ImagePullPolicy: corev1.PullAlways, TerminationMessagePolicy: corev1.TerminationMessageReadFile, ResizePolicy: policy(of)}
			}
			s := &corev1.PodSpec{
				RestartPolicy: cmp.Or(c.restart, corev1.RestartPolicyAlways), DNSPolicy: corev1.DNSClusterFirst, TerminationGracePeriodSeconds: &grace,
				Containers: []corev1.Container{container("a", c.main)}, InitContainers: []corev1.Container{container("init", c.init), container("side", c.side)},
			}
			s.InitContainers[1].RestartPolicy = &always
			errs := validatePodSpec(s, field.NewPath("spec"))
			switch {
			case c.want == "" && len(errs) == 0:
			case len(errs) != 1 || c.want == "" || !strings.HasSuffix(errs[0].Error(), c.want):
				t.Errorf("%v, want %s", errs, c.want)
			}
		})
	}
}
