package ui

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/strake-io/strake/netpol/flows"
)

// How far the page looks back: at single flows, and at what policies in shadow would have done.
const (
	flowsSince  = 10 * time.Minute
	shadowSince = 24 * time.Hour
)

// errNoRecord is for people.
var errNoRecord = errors.New("no node on this machine records flows: start it with `strake up --record-flows`")

// records are the folders to read.
func (s *Server) records() ([]string, error) {
	if s.config.Records == nil {
		return nil, badRequest{http.StatusNotFound, errNoRecord}
	}
	dirs, err := s.config.Records()
	if err == nil && len(dirs) == 0 {
		err = errNoRecord
	}
	if err != nil {
		return nil, badRequest{http.StatusNotFound, err}
	}
	return dirs, nil
}

// flows sends flows of a verdict as events, those that there are and those that come, until the browser goes.
func (s *Server) flows(w http.ResponseWriter, r *http.Request) {
	filter := flows.Filter{Verdict: r.URL.Query().Get("verdict")}
	dirs, err := s.records()
	if err == nil {
		err = filter.Check()
	}
	flush, ok := w.(http.Flusher)
	if err != nil || !ok {
		fail(w, http.StatusNotFound, err)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	flush.Flush()
	err = flows.Follow(r.Context(), dirs, flows.Options{Since: time.Now().Add(-flowsSince)}, func(l flows.Line) error {
		if l.Kind == flows.KindStart || l.Flow != nil && !filter.Takes(l.Flow) {
			return nil
		}
		var told struct {
			flows.Line
			Text string `json:"text"`
			Why  string `json:"why"`
		}
		told.Line, told.Text = l, l.Text()
		if l.Flow != nil {
			told.Why = l.Why()
		}
		text, err := json.Marshal(told)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "data: %s\n\n", text); err != nil {
			return err
		}
		flush.Flush()
		return nil
	})
	if err != nil && r.Context().Err() == nil {
		text, _ := json.Marshal(err.Error()) // of a string it does not fail
		_, _ = fmt.Fprintf(w, "event: failed\ndata: %s\n\n", text)
	}
}

// shadow lists what policies in shadow would have done.
func (s *Server) shadow(*http.Request) (any, error) {
	dirs, err := s.records()
	if err != nil {
		return nil, err
	}
	var sums flows.Sums
	err = flows.Read(dirs, flows.Options{Since: time.Now().Add(-shadowSince), Counts: true}, func(l flows.Line) error {
		sums.Add(l)
		return nil
	})
	return flows.Shadows(sums.Sums()), err
}
