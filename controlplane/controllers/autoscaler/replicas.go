package autoscaler

import (
	"errors"
	"fmt"
	"math"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// What is known of pods that just started ("Horizontal Pod Autoscaling": --horizontal-pod-autoscaler-cpu-initialization-period and
// --horizontal-pod-autoscaler-initial-readiness-delay, with their defaults).
const (
	startup        = 5 * time.Minute
	readinessDelay = 30 * time.Second
	// tolerance is how far usage may be off its target in either direction.
	tolerance = 0.1
)

// tolerances are those of an autoscaler.
type tolerances struct{ down, up float64 }

func (t tolerances) within(ratio float64) bool { return 1-t.down <= ratio && ratio <= 1+t.up }

// groups are pods by what their samples are good for.
type groups struct {
	ready            int
	unready, missing map[string]bool
}

// sort takes samples away that don't count: of pods that end, that have failed, and, as long as they start, that are not ready: they use CPU
// for their start, not for their work.
func (s samples) sort(pods []*corev1.Pod, resource corev1.ResourceName, now time.Time) groups {
	g := groups{unready: map[string]bool{}, missing: map[string]bool{}}
	for _, p := range pods {
		m, known := s[p.Name]
		switch {
		case p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed:
			delete(s, p.Name)
		case p.Status.Phase == corev1.PodPending:
			g.unready[p.Name] = true
			delete(s, p.Name)
		case !known:
			g.missing[p.Name] = true
		case resource == corev1.ResourceCPU && starting(p, m, now):
			g.unready[p.Name] = true
			delete(s, p.Name)
		default:
			g.ready++
		}
	}
	// A sample of no pod of ours would count for nobody.
	names := map[string]bool{}
	for _, p := range pods {
		names[p.Name] = true
	}
	for name := range s {
		if !names[name] {
			delete(s, name)
		}
	}
	return g
}

func starting(p *corev1.Pod, m sample, now time.Time) bool {
	var ready *corev1.PodCondition
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == corev1.PodReady {
			ready = &p.Status.Conditions[i]
		}
	}
	if ready == nil || p.Status.StartTime == nil {
		return true
	}
	if p.Status.StartTime.Add(startup).After(now) {
		// Not ready, or ready for less than what the sample is the mean of.
		return ready.Status == corev1.ConditionFalse || m.at.Before(ready.LastTransitionTime.Add(m.window))
	}
	// Later, only one that was never ready still starts.
	return ready.Status == corev1.ConditionFalse && p.Status.StartTime.Add(readinessDelay).After(ready.LastTransitionTime.Time)
}

// proposal is what one metric asks for.
type proposal struct {
	replicas    int32
	utilization int32 // per cent of requests, where these count
	average     int64 // of a pod, thousandths
}

var errNoSamples = errors.New("did not receive metrics for targeted pods (pods might be unready)")

// byUtilization wants pods to use so many per cent of what they request.
func (t tolerances) byUtilization(current, target int32, s samples, pods []*corev1.Pod, resource corev1.ResourceName, container string, now time.Time) (proposal, error) {
	g := s.sort(pods, resource, now)
	if len(s) == 0 {
		return proposal{}, errNoSamples
	}
	requests := map[string]int64{}
	for _, p := range pods {
		n, err := requested(p, resource, container)
		if err != nil {
			return proposal{}, err
		}
		requests[p.Name] = n
	}
	ratio := func() (float64, int32, int64, error) {
		used, wanted := int64(0), int64(0)
		for name, m := range s {
			used, wanted = used+m.value, wanted+requests[name]
		}
		if wanted == 0 {
			return 0, 0, 0, errors.New("no metrics returned matched known pods")
		}
		utilization := int32(used * 100 / wanted)
		return float64(utilization) / float64(target), utilization, used / int64(len(s)), nil
	}
	first, utilization, average, err := ratio()
	if err != nil {
		return proposal{}, err
	}
	replicas, err := t.settle(current, first, s, g, func(name string) int64 {
		return int64(max(target, 100)) * requests[name] / 100 // as if it used all that it requests, so that nothing is taken away in error
	}, func() (float64, error) { r, _, _, err := ratio(); return r, err })
	return proposal{replicas, utilization, average}, err
}

// byAverage wants a value of each pod.
func (t tolerances) byAverage(current int32, target int64, s samples, pods []*corev1.Pod, resource corev1.ResourceName, now time.Time) (proposal, error) {
	g := s.sort(pods, resource, now)
	if len(s) == 0 {
		return proposal{}, errNoSamples
	}
	average := func() int64 {
		sum := int64(0)
		for _, m := range s {
			sum += m.value
		}
		return sum / int64(len(s))
	}
	first := average()
	replicas, err := t.settle(current, float64(first)/float64(target), s, g, func(string) int64 { return target },
		func() (float64, error) { return float64(average()) / float64(target), nil })
	return proposal{replicas: replicas, average: first}, err
}

// settle makes a number of pods of how far usage is off its target. Pods of which nothing is known are taken to speak against a change: as idle
// where there would be more, as fully used where there would be fewer.
func (t tolerances) settle(current int32, ratio float64, s samples, g groups, full func(name string) int64, again func() (float64, error)) (int32, error) {
	upWithUnready := len(g.unready) > 0 && ratio > 1
	if !upWithUnready && len(g.missing) == 0 {
		if t.within(ratio) {
			return current, nil
		}
		return whole(ratio * float64(g.ready)), nil
	}
	for name := range g.missing {
		if ratio < 1 {
			s[name] = sample{value: full(name)}
		} else if ratio > 1 {
			s[name] = sample{}
		}
	}
	if upWithUnready {
		for name := range g.unready {
			s[name] = sample{}
		}
	}
	second, err := again()
	if err != nil {
		return 0, err
	}
	if t.within(second) || ratio < 1 && second > 1 || ratio > 1 && second < 1 {
		return current, nil // what is unknown decides: then nothing changes
	}
	replicas := whole(second * float64(len(s)))
	if second < 1 && replicas > current || second > 1 && replicas < current {
		return current, nil
	}
	return replicas, nil
}

// whole rounds a number of pods up. What no number of pods can be becomes the nearest that can: the conversion of a float that doesn't fit is
// left to the processor.
func whole(n float64) int32 { return int32(min(math.MaxInt32, max(0, math.Ceil(n)))) }

// byValue wants one value of all: ready is how many pods bring it about.
func (t tolerances) byValue(current int32, target, value int64, ready int) proposal {
	ratio := float64(value) / float64(target)
	switch {
	case current == 0:
		return proposal{replicas: whole(ratio), average: value}
	case t.within(ratio):
		return proposal{replicas: current, average: value}
	}
	return proposal{replicas: whole(ratio * float64(ready)), average: value}
}

// byShare wants each pod's part of one value.
func (t tolerances) byShare(current int32, target, value int64) proposal {
	replicas := current
	if current == 0 || !t.within(float64(value)/(float64(target)*float64(current))) {
		replicas = whole(float64(value) / float64(target))
	}
	share := value
	if current > 0 {
		share = int64(math.Ceil(float64(value) / float64(current)))
	}
	return proposal{replicas: replicas, average: share}
}

// requested is what a pod, or a container of it, asks for, in thousandths; sidecars count.
func requested(p *corev1.Pod, resource corev1.ResourceName, container string) (int64, error) {
	sum, found := int64(0), false
	add := func(c *corev1.Container) error {
		if container != "" && c.Name != container {
			return nil
		}
		q, ok := c.Resources.Requests[resource]
		if !ok {
			return fmt.Errorf("missing request for %s in container %s of Pod %s", resource, c.Name, p.Name)
		}
		sum, found = sum+q.MilliValue(), true
		return nil
	}
	if container == "" && p.Spec.Resources != nil { // of the whole pod
		if q, ok := p.Spec.Resources.Requests[resource]; ok {
			return q.MilliValue(), nil
		}
	}
	for i := range p.Spec.Containers {
		if err := add(&p.Spec.Containers[i]); err != nil {
			return 0, err
		}
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			if err := add(c); err != nil {
				return 0, err
			}
		}
	}
	if container != "" && !found {
		return 0, fmt.Errorf("container %s not found in Pod %s", container, p.Name)
	}
	return sum, nil
}

// readyOf counts the pods that are ready.
func readyOf(pods []*corev1.Pod) int {
	n := 0
	for _, p := range pods {
		for _, c := range p.Status.Conditions {
			if p.Status.Phase == corev1.PodRunning && c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				n++
			}
		}
	}
	return n
}
