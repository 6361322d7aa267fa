package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/strake-io/strake/cmd/strake/cluster"
	"github.com/strake-io/strake/cmd/strake/layout"
)

// A node that has no record yet is named beside those that have one, and is an error if none has.
func TestNodesWithoutARecord(t *testing.T) {
	first, err := layout.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range []layout.Layout{first, first.Node(2)} {
		s := cluster.Defaults()
		s.NodeName, s.Recording.On = []string{"one", "two"}[i], true
		if err := os.MkdirAll(filepath.Dir(l.Settings()), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := s.Save(l); err != nil {
			t.Fatal(err)
		}
	}
	place := func() (layout.Layout, error) { return first, nil }
	var notes strings.Builder
	if dirs, err := flowRecords(place, &notes); len(dirs) > 0 || err == nil || !strings.Contains(err.Error(), "node one") || notes.Len() > 0 {
		t.Errorf("no record: %q, %v, %q", dirs, err, &notes)
	}
	if err := os.MkdirAll(first.FlowRecord(), 0o700); err != nil {
		t.Fatal(err)
	}
	if dirs, err := flowRecords(place, &notes); len(dirs) != 1 || err != nil || !strings.Contains(notes.String(), "node two has recorded nothing yet") {
		t.Errorf("one record: %q, %v, %q", dirs, err, &notes)
	}
}
