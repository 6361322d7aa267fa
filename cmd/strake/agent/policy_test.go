package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/strake-io/strake/netpol/flows"
)

// The record is opened once who is who is known, and again until that succeeds.
func TestRecordIsTriedAgain(t *testing.T) {
	known := make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	tries := 0
	p := &policies{record: func() (*flows.Recorder, error) {
		select {
		case <-known:
		default:
			t.Error("nobody is known yet")
		}
		if tries++; tries == 3 {
			stop()
		}
		return nil, errors.New("no space left on device")
	}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.recordFlows(ctx, known, time.Millisecond)
	}()
	close(known)
	<-ended
	if tries != 3 {
		t.Errorf("tried %d times", tries)
	}
	p.recordFlows(ctx, make(chan struct{}), time.Hour) // ends with ctx
}
