package history

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// is is a policy that selects pods by a label's value.
func is(name, value string) Change {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Generation: 1}}
	p.Spec.PodSelector.MatchLabels = map[string]string{"app": value}
	return Change{"NetworkPolicy", "ns", name, p}
}

func gone(name string) Change { return Change{"NetworkPolicy", "ns", name, nil} }

// told is what a file says, a word for each line.
func told(t *testing.T, path string) (words []string, broken []string) {
	t.Helper()
	list, broken, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		word := e.What
		if e.Policy != nil {
			word += " " + e.Policy.Name
		}
		if e.Away {
			word += " away"
		}
		if e.Count > 0 {
			word += fmt.Sprint(" ", e.Count)
		}
		words = append(words, word)
	}
	return words, broken
}

func want(t *testing.T, path string, words ...string) {
	t.Helper()
	got, broken := told(t, path)
	if strings.Join(got, ", ") != strings.Join(words, ", ") || len(broken) > 0 {
		t.Errorf("it tells %q, want %q; broken: %q", got, words, broken)
	}
}

// run writes what do tells to a log, as one agent does from start to end.
func run(t *testing.T, path string, limit int64, do func(*Log)) {
	t.Helper()
	l, err := open(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	do(l)
	ctx, stop := context.WithCancel(context.Background())
	stop()
	l.Run(ctx)
}

// A history goes on when the agent does, tells what changed meanwhile, and nothing twice.
func TestHistoryGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy", "history")
	run(t, path, maxBytes, func(l *Log) {
		l.All([]Change{is("a", "1"), is("b", "1")})
		l.Changed([]Change{is("a", "2"), is("b", "1")})
		l.Changed([]Change{is("c", "1"), gone("c"), gone("never")})
		l.Proof(7, 0, "")
		l.Proof(8, 0, "")
		l.Proof(9, 2, "this and that")
		l.Proof(7, 0, "")
	})
	first := []string{"enforced a", "enforced b", "enforced a", "enforced c", "gone c", "proved 7", "drift 2", "proved 7"}
	want(t, path, first...)
	run(t, path, maxBytes, func(l *Log) { l.All([]Change{is("a", "3"), is("d", "1")}) })
	want(t, path, append(first, "gone b away", "enforced a away", "enforced d away")...)
	list, _, err := Read(path)
	if last := list[len(list)-2]; err != nil || last.Hash == last.Before || last.Before != list[2].Hash || list[2].Before != list[0].Hash {
		t.Errorf("%v: hashes %+v", err, list)
	}
}

// What a crash leaves of a line goes, and what is no line is told, and no reason to stop.
func TestHistoryAfterACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	run(t, path, maxBytes, func(l *Log) { l.All([]Change{is("a", "1")}) })
	add := func(text string) {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	add(`{"what":"gone","pol`)
	run(t, path, maxBytes, func(l *Log) { l.All([]Change{is("a", "2")}) })
	want(t, path, "enforced a", "enforced a away")
	add("rubbish\n")
	run(t, path, maxBytes, func(l *Log) { l.All([]Change{is("a", "3")}) })
	words, broken := told(t, path)
	if len(words) != 3 || len(broken) != 1 || !strings.HasSuffix(broken[0], ":3 is no line of a history") {
		t.Errorf("%q, broken: %q", words, broken)
	}
}

// Who alters a line, or takes one out, can't hide it.
func TestHistoryShowsWhatWasAltered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	run(t, path, maxBytes, func(l *Log) { l.All([]Change{is("a", "1"), is("b", "1"), is("c", "1")}) })
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.SplitAfter(string(whole), "\n")
	for what, text := range map[string]string{
		"a line is gone":    rows[0] + rows[2],
		"a line is altered": rows[0] + strings.Replace(rows[1], `"b"`, `"x"`, 1) + rows[2],
		"lines are swapped": rows[1] + rows[0] + rows[2],
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, broken := told(t, path); len(broken) == 0 {
			t.Errorf("%s, and nothing is told", what)
		}
	}
}

// A history is bounded, and what is enforced is told at the beginning of each file; a crash while files change loses nothing of that.
func TestHistoryIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	const limit = 4000
	for i := range 100 {
		run(t, path, limit, func(l *Log) { l.All([]Change{is("a", fmt.Sprint(i)), is("b", "1")}) })
	}
	for _, name := range []string{path, former(path)} {
		if info, err := os.Stat(name); err != nil || info.Size() > 2*limit {
			t.Errorf("%s: %v, %d bytes", name, err, info.Size())
		}
	}
	words, broken := told(t, path)
	if len(broken) > 0 || len(words) < 20 || words[0] != "held a" || words[1] != "held b" {
		t.Errorf("%q, broken: %q", words, broken)
	}
	if err := os.Remove(path); err != nil { // as if it had been killed between the two renames
		t.Fatal(err)
	}
	run(t, path, limit, func(l *Log) { l.All([]Change{is("b", "1")}) })
	words, broken = told(t, path)
	if n := len(words); len(broken) > 0 || strings.Join(words[n-3:], ", ") != "held a, held b, gone a away" {
		t.Errorf("%q, broken: %q", words, broken)
	}
}

// What can't be written for want of room in memory is counted.
func TestHistoryTellsWhatItLeftOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	run(t, path, maxBytes, func(l *Log) {
		l.All([]Change{is("a", "1")})
		for range maxWaiting + 4 {
			l.Changed([]Change{is("a", "1")})
		}
	})
	want(t, path, "enforced a", "untold 5")
}

// If only one of the two renames succeeds the next time does the other.
func TestHistoryGoesOnAfterHalfAChangeOfFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	run(t, path, maxBytes, func(l *Log) {
		l.All([]Change{is("a", "1")})
		l.flush()
		if err := os.Rename(path, former(path)); err != nil {
			t.Fatal(err)
		}
		if err := l.begin(); err != nil {
			t.Fatal(err)
		}
		l.Changed([]Change{is("a", "2")})
	})
	want(t, path, "enforced a", "held a", "enforced a")
}

// An agent that changes its files while they are read raises no alarm.
func TestHistoryIsReadWhileFilesChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "history")
	run(t, path, maxBytes, func(l *Log) {
		l.All([]Change{is("a", "1")})
		l.flush()
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for ctx.Err() == nil {
				if err := l.begin(); err != nil {
					t.Error(err)
					return
				}
			}
		}()
		defer func() { stop(); <-done }()
		for range 2000 {
			if _, broken := told(t, path); len(broken) > 0 {
				t.Errorf("broken: %q", broken)
				break
			}
		}
	})
}
