package podworker

import (
	"encoding/json"
	"fmt"
	"hash/fnv"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// observed is what the runtime has of one pod.
type observed struct {
	sandbox  *runtimeapi.PodSandboxStatus // the newest
	attempts uint32                       // sandboxes made so far
	older    []string                     // ids of sandboxes before the newest, newest first
	// containers of the newest sandbox, or older ones where there is none yet; newest incarnation first.
	containers map[string][]*runtimeapi.ContainerStatus
	// former are the newest containers of older sandboxes. They stay for their logs.
	former map[string]*runtimeapi.ContainerStatus
	remade map[string]bool // ids of containers that the kubelet ended only to make them anew
}

func (o observed) sandboxReady() bool {
	return o.sandbox != nil && o.sandbox.State == runtimeapi.PodSandboxState_SANDBOX_READY
}

func (o observed) current(name string) *runtimeapi.ContainerStatus {
	if l := o.containers[name]; len(l) > 0 {
		return l[0]
	}
	return nil
}

// previous is the incarnation before the current one.
func (o observed) previous(name string) *runtimeapi.ContainerStatus {
	if l := o.containers[name]; len(l) > 1 {
		return l[1]
	}
	return o.former[name]
}

// kill is a container to end, and why.
type kill struct {
	id, name, reason string
}

// actions are what brings a pod to what it should be.
type actions struct {
	createSandbox bool
	start         []*corev1.Container
	kill          []kill
	// finished: nothing will run any more, by the restart policy. Sidecars may still do.
	finished bool
}

// containerHash changes when the container has to be made anew. Fields that may change without that are left out.
func containerHash(c *corev1.Container) string {
	h := fnv.New32a()
	data, err := json.Marshal(struct{ Name, Image string }{c.Name, c.Image})
	if err != nil {
		return "" // strings marshal
	}
	h.Write(data)
	return fmt.Sprintf("%x", h.Sum32())
}

func running(c *runtimeapi.ContainerStatus) bool {
	return c != nil && (c.State == runtimeapi.ContainerState_CONTAINER_RUNNING || c.State == runtimeapi.ContainerState_CONTAINER_CREATED)
}

func exited(c *runtimeapi.ContainerStatus) bool {
	return c != nil && c.State == runtimeapi.ContainerState_CONTAINER_EXITED
}

func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// ephemeral lists the pod's ephemeral containers in the shape of others.
func ephemeral(p *corev1.Pod) []*corev1.Container {
	var out []*corev1.Container
	for i := range p.Spec.EphemeralContainers {
		c := corev1.Container(p.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		out = append(out, &c)
	}
	return out
}

// all lists the pod's containers of every kind.
func all(p *corev1.Pod) []*corev1.Container {
	var out []*corev1.Container
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			out = append(out, &list[i])
		}
	}
	return append(out, ephemeral(p)...)
}

func find(p *corev1.Pod, name string) *corev1.Container {
	for _, c := range all(p) {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// restarts tells whether a container that ended is to be started again.
func (o observed) restarts(p *corev1.Pod, c *corev1.Container, s *runtimeapi.ContainerStatus) bool {
	if o.remade[s.Id] {
		return true
	}
	policy := p.Spec.RestartPolicy
	if c.RestartPolicy != nil {
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return s.ExitCode != 0
	}
	return true
}

// restartsInit is restarts for an init container: one that succeeded has done its part.
func (o observed) restartsInit(p *corev1.Pod, c *corev1.Container, s *runtimeapi.ContainerStatus) bool {
	return s.ExitCode != 0 && o.restarts(p, c, s)
}

// decide computes the next actions. unhealthy names containers (by id) whose liveness or startup probe failed;
// started tells whether a running container has passed its startup probe.
func decide(p *corev1.Pod, o observed, unhealthy map[string]string, started func(name, id string) bool) actions {
	var a actions
	if !o.sandboxReady() {
		a.finished = allDone(p, o)
		a.createSandbox = !a.finished
		return a
	}
	for _, c := range ephemeral(p) { // each starts once, whatever the others do
		if s := o.current(c.Name); s == nil {
			a.start = append(a.start, c)
		}
	}
	// Once a container of the pod proper was made in this sandbox, the init containers had all done their part: their
	// remains may be gone, and sidecars come and go independently.
	begun := false
	for i := range p.Spec.Containers {
		begun = begun || o.current(p.Spec.Containers[i].Name) != nil
	}
	var sidecars actions
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		s := o.current(c.Name)
		switch {
		case sidecar(c):
			consider(p, o, c, unhealthy, &sidecars, o.restarts)
			if !begun && (!running(s) || !started(c.Name, s.Id)) {
				return a.plus(sidecars)
			}
		case begun || exited(s) && s.ExitCode == 0:
		default:
			consider(p, o, c, unhealthy, &a, o.restartsInit)
			if exited(s) && !o.restartsInit(p, c, s) {
				a.finished = true // an init container failed for good
				return a
			}
			return a.plus(sidecars)
		}
	}
	a.finished = true
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		consider(p, o, c, unhealthy, &a, o.restarts)
		if s := o.current(c.Name); !exited(s) || o.restarts(p, c, s) {
			a.finished = false
		}
	}
	if a.finished {
		return a // sidecars end with the pod
	}
	return a.plus(sidecars)
}

func (a actions) plus(b actions) actions {
	a.start, a.kill = append(b.start, a.start...), append(b.kill, a.kill...)
	return a
}

// consider adds a container to start or to kill.
func consider(p *corev1.Pod, o observed, c *corev1.Container, unhealthy map[string]string, a *actions, again func(*corev1.Pod, *corev1.Container, *runtimeapi.ContainerStatus) bool) {
	s := o.current(c.Name)
	switch {
	case s == nil, s.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN, s.State == runtimeapi.ContainerState_CONTAINER_CREATED:
		a.start = append(a.start, c) // one that was made and never started is made anew
	case running(s):
		switch hash := s.Annotations[annotationHash]; {
		case unhealthy[s.Id] != "":
			a.kill = append(a.kill, kill{s.Id, c.Name, unhealthy[s.Id]})
		case hash != "" && hash != containerHash(c):
			a.kill = append(a.kill, kill{s.Id, c.Name, fmt.Sprintf("Container %s definition changed, will be restarted", c.Name)})
		}
	case again(p, c, s):
		a.start = append(a.start, c)
	}
}

// allDone tells, of a pod whose sandbox is gone, whether its containers had all ended for good.
func allDone(p *corev1.Pod, o observed) bool {
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if s := o.current(c.Name); !sidecar(c) && exited(s) && s.ExitCode != 0 && !o.restartsInit(p, c, s) {
			return true
		}
	}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		s := o.current(c.Name)
		if !exited(s) || o.restarts(p, c, s) {
			return false
		}
	}
	return true
}
