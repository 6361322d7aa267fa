package apiserver

import (
	"testing"
	"time"
)

func TestTimersEndTogether(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	for _, c := range []struct{ now, d, want time.Duration }{
		{300 * ms, 100 * ms, 100 * ms}, // short ones are as they are
		{300 * ms, 999 * ms, 999 * ms},
		{300 * ms, 1200 * ms, 700 * ms},
		{900 * ms, s, 100 * ms},
		{2 * s, s, s},
		{2 * s, 1249 * ms, s},
		{2*s + ms, 15 * s, 15*s - ms},
	} {
		if got := untilTogether(c.now, c.d); got != c.want {
			t.Errorf("a timer of %v that begins at %v runs %v, want %v", c.d, c.now, got, c.want)
		}
	}
}

func TestTogetherTimerFiresAgain(t *testing.T) {
	timer := together{}.NewTimer(time.Second)
	defer timer.Stop()
	<-timer.C()
	if timer.Reset(time.Second) {
		t.Error("a timer that has ended still ran")
	}
	<-timer.C()
}
