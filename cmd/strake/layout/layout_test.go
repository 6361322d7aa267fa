package layout

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// TestLabNodes: a lab node's places follow from the first node's, and are the same however it is named.
func TestLabNodes(t *testing.T) {
	first, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	second, err := New(filepath.Join(first.Data, "nodes", "2"))
	if err != nil {
		t.Fatal(err)
	}
	if second != first.Node(2) || second.ID != first.ID+"-2" {
		t.Errorf("%+v is not node 2 of %+v", second, first)
	}
	if of, n, ok := second.LabNode(); !ok || n != 2 || of != first {
		t.Errorf("node %d of %+v, %v", n, of, ok)
	}
	for _, none := range []string{"nodes/1", "nodes/02", "nodes/x", "other/2", "nodes/2/x"} {
		l, err := New(filepath.Join(first.Data, none))
		if _, n, ok := l.LabNode(); err != nil || ok || len(l.ID) != 8 {
			t.Errorf("%s is node %d, id %s, %v", none, n, l.ID, err)
		}
	}
	for _, dir := range []string{"10", "2", "x", "1"} {
		if err := os.MkdirAll(filepath.Join(first.Data, "nodes", dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := first.LabNodes(); err != nil || !reflect.DeepEqual(list, []int{2, 10}) {
		t.Errorf("lab nodes %v, %v", list, err)
	}
}
