package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"
)

// Before the API is known whole nothing is written, so that nothing that is in force is taken away.
func TestNothingIsTakenAwayBeforeAllIsKnown(t *testing.T) {
	l := newLab(t, newTables("10.244.0.2", "10.244.0.3"), namespace("ns"), pod("ns", "a", "u1", self))
	var known atomic.Bool
	l.client.PrependReactor("list", "networkpolicies", func(clienttesting.Action) (bool, runtime.Object, error) {
		if known.Load() {
			return false, nil, nil
		}
		return true, nil, errors.New("not yet")
	})
	l.Known(endpoint("c1", "ns", "a", "u1", "10.244.0.2"))
	l.run()
	<-l.pods.synced
	<-l.namespaces.synced
	l.tables.mu.Lock()
	writes := l.tables.writes
	l.tables.mu.Unlock()
	if writes != 0 || l.Settled() {
		t.Errorf("%d writes, settled %v, before policies are known", writes, l.Settled())
	}
	known.Store(true)
	l.tables.awaitSubjects(t, "10.244.0.2")
}

// A pod is admitted once the API has told of it, by its UID, and not before.
func TestAdmission(t *testing.T) {
	l := newLab(t, newTables(), namespace("ns"), pod("ns", "a", "old", self)).run()
	admitted := make(chan error, 1)
	go func() { admitted <- l.Admit(t.Context(), endpoint("c1", "ns", "a", "new", "10.244.0.2")) }()
	pods := l.client.CoreV1().Pods("ns")
	if err := pods.Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Create(t.Context(), pod("ns", "a", "new", self), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := <-admitted; err != nil {
		t.Fatal(err)
	}
	l.tables.awaitSubjects(t, "10.244.0.2")

	// The API learns the addresses later, and it may be wrong for a while: they are those of the CNI server.
	if _, err := pods.UpdateStatus(t.Context(), pod("ns", "a", "new", self, "10.244.0.77"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.Admit(t.Context(), endpoint("c2", "", "", "", "10.244.0.3")); err != nil {
		t.Fatalf("a container that is no pod: %v", err)
	}
	l.tables.awaitSubjects(t, "10.244.0.2", "10.244.0.3")
	l.Release("c1")
	l.Release("c2")
	l.tables.awaitSubjects(t)
}

// A pod of which the API does not tell gets nothing, and its error says what is missing.
func TestAdmissionFailsClosed(t *testing.T) {
	l := newLab(t, newTables(), namespace("ns"), pod("ns", "a", "old", self)).run()
	l.settle()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := l.Admit(ctx, endpoint("c1", "ns", "a", "new", "10.244.0.2")); err == nil || !strings.Contains(err.Error(), "pod ns/a with UID new") {
		t.Errorf("error %v", err)
	}
	l.Release("c1")
	l.stop()
	if err := l.Admit(t.Context(), endpoint("c1", "ns", "a", "old", "10.244.0.2")); err == nil {
		t.Error("admitted by an agent that has ended")
	}
}

// A policy that the API had before a pod is in force when the pod is admitted, however late its watch tells.
func TestAdmissionWaitsForOlderPolicies(t *testing.T) {
	l := newLab(t, newTables(), namespace("ns"), pod("ns", "a", "u1", self))
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "deny", ResourceVersion: "7"}}
	lists := make(chan struct{}, 100)
	l.client.PrependReactor("list", "networkpolicies", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetNamespace() == "" {
			return true, &networkingv1.NetworkPolicyList{}, nil // what is watched is behind
		}
		lists <- struct{}{}
		return true, &networkingv1.NetworkPolicyList{Items: []networkingv1.NetworkPolicy{*policy}}, nil
	})
	l.run()
	admitted := make(chan error, 1)
	go func() { admitted <- l.Admit(t.Context(), endpoint("c1", "ns", "a", "u1", "10.244.0.2")) }()
	for range 2 { // it looked, waited, and looks again
		select {
		case <-lists:
		case <-time.After(patience):
			t.Fatal("nobody asks what policies there are")
		}
	}
	select {
	case err := <-admitted:
		t.Fatalf("admitted without its policy: %v", err)
	default:
	}
	if err := l.policies.Add(policy); err != nil {
		t.Fatal(err)
	}
	if err := <-admitted; err != nil {
		t.Fatal(err)
	}
}

// A pod that is deleted without waiting for its end is who it was until its network goes.
func TestForcedDeletion(t *testing.T) {
	l := newLab(t, newTables(), namespace("ns"), pod("ns", "a", "u1", self)).run()
	if err := l.Admit(t.Context(), endpoint("c1", "ns", "a", "u1", "10.244.0.2")); err != nil {
		t.Fatal(err)
	}
	pods := l.client.CoreV1().Pods("ns")
	if err := pods.Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	// Another one comes behind it.
	if _, err := pods.Create(t.Context(), pod("ns", "b", "u3", self), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.Admit(t.Context(), endpoint("c3", "ns", "b", "u3", "10.244.0.4")); err != nil {
		t.Fatal(err)
	}
	l.tables.awaitSubjects(t, "10.244.0.2", "10.244.0.4")
	l.Release("c3")
	if _, err := pods.Create(t.Context(), pod("ns", "a", "u2", self), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := l.Admit(t.Context(), endpoint("c2", "ns", "a", "u2", "10.244.0.3")); err != nil {
		t.Fatal(err)
	}
	l.tables.awaitSubjects(t, "10.244.0.2", "10.244.0.3")
	l.Release("c1")
	l.tables.awaitSubjects(t, "10.244.0.3")
}

// What can't be written is tried again until it can, is told once, and admits nobody meanwhile.
func TestFullTables(t *testing.T) {
	l := newLab(t, newTables(), namespace("ns"), pod("ns", "a", "u1", self))
	l.tables.refuse(errors.New("no room"))
	l.run()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	admitted := make(chan error, 1)
	go func() { admitted <- l.Admit(ctx, endpoint("c1", "ns", "a", "u1", "10.244.0.2")) }()
	l.tables.await(t, "three attempts", func() bool { return l.tables.writes >= 3 })
	if l.Settled() {
		t.Error("settled")
	}
	if e := <-l.events; !strings.Contains(e, reasonFailed) || !strings.Contains(e, "no room") {
		t.Errorf("event %q", e)
	}
	select {
	case e := <-l.events:
		t.Errorf("told again: %q", e)
	case err := <-admitted:
		t.Errorf("admitted: %v", err)
	default:
	}
	l.tables.refuse(nil)
	if err := <-admitted; err != nil {
		t.Fatal(err)
	}
	l.tables.awaitSubjects(t, "10.244.0.2")
}

// An address that is another pod's is told as such when it is written at last, whatever failed before: writing, or reading what there is.
func TestRebornWhenWritesFail(t *testing.T) {
	l := newLab(t, newTables())
	l.compiler.SetNamespace(namespace("ns"))
	l.compiler.SetPod(pod("ns", "a", "u1", self, "10.244.0.2"))
	if err := l.write(); err != nil {
		t.Fatal(err)
	}
	for i, breaks := range []func(error){func(err error) { l.tables.fail = err }, func(err error) { l.torn, l.tables.failRead = true, err }} {
		before, after := fmt.Sprint("u", i+1), fmt.Sprint("u", i+2)
		l.compiler.DeletePod(types.UID(before))
		l.compiler.SetPod(pod("ns", "a", after, self, "10.244.0.2"))
		breaks(errors.New("broken"))
		if err := l.write(); err == nil {
			t.Fatal("no error")
		}
		breaks(nil)
		l.tables.reborn = nil
		if err := l.write(); err != nil {
			t.Fatal(err)
		}
		if got := l.tables.reborn; len(got) != 1 || got[0] != netip.MustParseAddr("10.244.0.2") {
			t.Errorf("%d: reborn %v", i, got)
		}
		l.torn = true
		l.tables.reborn = nil
		if err := l.write(); err != nil || len(l.tables.reborn) != 0 {
			t.Errorf("%d: then: %v, %v", i, l.tables.reborn, err)
		}
	}
}

// Elsewhere than in clusters of ours ClusterNetworkPolicies may not be defined, or come and go.
func TestDefinitionComesAndGoes(t *testing.T) {
	l := newLab(t, newTables(), namespace("ns")).run()
	l.settle()
	if served, known, _ := l.definition.now(); served || !known {
		t.Errorf("served %v, known %v", served, known)
	}
	api := l.dynamic.Resource(definitions)
	awaitServed := func(want bool) {
		t.Helper()
		for {
			served, _, changed := l.definition.now()
			if served == want {
				return
			}
			select {
			case <-changed:
			case <-time.After(patience):
				t.Fatalf("served is not %v", want)
			}
		}
	}
	if _, err := api.Create(t.Context(), crd(version("v1alpha2", true), version("v1", true)), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitServed(true)
	if _, err := api.Update(t.Context(), crd(version("v1alpha2", false), version("v1", true)), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitServed(false)
	if _, err := api.Update(t.Context(), crd(version("v1alpha2", true)), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitServed(true)
	if err := api.Delete(t.Context(), crd().GetName(), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitServed(false)
}

// Of objects only what verdicts follow from makes work.
func TestHeartbeatsEndEarly(t *testing.T) {
	var passed []string
	f := newFollowed(kindPod, uidOf, keeping(keptPod), func(_, id string, o metav1.Object) {
		if o == nil {
			id = "-" + id
		}
		passed = append(passed, id)
	})
	p := pod("ns", "a", "u1", self, "10.244.0.2")
	put := func(change func(*corev1.Pod)) {
		p = p.DeepCopy()
		p.ResourceVersion += "1"
		change(p)
		if err := f.Update(p); err != nil {
			t.Fatal(err)
		}
	}
	put(func(*corev1.Pod) {})
	put(func(p *corev1.Pod) { p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady}} })
	put(func(p *corev1.Pod) { p.Annotations = map[string]string{"a": "b"} })
	if len(passed) != 1 {
		t.Errorf("passed on %q", passed)
	}
	put(func(p *corev1.Pod) { p.Labels = map[string]string{"app": "b"} })
	put(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
	put(func(p *corev1.Pod) { p.UID = "u2" })
	if err := f.Replace(nil, ""); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(passed, " "); got != "u1 u1 u1 -u1 u2 -u2" {
		t.Errorf("passed on %s", got)
	}
}
