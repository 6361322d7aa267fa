package cni

import (
	"context"
	"errors"
	"testing"
	"time"
)

// What the runtime does not know is released, but only what it has not known for long, without a pause, and with its own word for it.
func TestLeaks(t *testing.T) {
	n := newNode(t, "10.244.0.0/24", "fd00::/64")
	var known []string
	var fail error
	n.cfg.Sandboxes = func(context.Context) ([]string, error) { return known, fail }
	n.restart(t)
	ns := newNetns(t)
	n.add(t, "leaked", ns)
	for _, id := range []string{"runs", "late"} {
		n.add(t, id, newNetns(t))
	}
	unknown := leaks{}
	now := time.Unix(1_000_000, 0)
	look := func(after time.Duration, want ...string) {
		t.Helper()
		now = now.Add(after)
		if err := n.look(t.Context(), unknown, now); (err == nil) != (fail == nil) {
			t.Fatal(err)
		}
		if got := n.ipam.list(); len(got) != len(want) {
			t.Errorf("there are %v, want %v", got, want)
		}
		for _, id := range want {
			if _, ok := n.ipam.get(id, "eth0"); !ok {
				t.Errorf("%s is gone", id)
			}
		}
	}
	known = []string{"runs"}
	look(0, "runs", "leaked", "late")
	look(leakGrace-1, "runs", "leaked", "late")
	known = []string{"runs", "late", "another's"} // its sandbox took its time
	fail = errors.New("the runtime is away")
	look(2, "runs", "leaked", "late")
	fail = nil
	look(0, "runs", "late")
	if there, err := present(ns, "eth0"); err != nil || there || len(n.fake.rows) != 4 || len(n.fake.attached) != 2 {
		t.Errorf("left of it: %v, %v, rows %v", there, err, n.fake.rows)
	}
	known = []string{"runs"}
	look(leakGrace, "runs", "late") // unknown anew
	known = nil
	look(leakGrace, "runs")
	look(leakGrace)
	if len(unknown) != 0 {
		t.Errorf("remembered: %v", unknown)
	}
}
