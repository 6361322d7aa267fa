package main

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodOfWorkload(t *testing.T) {
	pod := func(name, node string, phase corev1.PodPhase, kind, owner, hash string) corev1.Pod {
		is := true
		p := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name}, Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase},
		}
		if hash != "" {
			p.Labels = map[string]string{"pod-template-hash": hash}
		}
		if kind != "" {
			p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: owner, Controller: &is}}
		}
		return p
	}
	generated := pod("loose-x2b4c", "here", corev1.PodRunning, "", "", "")
	generated.GenerateName = "loose-"
	pods := []corev1.Pod{
		pod("web-db-1-a", "here", corev1.PodRunning, "ReplicaSet", "web-db-1", "1"),
		pod("web-1-a", "other", corev1.PodRunning, "ReplicaSet", "web-1", "1"),
		pod("web-1-b", "here", corev1.PodSucceeded, "ReplicaSet", "web-1", "1"),
		pod("web-1-c", "here", corev1.PodRunning, "ReplicaSet", "web-1", "1"),
		pod("far-0", "other", corev1.PodRunning, "StatefulSet", "far", ""),
		pod("near-2", "here", corev1.PodRunning, "", "", ""),
		pod("nightly-29391840-x2b4c", "here", corev1.PodRunning, "Job", "nightly-29391840", ""),
		generated,
	}
	for workload, want := range map[string]int{"web": 3, "web-1": 3, "web-db": 0, "far": 4, "near": -1, "we": -1, "nightly": 6, "night": -1, "loose": 7} {
		if got := podOfWorkload(pods, "demo", workload, "here"); got != want {
			t.Errorf("%s: %d, want %d", workload, got, want)
		}
	}
	if got := podOfWorkload(pods, "default", "web", "here"); got != -1 {
		t.Errorf("in another namespace: %d", got)
	}
}
