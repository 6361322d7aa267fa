package autoscaler

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// pods are told in a line, one by one: what each uses of CPU, in thousandths, "?" for one of which nothing is known, then how it is.
// Each requests 1000.
func pods(t *testing.T, line string) ([]*corev1.Pod, samples) {
	t.Helper()
	var all []*corev1.Pod
	s := samples{}
	for i, field := range strings.Fields(line) {
		use, state, _ := strings.Cut(field, ":")
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i)}}
		p.Spec.Containers = []corev1.Container{{Name: "main", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}}}}
		p.Status.Phase = corev1.PodRunning
		start, readySince, ready := now.Add(-time.Hour), now.Add(-time.Hour), corev1.ConditionTrue
		switch state {
		case "":
		case "pending":
			p.Status.Phase = corev1.PodPending
		case "failed":
			p.Status.Phase = corev1.PodFailed
		case "ending":
			p.DeletionTimestamp = &metav1.Time{}
		case "starting": // never ready
			start, readySince, ready = now.Add(-time.Minute), now.Add(-time.Minute), corev1.ConditionFalse
		case "fresh": // ready for less than its sample's window
			start, readySince = now.Add(-time.Minute), now.Add(-10*time.Second)
		case "broken": // was ready once
			readySince, ready = now.Add(-time.Minute), corev1.ConditionFalse
		case "never": // has not been ready since its start, long ago
			readySince, ready = now.Add(-time.Hour).Add(10*time.Second), corev1.ConditionFalse
		case "no-request":
			p.Spec.Containers[0].Resources.Requests = nil
		default:
			t.Fatalf("state %q", state)
		}
		p.Status.StartTime = &metav1.Time{Time: start}
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.NewTime(readySince)}}
		all = append(all, p)
		if use != "?" {
			n := int64(0)
			if _, err := fmt.Sscan(use, &n); err != nil {
				t.Fatal(err)
			}
			s[p.Name] = sample{n, now.Add(-5 * time.Second), 30 * time.Second}
		}
	}
	return all, s
}

func TestByUtilization(t *testing.T) {
	usual := tolerances{tolerance, tolerance}
	for name, c := range map[string]struct {
		pods    string
		current int32
		target  int32
		tolerances
		want string // pods and per cent, or the error
	}{
		"twice as much":                 {"1000 1000 1000", 3, 50, usual, "6 100%"},
		"half as much":                  {"250 250 250 250", 4, 50, usual, "2 25%"},
		"rounded up":                    {"700 700 700", 3, 50, usual, "5 70%"},
		"within tolerance above":        {"540 540", 2, 50, usual, "2 54%"},
		"within tolerance below":        {"460 460", 2, 50, usual, "2 46%"},
		"a tolerance of its own":        {"540 540", 2, 50, tolerances{0.1, 0.05}, "3 54%"},
		"no tolerance on the way down":  {"480 480 480 480 480 480 480 480 480 480 480 480 480 480 480 480 480 480 480 480 480 480 480 480 480", 25, 50, tolerances{0, 0.1}, "24 48%"},
		"nothing is used":               {"0 0", 2, 50, usual, "0 0%"},
		"ends, failed: not counted":     {"1000 1000 9000:ending 9000:failed", 2, 50, usual, "4 100%"},
		"missing, up: as idle":          {"1000 1000 ?", 3, 50, usual, "4 100%"},
		"missing, up: not by as much":   {"600 ?", 2, 50, usual, "2 60%"},
		"missing, down: as fully used":  {"100 100 100 100 ?", 5, 50, usual, "3 10%"},
		"missing decides: no change":    {"400 ?", 2, 50, usual, "2 40%"},
		"unready, up: as idle":          {"2000 2000 500:starting", 3, 50, usual, "8 200%"},
		"unready, down: not counted":    {"100 100 9000:starting", 3, 50, usual, "1 10%"},
		"pending is not ready":          {"2000 2000 ?:pending", 3, 50, usual, "8 200%"},
		"unready decides: no change":    {"800 9000:starting 9000:starting", 3, 50, usual, "3 80%"},
		"unready and missing, up":       {"1600 ? 500:starting", 3, 50, usual, "3 160%"},
		"its sample is of the start":    {"2000 2000 9000:fresh", 3, 50, usual, "8 200%"},
		"ready once: counted":           {"1000 1000:broken", 2, 50, usual, "4 100%"},
		"never ready: not counted down": {"100 9000:never", 2, 50, usual, "1 10%"},
		"no samples":                    {"? ?", 2, 50, usual, errNoSamples.Error()},
		"no request":                    {"100 100:no-request", 2, 50, usual, "missing request for cpu in container main of Pod p1"},
	} {
		t.Run(name, func(t *testing.T) {
			all, s := pods(t, c.pods)
			p, err := c.byUtilization(c.current, c.target, s, all, corev1.ResourceCPU, "", now)
			got := fmt.Sprintf("%d %d%%", p.replicas, p.utilization)
			if err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestByAverage(t *testing.T) {
	usual := tolerances{tolerance, tolerance}
	for name, c := range map[string]struct {
		pods     string
		resource corev1.ResourceName
		current  int32
		want     string
	}{
		"more":                         {"30000 30000 30000", "", 3, "6 30000"},
		"fewer":                        {"5000 5000 5000 5000", "", 4, "2 5000"},
		"within tolerance":             {"16000 16000", "", 2, "2 16000"},
		"missing, down: at the target": {"5000 5000 5000 ?", "", 4, "2 5000"},
		"missing, up: at zero":         {"30000 30000 ?", "", 3, "4 30000"},
		"a metric of its own needs no look at the start": {"30000:starting 30000", "", 2, "4 30000"},
		"CPU does":   {"30000:starting 30000", corev1.ResourceCPU, 2, "2 30000"},
		"no samples": {"?", "", 1, errNoSamples.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			all, s := pods(t, c.pods)
			p, err := usual.byAverage(c.current, 15000, s, all, c.resource, now)
			got := fmt.Sprint(p.replicas, " ", p.average)
			if err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestOfOneValue(t *testing.T) {
	usual := tolerances{tolerance, tolerance}
	for _, c := range []struct {
		current       int32
		target, value int64
		ready         int
		whole, shared int32 // pods by the value, and by each one's share of it
	}{
		{3, 10000, 20000, 3, 6, 2},
		{3, 10000, 20000, 2, 4, 2}, // only ready pods bring the value about
		{2, 10000, 10500, 2, 2, 2}, // within tolerance; its share is half of what is wanted
		{0, 10000, 25000, 0, 3, 3}, // from nothing
		{4, 10000, 2000, 4, 1, 1},
		{4, 10000, 41000, 4, 17, 4},
	} {
		if got := usual.byValue(c.current, c.target, c.value, c.ready).replicas; got != c.whole {
			t.Errorf("%+v: %d by the value", c, got)
		}
		if got := usual.byShare(c.current, c.target, c.value).replicas; got != c.shared {
			t.Errorf("%+v: %d by the share", c, got)
		}
	}
}

// A request of the whole pod goes before those of its containers; sidecars count.
func TestRequested(t *testing.T) {
	of := func(cpu string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}
	}
	always := corev1.ContainerRestartPolicyAlways
	p := &corev1.Pod{Spec: corev1.PodSpec{
		Containers:     []corev1.Container{{Name: "a", Resources: of("1")}, {Name: "b", Resources: of("200m")}},
		InitContainers: []corev1.Container{{Name: "init", Resources: of("9")}, {Name: "side", Resources: of("30m"), RestartPolicy: &always}},
	}}
	for container, want := range map[string]int64{"": 1230, "a": 1000, "side": 30, "init": -1, "none": -1} {
		got, err := requested(p, corev1.ResourceCPU, container)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d, %v, want %d", container, got, err, want)
		}
	}
	whole := of("2")
	p.Spec.Resources = &whole
	if got, err := requested(p, corev1.ResourceCPU, ""); err != nil || got != 2000 {
		t.Errorf("%d, %v", got, err)
	}
}

// A number of pods that doesn't fit is the most there can be, not a negative one.
func TestReplicasThatDoNotFit(t *testing.T) {
	tol := tolerances{tolerance, tolerance}
	if got := tol.byValue(3, 1, math.MaxInt64, 3).replicas; got != math.MaxInt32 {
		t.Errorf("by value: %d", got)
	}
	if got := tol.byShare(3, 1, math.MaxInt64).replicas; got != math.MaxInt32 {
		t.Errorf("by share: %d", got)
	}
}
