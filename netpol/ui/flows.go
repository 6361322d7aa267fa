package ui

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/strake-io/strake/netpol/flows"
)

// How far the page looks back: at single flows, and at what policies in shadow would have done.
const (
	flowsSince  = 10 * time.Minute
	shadowSince = 24 * time.Hour
)

// What is sent: the newest lines of those that wait, as many as the page draws; to so many pages at a time.
const (
	mostFlows  = 200
	maxStreams = 8
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
	select {
	case s.open <- struct{}{}:
		defer func() { <-s.open }()
	default:
		fail(w, http.StatusServiceUnavailable, fmt.Errorf("%d pages show flows already: close one", maxStreams))
		return
	}
	at := placesOf(r.Header.Get("Last-Event-ID"))
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	flush.Flush()
	var waiting []flows.Line
	send := func() error {
		for _, l := range waiting {
			if err := event(w, l, at); err != nil {
				return err
			}
		}
		waiting = nil
		flush.Flush()
		return nil
	}
	err = flows.Follow(r.Context(), dirs, flows.Options{Since: time.Now().Add(-flowsSince), CaughtUp: send}, func(l flows.Line) error {
		if l.Kind == flows.KindStart || l.Flow != nil && !filter.Takes(l.Flow) || at.had(l) {
			return nil
		}
		if waiting = append(waiting, l); len(waiting) >= 2*mostFlows {
			waiting = append([]flows.Line(nil), waiting[len(waiting)-mostFlows:]...)
		}
		return nil
	})
	if err != nil && r.Context().Err() == nil {
		text, _ := json.Marshal(err.Error()) // of a string it does not fail
		_, _ = fmt.Fprintf(w, "event: failed\ndata: %s\n\n", text)
	}
}

// event sends a line.
func event(w http.ResponseWriter, l flows.Line, at places) error {
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
	at.pass(l)
	_, err = fmt.Fprintf(w, "id: %s\ndata: %s\n\n", at, text)
	return err
}

// places are how far a page has the record of each node: a browser that comes again tells it.
type places map[string]place

type place struct {
	seq uint64
	at  int64 // ns; numbers begin anew in a record that was removed
}

// placesOf reads what String has written, and leaves out what is none of it.
func placesOf(id string) places {
	p := places{}
	values, _ := url.ParseQuery(id) // what it can read of it
	for node := range values {
		seq, at, _ := strings.Cut(values.Get(node), ".")
		n, err1 := strconv.ParseUint(seq, 10, 64)
		t, err2 := strconv.ParseInt(at, 10, 64)
		if err1 == nil && err2 == nil {
			p[node] = place{n, t}
		}
	}
	return p
}

func (p places) String() string {
	values := url.Values{}
	for node, at := range p {
		values.Set(node, fmt.Sprintf("%d.%d", at.seq, at.at))
	}
	return values.Encode()
}

func (p places) pass(l flows.Line) {
	was := p[l.Node]
	p[l.Node] = place{l.Seq, max(was.at, l.Time.UnixNano())}
}

func (p places) had(l flows.Line) bool {
	at, ok := p[l.Node]
	return ok && l.Seq <= at.seq && l.Time.UnixNano() <= at.at
}

// shadow lists what policies in shadow would have done, and since when.
func (s *Server) shadow(*http.Request) (any, error) {
	dirs, err := s.records()
	if err != nil {
		return nil, err
	}
	var sums flows.Sums
	start := time.Now().Add(-shadowSince)
	var answer struct {
		Since *time.Time     `json:"since"` // the record has nothing before; null: nothing at all
		List  []flows.Shadow `json:"list"`
	}
	err = flows.Read(dirs, flows.Options{Since: start, Counts: true}, func(l flows.Line) error {
		sums.Add(l)
		if l.Count != nil && (answer.Since == nil || l.Count.Since.Before(*answer.Since)) {
			answer.Since = &l.Count.Since
		}
		return nil
	})
	if answer.Since != nil && answer.Since.Before(start) {
		answer.Since = &start
	}
	answer.List = flows.Shadows(sums.Sums())
	return answer, err
}
