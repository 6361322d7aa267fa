package apiserver

import (
	"time"

	"k8s.io/utils/clock"
)

// together is a clock whose timers of a second and more end together with each other, at full seconds of the process's time, up to a second early. Each
// of some seventy watch caches has a look about every second at who waits for a bookmark; one by one they would wake an idle machine as often.
type together struct{ clock.RealClock }

// processTime is what full seconds are counted from.
var processTime = time.Now()

// NewTimer implements clock.Clock.
func (c together) NewTimer(d time.Duration) clock.Timer {
	return togetherTimer{time.NewTimer(untilTogether(time.Since(processTime), d))}
}

type togetherTimer struct{ timer *time.Timer }

func (t togetherTimer) C() <-chan time.Time { return t.timer.C }
func (t togetherTimer) Stop() bool          { return t.timer.Stop() }
func (t togetherTimer) Reset(d time.Duration) bool {
	return t.timer.Reset(untilTogether(time.Since(processTime), d))
}

// untilTogether is how long a timer of d runs that begins now.
func untilTogether(now, d time.Duration) time.Duration {
	if d < time.Second {
		return d
	}
	return (now + d).Truncate(time.Second) - now
}
