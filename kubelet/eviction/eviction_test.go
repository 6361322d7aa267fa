package eviction

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestCrossed(t *testing.T) {
	const gi = 1 << 30
	for name, c := range map[string]struct {
		levels map[Signal]Level
		want   []Signal
	}{
		"plenty":             {map[Signal]Level{Memory: {gi, 8 * gi}, NodeFS: {50, 100}, NodeInodes: {50, 100}, ImageFS: {50, 100}, ImageInodes: {50, 100}}, nil},
		"at the thresholds":  {map[Signal]Level{Memory: {100 << 20, gi}, NodeFS: {5, 100}, NodeInodes: {5, 100}, ImageFS: {5, 100}, ImageInodes: {5, 100}}, nil},
		"just below":         {map[Signal]Level{Memory: {100<<20 - 1, gi}, NodeFS: {49, 1000}, NodeInodes: {49, 1000}, ImageFS: {49, 1000}, ImageInodes: {49, 1000}}, []Signal{Memory, NodeFS, NodeInodes, ImageFS, ImageInodes}},
		"no fixed inodes":    {map[Signal]Level{NodeInodes: {0, 0}}, nil},
		"nothing measured":   {nil, nil},
		"pids have no limit": {map[Signal]Level{PID: {1, 100000}}, nil},
	} {
		var got []Signal
		for _, x := range Crossed(c.levels, Defaults) {
			got = append(got, x.Signal)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func pod(name string, priority int32, memory string) *corev1.Pod {
	c := corev1.Container{Name: "c"}
	if memory != "" {
		c.Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(memory)}
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Priority: &priority, Containers: []corev1.Container{c}}}
}

func TestRank(t *testing.T) {
	done := pod("done", 0, "")
	done.Status.Phase = corev1.PodSucceeded
	const mi = 1 << 20
	pods := []Usage{
		{Pod: pod("within-low", -1, "100Mi"), Memory: 50 * mi, Disk: 1},
		{Pod: pod("over-little", 0, "100Mi"), Memory: 101 * mi, Disk: 9},
		{Pod: pod("critical", 2_000_000_000, ""), Memory: 900 * mi, Disk: 900},
		{Pod: pod("over-much", 0, "100Mi"), Memory: 300 * mi, Disk: 5},
		{Pod: pod("over-important", 1000, ""), Memory: 800 * mi, Disk: 800},
		{Pod: done, Memory: 1},
		{Pod: pod("within", 0, "500Mi"), Memory: 400 * mi, Disk: 7},
	}
	for signal, want := range map[Signal][]string{
		Memory: {"over-much", "over-little", "over-important", "within-low", "within"},
		NodeFS: {"within-low", "over-little", "within", "over-much", "over-important"},
	} {
		var got []string
		for _, u := range Rank(pods, signal) {
			got = append(got, u.Pod.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", signal, got, want)
		}
	}
}

func TestOverLimit(t *testing.T) {
	limit := resource.MustParse("1Mi")
	p := pod("p", 0, "")
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}}, {Name: "free", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("4Mi")}
	const mi = 1 << 20
	for name, c := range map[string]struct {
		u    Usage
		want string
	}{
		"within":        {Usage{Pod: p, Disk: 4 * mi, Volumes: map[string]uint64{"v": mi, "free": 3 * mi}, Containers: map[string]ContainerUsage{"c": {Disk: 4 * mi}}}, ""},
		"volume":        {Usage{Pod: p, Volumes: map[string]uint64{"v": mi + 1}}, `Usage of EmptyDir volume "v" exceeds the limit "1Mi"`},
		"container":     {Usage{Pod: p, Containers: map[string]ContainerUsage{"c": {Disk: 4*mi + 1}}}, `Container c exceeded its local ephemeral storage limit "4Mi"`},
		"all together":  {Usage{Pod: p, Disk: 5 * mi}, "exceeds the total limit of containers 4Mi"},
		"without limit": {Usage{Pod: pod("q", 0, ""), Disk: 1 << 50}, ""},
	} {
		got, over := OverLimit(c.u)
		if over != (c.want != "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if !Limits(p) || Limits(pod("q", 0, "")) {
		t.Error("Limits does not see what OverLimit looks at")
	}
}

// Under pressure, what nobody needs goes first; then one pod at a time.
func TestManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := uint64(50)
		var did []string
		freeable := true
		ctx, cancel := context.WithCancel(t.Context())
		m := New(Config{
			Levels: func(context.Context) map[Signal]Level { return map[Signal]Level{NodeFS: {free, 100}} },
			Usage: func(_ context.Context, all bool) []Usage {
				if !all {
					return nil
				}
				return []Usage{{Pod: pod("small", 0, ""), Disk: 1}, {Pod: pod("big", 0, ""), Disk: 9}}
			},
			Reclaim: func(context.Context) error {
				did = append(did, "reclaim")
				if freeable {
					free = 50
				}
				return nil
			},
			Evict:   func(p *corev1.Pod, message string) { did = append(did, "evict "+p.Name+": "+message) },
			Changed: func() { did = append(did, "changed") },
		})
		done := make(chan struct{})
		go func() { m.Run(ctx); close(done) }()
		step := func() []string { did = nil; time.Sleep(checkEvery); synctest.Wait(); return did }
		synctest.Wait()
		if _, short := m.Pressure(corev1.NodeDiskPressure); short || len(did) > 0 {
			t.Errorf("at first: %q", did)
		}
		free = 3
		if got := step(); !slices.Equal(got, []string{"changed", "reclaim"}) {
			t.Errorf("when images can go: %q", got)
		}
		detail, short := m.Pressure(corev1.NodeDiskPressure)
		if !short || detail != "nodefs.available is 3, below 5" {
			t.Errorf("pressure: %q, %v", detail, short)
		}
		if message, ok := m.Admit(pod("new", 0, ""), false); ok || message != "The node had condition: [DiskPressure]. " {
			t.Errorf("admitted: %v %q", ok, message)
		}
		if _, ok := m.Admit(pod("system", 2_000_000_000, ""), true); !ok {
			t.Error("a critical pod is refused")
		}
		free, freeable = 3, false
		if got := step(); len(got) != 2 || !strings.HasPrefix(got[1], "evict big: The node was low on resource: ephemeral-storage. Threshold quantity: 5, available: 3. ") {
			t.Errorf("when nothing else helps: %q", got)
		}
		free = 50
		time.Sleep(4 * time.Minute)
		if _, short := m.Pressure(corev1.NodeDiskPressure); !short {
			t.Error("the condition went before five minutes")
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if _, short := m.Pressure(corev1.NodeDiskPressure); short || !slices.Contains(did, "changed") {
			t.Error("the condition stays")
		}
		cancel()
		<-done
	})
}
