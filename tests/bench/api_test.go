package main

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Creates that a server refuses at once are slower than all others.
func TestRefusedCreates(t *testing.T) {
	b := &bench{report: &Report{}, options: options{effort: 0.1}}
	err := b.steadyCreates(t.Context(), func(_ context.Context, i int) error {
		if i%10 == 0 {
			return errors.New("refused")
		}
		return nil
	}, func(context.Context, int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range b.report.Rows {
		if row.Met != nil && *row.Met {
			t.Errorf("%s is met: %v", row.Name, row)
		}
	}
	if n := len(b.report.Rows); n != 4 || b.report.Rows[1].Value == never || b.report.Rows[2].Value != never || b.report.Rows[2].Rival == never {
		t.Errorf("%v", b.report.Rows)
	}
	if _, err := b.report.json(); err != nil {
		t.Error(err)
	}
}

// A watcher that reads no more does not stop the relay.
func TestRelayGoesOn(t *testing.T) {
	stalled, other := make(chan []byte), make(chan []byte, 2)
	r := &relay{all: map[chan []byte]bool{stalled: true, other: true}}
	for range 2 {
		r.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", strings.NewReader("event")))
	}
	if len(other) != 2 || r.all[stalled] {
		t.Errorf("%d events came", len(other))
	}
	if _, open := <-stalled; open {
		t.Error("the stalled watch goes on")
	}
}
