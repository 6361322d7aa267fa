package cronjob

import (
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
)

func TestDue(t *testing.T) {
	at := func(text string) time.Time {
		v, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	berlin := "Europe/Berlin"
	for _, test := range []struct {
		schedule         string
		zone             *string
		since, now, last string
		missed           int
	}{
		{"* * * * *", nil, "2026-01-01T10:00:00Z", "2026-01-01T10:00:59Z", "", 0},
		{"* * * * *", nil, "2026-01-01T10:00:00Z", "2026-01-01T10:01:00Z", "2026-01-01T10:01:00Z", 1},
		{"*/5 * * * *", nil, "2026-01-01T10:00:00Z", "2026-01-01T10:16:00Z", "2026-01-01T10:15:00Z", 3},
		{"* * * * *", nil, "2025-01-01T10:00:00Z", "2026-01-01T10:15:30Z", "2026-01-01T10:15:00Z", maxMissed + 1},
		{"0 9 * * 1-5", nil, "2020-01-01T00:00:00Z", "2026-01-04T12:00:00Z", "2026-01-02T09:00:00Z", maxMissed + 1},
		// The night in which clocks go forward: three o'clock follows on two.
		{"30 3 * * *", &berlin, "2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z", "2026-03-29T01:30:00Z", 1},
		{"0 0 30 2 *", nil, "2020-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "", 0},
	} {
		s, err := scheduleOf(&batchv1.CronJob{Spec: batchv1.CronJobSpec{Schedule: test.schedule, TimeZone: test.zone}})
		if err != nil {
			t.Fatal(err)
		}
		last, missed := due(s, at(test.since).UTC(), at(test.now).UTC())
		if want := test.last; (want == "") != last.IsZero() || want != "" && !last.Equal(at(want)) || missed != test.missed {
			t.Errorf("%s from %s to %s: %s (%d), want %s (%d)", test.schedule, test.since, test.now, last, missed, want, test.missed)
		}
	}
	for _, bad := range []string{"", "TZ=0", "CRON_TZ=", "61 * * * *", "@every x"} {
		if _, err := scheduleOf(&batchv1.CronJob{Spec: batchv1.CronJobSpec{Schedule: bad}}); err == nil {
			t.Errorf("%q is a schedule", bad)
		}
	}
}
