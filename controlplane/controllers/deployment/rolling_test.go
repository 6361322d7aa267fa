package deployment

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var epoch = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func newDeployment(replicas int32, surge, unavailable string) *appsv1.Deployment {
	s, u := intstr.Parse(surge), intstr.Parse(unavailable)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "d", Generation: 1},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, ProgressDeadlineSeconds: new(int32),
			Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u}},
		},
	}
}

// set is a ReplicaSet of so many wanted and available pods; age orders them, the higher the younger.
func set(name string, age int, size, available int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(epoch.Add(time.Duration(age) * time.Minute))},
		Spec:       appsv1.ReplicaSetSpec{Replicas: &size},
		Status:     appsv1.ReplicaSetStatus{Replicas: size, ReadyReplicas: available, AvailableReplicas: available},
	}
}

func sizes(steps []resize) string {
	out := ""
	for _, s := range steps {
		out += fmt.Sprintf("%s=%d ", s.set.Name, s.to)
	}
	return out
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		replicas                   int32
		surge, unavailable         string
		wantSurge, wantUnavailable int32
	}{
		{10, "25%", "25%", 3, 2}, // surge rounds up, unavailable down
		{1, "25%", "25%", 1, 0},
		{3, "0", "0%", 0, 1}, // both zero would stand still
		{2, "0", "5", 0, 2},
		{0, "25%", "25%", 0, 0},
	} {
		s, u := limits(newDeployment(c.replicas, c.surge, c.unavailable))
		if s != c.wantSurge || u != c.wantUnavailable && c.replicas > 0 {
			t.Errorf("%+v: %d, %d", c, s, u)
		}
	}
}

func TestRollingStep(t *testing.T) {
	for name, c := range map[string]struct {
		d    *appsv1.Deployment
		next *appsv1.ReplicaSet
		old  []*appsv1.ReplicaSet
		want string
	}{
		"the new set grows by the surge first":            {newDeployment(10, "3", "2"), set("new", 9, 0, 0), []*appsv1.ReplicaSet{set("old", 1, 10, 10)}, "new=3 "},
		"then the old one shrinks by what may be missing": {newDeployment(10, "3", "2"), set("new", 9, 3, 0), []*appsv1.ReplicaSet{set("old", 1, 10, 10)}, "old=8 "},
		"new pods that are ready let more go":             {newDeployment(10, "3", "2"), set("new", 9, 5, 5), []*appsv1.ReplicaSet{set("old", 1, 8, 8)}, "old=3 "},
		"while they are not, nothing moves":               {newDeployment(10, "3", "2"), set("new", 9, 5, 0), []*appsv1.ReplicaSet{set("old", 1, 8, 8)}, ""},
		"broken old pods go before good ones":             {newDeployment(4, "0", "1"), set("new", 9, 0, 0), []*appsv1.ReplicaSet{set("old", 1, 2, 2), set("bad", 2, 2, 0)}, "bad=1 "},
		"the oldest set goes first":                       {newDeployment(4, "1", "0"), set("new", 9, 1, 1), []*appsv1.ReplicaSet{set("b", 2, 2, 2), set("a", 1, 2, 2)}, "a=1 "},
		"a set that is too large shrinks at once":         {newDeployment(2, "1", "0"), set("new", 9, 5, 5), nil, "new=2 "},
		"done is done": {newDeployment(2, "1", "0"), set("new", 9, 2, 2), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := sizes(rollingStep(c.d, c.next, c.old)); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestRolloutKeepsItsPromises plays whole rollouts: pods become ready one at a time, in any order. There are never
// more pods than surge allows, never fewer available than promised, and the rollout ends.
func TestRolloutKeepsItsPromises(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		n := r.Int32N(12) + 1
		d := newDeployment(n, fmt.Sprint(r.IntN(4)), fmt.Sprint(r.IntN(4)))
		surge, unavailable := limits(d)
		next := set("new", 9, 0, 0)
		var old []*appsv1.ReplicaSet
		for left, i := n, 0; left > 0; i++ {
			size := r.Int32N(left) + 1
			old = append(old, set(fmt.Sprint("old", i), i, size, size))
			left -= size
		}
		for step := 0; ; step++ {
			if step > 1000 {
				t.Fatalf("%d replicas, surge %d, unavailable %d: stands still at %d new", n, surge, unavailable, *next.Spec.Replicas)
			}
			moved := rollingStep(d, next, old)
			for _, s := range moved {
				*s.set.Spec.Replicas = s.to
				s.set.Status.AvailableReplicas = min(s.set.Status.AvailableReplicas, s.to)
			}
			total, available := *next.Spec.Replicas, next.Status.AvailableReplicas
			rest := int32(0)
			for _, rs := range old {
				total += *rs.Spec.Replicas
				available += rs.Status.AvailableReplicas
				rest += *rs.Spec.Replicas
			}
			if total > n+surge || available < n-unavailable {
				t.Fatalf("%d replicas, surge %d, unavailable %d: %d pods, %d available", n, surge, unavailable, total, available)
			}
			if len(moved) > 0 {
				continue
			}
			if next.Status.AvailableReplicas < *next.Spec.Replicas {
				next.Status.AvailableReplicas++
				continue
			}
			if rest == 0 && *next.Spec.Replicas == n {
				break
			}
		}
	}
}

func TestProportional(t *testing.T) {
	for name, c := range map[string]struct {
		d    *appsv1.Deployment
		sets []*appsv1.ReplicaSet
		want string
	}{
		"growth is shared":                          {newDeployment(20, "0", "1"), []*appsv1.ReplicaSet{set("old", 1, 8, 8), set("new", 2, 2, 2)}, "old=16 new=4 "},
		"shrinking is shared":                       {newDeployment(5, "0", "1"), []*appsv1.ReplicaSet{set("old", 1, 8, 8), set("new", 2, 2, 2)}, "old=4 new=1 "},
		"what rounding leaves goes to the largest":  {newDeployment(11, "0", "1"), []*appsv1.ReplicaSet{set("old", 1, 6, 6), set("new", 2, 4, 4)}, "old=7 new=4 "},
		"to nothing":                                {newDeployment(0, "1", "1"), []*appsv1.ReplicaSet{set("old", 1, 6, 6), set("new", 2, 4, 4)}, "old=0 new=0 "},
		"sets that stay are noted as sized as well": {newDeployment(10, "0", "1"), []*appsv1.ReplicaSet{set("old", 1, 6, 6), set("new", 2, 4, 4)}, "old=6 new=4 "},
		"the young grow first":                      {newDeployment(3, "0", "1"), []*appsv1.ReplicaSet{set("old", 1, 1, 1), set("new", 2, 1, 1)}, "new=2 old=1 "},
	} {
		t.Run(name, func(t *testing.T) {
			if got := sizes(proportional(c.d, c.sets)); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestProgress(t *testing.T) {
	progressing := func(reason, message string, status corev1.ConditionStatus) appsv1.DeploymentStatus {
		return appsv1.DeploymentStatus{Conditions: []appsv1.DeploymentCondition{{Type: appsv1.DeploymentProgressing, Reason: reason, Message: message, Status: status, LastUpdateTime: metav1.NewTime(epoch)}}}
	}
	for name, c := range map[string]struct {
		before appsv1.DeploymentStatus
		next   *appsv1.ReplicaSet
		old    []*appsv1.ReplicaSet
		paused bool
		after  time.Duration
		reason string
		status corev1.ConditionStatus
	}{
		"a first set":        {appsv1.DeploymentStatus{}, set("a", 1, 2, 0), nil, false, 0, "NewReplicaSetCreated", corev1.ConditionTrue},
		"complete":           {progressing("ReplicaSetUpdated", `ReplicaSet "a" is progressing.`, corev1.ConditionTrue), set("a", 1, 2, 2), nil, false, 0, "NewReplicaSetAvailable", corev1.ConditionTrue},
		"a pod became ready": {progressing("NewReplicaSetCreated", `Created new replica set "a"`, corev1.ConditionTrue), set("a", 1, 2, 1), nil, false, 0, "ReplicaSetUpdated", corev1.ConditionTrue},
		"no progress until the deadline": {func() appsv1.DeploymentStatus {
			s := progressing("ReplicaSetUpdated", `ReplicaSet "a" is progressing.`, corev1.ConditionTrue)
			s.UpdatedReplicas, s.Replicas = 2, 2
			return s
		}(), set("a", 1, 2, 0), nil, false, time.Hour, "ProgressDeadlineExceeded", corev1.ConditionFalse},
		"a new template after the deadline starts anew":  {progressing("ProgressDeadlineExceeded", `ReplicaSet "a" has timed out progressing.`, corev1.ConditionFalse), set("b", 2, 0, 0), []*appsv1.ReplicaSet{set("a", 1, 2, 0)}, false, time.Hour, "NewReplicaSetCreated", corev1.ConditionTrue},
		"pods that die after the rollout are no rollout": {progressing("NewReplicaSetAvailable", `ReplicaSet "a" has successfully progressed.`, corev1.ConditionTrue), set("a", 1, 2, 0), nil, false, time.Hour, "NewReplicaSetAvailable", corev1.ConditionTrue},
		"paused":  {progressing("ReplicaSetUpdated", `ReplicaSet "a" is progressing.`, corev1.ConditionTrue), set("a", 1, 2, 1), nil, true, 0, "DeploymentPaused", corev1.ConditionUnknown},
		"resumed": {progressing("DeploymentPaused", "Deployment is paused", corev1.ConditionUnknown), set("a", 1, 2, 1), nil, false, 0, "DeploymentResumed", corev1.ConditionUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDeployment(2, "1", "0")
			*d.Spec.ProgressDeadlineSeconds, d.Spec.Paused = 600, c.paused
			s := statusOf(d, c.before, c.next, c.old, epoch.Add(c.after))
			got := condition(s, appsv1.DeploymentProgressing)
			if got == nil || got.Reason != c.reason || got.Status != c.status {
				t.Errorf("%+v, want %s %s", got, c.status, c.reason)
			}
		})
	}
}
