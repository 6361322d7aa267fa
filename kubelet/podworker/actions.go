package podworker

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// observed is what the runtime has of one pod.
type observed struct {
	sandbox  *runtimeapi.PodSandboxStatus // the newest
	attempts uint32                       // sandboxes made so far
	// containers of the newest sandbox, or older ones where there is none yet; newest incarnation first.
	containers map[string][]*runtimeapi.ContainerStatus
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

// kill is a container to end, and why.
type kill struct {
	id, name, reason string
}

// actions are what brings a pod to what it should be.
type actions struct {
	createSandbox bool
	start         []*corev1.Container
	kill          []kill
	// finished: nothing will run any more, by the restart policy.
	finished bool
}

func containerHash(c *corev1.Container) string {
	h := fnv.New32a()
	// Fields that may change without a restart are left out.
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

func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// restarts tells whether a container that ended is to be started again.
func restarts(p *corev1.Pod, c *corev1.Container, s *runtimeapi.ContainerStatus) bool {
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

// decide computes the next actions. unhealthy names containers (by id) whose liveness or startup probe failed;
// started tells whether a running container has passed its startup probe.
func decide(p *corev1.Pod, o observed, unhealthy map[string]string, started func(name, id string) bool) actions {
	var a actions
	if !o.sandboxReady() {
		a.finished = allDone(p, o)
		a.createSandbox = !a.finished
		return a
	}
	endInit := func(c *corev1.Container) bool { return consider(p, o, c, unhealthy, &a, true) }
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		s := o.current(c.Name)
		switch {
		case sidecar(c):
			consider(p, o, c, unhealthy, &a, false)
			if !running(s) || !started(c.Name, s.Id) {
				return a
			}
		case s != nil && s.State == runtimeapi.ContainerState_CONTAINER_EXITED && s.ExitCode == 0:
		default:
			if !endInit(c) && s != nil && s.State == runtimeapi.ContainerState_CONTAINER_EXITED {
				a.finished = true // an init container failed for good
			}
			return a
		}
	}
	a.finished = true
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		consider(p, o, c, unhealthy, &a, false)
		s := o.current(c.Name)
		if s == nil || s.State != runtimeapi.ContainerState_CONTAINER_EXITED || restarts(p, c, s) {
			a.finished = false
		}
	}
	return a
}

// consider adds a container to start or kill; it tells whether it did, or the container runs.
func consider(p *corev1.Pod, o observed, c *corev1.Container, unhealthy map[string]string, a *actions, init bool) bool {
	s := o.current(c.Name)
	switch {
	case s == nil || s.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN:
		a.start = append(a.start, c)
		return true
	case running(s):
		switch {
		case s.State == runtimeapi.ContainerState_CONTAINER_CREATED:
			a.start = append(a.start, c) // it was made and never started: make it anew
		case unhealthy[s.Id] != "":
			a.kill = append(a.kill, kill{s.Id, c.Name, unhealthy[s.Id]})
		case s.Annotations[annotationHash] != "" && s.Annotations[annotationHash] != containerHash(c):
			a.kill = append(a.kill, kill{s.Id, c.Name, fmt.Sprintf("Container %s definition changed", c.Name)})
		}
		return true
	case restarts(p, c, s) || init && p.Spec.RestartPolicy != corev1.RestartPolicyNever && s.ExitCode != 0:
		a.start = append(a.start, c)
		return true
	}
	return false
}

// allDone tells, of a pod whose sandbox is gone, whether its containers had all ended for good.
func allDone(p *corev1.Pod, o observed) bool {
	if len(o.containers) == 0 {
		return false
	}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		s := o.current(c.Name)
		if s == nil || s.State != runtimeapi.ContainerState_CONTAINER_EXITED || restarts(p, c, s) {
			return false
		}
	}
	return true
}

// backoff is the growing pause between the restarts of one container.
type backoff struct {
	delay time.Duration
	// from is the end of the incarnation that the delay counts from.
	from time.Time
}

const (
	backoffMin = 10 * time.Second
	backoffMax = 5 * time.Minute
	// A container that ran this long starts afresh.
	backoffReset = 10 * time.Minute
)

// wait returns how long the container has to wait before its next start. The first restart comes at once.
func (b *backoff) wait(s *runtimeapi.ContainerStatus, now time.Time) time.Duration {
	if s == nil || s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		return 0
	}
	ended := time.Unix(0, s.FinishedAt)
	if ended.Equal(b.from) {
		return max(0, ended.Add(b.delay).Sub(now))
	}
	switch {
	case b.from.IsZero():
		b.delay = 0
	case ended.Sub(time.Unix(0, s.StartedAt)) >= backoffReset:
		b.delay = 0
	case b.delay == 0:
		b.delay = backoffMin
	default:
		b.delay = min(2*b.delay, backoffMax)
	}
	b.from = ended
	return max(0, ended.Add(b.delay).Sub(now))
}
