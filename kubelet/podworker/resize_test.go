package podworker

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func amount(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

func wanting(cpu, memory string) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{Requests: amount(cpu, memory), Limits: amount(cpu, memory)}
}

// resize changes what the pod's first container asks for, as the API does.
func (l *lab) resize(p *corev1.Pod, to corev1.ResourceRequirements) {
	l.mu.Lock()
	next := l.pods[p.UID].DeepCopy()
	l.rv++
	next.ResourceVersion = fmt.Sprint(l.rv)
	next.Generation++
	next.Spec.Containers[0].Resources = to
	l.pods[p.UID] = next
	l.mu.Unlock()
	l.k.Set(next.DeepCopy())
	synctest.Wait()
}

// given is what the status tells of the pod's first container, and of how far the pod is.
func (l *lab) given(p *corev1.Pod) string {
	s := l.status(p)
	c := s.ContainerStatuses[0]
	out := fmt.Sprintf("given %s, has %s", c.AllocatedResources.Cpu(), c.Resources.Limits.Cpu())
	for _, cond := range s.Conditions {
		if cond.Type == corev1.PodResizePending || cond.Type == corev1.PodResizeInProgress {
			out += fmt.Sprintf(", %s %s", cond.Type, cond.Reason)
		}
	}
	return out
}

func (l *lab) wantGiven(p *corev1.Pod, want string) {
	l.t.Helper()
	if got := l.given(p); got != want {
		l.t.Errorf("%s, want %s", got, want)
	}
}

func TestResize(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Resources: wanting("1", "100Mi")}}})
		l.wantGiven(p, "given 1, has 1")
		l.resize(p, wanting("2", "200Mi"))
		l.wantGiven(p, "given 2, has 2")
		// The container runs on, with other limits.
		l.wantCalls("sandbox 0", "create a/0", "start a", "update a 2000 200")

		// More than there ever is: what it has, it keeps, also when it ends and is made anew, and when the kubelet is.
		l.resize(p, wanting("9", "200Mi"))
		l.wantGiven(p, "given 2, has 2, PodResizePending Infeasible")
		l.stop()
		l.start()
		synctest.Wait()
		l.wantGiven(p, "given 2, has 2, PodResizePending Infeasible")
		l.resize(p, wanting("500m", "50Mi"))
		l.wantGiven(p, "given 500m, has 500m")
		l.wantCalls("sandbox 0", "create a/0", "start a", "update a 2000 200", "update a 500 50")
	})
}

// What another pod has is not to be had, until it goes.
func TestResizeWaits(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Resources: wanting("1", "100Mi")}}})
		other := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "b", Resources: wanting("2", "100Mi")}}})
		l.resize(p, wanting("3", "100Mi"))
		l.wantGiven(p, "given 1, has 1, PodResizePending Deferred")
		l.remove(other, 0)
		l.wait(2 * retryResize)
		l.wantGiven(p, "given 3, has 3")
	})
}

// A runtime that refuses is asked again, and the status says so; a container whose policy says so is made anew.
func TestResizeThatFailsAndThatRestarts(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Resources: wanting("1", "100Mi"), ResizePolicy: []corev1.ContainerResizePolicy{
			{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}, {ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.NotRequired},
		}}}})
		l.cri.mu.Lock()
		l.cri.fault = "update"
		l.cri.mu.Unlock()
		l.resize(p, wanting("2", "100Mi"))
		l.wantGiven(p, "given 2, has 1, PodResizeInProgress Error")
		l.cri.mu.Lock()
		l.cri.fault, l.cri.calls = "", nil
		l.cri.mu.Unlock()
		l.wait(2 * retryResize)
		l.wantGiven(p, "given 2, has 2")
		l.wantCalls("update a 2000 100")
		l.resize(p, wanting("2", "200Mi"))
		l.wait(time.Minute)
		l.wantGiven(p, "given 2, has 2")
		if got := l.status(p).ContainerStatuses[0]; got.RestartCount != 1 || got.Resources.Limits.Memory().String() != "200Mi" {
			t.Errorf("%d restarts, memory %s", got.RestartCount, got.Resources.Limits.Memory())
		}
	})
}
