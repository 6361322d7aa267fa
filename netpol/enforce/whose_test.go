package enforce

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func ownedPod(name, addr string, created time.Time) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": name}, CreationTimestamp: metav1.NewTime(created)},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: addr}}}}
}

// What happened while a pod had an address is that pod's, though it is gone by then, or another has the address.
func TestWhoseKnowsFormerOwners(t *testing.T) {
	start := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	now := start
	w := newWhose()
	w.now = func() time.Time { return now }
	e := &Enforcer{whose: w}
	addr := netip.MustParseAddr("10.244.0.5")
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	wants := func(what string, when int, want string) {
		t.Helper()
		who, _ := e.Whose(addr, at(when))
		if have := who.Pod + who.Labels["app"]; have != want+want {
			t.Errorf("%s: at second %d it was %s, want %s with its label", what, when, have, want)
		}
	}
	old, next := Endpoint{Owner: "1", Namespace: "shop", Pod: "old", Addrs: []netip.Addr{addr}}, Endpoint{Owner: "2", Namespace: "shop", Pod: "next", Addrs: []netip.Addr{addr}}
	pod := ownedPod("old", addr.String(), start)
	w.note(kindPod, "uid-old", pod)
	w.attached(old)
	w.note(kindPod, "uid-old", pod) // it changed somehow
	now = at(1)
	w.note(kindPod, "uid-old", nil)
	wants("the API has removed it, and it still ends", 2, "old")
	now = at(3)
	w.released(old)
	wants("gone", 2, "old")
	wants("its last packets", 4, "old")
	now = at(5)
	w.attached(next)
	w.note(kindPod, "uid-next", ownedPod("next", addr.String(), at(5)))
	wants("another has the address", 2, "old")
	wants("another has the address", 6, "next")
	// On another node: the API tells of the new one before it removes the old.
	addr = netip.MustParseAddr("10.244.1.5")
	w.note(kindPod, "uid-a", ownedPod("a", addr.String(), at(5)))
	now = at(8)
	w.note(kindPod, "uid-b", ownedPod("b", addr.String(), at(7)))
	now = at(9)
	w.note(kindPod, "uid-a", nil)
	wants("elsewhere", 7, "a")
	wants("elsewhere", 9, "b")
	// Nothing stays.
	now = at(10).Add(2 * keepFormer)
	w.note(kindPod, "uid-b", nil)
	if len(w.former) != 1 || len(w.ended) != 1 {
		t.Errorf("%v and %v are kept", w.former, w.ended)
	}
	wants("long gone", 10+3*60, "")
	for i := range maxFormer + 10 {
		w.retire(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), types.NamespacedName{Name: fmt.Sprint(i)}, nil)
	}
	if len(w.ended) > maxFormer || len(w.former) > maxFormer {
		t.Errorf("%d are kept", len(w.ended))
	}
}
