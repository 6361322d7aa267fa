package podworker

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The pauses between restarts of a container, and between pulls of an image that fail.
const (
	backoffMin = 10 * time.Second
	backoffMax = 5 * time.Minute
	// A container that ran this long starts afresh.
	backoffReset = 10 * time.Minute
)

// backoff is the growing pause between the restarts of one container.
type backoff struct {
	delay time.Duration
	// from is the end of the incarnation that the delay counts from.
	from time.Time
}

// wait returns how long the container has to wait before its next start. The first restart comes at once.
func (b *backoff) wait(s *runtimeapi.ContainerStatus, now time.Time) time.Duration {
	if !exited(s) {
		return 0
	}
	ended := time.Unix(0, s.FinishedAt)
	if ended.Equal(b.from) {
		return max(0, ended.Add(b.delay).Sub(now))
	}
	switch {
	case b.from.IsZero():
		b.delay = 0
	case s.StartedAt > 0 && ended.Sub(time.Unix(0, s.StartedAt)) >= backoffReset: // it may never have started
		b.delay = 0
	default:
		b.delay = grown(b.delay)
	}
	b.from = ended
	return max(0, ended.Add(b.delay).Sub(now))
}

func grown(d time.Duration) time.Duration { return min(max(2*d, backoffMin), backoffMax) }

// pullBackoff is the pause after pulls of one image that failed.
type pullBackoff struct {
	delay time.Duration
	until time.Time
	err   error // of the last pull
}

func (b *pullBackoff) failed(err error, now time.Time) {
	b.delay, b.err = grown(b.delay), err
	b.until = now.Add(b.delay)
}
