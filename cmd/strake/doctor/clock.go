package doctor

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Differences of clocks that are told: certificates and tokens begin to be valid when they are made.
const (
	clockWarn = 3 * time.Second // the Date header knows whole seconds
	clockFail = 30 * time.Second
)

func (e *examination) clock(ctx context.Context, g group, connectErr error) {
	const name = "against the API server"
	if connectErr != nil {
		g.unknown(name, connectErr, "")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url+"/version", nil)
	if err != nil {
		g.unknown(name, err, "")
		return
	}
	before := time.Now()
	resp, err := e.transport.RoundTrip(req)
	if err != nil {
		g.unknown(name, err, "")
		return
	}
	after := time.Now()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)) // the connection may be used again
	resp.Body.Close()
	date, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		g.unknown(name, fmt.Errorf("the API server tells no date: %w", err), "")
		return
	}
	g.judgeClock(before, after, date)
}

// judgeClock compares our time when a request went and its answer came with the second that the server named.
func (g group) judgeClock(before, after, date time.Time) {
	const name = "against the API server"
	// The server's clock was anywhere in [date, date+1s) at some time between before and after.
	var off time.Duration
	switch {
	case date.After(after):
		off = date.Sub(after)
	case date.Add(time.Second).Before(before):
		off = date.Add(time.Second).Sub(before)
	}
	const hint = "keep the clocks of all nodes in step (chrony or systemd-timesyncd)"
	switch abs := off.Abs(); {
	case abs >= clockFail:
		g.fail(name, hint, "%s apart: certificates and tokens are refused", off.Round(time.Second))
	case abs >= clockWarn:
		g.warn(name, hint, "%s apart", off.Round(time.Second))
	default:
		g.ok(name, "less than %s apart", clockWarn)
	}
}
