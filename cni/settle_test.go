package cni

import "testing"

// A new pod's program is attached for good later, unless the pod has gone by then.
func TestSettle(t *testing.T) {
	n := newNode(t, "10.244.0.0/24")
	n.add(t, "a", newNetns(t))
	n.add(t, "b", newNetns(t))
	if len(n.fake.quick) != 2 || len(n.fresh) != 2 {
		t.Fatalf("%v are attached quickly, %d wait for more", n.fake.quick, len(n.fresh))
	}
	n.del(t, "a", "")
	for range 2 {
		n.settlePod(<-n.fresh)
	}
	if len(n.fake.attached) != 1 {
		t.Errorf("%v are attached, want b's alone", n.fake.attached)
	}
	for i := range n.fake.attached {
		if n.fake.quick[i] {
			t.Error("b's is not attached for good")
		}
	}
}
