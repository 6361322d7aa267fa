package analysis

import (
	_ "embed"
	"encoding/json"
	"html/template"
	"io"
	"strings"
	"time"

	"github.com/strake-io/strake/netpol/history"
)

//go:embed pages.html
var pagesText string

var pages = template.Must(template.New("pages").Parse(pagesText))

// drawn is what the pages' script draws from.
type drawn struct {
	Ends    []End     `json:"ends"`
	Answers []*Answer `json:"answers"`
	Rows    [][]int32 `json:"rows"`
	Counts  Counts    `json:"counts"`
}

func (m *Matrix) script() (template.JS, error) {
	data, err := json.Marshal(drawn{m.Ends, m.Answers, m.Rows, m.Counts})
	return template.JS(data), err // json.Marshal escapes what would end the script
}

// WriteHTML writes a page with a heat map. It is whole in itself: it asks for nothing, and runs nothing but its own script.
func (m *Matrix) WriteHTML(w io.Writer, title string) error {
	data, err := m.script()
	if err != nil {
		return err
	}
	return pages.ExecuteTemplate(w, "matrix", map[string]any{"Title": title, "Data": data})
}

// When is the time of a report for people.
func (r *Report) When() string { return r.Time.UTC().Format(time.RFC3339) }

// Lines tell why an assertion does not hold.
func (r Result) Lines() string { return strings.Join(r.lines(), "\n") }

// WriteHTML writes a report as a page, whole in itself as the matrix' page is.
func (r *Report) WriteHTML(w io.Writer, title string) error {
	data, err := r.Matrix.script()
	if err != nil {
		return err
	}
	var seen []drawnClaim
	for _, c := range r.Evidence.claims() {
		seen = append(seen, drawnClaim{c.part, c.name, c.holds, c.text})
	}
	var past []drawnEntry
	for i := len(r.Evidence.History) - 1; i >= 0 && len(past) < mostPast; i-- { // the newest first
		past = append(past, drawnEntry{historyWhen(r.Evidence.History[i]), historyText(r.Evidence.History[i]), r.Evidence.History[i]})
	}
	older := len(r.Evidence.History) - len(past)
	return pages.ExecuteTemplate(w, "report", map[string]any{"Title": title, "Data": data, "Report": r, "Seen": seen, "Past": past, "Older": older})
}

// mostPast is how many entries of a history a page has.
const mostPast = 1000

type drawnClaim struct {
	Part, Name string
	Holds      bool
	Text       string
}

type drawnEntry struct {
	When, Text string
	Entry      history.Entry
}
