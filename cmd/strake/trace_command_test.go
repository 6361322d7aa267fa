package main

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPodOfWorkload(t *testing.T) {
	pod := func(name, node string, phase corev1.PodPhase) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "demo", Name: name}, Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase}}
	}
	pods := []corev1.Pod{pod("web-1-a", "other", corev1.PodRunning), pod("web-1-b", "here", corev1.PodSucceeded), pod("web-1-c", "here", corev1.PodRunning), pod("far-0", "other", corev1.PodRunning)}
	for workload, want := range map[string]int{"demo/web": 2, "demo/far": 3, "demo/we": -1, "default/web": -1} {
		if got := podOfWorkload(pods, workload, "here"); got != want {
			t.Errorf("%s: %d, want %d", workload, got, want)
		}
	}
}
