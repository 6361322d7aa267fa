package cronjob

import (
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// scheduleOf reads a CronJob's schedule, in its time zone; without one it is the controller's.
func scheduleOf(c *batchv1.CronJob) (s cron.Schedule, err error) {
	// The library panics on some texts that begin with a time zone.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("schedule %q: %v", c.Spec.Schedule, r)
		}
	}()
	text := c.Spec.Schedule
	if z := c.Spec.TimeZone; z != nil && !strings.Contains(text, "TZ=") {
		if _, err := time.LoadLocation(*z); err != nil {
			return nil, fmt.Errorf("time zone %q: %w", *z, err)
		}
		text = "TZ=" + *z + " " + text
	}
	return cron.ParseStandard(text)
}

// maxMissed bounds the times that are counted one by one.
const maxMissed = 100

// due returns the last time at or before now, after since, at which a Job should have been started, and how many such
// times there were (at most one more than maxMissed); zero: none.
func due(s cron.Schedule, since, now time.Time) (last time.Time, missed int) {
	for t := s.Next(since); !t.IsZero() && !t.After(now); t = s.Next(t) {
		last, missed = t, missed+1
		if missed > maxMissed {
			break
		}
	}
	if missed <= maxMissed {
		return last, missed
	}
	// So long a pause is looked at from its end: in windows that double until there is a time in one.
	for window := time.Minute; ; window *= 2 {
		from := now.Add(-window)
		if from.Before(since) {
			from = since
		}
		found := time.Time{}
		for t := s.Next(from); !t.IsZero() && !t.After(now); t = s.Next(t) {
			found = t
		}
		if !found.IsZero() {
			return found, missed
		}
	}
}

// since is when to begin looking for missed times.
func since(c *batchv1.CronJob, now time.Time) time.Time {
	from := c.CreationTimestamp.Time
	if c.Status.LastScheduleTime != nil {
		from = c.Status.LastScheduleTime.Time
	}
	if d := c.Spec.StartingDeadlineSeconds; d != nil {
		if deadline := now.Add(-time.Duration(*d) * time.Second); deadline.After(from) {
			from = deadline
		}
	}
	return from
}
