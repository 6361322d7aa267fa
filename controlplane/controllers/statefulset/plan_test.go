package statefulset

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/controlplane/controllers/revisions"
)

// pod spells a pod: its ordinal and revision, "!" for one that doesn't serve, "x" for one that is being deleted, "f" for
// one that has failed.
func pod(text string) *corev1.Pod {
	var ordinal int
	var rest string
	if _, err := fmt.Sscanf(text, "%d%s", &ordinal, &rest); err != nil {
		panic(err)
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s-%d", ordinal), Labels: map[string]string{revisions.Label: rest[:1]}}}
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	switch {
	case strings.HasSuffix(rest, "!"):
		p.Status.Conditions = nil
	case strings.HasSuffix(rest, "x"):
		p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	case strings.HasSuffix(rest, "f"):
		p.Status.Phase = corev1.PodFailed
	}
	return p
}

func TestDecide(t *testing.T) {
	for _, test := range []struct {
		name, pods string
		replicas   int32
		change     func(*appsv1.StatefulSetSpec)
		want       string
	}{
		{name: "from nothing, one by one", replicas: 3, want: "+0"},
		{name: "the next when the first serves", pods: "0b", replicas: 3, want: "+1"},
		{name: "not before", pods: "0b!", replicas: 3, want: ""},
		{name: "all at once", replicas: 3, change: parallel, want: "+0 +1 +2"},
		{name: "those that are missing", pods: "1b!", replicas: 3, change: parallel, want: "+0 +2"},
		{name: "failed ones go first", pods: "0b 1bf 2b", replicas: 3, want: "-1"},
		{name: "down from the top", pods: "0b 1b 2b 3b", replicas: 2, want: "-3"},
		{name: "one at a time", pods: "0b 1b 2b 3bx", replicas: 2, want: ""},
		{name: "all that are too many", pods: "0b 1b 2b 3b", replicas: 2, change: parallel, want: "-3 -2"},
		{name: "a rollout from the top", pods: "0a 1a 2a", replicas: 3, want: "-2"},
		{name: "waits for the new one", pods: "0a 1a 2b!", replicas: 3, change: parallel, want: ""},
		{name: "goes on", pods: "0a 1a 2b", replicas: 3, want: "-1"},
		{name: "to the partition", pods: "0a 1a 2b", replicas: 3, change: func(s *appsv1.StatefulSetSpec) {
			s.UpdateStrategy.RollingUpdate.Partition = new(int32)
			*s.UpdateStrategy.RollingUpdate.Partition = 2
		}, want: ""},
		{name: "two at once", pods: "0a 1a 2a", replicas: 3, change: func(s *appsv1.StatefulSetSpec) {
			two := intstr.FromInt32(2)
			s.UpdateStrategy.RollingUpdate.MaxUnavailable = &two
		}, want: "-2 -1"},
		{name: "by hand", pods: "0a 1a", replicas: 2, change: func(s *appsv1.StatefulSetSpec) {
			s.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
		}, want: ""},
		{name: "not from zero", pods: "0b 4b", replicas: 2, change: func(s *appsv1.StatefulSetSpec) { s.Ordinals = &appsv1.StatefulSetOrdinals{Start: 4} }, want: "+5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: appsv1.StatefulSetSpec{
				Replicas: &test.replicas, PodManagementPolicy: appsv1.OrderedReadyPodManagement,
				UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{}},
			}}
			if test.change != nil {
				test.change(&s.Spec)
			}
			var owned []*corev1.Pod
			for _, text := range strings.Fields(test.pods) {
				owned = append(owned, pod(text))
			}
			wanted, condemned := places(s, owned)
			p := decide(s, wanted, condemned, "b", time.Unix(100, 0))
			var have []string
			for _, n := range p.create {
				have = append(have, fmt.Sprintf("+%d", n))
			}
			for _, pod := range p.remove {
				have = append(have, fmt.Sprintf("-%d", ordinalOf("s", pod.Name)))
			}
			if got := strings.Join(have, " "); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

func parallel(s *appsv1.StatefulSetSpec) { s.PodManagementPolicy = appsv1.ParallelPodManagement }

func TestOrdinals(t *testing.T) {
	for name, want := range map[string]int{"s-0": 0, "s-10": 10, "s-01": -1, "s--1": -1, "s-x": -1, "t-1": -1, "s": -1, "s-1-1": -1} {
		if have := ordinalOf("s", name); have != want {
			t.Errorf("%s: %d, want %d", name, have, want)
		}
	}
}
