package main

import (
	"slices"
	"testing"
)

func TestSearched(t *testing.T) {
	search := []string{"ns.svc.c", "svc.c", "c"}
	for _, c := range []struct {
		name    string
		search  []string
		options []string
		want    []string
	}{
		{"web.", search, []string{"ndots:5"}, []string{"web."}},
		{"web", search, []string{"ndots:5"}, []string{"web.ns.svc.c.", "web.svc.c.", "web.c.", "web."}},
		{"a.b.c.d.e.f", search, []string{"ndots:5"}, []string{"a.b.c.d.e.f.", "a.b.c.d.e.f.ns.svc.c.", "a.b.c.d.e.f.svc.c.", "a.b.c.d.e.f.c."}},
		{"a.b", search[:1], nil, []string{"a.b.", "a.b.ns.svc.c."}},
		{"a", []string{"."}, nil, []string{"a.", "a."}},
	} {
		if got := searched(c.name, c.search, c.options); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
