package turns

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// scripted is a session that takes as long as it says.
type scripted struct {
	takes time.Duration
	err   error
}

func (s scripted) Ask() error { time.Sleep(s.takes); return s.err }

func TestCompare(t *testing.T) {
	open := func(addr string, second bool) (Session, error) {
		if addr == "broken" {
			return scripted{err: errors.New("no answer")}, nil
		}
		if second {
			return scripted{takes: 5 * time.Millisecond}, nil
		}
		return scripted{}, nil
	}
	r, err := Compare([2]string{"a", "b"}, open, 1, 30*time.Millisecond, 4)
	if err != nil {
		t.Fatal(err)
	}
	// Sleeps only get longer.
	if r.Ratio <= 1 || r.A.Rate <= r.B.Rate || r.A.Median >= r.B.Median {
		t.Errorf("a server that answers at once: %+v", r)
	}
	if _, err := Compare([2]string{"a", "broken"}, open, 1, time.Millisecond, 1); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a server without answers: %v", err)
	}
}

func TestRotate(t *testing.T) {
	var order string
	way := func(name string, takes time.Duration) Way {
		return Way{name, func(time.Duration) ([]time.Duration, time.Duration, error) {
			order += name
			return []time.Duration{takes, takes}, 2 * takes, nil
		}}
	}
	all, err := Rotate([]Way{way("a", 1000), way("b", 2000), way("c", 4000)}, time.Millisecond, 2)
	if err != nil {
		t.Fatal(err)
	}
	orders := map[string]bool{}
	for round := range slices.Chunk([]byte(order), 3) {
		orders[string(round)] = true
		for _, way := range "abc" {
			if !strings.ContainsRune(string(round), way) {
				t.Errorf("the order is %s", order)
			}
		}
	}
	if len(order) != 12 || len(orders) < 2 {
		t.Errorf("the order is %s", order)
	}
	if r := all[0].Against(all[2]); r.Ratio != 4 || r.Low != 4 || r.High != 4 || r.A.Median != 1 || r.B.P99 != 4 || r.A.Asked != 8 {
		t.Errorf("%+v", r)
	}
	if r := all[2].Against(all[0].With(all[1])); r.Ratio != 1/3. || r.B.Median != 1.5 || r.B.Asked != 16 {
		t.Errorf("against the mean of two: %+v", r)
	}
	broken := Way{"broken", func(time.Duration) ([]time.Duration, time.Duration, error) { return nil, 0, errors.New("no answer") }}
	if _, err := Rotate([]Way{way("a", 1), broken}, time.Millisecond, 1); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a way without answers: %v", err)
	}
}

func TestConfidence(t *testing.T) {
	for n, want := range map[int][2]int{1: {0, 0}, 3: {0, 2}, 100: {40, 60}, 600: {275, 325}} {
		if low, high := confidence(n); low != want[0] || high != want[1] {
			t.Errorf("of %d: %d to %d, want %v", n, low, high, want)
		}
	}
}
