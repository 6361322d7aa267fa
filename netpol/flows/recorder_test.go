package flows

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/strake-io/strake/bpf"
	"github.com/strake-io/strake/netpol"
)

// What the kernel tells comes back with its names.
func TestRecordHasNames(t *testing.T) {
	k, dir := newKernel(), t.TempDir()
	k.events = append(k.events, event())
	drop := event()
	drop.Kind, drop.Denied, drop.From, drop.Front, drop.Middle = bpf.FlowDrop, bpf.DeniedByEgress, netip.MustParseAddrPort("203.0.113.7:99"), netip.AddrPort{}, true
	drop.FlowSides = bpf.FlowSides{Dest: true}
	k.events = append(k.events, drop)
	once(t, open(t, k, dir))
	got := lines(t, Options{}, dir)
	if len(got) != 3 || got[2].Kind != KindStart {
		t.Fatalf("%+v", got)
	}
	want := Line{Seq: 2, Time: today.Add(-time.Second), Node: "n1", Kind: KindFlow,
		Flow: &Flow{Verdict: Allowed, From: End{Addr: "10.244.0.5", Namespace: "shop", Pod: "web-1", Labels: map[string]string{"app": "web"}},
			To:       End{Addr: "10.244.0.6", Namespace: "shop", Pod: "db-0", Labels: map[string]string{"app": "db"}},
			Protocol: "TCP", Port: 5432, Sides: []string{"source", "destination"},
			Egress:        &Decision{Allowed: true, Tier: netpol.TierNetworkPolicy, Policy: &netpol.PolicyRef{Kind: "NetworkPolicy", Namespace: "shop", Name: "allow-web", UID: "u"}, Rule: 2},
			ShadowIngress: &Decision{Tier: netpol.TierNetworkPolicy, Rule: netpol.NoRule}},
		Sample: &Sample{Event: "new", Sport: 4000, Service: &Service{Name: "shop/db:pg", Addr: "10.96.0.9", Port: 5432}, Bytes: 74}}
	if have, want := asJSON(t, got[0]), asJSON(t, want); have != want {
		t.Errorf("have %s\nwant %s", have, want)
	}
	if l := got[1]; l.Verdict != Dropped || l.From.Name() != "203.0.113.7" || l.Port != 0 || l.Dport != 5432 || l.Service != nil || l.Event != "drop" {
		t.Errorf("%s", asJSON(t, l))
	}
	if !got[0].WouldDrop() || got[1].WouldDrop() || got[0].WouldAllow() {
		t.Error("what would be dropped")
	}
	for _, l := range got {
		if l.Text() == "" || strings.Contains(l.Text(), "%!") {
			t.Errorf("%q", l.Text())
		}
	}
	for _, f := range []string{dir} {
		entries, _ := os.ReadDir(f)
		for _, e := range entries {
			if info, _ := e.Info(); info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v", e.Name(), info.Mode())
			}
		}
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sum adds up what the files have of the one class.
func sum(t *testing.T, dir string) (flows, packets uint64) {
	t.Helper()
	for _, l := range lines(t, Options{Counts: true}, dir) {
		flows += l.Flows
		packets += l.Packets
	}
	return flows, packets
}

// Counts are in the files once, whoever is killed when; a class that was forgotten, or counted anew behind a reboot, is counted from nothing.
func TestCountsAreToldOnce(t *testing.T) {
	k, dir := newKernel(), t.TempDir()
	k.seen(class(), 5, 0, clock)
	once(t, open(t, k, dir))
	wants := func(what string, flows, packets uint64) {
		t.Helper()
		if f, p := sum(t, dir); f != flows || p != packets {
			t.Errorf("%s: %d flows, %d packets in the files, want %d, %d", what, f, p, flows, packets)
		}
	}
	wants("counted", 5, 0)
	k.seen(class(), 2, 3, clock+time.Second)
	r := open(t, k, dir)
	wants("an agent that was killed before it wrote", 5, 0)
	if err := errors.Join(r.count(), r.count()); err != nil {
		t.Fatal(err)
	}
	wants("counted again", 7, 3)
	r = open(t, k, dir) // the other one was killed
	if err := r.count(); err != nil {
		t.Fatal(err)
	}
	wants("a restart", 7, 3)
	if err := k.Forget([]bpf.FlowClass{class()}); err != nil {
		t.Fatal(err)
	}
	k.seen(class(), 1, 0, clock+2*time.Second)
	if err := r.count(); err != nil {
		t.Fatal(err)
	}
	wants("forgotten", 8, 3)
	k.classes = map[bpf.FlowClass]bpf.FlowTally{}
	k.seen(class(), 100, 0, 5*time.Second) // another clock
	once(t, open(t, k, dir))
	wants("a reboot", 108, 3)
	// The files are gone, but the class was seen before the last line of another.
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) == 0 {
		t.Fatal(err)
	}
	other := class()
	other.Port = 1
	k.seen(other, 4, 0, clock)
	once(t, open(t, k, dir))
	wants("another class", 112, 3)
}

// A table that fills makes room of what is idle; what goes on is kept.
func TestIdleClassesMakeRoom(t *testing.T) {
	k, dir := newKernel(), t.TempDir()
	k.room = 10
	busy := class()
	for i := range 9 {
		c := class()
		c.Port = uint16(i + 1)
		k.seen(c, 1, 0, clock-time.Minute)
	}
	k.seen(busy, 1, 0, clock)
	r := open(t, k, dir)
	for range 2 {
		if err := r.count(); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := k.classes[busy]; !ok || len(k.classes) != 1 {
		t.Errorf("left: %+v", k.classes)
	}
	if f, _ := sum(t, dir); f != 10 {
		t.Errorf("%d flows in the files", f)
	}
}

// Where a part of the counts did not reach the disk, that part is told the next time, and the rest not again; losses wait for their line, too.
func TestWhatWasNotWrittenIsToldLater(t *testing.T) {
	k, dir := newKernel(), t.TempDir()
	k.room = 1000
	r := open(t, k, dir)
	r.counts.room = segments * 4000 // some lines at a time
	for i := range 40 {
		c := class()
		c.Port = uint16(i + 1)
		k.seen(c, 1, 0, clock)
	}
	k.losses = bpf.FlowLosses{Lost: 7}
	wrote := 0
	broken := *r.counts // of which the second write fails
	_ = broken
	half := r.counts
	half.onDisk = append(half.onDisk, func() {
		if wrote++; wrote == 1 {
			half.file.Close()
		}
	})
	r.flows.file.Close()
	if err := r.count(); err == nil {
		t.Fatal("files that are closed are no error")
	}
	some, _ := sum(t, dir)
	if some == 0 || some == 40 {
		t.Fatalf("%d of 40 flows are in the files: the test wants a part of them", some)
	}
	if err := r.count(); err != nil {
		t.Fatal(err)
	}
	if f, _ := sum(t, dir); f != 40 {
		t.Errorf("%d flows are in the files, want 40", f)
	}
	lost := uint64(0)
	for _, l := range lines(t, Options{}, dir) {
		if l.Loss != nil {
			lost += l.Lost
		}
	}
	if lost != 7 {
		t.Errorf("%d samples were lost by the files, want 7", lost)
	}
}

// A class whose lines are gone is not told again with all that it ever had, and that something of it is not known is told. So is what the files of one look
// had no room for, and they stay within their bound.
func TestCountsThatAreGone(t *testing.T) {
	k, dir := newKernel(), t.TempDir()
	k.room = 10000
	k.seen(class(), 100, 0, clock)
	once(t, open(t, k, dir))
	list, err := segmentsOf(dir, sortCounts)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if err := os.Remove(list[0].path); err != nil {
		t.Fatal(err)
	}
	later := func() (time.Time, time.Duration) { return today.Add(time.Minute), clock + time.Minute }
	other := class()
	other.Port = 1
	k.seen(other, 3, 0, clock+10*time.Second)
	r := open(t, k, dir)
	r.cfg.Clock = later
	once(t, r) // writes a line of the other, of a minute later
	if err := errors.Join(removeLines(dir, class())); err != nil {
		t.Fatal(err)
	}
	k.seen(class(), 1, 0, clock+2*time.Minute)
	r = open(t, k, dir)
	loss := func() (sum Loss) {
		for _, l := range lines(t, Options{}, dir) {
			if l.Loss != nil {
				sum.Restarted += l.Restarted
				sum.Pruned += l.Pruned
			}
		}
		return sum
	}
	once(t, r)
	if f, _ := sum(t, dir); f != 3 || loss().Restarted != 1 {
		t.Errorf("%d flows, %+v; want 3 of the other class, and a loss of one", f, loss())
	}
	r = open(t, k, dir)
	r.counts.room = segments * 4000
	for i := range 200 {
		c := class()
		c.Port = uint16(i + 100)
		k.seen(c, 1, 0, clock+3*time.Minute)
	}
	before := r.counts.seq
	once(t, r)
	left := lines(t, Options{Counts: true}, dir)
	if n := loss().Pruned; n == 0 || uint64(len(left))+n != r.counts.seq-before {
		t.Errorf("%d lines are left of %d, and %d are told as lost", len(left), r.counts.seq-before, n)
	}
	if list, _ = segmentsOf(dir, sortCounts); len(list) > segments {
		t.Errorf("%d files", len(list))
	}
	for _, s := range list {
		if s.size > 4000 {
			t.Errorf("%s has %d bytes", s.path, s.size)
		}
	}
}

// removeLines takes the counts of a class out of the files.
func removeLines(dir string, c bpf.FlowClass) error {
	list, err := segmentsOf(dir, sortCounts)
	for _, s := range list {
		text, e := os.ReadFile(s.path)
		var kept []byte
		for _, line := range bytes.SplitAfter(text, []byte("\n")) {
			if !bytes.Contains(line, []byte(`"class":"`+classID(c)+`"`)) {
				kept = append(kept, line...)
			}
		}
		err = errors.Join(err, e, os.WriteFile(s.path, kept, 0o600))
	}
	return err
}

// What is not recorded is told.
func TestLossesAreTold(t *testing.T) {
	k, dir := newKernel(), t.TempDir()
	k.losses = bpf.FlowLosses{Lost: 5, Skipped: 6}
	r := open(t, k, dir)
	k.losses = bpf.FlowLosses{Lost: 7, Skipped: 16, Full: 1}
	once(t, r)
	var found []Loss
	for _, l := range lines(t, Options{}, dir) {
		if l.Loss != nil {
			found = append(found, *l.Loss)
		}
	}
	if len(found) != 1 || found[0] != (Loss{Lost: 2, Skipped: 10, Full: 1}) {
		t.Errorf("%+v", found)
	}
}

// A line that was half written is not read, and the next agent writes behind what is whole; numbers go on. Rubbish is left out.
func TestTornRecord(t *testing.T) {
	k, dir := newKernel(), t.TempDir()
	k.events = []bpf.FlowEvent{event(), event()}
	once(t, open(t, k, dir))
	list, err := segmentsOf(dir, sortFlows)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	f, err := os.OpenFile(list[0].path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("\x00\x00{}\n{\"seq\":5,\"kind\":\"flow\"}\n" + `{"seq":6,"time":"2026-`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if got := lines(t, Options{}, dir); len(got) != 3 {
		t.Errorf("%+v", got)
	}
	k.events = []bpf.FlowEvent{event()}
	once(t, open(t, k, dir))
	got := lines(t, Options{}, dir)
	var last uint64
	for _, l := range got {
		last = max(last, l.Seq)
	}
	if len(got) != 5 || last != 7 {
		t.Errorf("%d lines, the last has number %d", len(got), last)
	}
}

// The files stay within their bound, and the oldest go; who reads meanwhile goes on.
func TestRecordIsBounded(t *testing.T) {
	k, dir := newKernel(), t.TempDir()
	r := open(t, k, dir)
	r.flows.room = 80000
	var n int
	ctx, stop := context.WithCancel(t.Context())
	followed := make(chan error, 1)
	go func() {
		followed <- Follow(ctx, []string{dir}, Options{}, func(l Line) error {
			if n++; l.Seq == 1000 {
				stop()
			}
			return nil
		})
	}()
	for r.flows.seq <= 1000 {
		l := r.line(KindFlow)
		l.Flow, l.Sample = r.class(class(), 0), &Sample{Event: "new"}
		if err := errors.Join(r.flows.add(l, nil), r.flows.flush()); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-followed; err != nil {
		t.Fatal(err)
	}
	list, err := segmentsOf(dir, sortFlows)
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, s := range list {
		size += s.size
	}
	if size > 80000 || size < 40000 || len(list) < 5 {
		t.Errorf("%d files with %d bytes", len(list), size)
	}
	got := lines(t, Options{}, dir)
	for i := 1; i < len(got); i++ {
		if got[i].Seq != got[i-1].Seq+1 {
			t.Errorf("line %d behind %d", got[i].Seq, got[i-1].Seq)
		}
	}
	old := time.Now().Add(-r.flows.age - time.Hour)
	for _, s := range list[:3] {
		if err := os.Chtimes(s.path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.flows.prune(r.flows.room); err != nil {
		t.Fatal(err)
	}
	if left, _ := segmentsOf(dir, sortFlows); len(left) != len(list)-3 {
		t.Errorf("%d of %d files are left, 3 of them too old", len(left), len(list))
	}
	if _, err := New(Config{Dir: dir, Size: 1, Source: k}); err == nil {
		t.Error("a record of one byte is no error")
	}
}

// Follow gives what is there, and what comes, of several folders in the order of time.
func TestFollowGoesOn(t *testing.T) {
	k, dirs := newKernel(), []string{t.TempDir(), t.TempDir()}
	for i, dir := range dirs {
		e := event()
		e.Time -= time.Duration(i) * time.Minute
		k.events = []bpf.FlowEvent{e}
		once(t, open(t, k, dir))
	}
	var got []string
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	came := make(chan struct{}, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- Follow(ctx, dirs, Options{Since: today.Add(-30 * time.Second)}, func(l Line) error {
			if l.Kind == KindFlow {
				got = append(got, fmt.Sprint(l.Time.Sub(today)))
				came <- struct{}{}
			}
			return nil
		})
	}()
	<-came
	k.events = []bpf.FlowEvent{event()}
	r := open(t, k, dirs[1])
	once(t, r)
	<-came
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0] != "-1s" || got[1] != "-1s" {
		t.Errorf("%v", got)
	}
	if err := Follow(ctx, []string{filepath.Join(dirs[0], "none")}, Options{}, nil); err == nil {
		t.Error("a folder that is not there is no error")
	}
}

// Whatever is in a file: no panic, and what is read can be shown and judged.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"seq":2,"time":"2026-11-21T12:00:00Z","node":"n1","kind":"flow","verdict":"allowed","from":{"addr":"10.0.0.1"},"to":{"addr":"x"},"protocol":"TCP","sides":["source"],"event":"new","bytes":1}`))
	f.Add([]byte(`{"kind":"count","class":"1","egress":{},"total":[1]}`))
	f.Add([]byte(`{"kind":"loss","lost":1}`))
	f.Add([]byte(`{"kind":"loss","lost":1,"class":"1"}`))
	f.Add([]byte(`{"kind":"start","class":"1","verdict":"dropped"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, ok := parse(text)
		if !ok {
			return
		}
		if bytes.ContainsRune([]byte(l.Text()), '\n') && !bytes.Contains(text, []byte(`\n`)) {
			t.Errorf("%q", l.Text())
		}
		if l.Flow != nil {
			l.Flow.Why()
			Filter{Verdict: WouldAllow, Pod: "a/b", Policy: "c"}.Takes(l.Flow)
			_, _ = l.From.Address()
		}
		var s Sums
		s.Add(l)
		s.Sums()
	})
}

// BenchmarkSamples is what the agent does for each flow that it is told of.
func BenchmarkSamples(b *testing.B) {
	r, err := New(Config{Dir: b.TempDir(), Node: "n1", Source: newKernel(), Names: names(), Clock: func() (time.Time, time.Duration) { return today, clock }})
	if err != nil {
		b.Fatal(err)
	}
	e := event()
	for b.Loop() {
		if err := r.flows.add(r.sample(e), nil); err != nil {
			b.Fatal(err)
		}
	}
}
