package podworker

import (
	"fmt"
	"os"
	"strings"
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

// A container that is ended only for a resize is made anew, even if it ends well and the pod's policy is to leave it then.
func TestResizeEndsNoPod(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{RestartPolicy: corev1.RestartPolicyOnFailure, Containers: []corev1.Container{{Name: "a", Resources: wanting("1", "100Mi"), ResizePolicy: []corev1.ContainerResizePolicy{
			{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer},
		}}}})
		l.resize(p, wanting("1", "50Mi"))
		l.wait(time.Minute)
		if got := l.status(p); got.Phase != corev1.PodRunning || got.ContainerStatuses[0].RestartCount != 1 {
			t.Errorf("%s with %d restarts", got.Phase, got.ContainerStatuses[0].RestartCount)
		}
		l.cri.exit("a", 0) // by itself
		l.wait(time.Minute)
		if got := l.status(p).Phase; got != corev1.PodSucceeded {
			t.Errorf("it ended well by itself: %s", got)
		}
	})
}

// What a pod asks for in vain, another may have.
func TestDeferredResizeTakesNothing(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Resources: wanting("1", "100Mi")}}})
		other := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "b", Resources: wanting("1", "100Mi")}}})
		l.resize(p, wanting("4", "100Mi"))
		l.wantGiven(p, "given 1, has 1, PodResizePending Deferred")
		l.resize(other, wanting("3", "100Mi"))
		l.wantGiven(other, "given 3, has 3")
		l.resize(other, wanting("4", "100Mi"))
		l.wait(2 * retryResize)
		l.wantGiven(p, "given 1, has 1, PodResizePending Deferred")
		l.wantGiven(other, "given 3, has 3, PodResizePending Deferred")
	})
}

// Memory that is in use is not taken away.
func TestResizeBelowWhatIsUsed(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Resources: wanting("1", "200Mi")}}})
		l.cri.mu.Lock()
		l.cri.used, l.cri.calls = 150<<20, nil
		l.cri.mu.Unlock()
		l.resize(p, wanting("2", "100Mi"))
		l.wantGiven(p, "given 2, has 1, PodResizeInProgress Error")
		if want := `attempting to set container "a" memory limit (104857600) below current usage (157286400)`; !l.events.has(want) {
			t.Errorf("no event tells %q", want)
		}
		l.wantCalls()
		l.cri.mu.Lock()
		l.cri.used = 50 << 20
		l.cri.mu.Unlock()
		l.wait(2 * retryResize)
		l.wantGiven(p, "given 2, has 2")
		l.wantCalls("update a 2000 100")
	})
}

// While a container's limits change, the pod's is no narrower than before or after, and in the end it is what it should be, also if a change
// failed in between.
func TestResizeOfThePodsCgroup(t *testing.T) {
	inLab(t, func(l *lab) {
		p := l.create(corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Resources: wanting("2", "200Mi")}}})
		l.cri.mu.Lock()
		l.cri.fault = "update"
		var during []string
		l.cri.onUpdate = func() { during = append(during, l.podQuota(p)) }
		l.cri.mu.Unlock()
		l.resize(p, wanting("1", "100Mi"))
		if got := l.podQuota(p); got != "200000" {
			t.Errorf("the container has kept its limit, the pod's is %s", got)
		}
		l.cri.mu.Lock()
		l.cri.fault = ""
		l.cri.mu.Unlock()
		l.wait(2 * retryResize)
		if got := l.podQuota(p); got != "100000" {
			t.Errorf("in the end the pod's is %s", got)
		}
		l.resize(p, wanting("3", "100Mi"))
		l.cri.mu.Lock()
		defer l.cri.mu.Unlock()
		for i, want := range []string{"200000", "200000", "300000"} {
			if i >= len(during) || during[i] != want {
				t.Errorf("during the changes the pod's was %v", during)
				break
			}
		}
	})
}

// podQuota is the limit of CPU time of a pod's cgroup, in microseconds of 100000.
func (l *lab) podQuota(p *corev1.Pod) string {
	l.t.Helper()
	path := l.k.Cgroups.PodPath(p)
	for _, file := range []string{"/sys/fs/cgroup" + path + "/cpu.max", "/sys/fs/cgroup/cpu" + path + "/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu,cpuacct" + path + "/cpu.cfs_quota_us"} {
		if data, err := os.ReadFile(file); err == nil {
			return strings.Fields(string(data))[0]
		}
	}
	l.t.Fatal("no limit of the pod's CPU time")
	return ""
}
