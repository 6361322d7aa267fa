package server

import "testing"

func TestMoreThreadsThanCPUs(t *testing.T) {
	for _, test := range []struct{ procs, cpus, want int }{{1, 1, 4}, {2, 2, 4}, {4, 4, 0}, {8, 8, 0}, {2, 16, 0}, {2, 3, 0}} {
		if got := moreProcs(test.procs, test.cpus); got != test.want {
			t.Errorf("%d threads on %d CPUs are to be %d, want %d (0: left alone)", test.procs, test.cpus, got, test.want)
		}
	}
}
