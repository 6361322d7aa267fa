package cluster

import (
	"context"
	"errors"
	"io"
	"testing"
)

func TestInterruptedStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var cause error
	steps := []step{{"API server ready", func(context.Context) error { cancel(); return errors.New("connection refused") }}}
	err := new(start).run(ctx, steps, func(_ context.Context, err error) error { cause = err; return nil }, io.Discard)
	if err == nil || err.Error() != "API server ready: interrupted" || !errors.Is(cause, errInterrupted) {
		t.Errorf("%v, undone because of %v", err, cause)
	}
}
