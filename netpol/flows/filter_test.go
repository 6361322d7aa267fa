package flows

import (
	"slices"
	"testing"
	"time"

	"github.com/strake-io/strake/netpol"
)

func TestFilter(t *testing.T) {
	by := func(allowed bool, name string) *Decision {
		return &Decision{Allowed: allowed, Policy: &netpol.PolicyRef{Namespace: "shop", Name: name}}
	}
	web, db, outside := End{Namespace: "shop", Pod: "web"}, End{Namespace: "data", Pod: "db"}, End{Addr: "203.0.113.9"}
	all := map[string]*Flow{
		"plain":       {Verdict: Allowed, From: web, To: outside, Ingress: by(true, "open")},
		"denied":      {Verdict: Dropped, From: outside, To: db, Egress: by(false, "closed")},
		"would drop":  {Verdict: Allowed, From: web, To: db, ShadowIngress: by(false, "strict")},
		"would allow": {Verdict: Dropped, From: db, To: outside, Ingress: by(false, "closed"), ShadowIngress: by(true, "loose")},
		// The direction that drops is not the one that a policy in shadow would open.
		"would not allow": {Verdict: Dropped, From: outside, To: web, Egress: by(false, "closed"), ShadowIngress: by(true, "loose")},
	}
	for _, c := range []struct {
		filter Filter
		want   []string
	}{
		{Filter{}, []string{"denied", "plain", "would allow", "would drop", "would not allow"}},
		{Filter{Verdict: Allowed}, []string{"plain", "would drop"}},
		{Filter{Verdict: Dropped}, []string{"denied", "would allow", "would not allow"}},
		{Filter{Verdict: WouldDrop}, []string{"would drop"}},
		{Filter{Verdict: WouldAllow}, []string{"would allow"}},
		{Filter{Pod: "shop/web"}, []string{"plain", "would drop", "would not allow"}},
		{Filter{Pod: "data/db"}, []string{"denied", "would allow", "would drop"}},
		{Filter{Namespace: "data"}, []string{"denied", "would allow", "would drop"}},
		{Filter{Policy: "shop/open"}, []string{"plain"}},
		{Filter{Policy: "shop/closed"}, []string{"denied", "would allow", "would not allow"}},
		{Filter{Policy: "shop/strict"}, []string{"would drop"}},
		{Filter{Policy: "shop/loose", Verdict: WouldAllow, Pod: "data/db"}, []string{"would allow"}},
		{Filter{Policy: "loose"}, nil},
	} {
		var got []string
		for name, f := range all {
			if c.filter.Takes(f) {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v takes %q, want %q", c.filter, got, c.want)
		}
	}
	for _, f := range []Filter{{Verdict: "denied"}, {Pod: "web"}, {Pod: "a/b/c"}} {
		if f.Check() == nil {
			t.Errorf("%+v is no filter", f)
		}
	}
}

// Names of pods are those of workloads with what controllers add: another workload's name may begin alike.
func TestOfPod(t *testing.T) {
	for _, c := range []struct {
		name, meant string
		want        bool
	}{
		{"shop/web", "shop/web", true}, {"shop/web-777bb76df-ptshv", "shop/web-777bb76df-ptshv", true}, {"shop/web-777bb76df-ptshv", "shop/web-777bb76df", true},
		{"shop/web-777bb76df-ptshv", "shop/web", true}, {"shop/web-ptshv", "shop/web", true}, {"shop/web-0", "shop/web", true}, {"shop/web-29391840-ptshv", "shop/web", true},
		{"shop/web2-777bb76df-ptshv", "shop/web", false}, {"shop/web-db-777bb76df-ptshv", "shop/web", false}, {"shop/web-db-ptshv", "shop/web", false}, {"shop/web-db", "shop/web", false},
		{"shop/web-db-0", "shop/web", false}, {"shop/web", "shop/web-777bb76df-ptshv", false}, {"data/web-ptshv", "shop/web", false}, {"", "shop/web", false}, {"203.0.113.9", "shop/web", false},
	} {
		if got := OfPod(c.name, c.meant, false); got != c.want {
			t.Errorf("%q for %q: %v", c.name, c.meant, got)
		}
	}
	web := &Flow{Verdict: Allowed, From: End{Namespace: "shop", Pod: "web-777bb76df-ptshv"}, To: End{Addr: "203.0.113.9"}}
	other := &Flow{Verdict: Allowed, From: End{Addr: "203.0.113.9"}, To: End{Namespace: "shop", Pod: "web-db-777bb76df-ptshv"}}
	if f := (Filter{Pod: "shop/web"}); !f.Takes(web) || f.Takes(other) {
		t.Errorf("web %v, web-db %v", f.Takes(web), f.Takes(other))
	}
	// A pod of the very name is meant before any workload: a StatefulSet's may be called as another's pod is, with a number more.
	one := &Flow{Verdict: Allowed, From: End{Namespace: "shop", Pod: "db-0"}, To: End{Addr: "203.0.113.9"}}
	another := &Flow{Verdict: Allowed, From: End{Addr: "203.0.113.9"}, To: End{Namespace: "shop", Pod: "db-0-2"}}
	f := Filter{Pod: "shop/db-0"}
	if f.Meet(another); f.Exact || !f.Takes(another) {
		t.Error("the pods of a workload are not taken where no pod has its name")
	}
	if f.Meet(one); !f.Exact || !f.Takes(one) || f.Takes(another) {
		t.Errorf("db-0 %v, db-0-2 %v where db-0 is meant", f.Takes(one), f.Takes(another))
	}
}

// Counts of a class add up, those of another node or policy apart.
func TestSums(t *testing.T) {
	var s Sums
	at := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	add := func(node string, f *Flow, n, packets uint64) {
		at = at.Add(time.Minute)
		s.Add(Line{Node: node, Time: at, Flow: f, Count: &Count{Flows: n, Again: 1, Packets: packets, Bytes: 100, Since: at.Add(-time.Hour)}})
	}
	begun := at.Add(time.Minute - time.Hour)
	add("n1", &Flow{Verdict: Allowed, Protocol: "TCP", Port: 80}, 2, 0)
	add("n2", &Flow{Verdict: Allowed, Protocol: "TCP", Port: 80}, 1, 0)
	add("n1", &Flow{Verdict: Allowed, Protocol: "TCP", Port: 80}, 3, 0)
	add("n1", &Flow{Verdict: Dropped, Protocol: "TCP", Port: 80}, 0, 4)
	add("n1", &Flow{Verdict: Dropped, Protocol: "TCP", Port: 80}, 0, 5)
	s.Add(Line{Node: "n1", Flow: &Flow{}}) // a sample
	got := s.Sums()
	if len(got) != 3 {
		t.Fatalf("%d classes, want 3", len(got))
	}
	if d := got[0]; d.Verdict != Dropped || d.Packets != 9 || d.Flows != 0 {
		t.Errorf("first is %+v, want the nine that were dropped", d)
	}
	if a := got[1]; a.Node != "n1" || a.Flows != 5 || a.Again != 2 || a.Bytes != 200 || !a.Since.Equal(begun) || !a.Last.Equal(begun.Add(time.Hour+2*time.Minute)) {
		t.Errorf("%+v", a)
	}
	if b := got[2]; b.Node != "n2" || b.Flows != 1 {
		t.Errorf("%+v", b)
	}
}
