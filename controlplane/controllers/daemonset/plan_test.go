package daemonset

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/strake-io/strake/controlplane/controllers/revisions"
)

// pod spells a pod: node, revision, and "!" for one that doesn't serve, "x" for one that is being deleted, "f" for failed.
func pod(text string, age int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: text, Labels: map[string]string{revisions.Label: text[1:2]}, CreationTimestamp: metav1.Unix(int64(1000-age), 0)}}
	pin(&p.Spec, text[:1])
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	switch text[2:] {
	case "!":
		p.Status.Conditions = nil
	case "x":
		p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	case "f":
		p.Status.Phase = corev1.PodFailed
	}
	return p
}

func TestDecide(t *testing.T) {
	rolling := func(unavailable, surge int32) appsv1.DaemonSetUpdateStrategy {
		u, s := intstr.FromInt32(unavailable), intstr.FromInt32(surge)
		return appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &u, MaxSurge: &s}}
	}
	for _, test := range []struct {
		name, nodes, pods string
		strategy          appsv1.DaemonSetUpdateStrategy
		want              string
	}{
		{"one for each", "A B C", "A2", rolling(1, 0), "+B +C"},
		{"not where it may not run", "A Bs Ce", "", rolling(1, 0), "+A"},
		{"stays where it may not begin", "A Bs Ce", "A2 B2 C2", rolling(1, 0), "-C2"},
		{"waits for the one that goes", "A", "A2x", rolling(1, 0), ""},
		{"failed", "A", "A2f", rolling(1, 0), "!A2f"},
		{"of two the younger goes", "A", "A2 A2!", rolling(1, 0), "-A2!"},
		{"one at a time", "A B C", "A1 B1 C1", rolling(1, 0), "-A1"},
		{"two at a time", "A B C", "A1 B1 C1", rolling(2, 0), "-A1 -B1"},
		{"waits", "A B C", "A2! B1 C1", rolling(1, 0), ""},
		{"what doesn't serve goes at once", "A B C", "A2! B1! C1", rolling(1, 0), "-B1!"},
		{"surge", "A B", "A1 B1", rolling(0, 1), "+A"},
		{"surge waits", "A B", "A1 A2! B1", rolling(0, 1), ""},
		{"surge is done", "A B", "A1 A2 B1", rolling(0, 1), "-A1"},
		{"by hand", "A B", "A1 B1", appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}, ""},
		{"a node that is gone", "A", "A2 B2", rolling(1, 0), "-B2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := &appsv1.DaemonSet{Spec: appsv1.DaemonSetSpec{UpdateStrategy: test.strategy}}
			var nodes []*corev1.Node
			for _, text := range strings.Fields(test.nodes) {
				n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: text[:1]}}
				switch text[1:] {
				case "s":
					n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
				case "e":
					n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute}}
				}
				nodes = append(nodes, n)
			}
			var owned []*corev1.Pod
			for i, text := range strings.Fields(test.pods) {
				owned = append(owned, pod(text, 100-i))
			}
			p := decide(d, nodes, owned, "2", time.Unix(2000, 0))
			var have []string
			for _, n := range p.create {
				have = append(have, "+"+n)
			}
			for _, pod := range p.remove {
				have = append(have, "-"+pod.Name)
			}
			for _, pod := range p.failed {
				have = append(have, "!"+pod.Name)
			}
			slices.Sort(have)
			want := strings.Fields(test.want)
			slices.Sort(want)
			if fmt.Sprint(have) != fmt.Sprint(want) {
				t.Errorf("%v, want %v", have, want)
			}
		})
	}
}

func TestDaemonsTolerateTroubles(t *testing.T) {
	d := &appsv1.DaemonSet{}
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "A"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
		{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute}, {Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}, {Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule},
	}}}
	if run, stay := belongs(daemon(d), n); !run || !stay {
		t.Errorf("run %v, stay %v", run, stay)
	}
	n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeNetworkUnavailable, Effect: corev1.TaintEffectNoSchedule})
	if run, _ := belongs(daemon(d), n); run {
		t.Error("runs without a network")
	}
	d.Spec.Template.Spec.HostNetwork = true
	if run, _ := belongs(daemon(d), n); !run {
		t.Error("does not run on the host's network")
	}
}
